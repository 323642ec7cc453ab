//! What the box has changed on NICs, in a file beside the control socket.
//!
//! The pins have it too, and go when their file system is unmounted; the NICs stay as they are set.
//! The file is of one boot: a machine that is booted has its NICs as they were.

use crate::datapath::Undo;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where changes are recorded.
pub(super) struct Record {
    path: PathBuf,
    pins: PathBuf,
}

#[derive(Deserialize, Serialize)]
struct Stored {
    /// The kernel's number for the time since it was booted.
    boot: String,
    /// The pins of the box, which tell it from others of this machine.
    pins: PathBuf,
    changes: Vec<Change>,
}

/// As [`Undo`].
#[derive(Deserialize, Serialize)]
struct Change {
    ifindex: u32,
    netns: u64,
    changed: u64,
}

impl Record {
    /// The record of the box with this control socket and these pins.
    pub(super) fn of(socket: &Path, pins: &Path) -> Self {
        let name = pins.to_string_lossy().replace('/', "-");
        Self {
            path: socket.with_file_name(format!("nics{name}.json")),
            pins: pins.to_owned(),
        }
    }

    /// What was changed since the machine was booted. What cannot be read counts as nothing.
    pub(super) fn read(&self) -> Vec<Undo> {
        let stored = fs::read(&self.path).ok();
        let stored = stored.and_then(|bytes| serde_json::from_slice::<Stored>(&bytes).ok());
        let changes = stored
            .filter(|stored| stored.pins == self.pins && Some(&stored.boot) == boot().as_ref())
            .map_or_else(Vec::new, |stored| stored.changes);
        let undo = |change: Change| Undo {
            ifindex: change.ifindex,
            netns: change.netns,
            changed: change.changed,
        };
        changes.into_iter().map(undo).collect()
    }

    /// Replaces it; nothing changed is no file. Where it cannot be written, the pins alone have it.
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
        let change = |undo: &Undo| Change {
            ifindex: undo.ifindex,
            netns: undo.netns,
            changed: undo.changed,
        };
        let stored = Stored {
            boot: boot().unwrap_or_default(),
            pins: self.pins.clone(),
            changes: changes.iter().map(change).collect(),
        };
        let new = self.path.with_extension("new");
        fs::write(&new, serde_json::to_vec(&stored)?)?;
        fs::rename(&new, &self.path)
    }
}

/// The kernel's number for the time since it was booted (random(4)).
fn boot() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

/// All that was changed, a NIC a line.
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
    fn what_was_changed_on_one_nic_is_one_change() {
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
