//! The monitor's package: what it has, that its units' command lines are such as it takes, and what
//! a removal leaves. It is installed beside the box's here, and needs nothing of it.

use crate::machine::Machine;
use crate::service::Unit;
use exitmark::monitor;
use std::path::PathBuf;

const CONFIGURATION: &str = "/etc/exitmark-monitor/exitmark-monitor.toml";
const EXAMPLE: &str = "/usr/share/exitmark-monitor/exitmark-monitor.example.toml";
const SERVICE: &str = "exitmark-monitor.service";
const REPORT: &str = "exitmark-monitor-report.service";
pub(crate) const UNITS: [&str; 3] = [SERVICE, REPORT, "exitmark-monitor-report.timer"];

/// What is installed: mode, owner and group, path.
pub(crate) const INSTALLED: &[&str] = &[
    "755 root:root /usr/bin/exitmark-monitor",
    "755 root:root /etc/exitmark-monitor",
    "644 root:root /lib/systemd/system/exitmark-monitor.service",
    "644 root:root /lib/systemd/system/exitmark-monitor-report.service",
    "644 root:root /lib/systemd/system/exitmark-monitor-report.timer",
    "644 root:root /usr/lib/sysusers.d/exitmark-monitor.conf",
    "644 root:root /usr/share/exitmark-monitor/exitmark-monitor.example.toml",
    "644 root:root /usr/share/exitmark-monitor/prometheus/exitmark-monitor.rules.yml",
    "644 root:root /usr/share/doc/exitmark-monitor/changelog.gz",
    "644 root:root /usr/share/doc/exitmark-monitor/copyright",
    "644 root:root /usr/share/man/man1/exitmark-monitor.1.gz",
    "644 root:root /usr/share/man/man1/exitmark-monitor-capture.1.gz",
    "644 root:root /usr/share/man/man1/exitmark-monitor-check.1.gz",
    "644 root:root /usr/share/man/man1/exitmark-monitor-report.1.gz",
    "644 root:root /usr/share/man/man5/exitmark-monitor.toml.5.gz",
    "644 root:root /usr/share/bash-completion/completions/exitmark-monitor",
    "644 root:root /usr/share/zsh/vendor-completions/_exitmark-monitor",
    "644 root:root /usr/share/fish/vendor_completions.d/exitmark-monitor.fish",
];

/// A directory of the service, and a file in it as the service leaves it.
struct Kept {
    directory: String,
    mode: &'static str,
    file: String,
}

impl Kept {
    fn new(under: &str, unit: &Unit, key: &str, mode: &'static str, file: &str) -> Self {
        let directory = format!("{under}/{}", unit.value(key));
        assert_eq!(unit.value(&format!("{key}Mode")), mode, "{directory}");
        let file = format!("{directory}/{file}");
        Self {
            directory,
            mode,
            file,
        }
    }

    fn make(&self, machine: &Machine, unit: &Unit) {
        let (user, group) = (unit.value("User"), unit.value("Group"));
        let made = ["-d", "-m", self.mode, "-o", user, "-g", group];
        machine.run("install", &[&made[..], &[&self.directory]].concat());
        let as_user = ["-u", user, "--", "touch", &self.file];
        machine.run("runuser", &as_user);
    }
}

/// All that can be seen of it without systemd.
pub(crate) fn is_as_its_units_say(machine: &Machine) {
    let version = concat!("exitmark-monitor ", env!("CARGO_PKG_VERSION"));
    let told = machine.run("exitmark-monitor", &["--version"]);
    assert_eq!(told.trim(), version);
    let home = "/var/lib/exitmark-monitor:/usr/sbin/nologin";
    let user = machine.run("getent", &["passwd", "exitmark-monitor"]);
    assert!(user.trim().ends_with(home), "{user}");

    let (service, report) = (Unit::of(machine, SERVICE), Unit::of(machine, REPORT));
    for unit in [&service, &report] {
        assert_eq!(unit.value("User"), "exitmark-monitor");
        assert_eq!(unit.value("ProtectSystem"), "strict");
        assert_eq!(unit.value("NoNewPrivileges"), "yes");
        assert_eq!(unit.value("LimitCORE"), "0");
    }
    assert_eq!(
        service.value("AmbientCapabilities"),
        service.value("CapabilityBoundingSet")
    );
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
    assert_eq!([path("out"), path("periods")], [cache, state]);
    let hidden = report.value("InaccessiblePaths");
    assert_eq!(hidden, format!("-{}", monitor::settings::STATE));

    // The service's user can read it where the service looks for it.
    let copied = [
        "-m",
        "640",
        "-g",
        "exitmark-monitor",
        EXAMPLE,
        CONFIGURATION,
    ];
    machine.run("install", &copied);
    let check = ["exitmark-monitor", "check", "--config", CONFIGURATION];
    let as_user = [&["-u", "exitmark-monitor", "--"], &check[..]].concat();
    let summary = machine.run("runuser", &as_user);
    assert!(summary.contains("af11"), "{summary}");
}

/// What the program understands by a unit's command line.
fn command_line(line: &str) -> clap::ArgMatches {
    let mut words = line.split_whitespace();
    assert_eq!(words.next(), Some("/usr/bin/exitmark-monitor"), "{line}");
    let parsed = monitor::cli::command()
        .no_binary_name(true)
        .try_get_matches_from(words);
    parsed.unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// It is removed and purged.
pub(crate) fn goes(machine: &Machine) {
    let (service, report) = (Unit::of(machine, SERVICE), Unit::of(machine, REPORT));
    // What was published stays there, for others to read; what was not is nobody else's.
    let [periods, page, counts] = [
        Kept::new(
            "/var/lib",
            &service,
            "StateDirectory",
            "0755",
            "exit1.jsonl",
        ),
        Kept::new(
            "/var/cache",
            &report,
            "CacheDirectory",
            "0755",
            "index.html",
        ),
        Kept::new("/run", &service, "RuntimeDirectory", "0700", "counts"),
    ];
    assert_eq!(periods.directory, monitor::settings::DIRECTORY);
    assert_eq!(counts.directory, monitor::settings::STATE);
    assert_eq!(service.value("RuntimeDirectoryPreserve"), "yes");
    for one in [&periods, &page, &counts] {
        one.make(machine, &service);
    }
    machine.remove("-r", "exitmark-monitor").unwrap();
    assert!(!machine.is_there("/usr/bin/exitmark-monitor"));
    assert!(machine.is_there("/usr/bin/exitmark"), "the box stays");
    assert!(machine.is_there(&periods.file) && machine.is_there(&page.file));
    assert!(machine.is_there(CONFIGURATION), "it goes by a purge alone");
    // Nobody is left who would close the period.
    assert!(!machine.is_there(&counts.directory));
    machine.remove("-P", "exitmark-monitor").unwrap();
    let left = machine.changed_files_named("exitmark-monitor");
    assert!(left.is_empty(), "{left:?}");
    machine.run("getent", &["passwd", "exitmark-monitor"]);
}
