//! SIGKILL at every step of a start, a takeover, a reload, a stop and a detachment: a plain start
//! as the service's user recovers from any state. `make test-survive` tests every step, other runs
//! every fifth.

use crate::craft::{AF11, exit};
use crate::leaks::pins;
use crate::rig::{Config, EXITMARK, PATIENCE, moved, needs_root, silence};
use exitmark_lab::site::{Plan, RunningBox, Site};
use exitmark_lab::{Capture, Ending, RawPort, contained, killed_at, steps};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// The capabilities of the service, which runs as another user.
const CAPABILITIES: &str = "+net_admin,+net_raw,+bpf,+perfmon,+ipc_lock";
const BOUNDING: &str = "-all,+net_admin,+net_raw,+bpf,+perfmon,+ipc_lock";
const NOBODY: u32 = 65534;
/// The limit of steps, to detect a program that does not end.
const MANY: usize = 1000;

struct Ground {
    site: Site,
    directory: tempfile::TempDir,
    program: PathBuf,
    untouched: String,
}

impl Ground {
    fn new() -> Self {
        let site = Site::build(Plan::default()).unwrap();
        silence(&site);
        let directory = tempfile::tempdir().unwrap();
        let for_all = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), for_all).unwrap();
        let program = directory.path().join("exitmark");
        fs::copy(EXITMARK, &program).unwrap();
        site.middle.run(|| {
            fs::create_dir("/run/exitmark").unwrap();
            chown("/run/exitmark", Some(NOBODY), Some(NOBODY)).unwrap();
        });
        let untouched = nics(&site);
        Self {
            site,
            directory,
            program,
            untouched,
        }
    }

    fn configure(&self, on_stop: &'static str) -> PathBuf {
        let config = Config {
            top: "engine = \"xdp\"",
            more: on_stop,
            ..Config::default()
        };
        config.write(self.directory.path())
    }

    fn words<'a>(&'a self, command: &[&'a str]) -> Vec<&'a str> {
        let setpriv = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--no-new-privs",
            "--bounding-set",
            BOUNDING,
            "--inh-caps",
            CAPABILITIES,
            "--ambient-caps",
            CAPABILITIES,
            "--",
        ];
        let program = self.program.to_str().unwrap();
        [&setpriv[..], &[program], command].concat()
    }

    /// Starts a box, and checks that an exit frame leaves marked.
    fn start(&self, configuration: &Path, after: &str) -> RunningBox {
        let configuration = configuration.to_str().unwrap();
        let words = self.words(&["run", "--config", configuration]);
        let mut command = contained(words[0]);
        command.args(&words[1..]);
        let running = RunningBox::start_by(&self.site.middle, command);
        let running = running.unwrap_or_else(|error| panic!("after {after}: {error}"));
        let mut eye = Capture::start(&self.site.clearnet, "eth0", "in", "").unwrap();
        let port = RawPort::open(&self.site.host, "eth0").unwrap();
        port.send(&exit(0, 40).outbound(&[])).unwrap();
        let marked = exit(0, 40).tos(AF11).outbound(&[]);
        let arrived = eye.wait_until(PATIENCE, |seen| seen.iter().any(|one| one.bytes == marked));
        assert!(arrived, "after {after}");
        running
    }

    /// Kills a command at each of its steps in turn, until it completes. After each kill a box must
    /// start and stop; returns the number of steps.
    fn at_every_step(&self, command: &[&str], configuration: &Path, prepare: impl Fn()) -> usize {
        for step in steps().take_while(|&step| step < MANY) {
            prepare();
            let words = self.words(command);
            match killed_at(&self.site.middle, &words, step).unwrap() {
                Ending::Killed(call) => {
                    println!("killed at {call}");
                    let running = self.start(configuration, &call);
                    moved(&running.stop().unwrap());
                }
                Ending::Itself(0, _) => return step - 1,
                Ending::Itself(status, said) => panic!("step {step}: {status}: {said}"),
            }
        }
        panic!("there is no end");
    }
}

