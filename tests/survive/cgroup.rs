//! A memory cgroup, to let the kernel's OOM killer end the box.

use exitmark_lab::LabError;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(10);

/// The file names of one version of cgroups.
struct Names {
    usage: &'static str,
    limit: &'static str,
    /// The file with a line `oom_kill NUMBER`.
    events: &'static str,
}

const V1: Names = Names {
    usage: "memory.usage_in_bytes",
    limit: "memory.limit_in_bytes",
    events: "memory.oom_control",
};
const V2: Names = Names {
    usage: "memory.current",
    limit: "memory.max",
    events: "memory.events",
};

/// A memory cgroup, removed when this is dropped.
pub(crate) struct MemoryCgroup {
    path: PathBuf,
    names: &'static Names,
}

impl MemoryCgroup {
    /// Creates a cgroup with the memory controller of either version.
    ///
    /// # Errors
    /// Fails if this process may not write to either.
    pub(crate) fn new() -> Result<Self, LabError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("exitmark-survive-{}-{number}", std::process::id());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for line in mounts.lines() {
            let [_, mount, kind, options, ..] = line.split(' ').collect::<Vec<_>>()[..] else {
                continue;
            };
            let names = match kind {
                "cgroup" if options.split(',').any(|option| option == "memory") => &V1,
                "cgroup2" => &V2,
                _ => continue,
            };
            let path = Path::new(mount).join(&name);
            if fs::create_dir(&path).is_err() {
                continue;
            }
            let made = Self { path, names };
            // Version 2 may lack this controller.
            if made.path.join(names.limit).exists() {
                return Ok(made);
            }
        }
        Err(LabError("no memory cgroup can be made".to_owned()))
    }

    /// Writes a script that enters the cgroup and executes `program`, so that all of its memory is
    /// charged to the cgroup.
    pub(crate) fn wrap(&self, program: &Path, directory: &Path) -> Result<PathBuf, LabError> {
        let path = directory.join("in-cgroup");
        let text = format!(
            "#!/bin/sh\necho $$ > {}/cgroup.procs && exec {} \"$@\"\n",
            self.path.display(),
            program.display()
        );
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::write(&path, text)
            .and_then(|()| fs::set_permissions(&path, executable))
            .map_err(|error| LabError(format!("cannot write {}: {error}", path.display())))?;
        Ok(path)
    }

    /// Lowers the limit to the current usage: a process that allocates more is killed. Version 2
    /// kills if the usage is higher already, version 1 refuses a limit below it.
    pub(crate) fn squeeze(&self) {
        let usage = self.read(self.names.usage);
        // A refusal means that the usage has grown; the caller tries again.
        let _ = fs::write(self.path.join(self.names.limit), usage.trim());
    }

    /// The number of processes in the cgroup that the OOM killer has killed.
    pub(crate) fn kills(&self) -> u64 {
        self.read(self.names.events)
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "))
            .and_then(|number| number.trim().parse().ok())
            .unwrap_or(0)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path.join(name)).unwrap_or_default()
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        let begin = Instant::now();
        // It is busy until its last process is reaped.
        while fs::remove_dir(&self.path).is_err() && begin.elapsed() < TIMEOUT {
            thread::sleep(Duration::from_millis(5));
        }
    }
}
