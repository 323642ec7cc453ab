//! Typical mistakes with the real commands: each is refused with the right exit status and a
//! message that contains the remedy. `--nocapture` prints the table.

use crate::leaks::pins;
use crate::rig::{Config, EXITMARK, Rig, detach, moved, needs_root, silent};
use exitmark_box::control::DEFAULT_SOCKET;
use exitmark_datapath::Role;
use exitmark_lab::process::{as_nobody, public_copy, set_mode, without_perfmon};
use exitmark_lab::site::{INCOMING_MAC, Plan, Site, TORNET_MAC, nic};
use exitmark_lab::{RunningBox, occupy, poll};
use std::cell::RefCell;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Turn<'a> {
    what: &'static str,
    command: &'static str,
    by: By,
    config: Config,
    status: i32,
    words: &'a [&'a str],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Root,
    /// The user nobody, without any privilege.
    Nobody,
    /// As [`without_perfmon`].
    RootWithoutPerfmon,
}

/// A mistake of root with the usual configuration, which the command refuses with status 1.
fn turn<'a>(what: &'static str, command: &'static str, words: &'a [&'a str]) -> Turn<'a> {
    Turn {
        what,
        command,
        by: By::Root,
        config: Config::default(),
        status: 1,
        words,
    }
}

impl Turn<'_> {
    fn by(mut self, by: By) -> Self {
        self.by = by;
        self
    }

    fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    fn more(self, tables: &str) -> Self {
        self.config(Config::default().more(tables))
    }

    fn status(mut self, status: i32) -> Self {
        self.status = status;
        self
    }
}

/// The environment of the commands: a site, a directory and a program that all users may access.
struct Ground {
    site: Site,
    directory: tempfile::TempDir,
    program: PathBuf,
    faults: RefCell<Vec<String>>,
}

impl Ground {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            site: silent(Plan::default()),
            program: public_copy(EXITMARK, directory.path()).unwrap(),
            directory,
            faults: RefCell::default(),
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, by: By) -> Command {
        match by {
            By::Root => Command::new(&self.program),
            By::Nobody => as_nobody(&self.program),
            By::RootWithoutPerfmon => without_perfmon(&self.program),
        }
    }

    fn take(&self, turn: &Turn<'_>) {
        let configuration = turn.config.write(self.directory.path()).unwrap();
        self.take_with(turn, &configuration);
    }

    fn take_with(&self, turn: &Turn<'_>, configuration: &Path) {
        let mut command = self.command(turn.by);
        command.args([turn.command, "--config"]).arg(configuration);
        let output = self.site.middle.output(command).unwrap();
        self.faults.borrow_mut().extend(fault(turn, &output));
    }

    fn ip(&self, line: &str) {
        self.site.middle.ip(line).unwrap();
    }

    /// Checks that a box starts after all refusals.
    fn start_at_last(self) {
        let faults = self.faults.into_inner();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
        assert_eq!(pins(&self.site), Vec::<String>::new());
        let has_socket = || Path::new(DEFAULT_SOCKET).exists();
        assert!(!self.site.middle.run(has_socket));
        Rig::on(self.site, &Config::default()).stop();
    }
}

/// Prints a line of the table; returns the difference to the expected output.
fn fault(turn: &Turn<'_>, output: &Output) -> Option<String> {
    let errors = String::from_utf8_lossy(&output.stderr);
    let said = format!("{errors}{}", String::from_utf8_lossy(&output.stdout));
    let message = errors.lines().find(|line| line.starts_with("exitmark: "));
    let line = message.or_else(|| said.lines().find(|line| line.starts_with("fault")));
    let (what, command, status) = (turn.what, turn.command, output.status.code());
    let line = line.unwrap_or_default();
    println!("{what} | {command} | {status:?} | {line}");
    let mut missing = turn.words.to_vec();
    missing.retain(|word| !said.contains(word));
    // The verifier's whole log is for RUST_LOG=debug.
    let is_short = errors.len() < 4000;
    let is_right = is_short
        && status == Some(turn.status)
        && missing.is_empty()
        && !said.contains("panicked")
        && !said.contains("ready:");
    (!is_right).then(|| format!("{what}: {command}: {status:?}, without {missing:?}: {said}"))
}