/// The NIC settings that a box changes.
fn nics(site: &Site) -> String {
    let mut text = String::new();
    for nic in ["host0", "uplink0", "incoming0"] {
        let features = site.middle.command("ethtool", &["-k", nic]).unwrap();
        let link = site
            .middle
            .ip(&format!("-details link show {nic}"))
            .unwrap();
        let words = link.split_whitespace().collect::<Vec<_>>();
        let promiscuity = words.windows(2).find(|two| two[0] == "promiscuity");
        text += &format!(
            "{nic} {promiscuity:?} {}\n{features}",
            link.contains("prog/xdp")
        );
    }
    text
}

#[test]
fn a_start_a_reload_and_a_stop_that_detaches() {
    needs_root!();
    let ground = Ground::new();
    let configuration = ground.configure("[pin]\non_stop = \"detach\"");
    let file = configuration.to_str().unwrap().to_owned();
    let run = ["run", "--config", &file];
    let steps = ground.at_every_step(&run, &configuration, || {
        assert_eq!(nics(&ground.site), ground.untouched);
        assert_eq!(pins(&ground.site), Vec::<String>::new());
    });
    println!("{steps} steps");
    assert!(steps > 30, "{steps}");
    assert_eq!(nics(&ground.site), ground.untouched);
}

#[test]
fn a_takeover_and_a_stop_that_keeps() {
    needs_root!();
    let ground = Ground::new();
    let configuration = ground.configure("");
    let file = configuration.to_str().unwrap().to_owned();
    moved(&ground.start(&configuration, "nothing").stop().unwrap());
    let steps = ground.at_every_step(&["run", "--config", &file], &configuration, || ());
    println!("{steps} steps");
    assert!(steps > 30, "{steps}");
    let detach = ground.words(&["detach", "--config", &file]);
    ground.site.middle.command(detach[0], &detach[1..]).unwrap();
    assert_eq!(nics(&ground.site), ground.untouched);
}

#[test]
fn a_detachment() {
    needs_root!();
    let ground = Ground::new();
    let configuration = ground.configure("");
    let file = configuration.to_str().unwrap().to_owned();
    moved(&ground.start(&configuration, "nothing").stop().unwrap());
    let detach = ["detach", "--config", &file];
    let steps = ground.at_every_step(&detach, &configuration, || ());
    println!("{steps} steps");
    assert!(steps > 10, "{steps}");
    // The last run completed.
    assert_eq!(nics(&ground.site), ground.untouched);
    assert_eq!(pins(&ground.site), Vec::<String>::new());
}

#[test]
fn a_plain_wire_that_takes_a_box_over() {
    needs_root!();
    let ground = Ground::new();
    let configuration = ground.configure("");
    let file = configuration.to_str().unwrap().to_owned();
    moved(&ground.start(&configuration, "nothing").stop().unwrap());
    let wire = ["detach", "--config", &file, "--keep-wire"];
    let steps = ground.at_every_step(&wire, &configuration, || ());
    println!("{steps} steps");
    assert!(steps > 20, "{steps}");
}

/// The attached program has no pin any more, and opening it by its ID requires CAP_SYS_ADMIN.
#[test]
fn a_program_without_a_pin_is_replaced() {
    needs_root!();
    let ground = Ground::new();
    let configuration = ground.configure("");
    moved(&ground.start(&configuration, "nothing").stop().unwrap());
    ground.site.middle.run(|| {
        for role in ["host", "uplink", "incoming"] {
            fs::remove_file(format!("/sys/fs/bpf/exitmark/program_{role}")).unwrap();
        }
    });
    let running = ground.start(&configuration, "the pins were removed");
    let log = running.log();
    assert!(log.contains("cannot be restored"), "{log}");
    moved(&running.stop().unwrap());
}
