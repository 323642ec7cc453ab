//! Typical mistakes with the real commands: each is refused with the right exit status and a
//! message that contains the remedy. `--nocapture` prints the table.

use crate::leaks::pins;
use crate::rig::{Config, EXITMARK, Rig, moved, needs_root, silence};
use exitmark_box::control::DEFAULT_SOCKET;
use exitmark_lab::site::{Plan, Site, TORNET_MAC};
use exitmark_lab::{occupy, poll};
use std::cell::RefCell;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A mistake, and the expected message.
struct Turn<'a> {
    what: &'static str,
    /// The arguments of the command.
    command: &'a [&'a str],
    by: By,
    config: Config,
    status: i32,
    words: &'a [&'a str],
}

/// The user of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Root,
    /// The user nobody, without any privilege.
    Nobody,
    /// Root without CAP_PERFMON, and without CAP_SYS_ADMIN, which includes it.
    RootWithoutPerfmon,
}

impl Default for Turn<'_> {
    fn default() -> Self {
        Self {
            what: "",
            command: &["run"],
            by: By::Root,
            config: Config::default(),
            status: 1,
            words: &[],
        }
    }
}

/// The environment of the commands: a site, a directory and a program that all users may access.
struct Ground {
    site: Site,
    directory: tempfile::TempDir,
    program: PathBuf,
    faults: RefCell<Vec<String>>,
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

impl Ground {
    fn new() -> Self {
        let site = Site::build(Plan::default()).unwrap();
        silence(&site);
        let directory = tempfile::tempdir().unwrap();
        mode(directory.path(), 0o755);
        let program = directory.path().join("exitmark");
        fs::copy(EXITMARK, &program).unwrap();
        Self {
            site,
            directory,
            program,
            faults: RefCell::default(),
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, by: By) -> Command {
        let words: &[&str] = match by {
            By::Root => return Command::new(&self.program),
            By::Nobody => &[
                "--reuid",
                "65534",
                "--regid",
                "65534",
                "--clear-groups",
                "--inh-caps",
                "-all",
            ],
            By::RootWithoutPerfmon => &[
                "--inh-caps",
                "-perfmon,-sys_admin",
                "--bounding-set",
                "-perfmon,-sys_admin",
            ],
        };
        let mut command = Command::new("setpriv");
        command.args(words).arg("--").arg(&self.program);
        command
    }

    /// Runs the command with its configuration.
    fn take(&self, turn: &Turn<'_>) {
        let configuration = turn.config.write(self.directory.path());
        self.take_with(turn, &configuration);
    }

    /// Runs the command with an existing configuration file.
    fn take_with(&self, turn: &Turn<'_>, configuration: &Path) {
        let mut command = self.command(turn.by);
        command
            .args(turn.command)
            .arg("--config")
            .arg(configuration);
        let output = self.site.middle.run(move || command.output().unwrap());
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
        let rig = Rig::on(self.site, &Config::default());
        moved(&rig.running.stop().unwrap());
    }
}

/// Prints a line of the table; returns the difference to the expected output.
fn fault(turn: &Turn<'_>, output: &Output) -> Option<String> {
    let errors = String::from_utf8_lossy(&output.stderr);
    let said = format!("{errors}{}", String::from_utf8_lossy(&output.stdout));
    let message = errors.lines().find(|line| line.starts_with("exitmark: "));
    let line = message.or_else(|| said.lines().find(|line| line.starts_with("fault")));
    let (what, status) = (turn.what, output.status.code());
    let command = turn.command.join(" ");
    println!(
        "{what} | {command} | {status:?} | {}",
        line.unwrap_or_default()
    );
    let missing: Vec<_> = turn
        .words
        .iter()
        .filter(|word| !said.contains(**word))
        .collect();
    // The verifier's whole log is for RUST_LOG=debug.
    let is_short = errors.len() < 4000;
    let is_right = is_short
        && status == Some(turn.status)
        && missing.is_empty()
        && !said.contains("panicked")
        && !said.contains("ready:");
    (!is_right).then(|| format!("{what}: {command}: {status:?}, without {missing:?}: {said}"))
}

fn with(top: &'static str) -> Config {
    Config {
        top,
        ..Config::default()
    }
}

fn more(more: &'static str) -> Config {
    Config {
        more,
        ..Config::default()
    }
}

#[test]
fn mistakes_in_the_configuration() {
    needs_root!();
    let ground = Ground::new();
    let no_consensus = |path: &str| Config {
        relays: format!("consensus = [\"{path}\"]"),
        ..Config::default()
    };
    let mark: [(&str, &str, &[&str]); 4] = [
        (
            "a DSCP of no name",
            "[mark]\ndscp = \"af99\"\n",
            &["mark.dscp = \"af99\"", "af11"],
        ),
        (
            "a DSCP of seven bits",
            "[mark]\ndscp = 64\n",
            &["mark.dscp = 64", "0 to 63", "mark.tos"],
        ),
        (
            "a ToS byte with ECN bits",
            "[mark]\ntos = 0x29\n",
            &["mark.tos = 0x29", "0x28"],
        ),
        (
            "the mark 0",
            "[mark]\ndscp = 0\n",
            &["mark.dscp = 0", "a mark must differ"],
        ),
    ];
    for (what, lines, words) in mark {
        for (command, status) in [("check", 1), ("run", 2), ("doctor", 2)] {
            ground.take(&Turn {
                what,
                command: &[command],
                config: more(lines),
                status,
                words,
                ..Turn::default()
            });
        }
    }
    ground.take(&Turn {
        what: "an unknown key",
        config: with("speed = 11"),
        status: 2,
        words: &["exitmark.toml", "unknown field `speed`", "`engine`"],
        ..Turn::default()
    });
    ground.take(&Turn {
        what: "the next hop is the box itself",
        config: Config {
            incoming: Some(("incoming0", exitmark_lab::site::INCOMING_MAC)),
            ..Config::default()
        },
        words: &[
            "steer.next_hop is the MAC address of incoming0 itself",
            "name the router",
        ],
        ..Turn::default()
    });
    ground.take(&Turn {
        what: "no such consensus",
        command: &["doctor"],
        config: no_consensus("/var/lib/nosuch/cached-microdesc-consensus"),
        words: &[
            "/var/lib/nosuch/cached-microdesc-consensus",
            "forwards everything unmarked",
            "CacheDirectory",
        ],
        ..Turn::default()
    });
    let private = ground.at("tor");
    fs::create_dir(&private).unwrap();
    mode(&private, 0o700);
    let consensus = private.join("cached-microdesc-consensus");
    fs::write(&consensus, "network-status-version 3 microdesc\n").unwrap();
    ground.take(&Turn {
        what: "a consensus that the user of the box may not read",
        // doctor checks with root's privileges if the user does not exist yet.
        command: &["doctor"],
        by: By::Nobody,
        config: Config {
            top: "user = \"nobody\"",
            ..no_consensus(consensus.to_str().unwrap())
        },
        words: &[
            "may not be read",
            "DataDirectoryGroupReadable 1",
            "CacheDirectoryGroupReadable 1",
            "debian-tor",
        ],
        ..Turn::default()
    });

    let broken = ground.at("broken.toml");
    let file = |what, command, status, words| Turn {
        what,
        command,
        status,
        words,
        ..Turn::default()
    };
    fs::write(&broken, "[ports\nhost = host0\n").unwrap();
    let words = &["broken.toml", "cannot be understood", "line 1"];
    ground.take_with(&file("no TOML", &["run"], 2, words), &broken);
    ground.take_with(&file("no TOML", &["check"], 1, words), &broken);
    fs::write(&broken, [0xff, 0xfe, 0, b'\n']).unwrap();
    ground.take_with(
        &file("no text", &["run"], 2, &["broken.toml", "UTF-8"]),
        &broken,
    );
    let missing = ground.at("missing.toml");
    let words = &["missing.toml", "No such file", "exitmark.example.toml"];
    ground.take_with(&file("no configuration", &["run"], 2, words), &missing);
    let hidden = ground.at("hidden.toml");
    fs::write(&hidden, "").unwrap();
    mode(&hidden, 0o600);
    let turn = Turn {
        by: By::Nobody,
        ..file(
            "a configuration that may not be read",
            &["run"],
            2,
            &["hidden.toml", "Permission denied", "root"],
        )
    };
    ground.take_with(&turn, &hidden);
    let turn = file(
        "a directory for a configuration",
        &["run"],
        2,
        &["Is a directory"],
    );
    ground.take_with(&turn, ground.directory.path());
    ground.start_at_last();
}

#[test]
fn problems_of_the_machine() {
    needs_root!();
    let ground = Ground::new();
    let turn = |what, command, words| Turn {
        what,
        command,
        words,
        ..Turn::default()
    };
    for command in [&["run"][..], &["doctor"]] {
        ground.take(&Turn {
            config: Config {
                incoming: Some(("enp7s0", TORNET_MAC)),
                ..Config::default()
            },
            ..turn(
                "a NIC of another name",
                command,
                &["no network interface enp7s0", "ip link"],
            )
        });
        ground.take(&Turn {
            by: By::Nobody,
            ..turn("not root", command, &["CAP_", "root"])
        });
        // The mistake, the command that makes it, the one that undoes it, and the expected message.
        let links: [(&str, &str, &str, &[&str]); 4] = [
            (
                "a NIC that is down",
                "link set uplink0 down",
                "link set uplink0 up",
                &["uplink0", "is down", "ip link set dev uplink0 up"],
            ),
            (
                "another MTU",
                "link set incoming0 mtu 1400",
                "link set incoming0 mtu 1500",
                &["MTU 1500", "MTU 1400", "ip link set dev incoming0 mtu 1500"],
            ),
            (
                "an IPv4 address on the host's port",
                "addr add 192.0.2.77/24 dev host0",
                "addr del 192.0.2.77/24 dev host0",
                &["host0", "ip addr del 192.0.2.77/24 dev host0"],
            ),
            (
                "an IPv6 address on the uplink",
                "addr add 2001:db8:1::77/64 dev uplink0",
                "addr del 2001:db8:1::77/64 dev uplink0",
                &["uplink0", "ip addr del 2001:db8:1::77/64 dev uplink0"],
            ),
        ];
        let ipv6 = "net/ipv6/conf/uplink0/disable_ipv6";
        for (what, wrong, right, words) in links {
            ground.site.middle.sysctl(ipv6, "0").unwrap();
            ground.ip(wrong);
            ground.take(&turn(what, command, words));
            ground.ip(right);
            ground.site.middle.sysctl(ipv6, "1").unwrap();
        }
        // Covered, not unmounted: the file system below may be the machine's.
        let cover = ["-t", "tmpfs", "none", "/sys/fs/bpf"];
        ground.site.middle.command("mount", &cover).unwrap();
        let words = &["BPF file system", "mount -t bpf bpf /sys/fs/bpf"];
        ground.take(&turn("no BPF file system", command, words));
        ground
            .site
            .middle
            .command("umount", &["/sys/fs/bpf"])
            .unwrap();
    }
    ground.take(&Turn {
        config: more("[control]\nsocket = \"/run/a/b/control.sock\"\n"),
        ..turn(
            "no place for the control socket",
            &["run"],
            &["control.socket", "/run/a/b", "install -d"],
        )
    });
    for port in ["host0", "uplink0", "incoming0"] {
        ground.ip(&format!("link set {port} mtu 9000"));
    }
    let words = &["MTU 9000", "datapath.frags", "mtu 3498"];
    ground.take(&Turn {
        config: more("[datapath]\nfrags = \"off\"\n"),
        ..turn("frames that do not fit one buffer", &["run"], words)
    });
    for port in ["host0", "uplink0", "incoming0"] {
        ground.ip(&format!("link set {port} mtu 1500"));
    }
    // Root without one capability: the verifier is then stricter.
    for command in [&["run"][..], &["doctor"]] {
        ground.take(&Turn {
            by: By::RootWithoutPerfmon,
            ..turn(
                "not every capability",
                command,
                &[
                    "the verifier of Linux ",
                    "refuses the program exitmark_host: ",
                    "prohibited",
                    "lacks CAP_PERFMON",
                ],
            )
        });
    }
    let taken = ground
        .site
        .middle
        .run(|| TcpListener::bind("127.0.0.1:9787").unwrap());
    let words = &[
        "metrics.listen",
        "127.0.0.1:9787",
        "ss -ltnp 'sport = :9787'",
    ];
    ground.take(&turn("the port for metrics is taken", &["run"], words));
    drop(taken);
    ground.start_at_last();
}

#[test]
fn conflicts_with_running_programs() {
    needs_root!();
    let ground = Ground::new();
    let turn = |what, words| Turn {
        what,
        words,
        ..Turn::default()
    };
    poll(&ground.site.middle, "uplink0").unwrap();
    let words = &[
        "another XDP program is attached",
        "ip link set dev uplink0 xdp off",
        "exitmark detach",
    ];
    ground.take(&turn("another XDP program", words));
    assert_eq!(pins(&ground.site), Vec::<String>::new());
    ground.ip("link set dev uplink0 xdp off");
    // The kernel's error differs for a program in another mode.
    occupy(&ground.site.middle, "uplink0").unwrap();
    let off = "link set dev uplink0 xdpgeneric off";
    let words = &["another XDP program is attached", off, "exitmark detach"];
    ground.take(&turn("another XDP program in generic mode", words));
    assert_eq!(pins(&ground.site), Vec::<String>::new());
    ground.ip(off);

    let Ground {
        site,
        directory,
        program,
        faults,
    } = ground;
    let rig = Rig::on(site, &Config::default());
    let ground = Ground {
        site: rig.site,
        directory,
        program,
        faults,
    };
    ground.take(&turn(
        "a second exitmark",
        &[
            "another exitmark holds /sys/fs/bpf/exitmark",
            "stop it first",
        ],
    ));
    ground.take(&Turn {
        config: more("[pin]\ndirectory = \"/sys/fs/bpf/other\"\n"),
        ..turn(
            "a second exitmark with other pins",
            &["metrics.listen", "ss -ltnp"],
        )
    });
    ground.take(&Turn {
        config: more("[pin]\ndirectory = \"/sys/fs/bpf/other\"\n[metrics]\nlisten = \"off\"\n"),
        ..turn(
            "a second exitmark without metrics",
            &["another exitmark answers at", "control.socket"],
        )
    });
    ground.take(&Turn {
        config: more(
            "[pin]\ndirectory = \"/sys/fs/bpf/other\"\n[metrics]\nlisten = \"off\"\n\
             [control]\nsocket = \"/run/other/control.sock\"\n",
        ),
        ..turn(
            "a second exitmark with all of its own",
            &["another program has this queue", "end it first"],
        )
    });
    moved(&rig.running.stop().unwrap());
    ground.site.middle.command(EXITMARK, &["detach"]).unwrap();
    ground.start_at_last();
}
