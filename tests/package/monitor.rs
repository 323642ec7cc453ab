//! The monitor's package: its files, its units' command lines, and what a removal leaves. Here it
//! is installed beside the box's package, but does not depend on it.

use crate::machine::Machine;
use crate::service::{Service, Unit};

use nix::sys::signal::Signal;
use std::path::PathBuf;

const CONFIGURATION: &str = "/etc/exitmark-monitor/exitmark-monitor.toml";
const EXAMPLE: &str = "/usr/share/exitmark-monitor/exitmark-monitor.example.toml";
const SERVICE: &str = "exitmark-monitor.service";
const REPORT: &str = "exitmark-monitor-report.service";
pub(crate) const UNITS: [&str; 3] = [SERVICE, REPORT, "exitmark-monitor-report.timer"];

/// The installed files: mode, owner and group, path.
pub(crate) const INSTALLED: &[&str] = &[
    "755 root:root /usr/bin/exitmark-monitor",
    "755 root:root /etc/exitmark-monitor",
    "644 root:root /lib/systemd/system/exitmark-monitor.service",
    "644 root:root /lib/systemd/system/exitmark-monitor-report.service",
    "644 root:root /lib/systemd/system/exitmark-monitor-report.timer",
    "644 root:root /usr/lib/sysusers.d/exitmark-monitor.conf",
    "644 root:root /usr/share/exitmark-monitor/exitmark-monitor.example.toml",
    "644 root:root /usr/share/exitmark-monitor/prometheus/exitmark-monitor.rules.yml",
    "644 root:root /usr/share/doc/exitmark-monitor/README.md",
    "644 root:root /usr/share/doc/exitmark-monitor/SECURITY.md",
    "644 root:root /usr/share/doc/exitmark-monitor/docs/monitor.md",
    "644 root:root /usr/share/doc/exitmark-monitor/changelog.gz",
    "644 root:root /usr/share/doc/exitmark-monitor/copyright",
    "644 root:root /usr/share/doc/exitmark-monitor/exitmark-monitor.cdx.json",
    "644 root:root /usr/share/man/man1/exitmark-monitor.1.gz",
    "644 root:root /usr/share/man/man1/exitmark-monitor-capture.1.gz",
    "644 root:root /usr/share/man/man1/exitmark-monitor-check.1.gz",
    "644 root:root /usr/share/man/man1/exitmark-monitor-report.1.gz",
    "644 root:root /usr/share/man/man5/exitmark-monitor.toml.5.gz",
    "644 root:root /usr/share/bash-completion/completions/exitmark-monitor",
    "644 root:root /usr/share/zsh/vendor-completions/_exitmark-monitor",
    "644 root:root /usr/share/fish/vendor_completions.d/exitmark-monitor.fish",
];

