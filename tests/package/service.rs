//! Does without systemd what systemd would do with the installed units: the mount, the directories,
//! the user, capabilities and limits, the read-only file system, the command line. Not covered: the
//! seccomp filter, the device and kernel protections.

use crate::machine::Machine;
use exitmark_lab::{RunningBox, contained};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

const CGROUPS: &str = "/sys/fs/cgroup";

pub(crate) struct Service<'a> {
    machine: &'a Machine,
    unit: Unit,
    /// File systems besides the root and /run.
    mounts: Vec<String>,
    scripts: TempDir,
}

/// A unit's `key=value` lines.
pub(crate) struct Unit(String);

impl Unit {
    pub(crate) fn of(machine: &Machine, name: &str) -> Self {
        Self(machine.read(&format!("/lib/systemd/system/{name}")))
    }

    fn find(&self, key: &str) -> Option<&str> {
        let lines = self.0.lines().filter_map(|line| line.split_once('='));
        let mut values = lines.filter(|(name, _)| *name == key);
        let (first, more) = (values.next(), values.next());
        // More commands before the start are for devices, which this machine does without.
        let may_repeat = key == "ExecStartPre";
        assert!(more.is_none() || may_repeat, "{key} is there twice");
        first.map(|(_, value)| value)
    }

    #[track_caller]
    pub(crate) fn value(&self, key: &str) -> &str {
        self.find(key)
            .unwrap_or_else(|| panic!("there is no {key} in\n{}", self.0))
    }
}

impl<'a> Service<'a> {
    /// Does everything before the first start of the box.
    pub(crate) fn prepare(machine: &'a Machine) -> Self {
        let unit = Unit::of(machine, "exitmark.service");
        let mount = Unit::of(machine, "run-bpf-exitmark.mount");
        let place = mount.value("Where");
        assert_eq!(unit.value("RequiresMountsFor"), place);
        machine.run("mkdir", &["-p", place]);
        let (kind, options) = (mount.value("Type"), mount.value("Options"));
        let arguments = ["-t", kind, "-o", options, mount.value("What"), place];
        machine.run("mount", &arguments);
        // As root with all privileges, which is the meaning of the plus sign.
        let first = unit.value("ExecStartPre").strip_prefix('+').unwrap();
        let words: Vec<_> = first.split_whitespace().collect();
        machine.run(words[0], &words[1..]);
        let owner = machine.run("stat", &["-c", "%a %U:%G", place]);
        assert!(owner.trim().ends_with("700 exitmark:exitmark"), "{owner}");
        // Programs are attached to cgroups, for which a read-only mount is enough.
        assert_eq!(unit.value("ProtectControlGroups"), "yes");
        machine.run("mount", &["-t", "cgroup2", "cgroup2", CGROUPS]);
        let mounts = vec![place.to_owned(), CGROUPS.to_owned()];
        Self::with_directories(machine, unit, mounts)
    }

    /// The same for the monitor.
    pub(crate) fn prepare_monitor(machine: &'a Machine) -> Self {
        let unit = Unit::of(machine, "exitmark-monitor.service");
        Self::with_directories(machine, unit, vec![])
    }

    fn with_directories(machine: &'a Machine, unit: Unit, mounts: Vec<String>) -> Self {
        let service = Self {
            machine,
            unit,
            mounts,
            scripts: TempDir::new().unwrap(),
        };
        let (user, group) = (service.unit.value("User"), service.unit.value("Group"));
        for (directory, mode) in service.directories() {
            let arguments = ["-d", "-m", mode, "-o", user, "-g", group, &directory];
            machine.run("install", &arguments);
        }
        service
    }

    /// The directories that are the service's own, and their modes.
    fn directories(&self) -> [(String, &str); 2] {
        [("/var/lib", "StateDirectory"), ("/run", "RuntimeDirectory")].map(|(parent, key)| {
            let mode = self.unit.value(&format!("{key}Mode"));
            (format!("{parent}/{}", self.unit.value(key)), mode)
        })
    }

    /// Starts the service, and waits until it is ready.
    pub(crate) fn start(&self) -> RunningBox {
        let mut words = self.unit.value("ExecStart").split_whitespace();
        let mut command = contained(self.launcher(words.next().unwrap()));
        command.args(words);
        RunningBox::start_by(&self.machine.site.middle, command)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Writes a script that executes the service.
    fn launcher(&self, program: &str) -> PathBuf {
        let value = |key| self.unit.value(key);
        assert_eq!(value("ProtectSystem"), "strict");
        assert_eq!(value("NoNewPrivileges"), "yes");
        assert_eq!(value("LimitCORE"), "0");
        assert_eq!(value("LimitMEMLOCK"), "infinity");
        assert_eq!(value("AmbientCapabilities"), value("CapabilityBoundingSet"));
        let root = self.machine.root();
        let root = root.display();
        let own = self.directories().map(|(directory, _)| directory);
        let capabilities = value("AmbientCapabilities")
            .to_lowercase()
            .replace("cap_", "+");
        let capabilities = format!("-all,{}", capabilities.replace(' ', ","));
        let become_user = format!(
            "--reuid {} --regid {} --groups {} --no-new-privs --inh-caps={capabilities} \
             --ambient-caps={capabilities} --bounding-set={capabilities}",
            value("User"),
            value("Group"),
            value("Group"),
        );
        let text = format!(
            "#!/bin/sh\n\
             set -e\n\
             if [ -z \"$IN_OWN_MOUNTS\" ]; then\n\
                 IN_OWN_MOUNTS=1 exec unshare --mount --propagation private \"$0\" \"$@\"\n\
             fi\n\
             for each in {own}; do mount --bind {root}$each {root}$each; done\n\
             for each in / /run {mounts}; do mount -o remount,bind,ro {root}$each; done\n\
             for each in {writable}; do mount -o remount,bind,rw {root}$each; done\n\
             umask {umask}\n\
             ulimit -c 0\n\
             # Where this machine forbids it, CAP_IPC_LOCK does without.\n\
             ulimit -l unlimited 2>/dev/null || true\n\
             exec chroot {root} setpriv --pdeathsig KILL {become_user} -- {program} \"$@\"\n",
            own = own.join(" "),
            mounts = self.mounts.join(" "),
            writable = self.unit.find("ReadWritePaths").unwrap_or_default(),
            umask = value("UMask"),
        );
        let path = self.scripts.path().join("start");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        path
    }
}
