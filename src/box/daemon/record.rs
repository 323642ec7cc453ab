//! Records the box's changes to NICs in a file beside the control socket.
//!
//! The pins hold them too, but are lost when their file system is unmounted, while the NICs keep
//! their settings. The file is valid for one boot only: a reboot resets the NICs.

use exitmark_datapath::Undo;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub(super) struct Record {
    path: PathBuf,
    pins: PathBuf,
}

#[derive(Deserialize, Serialize)]
struct Stored {
    /// The kernel's boot_id (random(4)).
    boot: String,
    /// The pin directory, which identifies the box among others on this machine.
    pins: PathBuf,
    changes: Vec<Change>,
}

#[derive(Deserialize, Serialize)]
struct Change(#[serde(with = "Fields")] Undo);

/// The fields of an [`Undo`]: the names in the file.
#[derive(Deserialize, Serialize)]
#[serde(remote = "Undo")]
struct Fields {
    ifindex: u32,
    netns: u64,
    changed: u64,
}

impl Record {
    pub(super) fn of(socket: &Path, pins: &Path) -> Self {
        let name = pins.to_string_lossy().replace('/', "-");
        Self {
            path: socket.with_file_name(format!("nics{name}.json")),
            pins: pins.to_owned(),
        }
    }

    /// The pin directories within this one of which there is a record.
    pub(super) fn below(socket: &Path, pins: &Path) -> Vec<PathBuf> {
        let directory = socket.parent().unwrap_or(Path::new("."));
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let stored = entries.filter_map(|entry| {
            let name = entry.file_name();
            let is_record = name.to_str()?.starts_with("nics");
            let bytes = is_record.then(|| fs::read(entry.path()).ok())??;
            serde_json::from_slice::<Stored>(&bytes).ok()
        });
        let below = stored.map(|stored| stored.pins);
        let is_wire = |path: &PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy());
            path.parent() == Some(pins) && name.is_some_and(|name| name.starts_with("wire-"))
        };
        below.filter(is_wire).collect()
    }

    /// The changes recorded since the last boot; empty if the file is missing or unreadable.
    pub(super) fn read(&self) -> Vec<Undo> {
        let stored = fs::read(&self.path).ok();
        let stored = stored.and_then(|bytes| serde_json::from_slice::<Stored>(&bytes).ok());
        let changes = stored
            .filter(|stored| stored.pins == self.pins && Some(&stored.boot) == boot().as_ref())
            .map_or_else(Vec::new, |stored| stored.changes);
        changes.into_iter().map(|Change(undo)| undo).collect()
    }

    /// Replaces the record; without changes, removes the file. On failure only the pins have it.
    pub(super) fn write(&self, changes: &[Undo]) {
        if let Err(error) = self.try_to_write(changes) {
            tracing::warn!(
                "{}: cannot be written: {error}; if the pins are lost, the NICs are not set back",
                self.path.display()
            );
        }
    }

    fn try_to_write(&self, changes: &[Undo]) -> io::Result<()> {
        if changes.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let stored = Stored {
            boot: boot().unwrap_or_default(),
            pins: self.pins.clone(),
            changes: changes.iter().copied().map(Change).collect(),
        };
        let new = self.path.with_extension("new");
        fs::write(&new, serde_json::to_vec(&stored)?)?;
        fs::rename(&new, &self.path)
    }
}

/// The kernel's boot_id (random(4)).
fn boot() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

/// Merges the changes into one per NIC.
pub(super) fn united(changes: impl IntoIterator<Item = Undo>) -> Vec<Undo> {
    let mut united: Vec<Undo> = Vec::new();
    for change in changes.into_iter().filter(|change| change.changed != 0) {
        let of_same = |one: &&mut Undo| (one.ifindex, one.netns) == (change.ifindex, change.netns);
        match united.iter_mut().find(of_same) {
            Some(one) => one.changed |= change.changed,
            None => united.push(change),
        }
    }
    united
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Undo = Undo {
        ifindex: 7,
        netns: 4_026_531_840,
        changed: 0b101,
    };

    #[test]
    fn changes_are_read_as_written_and_only_by_the_same_box_in_the_same_boot() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control.sock");
        let record = Record::of(&socket, Path::new("/sys/fs/bpf/exitmark"));
        assert_eq!(record.read(), []);
        record.write(&[ONE]);
        assert_eq!(record.read(), [ONE]);
        let other = Record::of(&socket, Path::new("/sys/fs/bpf/other"));
        assert_eq!(other.read(), []);
        let text = fs::read_to_string(&record.path).unwrap();
        fs::write(&record.path, text.replace(&boot().unwrap(), "an older one")).unwrap();
        assert_eq!(record.read(), []);
        fs::write(&record.path, &text[..text.len() / 2]).unwrap();
        assert_eq!(record.read(), []);
        record.write(&[]);
        assert!(!record.path.exists());
        record.write(&[]);
    }

    #[test]
    fn changes_to_one_nic_are_merged() {
        let more = Undo {
            changed: 0b10,
            ..ONE
        };
        let nothing = Undo {
            ifindex: 8,
            changed: 0,
            ..ONE
        };
        let elsewhere = Undo { netns: 1, ..ONE };
        let all = Undo {
            changed: 0b111,
            ..ONE
        };
        assert_eq!(united([ONE, more, nothing, elsewhere]), [all, elsewhere]);
    }
}