/// Checks the package against its units, as far as possible without systemd.
pub(crate) fn is_as_its_units_say(machine: &Machine) {
    let version = concat!("exitmark-monitor ", env!("CARGO_PKG_VERSION"));
    let printed = machine.run("exitmark-monitor", &["--version"]);
    assert_eq!(printed.trim(), version);
    let home = "/var/lib/exitmark-monitor:/usr/sbin/nologin";
    let user = machine.run("getent", &["passwd", "exitmark-monitor"]);
    assert!(user.trim().ends_with(home), "{user}");

    let (service, report) = (Unit::of(machine, SERVICE), Unit::of(machine, REPORT));
    // Published files are readable by all, exact counts only by the service's user.
    assert_eq!(service.value("StateDirectoryMode"), "0755");
    assert_eq!(service.value("RuntimeDirectoryMode"), "0700");
    assert_eq!(service.value("RuntimeDirectoryPreserve"), "yes");
    for unit in [&service, &report] {
        assert_eq!(unit.value("User"), "exitmark-monitor");
        assert_eq!(unit.value("ProtectSystem"), "strict");
        assert_eq!(unit.value("NoNewPrivileges"), "yes");
        assert_eq!(unit.value("LimitCORE"), "0");
    }
    assert_eq!(report.value("CapabilityBoundingSet"), "");

    let arguments = command_line(service.value("ExecStart"));
    let (command, arguments) = arguments.subcommand().unwrap();
    assert_eq!(command, "capture");
    let configuration: Option<&PathBuf> = arguments.get_one("config");
    assert_eq!(configuration.unwrap().to_str(), Some(CONFIGURATION));

    let mut started = report.value("ExecStart").to_owned();
    for variable in report.value("Environment").split(' ') {
        let (name, value) = variable.split_once('=').unwrap();
        for written in [format!("${{{name}}}"), format!("${name}")] {
            started = started.replace(&written, value);
        }
    }
    let arguments = command_line(&started);
    let (command, arguments) = arguments.subcommand().unwrap();
    assert_eq!(command, "report");
    let path = |name| -> String {
        let path: Option<&PathBuf> = arguments.get_one(name);
        path.unwrap().display().to_string()
    };
    let cache = format!("/var/cache/{}", report.value("CacheDirectory"));
    let state = format!("/var/lib/{}", service.value("StateDirectory"));
    assert_eq!(state, exitmark_monitor::settings::DIRECTORY);
    assert_eq!([path("out"), path("periods")], [cache, state]);
    let counts = format!("-{}", exitmark_monitor::period::DEFAULT_STATE);
    assert_eq!(report.value("InaccessiblePaths"), counts);

    // The service's user can read the configuration at the path in the unit.
    let readable = ["-m", "640", "-g", "exitmark-monitor"];
    let copied = [&readable[..], &[EXAMPLE, CONFIGURATION]].concat();
    machine.run("install", &copied);
    let check = ["exitmark-monitor", "check", "--config", CONFIGURATION];
    let as_user = [&["-u", "exitmark-monitor", "--"], &check[..]].concat();
    let summary = machine.run("runuser", &as_user);
    assert!(summary.contains("af11"), "{summary}");
}

/// A unit's command line, parsed by the program.
fn command_line(line: &str) -> clap::ArgMatches {
    let mut words = line.split_whitespace();
    assert_eq!(words.next(), Some("/usr/bin/exitmark-monitor"), "{line}");
    let parsed = exitmark_monitor::cli::command()
        .no_binary_name(true)
        .try_get_matches_from(words);
    parsed.unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// Runs the monitor with its unit's privileges, and checks that a stop keeps its counts.
pub(crate) fn runs(machine: &Machine, nic: &str) {
    let interface = format!("interface = \"{nic}\"");
    let changed = |line: &str| match line.starts_with("interface = ") {
        true => interface.clone(),
        false => line.to_owned(),
    };
    let lines: Vec<_> = machine.read(EXAMPLE).lines().map(changed).collect();
    machine.write(CONFIGURATION, &lines.join("\n"));
    let service = Service::prepare_monitor(machine);
    let mut running = service.start();
    let ready = format!("ready interface={nic} ");
    assert!(running.ready.starts_with(&ready), "{}", running.ready);
    assert!(machine.is_taken(nic));
    running.signal(Signal::SIGTERM).unwrap();
    let status = running.ended().unwrap();
    assert!(status.success(), "{status}: {}", running.log());
    assert!(!machine.is_taken(nic));
}

/// Removes and purges the package.
pub(crate) fn goes(machine: &Machine) {
    let published = "/var/lib/exitmark-monitor/exit1.jsonl";
    let page = "/var/cache/exitmark-monitor/index.html";
    for path in [published, page] {
        machine.run("install", &["-D", "-m", "644", EXAMPLE, path]);
    }
    let counts = exitmark_monitor::period::DEFAULT_STATE;
    let kept = machine.run("find", &[counts, "-type", "f", "-size", "+0"]);
    assert!(!kept.is_empty(), "the counts are kept for a restart");

    machine.remove("-r", "exitmark-monitor").unwrap();
    assert!(!machine.is_there("/usr/bin/exitmark-monitor"));
    assert!(machine.is_there("/usr/bin/exitmark"), "the box stays");
    assert!(machine.is_there(CONFIGURATION), "only a purge removes it");
    // Published files belong to the operator. No program is left to publish and delete the counts.
    assert!(machine.is_there(published) && machine.is_there(page));
    assert!(!machine.is_there(counts));
    machine.remove("-P", "exitmark-monitor").unwrap();
    let left = machine.changed_files_named("exitmark-monitor");
    assert!(left.is_empty(), "{left:?}");
    machine.run("getent", &["passwd", "exitmark-monitor"]);
}
