//! Tier: root; parts need none. The Debian packages, from installation to purge, on a test machine:
//! the installed files, the service started as its unit defines, an upgrade without losing a frame,
//! and nothing left at the end. Without root: what is installed to build them, that they can be
//! reproduced, and their lists of what is linked.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

mod build;
mod connect;
mod flow;
mod linked;
mod machine;
mod monitor;
mod reproduced;
mod service;
mod setup;

use build::Packages;
use exitmark_box::settings::Settings;
use exitmark_lab::site::{Plan, Site};
use exitmark_lab::{is_installed, is_root};
use flow::Flow;
use machine::Machine;
use service::Service;
use std::path::Path;
use std::thread;

const CONFIGURATION: &str = "/etc/exitmark/exitmark.toml";
const EXAMPLE: &str = "/usr/share/exitmark/exitmark.example.toml";
const CONNECT_EXAMPLE: &str = "/usr/share/exitmark/exitmark-connect.example.toml";
const PINS: &str = "/run/bpf/exitmark";

/// The installed files: mode, owner and group, path.
const INSTALLED: &[&str] = &[
    "755 root:root /usr/bin/exitmark",
    "755 root:root /usr/bin/exitmark-demo",
    "755 root:root /etc/exitmark",
    "644 root:root /lib/systemd/system/exitmark.service",
    "644 root:root /lib/systemd/system/exitmark-wire.service",
    "644 root:root /lib/systemd/system/run-bpf-exitmark.mount",
    "644 root:root /usr/lib/sysusers.d/exitmark.conf",
    "644 root:root /usr/share/exitmark/exitmark.example.toml",
    "644 root:root /usr/share/exitmark/exitmark-connect.example.toml",
    "644 root:root /usr/share/doc/exitmark/README.md",
    "644 root:root /usr/share/doc/exitmark/SECURITY.md",
    "644 root:root /usr/share/doc/exitmark/docs/install.md",
    "644 root:root /usr/share/doc/exitmark/docs/troubleshooting.md",
    "644 root:root /usr/share/doc/exitmark/changelog.gz",
    "644 root:root /usr/share/doc/exitmark/copyright",
    "644 root:root /usr/share/doc/exitmark/exitmark.cdx.json",
    "644 root:root /usr/share/man/man1/exitmark.1.gz",
    "644 root:root /usr/share/man/man1/exitmark-demo.1.gz",
    "644 root:root /usr/share/man/man1/exitmark-run.1.gz",
    "644 root:root /usr/share/man/man1/exitmark-wire.1.gz",
    "644 root:root /usr/share/man/man5/exitmark.toml.5.gz",
    "644 root:root /usr/share/bash-completion/completions/exitmark",
    "644 root:root /usr/share/zsh/vendor-completions/_exitmark",
    "644 root:root /usr/share/fish/vendor_completions.d/exitmark.fish",
];