#[test]
fn mistakes_in_the_configuration() {
    needs_root!();
    let ground = Ground::new();
    let no_consensus = |path: &str| Config::default().relays(format!("consensus = [\"{path}\"]"));
    #[rustfmt::skip]
    let mark: [(&str, &str, &[&str]); 4] = [
        ("a DSCP of no name", "[mark]\ndscp = \"af99\"\n", &["mark.dscp = \"af99\"", "af11"]),
        ("a DSCP of seven bits", "[mark]\ndscp = 64\n",
         &["mark.dscp = 64", "0 to 63", "mark.tos"]),
        ("a ToS byte with ECN bits", "[mark]\ntos = 0x29\n", &["mark.tos = 0x29", "0x28"]),
        ("the mark 0", "[mark]\ndscp = 0\n", &["mark.dscp = 0", "a mark must differ"]),
    ];
    for (what, lines, words) in mark {
        for (command, status) in [("check", 1), ("run", 2), ("doctor", 2)] {
            ground.take(&turn(what, command, words).more(lines).status(status));
        }
    }
    let words = &["exitmark.toml", "unknown field `speed`", "`engine`"];
    let unknown = Config::default().top("speed = 11");
    let unknown = turn("an unknown key", "run", words).config(unknown);
    ground.take(&unknown.status(2));
    let words = &[
        "steer.next_hop is the MAC address of incoming0 itself",
        "name the router",
    ];
    let itself = Config::default().next_hop(INCOMING_MAC);
    ground.take(&turn("the next hop is the box itself", "run", words).config(itself));
    let missing = "/var/lib/nosuch/cached-microdesc-consensus";
    let words = &[missing, "nothing is marked", "CacheDirectory"];
    ground.take(&turn("no such consensus", "doctor", words).config(no_consensus(missing)));
    let private = ground.at("tor");
    fs::create_dir(&private).unwrap();
    set_mode(&private, 0o700).unwrap();
    let consensus = private.join("cached-microdesc-consensus");
    fs::write(&consensus, "network-status-version 3 microdesc\n").unwrap();
    let words = &["may not be read", "CAP_DAC_READ_SEARCH"];
    let what = "a consensus that the user of the box may not read";
    let config = no_consensus(consensus.to_str().unwrap()).top("user = \"nobody\"");
    ground.take(&turn(what, "doctor", words).by(By::Nobody).config(config));

    let broken = ground.at("broken.toml");
    fs::write(&broken, "[ports\nhost = host0\n").unwrap();
    let words = &["broken.toml", "cannot be understood", "line 1"];
    ground.take_with(&turn("no TOML", "run", words).status(2), &broken);
    ground.take_with(&turn("no TOML", "check", words), &broken);
    fs::write(&broken, [0xff, 0xfe, 0, b'\n']).unwrap();
    let words = &["broken.toml", "UTF-8"];
    ground.take_with(&turn("no text", "run", words).status(2), &broken);
    let missing = ground.at("missing.toml");
    let words = &["missing.toml", "No such file", "exitmark.example.toml"];
    ground.take_with(&turn("no configuration", "run", words).status(2), &missing);
    let hidden = ground.at("hidden.toml");
    fs::write(&hidden, "").unwrap();
    set_mode(&hidden, 0o600).unwrap();
    let words = &["hidden.toml", "Permission denied", "root"];
    let what = "a configuration that may not be read";
    ground.take_with(&turn(what, "run", words).by(By::Nobody).status(2), &hidden);
    let what = "a directory for a configuration";
    let is_directory = turn(what, "run", &["Is a directory"]).status(2);
    ground.take_with(&is_directory, ground.directory.path());
    ground.start_at_last();
}

