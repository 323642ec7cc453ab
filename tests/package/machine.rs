//! A Debian machine for tests: an overlay in memory over the files of this one, as the box of a
//! site. It exists in one thread's mount namespace, and ends with it.

use exitmark_lab::authorities::Authorities;
use exitmark_lab::consensus::{ConsensusBuilder, hours_from};
use exitmark_lab::process::set_mode;
use exitmark_lab::site::Site;
use exitmark_lab::{LabError, publish};
use exitmark_relays::Flavor;
use nix::mount::{MsFlags, mount};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

pub(crate) struct Machine {
    pub(crate) site: Site,
    /// The mount point, visible only to the machine's own processes.
    place: TempDir,
}

impl Machine {
    pub(crate) fn new(site: Site) -> Self {
        let place = TempDir::new().unwrap();
        let path = place.path().to_owned();
        site.middle.run(move || boot(&path));
        let machine = Self { site, place };
        assert!(
            machine.is_there("/var/lib/dpkg/status"),
            "this machine has /var on a file system of its own, which this test does not copy"
        );
        machine
    }

    /// The machine's root directory, as its own processes see it.
    pub(crate) fn root(&self) -> PathBuf {
        self.place.path().join("root")
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.root().join(inside.trim_start_matches('/'))
    }

    /// Runs a command on the machine.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> Result<String, LabError> {
        let root = self.root();
        let arguments = [&[root.to_str().unwrap(), program], arguments].concat();
        self.site.middle.command("chroot", &arguments)
    }

    /// The same; panics if the command fails.
    #[track_caller]
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        self.command(program, arguments)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs `work` on a file of the machine, in its mount namespace.
    fn files<T: Send + 'static>(
        &self,
        inside: &str,
        work: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> T {
        let path = self.path(inside);
        self.site.middle.run(move || work(&path))
    }

    pub(crate) fn read(&self, inside: &str) -> String {
        self.files(inside, |path| fs::read_to_string(path).unwrap())
    }

    pub(crate) fn write(&self, inside: &str, text: &str) {
        let text = text.to_owned();
        self.files(inside, |path| fs::write(path, text).unwrap());
    }

    pub(crate) fn is_there(&self, inside: &str) -> bool {
        self.files(inside, |path| path.symlink_metadata().is_ok())
    }

    pub(crate) fn install(&self, packages: &[PathBuf]) {
        // No syncing to disk and no index of man pages are needed.
        let mut arguments = vec!["--force-unsafe-io", "--no-triggers"];
        // A small installation may exclude the manual.
        arguments.extend(["--path-include=/usr/share/*", "-i"]);
        let names: Vec<_> = (0..packages.len())
            .map(|number| format!("/run/exitmark-{number}.deb"))
            .collect();
        for (package, name) in packages.iter().cloned().zip(&names) {
            self.files(name, |to| fs::copy(package, to).unwrap());
        }
        arguments.extend(names.iter().map(String::as_str));
        self.run("dpkg", &arguments);
    }

    pub(crate) fn remove(&self, option: &str, package: &str) -> Result<String, LabError> {
        self.command("dpkg", &["--no-triggers", option, package])
    }

    /// Gives the box's NICs the names in the example configuration.
    pub(crate) fn name_nics(&self) {
        let names = [
            ("host0", "eth0"),
            ("uplink0", "eth1"),
            ("incoming0", "eth2"),
        ];
        for (old, new) in names {
            for change in [
                format!("link set {old} down"),
                format!("link set {old} name {new}"),
                format!("link set {new} up"),
            ] {
                self.site.middle.ip(&change).unwrap();
            }
        }
    }

    /// Whether a NIC has an XDP program or is promiscuous.
    pub(crate) fn is_taken(&self, nic: &str) -> bool {
        let shown = self.site.middle.ip(&format!("link show dev {nic}"));
        let shown = shown.unwrap();
        shown.contains("xdp") || shown.contains("PROMISC")
    }

    /// Writes a consensus to the directory of a tor, readable by tor's user only, as tor does.
    /// Returns the configuration's line with the authorities.
    pub(crate) fn publish_consensus(&self) -> String {
        let half_an_hour = Duration::from_secs(1800);
        let validity = hours_from(SystemTime::now() - half_an_hour, [0, 1, 3]);
        let builder = ConsensusBuilder {
            relays: 4,
            ..ConsensusBuilder::full_size(Flavor::Microdesc, validity)
        };
        let authorities = Authorities::new(3);
        let line = authorities.toml();
        self.files("/var/lib/tor", move |directory| {
            fs::create_dir_all(directory).unwrap();
            let name = "cached-microdesc-consensus";
            publish(directory, name, &builder, &authorities).unwrap();
            for entry in fs::read_dir(directory).unwrap() {
                set_mode(&entry.unwrap().path(), 0o600).unwrap();
            }
        });
        self.run("chown", &["-R", "debian-tor:debian-tor", "/var/lib/tor"]);
        self.run("chmod", &["2700", "/var/lib/tor"]);
        line
    }

    /// The new or changed files with this in their names.
    pub(crate) fn changed_files_named(&self, part: &'static str) -> Vec<PathBuf> {
        let place = self.place.path().to_owned();
        self.site.middle.run(move || {
            let mut found = Vec::new();
            for part_of_it in [place.join("changes"), place.join("root/run")] {
                walk(&part_of_it, &mut found);
            }
            let is_named = |path: &PathBuf| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.contains(part) && !name.ends_with(".deb")
            };
            found.into_iter().filter(is_named).collect()
        })
    }
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            walk(&path, found);
        }
        found.push(path);
    }
}

/// Mounts the machine's file systems.
fn boot(place: &Path) {
    let put = |kind: &str, at: &Path, options: &str| {
        let none = MsFlags::empty();
        mount(Some(kind), at, Some(kind), none, Some(options))
            .unwrap_or_else(|error| panic!("cannot mount {kind} at {}: {error}", at.display()));
    };
    put("tmpfs", place, "mode=0755");
    let [changes, work, root] = ["changes", "work", "root"].map(|name| place.join(name));
    for directory in [&changes, &work, &root] {
        fs::create_dir(directory).unwrap();
    }
    let (upper, work) = (changes.display(), work.display());
    let layers = format!("lowerdir=/,upperdir={upper},workdir={work}");
    put("overlay", &root, &layers);
    // As with `ProtectProc=invisible`.
    put("proc", &root.join("proc"), "hidepid=2");
    put("sysfs", &root.join("sys"), "");
    // An empty /run: maintainer scripts see no running systemd.
    put("tmpfs", &root.join("run"), "mode=0755");
    let devices = MsFlags::MS_BIND | MsFlags::MS_REC;
    let dev = root.join("dev");
    mount(Some("/dev"), &dev, None::<&str>, devices, None::<&str>).unwrap();
}