#[test]
fn from_installation_to_purge() {
    if !is_root() || !is_installed("dh") {
        return;
    }
    let (packages, machine) = thread::scope(|scope| {
        let packages = scope.spawn(Packages::build);
        let machine = Machine::new(Site::build(Plan::default()).unwrap());
        (packages.join().unwrap(), machine)
    });

    machine.install(&packages.first);
    for expected in INSTALLED.iter().chain(monitor::INSTALLED) {
        let (_, path) = expected.rsplit_once(' ').unwrap();
        let stat = machine.command("stat", &["-c", "%a %U:%G %n", path]);
        assert_eq!(stat.unwrap().trim(), *expected);
    }
    for program in ["exitmark", "exitmark-demo"] {
        let version = format!("{program} {}", env!("CARGO_PKG_VERSION"));
        assert_eq!(machine.run(program, &["--version"]).trim(), version);
    }
    let user = machine.run("getent", &["passwd", "exitmark"]);
    let home = "/var/lib/exitmark:/usr/sbin/nologin";
    assert!(user.trim().ends_with(home), "{user}");
    // The pins on that mount must survive an upgrade.
    let script = machine.read("/var/lib/dpkg/info/exitmark.postinst");
    assert!(!script.contains("run-bpf"), "{script}");

    for (package, mine) in [("exitmark", false), ("exitmark-monitor", true)] {
        let files = machine.run("dpkg", &["-L", package]);
        for path in files.lines() {
            let of_monitor = path.contains("exitmark-monitor");
            let is_mine = !path.contains("exitmark") || of_monitor == mine;
            assert!(is_mine, "{package} has {path}");
            if let Some(program) = path.strip_prefix("/usr/bin/") {
                let page = format!("/usr/share/man/man1/{program}.1.gz");
                assert!(files.lines().any(|file| file == page), "no {page}");
            }
        }
    }
    monitor::is_as_its_units_say(&machine);

    let units = monitor::UNITS.join(" ");
    let verified = format!(
        "systemd-analyze verify --man=no exitmark.service exitmark-wire.service \
         run-bpf-exitmark.mount {units} 2>&1"
    );
    assert_eq!(machine.run("sh", &["-c", &verified]), "");

    machine.name_nics();
    monitor::runs(&machine, "eth1");
    let service = Service::prepare(&machine);
    connect::runs(&machine, &service);
    configure(
        &machine,
        EXAMPLE,
        include_str!("../../dist/exitmark.example.toml"),
        &[],
    );
    let running = service.start();
    for port in ["host=eth0 ", "incoming=eth2 "] {
        assert!(running.ready.contains(port), "{}", running.ready);
    }

    // In the order of the package: the new files first, then the new process.
    let flow = Flow::start(&machine.site);
    machine.install(&packages.second);
    running.stop().unwrap();
    flow.goes_on();
    let running = service.start();
    running.wait_log(&["taken over"]);
    flow.goes_on();
    flow.assert_all_marked();
    let version = machine.run("dpkg-query", &["-Wf", "${Version}", "exitmark"]);
    assert_eq!(version, build::SECOND);

    monitor::goes(&machine);

    // The package cannot be removed while the process runs.
    let refused = machine.remove("-r", "exitmark").unwrap_err().to_string();
    assert!(refused.contains("another exitmark holds"), "{refused}");
    assert!(machine.is_taken("eth0") && machine.is_there("/usr/bin/exitmark"));
    running.stop().unwrap();
    assert!(machine.is_taken("eth0") && machine.is_taken("eth1"));
    // Removal finds the pins without a valid configuration.
    machine.write(CONFIGURATION, "spoiled");
    machine.remove("-r", "exitmark").unwrap();
    for nic in ["eth0", "eth1", "eth2"] {
        assert!(!machine.is_taken(nic), "{nic}");
    }
    assert!(machine.is_there(CONFIGURATION), "only a purge removes it");
    assert!(!machine.is_there("/usr/bin/exitmark"));
    assert!(!machine.is_there(PINS));
    // A step of earlier install pages.
    machine.run("adduser", &["exitmark", "debian-tor"]);
    machine.remove("-P", "exitmark").unwrap();
    assert!(!machine.run("id", &["exitmark"]).contains("debian-tor"));
    let left = machine.changed_files_named("exitmark");
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(machine.run("getent", &["passwd", "exitmark"]), user);
}

/// The text of a packaged example, after a check that it differs from the source in the directory of
/// the pins only.
fn packaged(machine: &Machine, path: &str, source: &str) -> String {
    let example = machine.read(path);
    let changed: Vec<_> = example
        .lines()
        .zip(source.lines())
        .filter(|(packed, source)| packed != source)
        .collect();
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert_eq!(example.lines().count(), source.lines().count());
    let settings = Settings::parse(&example, Path::new("")).unwrap();
    assert_eq!(settings.pin.directory, Path::new(PINS).join("box"));
    example
}

/// Writes a packaged example as the configuration, with the authorities of the test network, and
/// these keys in place of its own.
fn configure(machine: &Machine, path: &str, source: &str, keys: &[(&str, &str)]) {
    let example = packaged(machine, path, source);
    let arguments = ["-m", "640", "-g", "exitmark", path, CONFIGURATION];
    machine.run("install", &arguments);
    let authorities = machine.publish_consensus();
    let mut text = example.trim_end().to_owned();
    for (key, line) in [&[("#authorities", authorities.as_str())], keys].concat() {
        let beginning = format!("\n{key} = ");
        let (before, rest) = text.split_once(&beginning).unwrap();
        let after = rest.split_once('\n').map_or("", |(_, after)| after);
        text = format!("{before}\n{line}\n{after}");
    }
    machine.write(CONFIGURATION, &text);
}