#[test]
fn problems_of_the_machine() {
    needs_root!();
    let ground = Ground::new();
    let middle = &ground.site.middle;
    for command in ["run", "doctor"] {
        let words = &["no network interface enp7s0", "ip link"];
        let config = Config::default().incoming("enp7s0", TORNET_MAC);
        ground.take(&turn("a NIC of another name", command, words).config(config));
        ground.take(&turn("not root", command, &["CAP_", "root"]).by(By::Nobody));
        // The mistake, the command that makes it, the one that undoes it, and the expected message.
        #[rustfmt::skip]
        let links: [(&str, &str, &str, &[&str]); 4] = [
            ("a NIC that is down", "link set uplink0 down", "link set uplink0 up",
             &["uplink0", "down", "ip link set dev uplink0 up"]),
            ("another MTU", "link set incoming0 mtu 1400", "link set incoming0 mtu 1500",
             &["MTU 1500", "MTU 1400", "ip link set dev incoming0 mtu 1500"]),
            ("an IPv4 address on the host's port",
             "addr add 192.0.2.77/24 dev host0", "addr del 192.0.2.77/24 dev host0",
             &["host0", "ip addr del 192.0.2.77/24 dev host0"]),
            ("an IPv6 address on the uplink",
             "addr add 2001:db8:1::77/64 dev uplink0", "addr del 2001:db8:1::77/64 dev uplink0",
             &["uplink0", "ip addr del 2001:db8:1::77/64 dev uplink0"]),
        ];
        let ipv6 = "net/ipv6/conf/uplink0/disable_ipv6";
        for (what, wrong, right, words) in links {
            middle.sysctl(ipv6, "0").unwrap();
            ground.ip(wrong);
            ground.take(&turn(what, command, words));
            ground.ip(right);
            middle.sysctl(ipv6, "1").unwrap();
        }
        // Covered, not unmounted: the file system below may be the machine's.
        let cover = ["-t", "tmpfs", "none", "/sys/fs/bpf"];
        middle.command("mount", &cover).unwrap();
        let words = &["BPF file system", "mount -t bpf bpf /sys/fs/bpf"];
        ground.take(&turn("no BPF file system", command, words));
        middle.command("umount", &["/sys/fs/bpf"]).unwrap();
    }
    let words = &["control.socket", "/run/a/b", "install -d"];
    let nowhere = "[control]\nsocket = \"/run/a/b/control.sock\"\n";
    ground.take(&turn("no place for the control socket", "run", words).more(nowhere));
    let all_have = |mtu: u32| {
        for port in Role::ALL.map(nic) {
            ground.ip(&format!("link set {port} mtu {mtu}"));
        }
    };
    all_have(9000);
    let words = &["MTU 9000", "datapath.frags", "mtu 3498"];
    let off = "[datapath]\nfrags = \"off\"\n";
    ground.take(&turn("frames that do not fit one buffer", "run", words).more(off));
    all_have(1500);
    // Root without one capability: the verifier is then stricter.
    for command in ["run", "doctor"] {
        let words = &[
            "the verifier of Linux ",
            "refuses the program exitmark_host: ",
            "prohibited",
            "lacks CAP_PERFMON",
        ];
        ground.take(&turn("not every capability", command, words).by(By::RootWithoutPerfmon));
    }
    let taken = middle.run(|| TcpListener::bind("127.0.0.1:9787").unwrap());
    let words = &[
        "metrics.listen",
        "127.0.0.1:9787",
        "ss -ltnp 'sport = :9787'",
    ];
    ground.take(&turn("the port for metrics is taken", "run", words));
    drop(taken);
    ground.start_at_last();
}

#[test]
fn conflicts_with_running_programs() {
    needs_root!();
    let ground = Ground::new();
    let middle = &ground.site.middle;
    // The kernel's error differs for a program in another mode.
    for (is_generic, off) in [
        (false, "link set dev uplink0 xdp off"),
        (true, "link set dev uplink0 xdpgeneric off"),
    ] {
        let what = match is_generic {
            false => "another XDP program",
            true => "another XDP program in generic mode",
        };
        match is_generic {
            false => poll(middle, "uplink0").unwrap(),
            true => occupy(middle, "uplink0").unwrap(),
        }
        let remedy = format!("ip {off}");
        let words = &[
            "another XDP program is attached",
            &remedy,
            "exitmark detach",
        ];
        ground.take(&turn(what, "run", words));
        assert_eq!(pins(&ground.site), Vec::<String>::new());
        ground.ip(off);
    }

    let directory = tempfile::tempdir().unwrap();
    let configuration = Config::default().write(directory.path()).unwrap();
    let running = RunningBox::start(middle, EXITMARK, &configuration).unwrap();
    let words = &[
        "another exitmark holds /sys/fs/bpf/exitmark",
        "stop it first",
    ];
    ground.take(&turn("a second exitmark", "run", words));
    let pins = "[pin]\ndirectory = \"/sys/fs/bpf/other\"\n";
    let metrics = format!("{pins}[metrics]\nlisten = \"off\"\n");
    let control = format!("{metrics}[control]\nsocket = \"/run/other/control.sock\"\n");
    #[rustfmt::skip]
    let table: [(&str, &str, &[&str]); 3] = [
        ("a second exitmark with other pins", pins, &["metrics.listen", "ss -ltnp"]),
        ("a second exitmark without metrics", &metrics,
         &["another exitmark answers at", "control.socket"]),
        ("a second exitmark with all of its own", &control,
         &["another program has this queue", "end it first"]),
    ];
    for (what, tables, words) in table {
        ground.take(&turn(what, "run", words).more(tables));
    }
    moved(&running.stop().unwrap());
    detach(&ground.site);
    ground.start_at_last();
}
