//! SIGKILL at every step of a start, a takeover, a reload, a stop and a detachment: a plain start
//! as the service's user recovers from any state. `make test-survive` tests every step, other runs
//! every fifth.

use crate::leaks::pins;
use crate::rig::{Case, Config, EXITMARK, arrives, moved, needs_root, silent};
use exitmark_datapath::Role;
use exitmark_lab::process::{NOBODY, public_copy};
use exitmark_lab::site::{Plan, Site, nic};
use exitmark_lab::{Ending, RunningBox, contained, killed_at, steps};
use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;

/// The capabilities of the service, which runs as another user.
const SETPRIV: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs \
    --bounding-set -all,+net_admin,+net_raw,+bpf,+perfmon,+ipc_lock \
    --inh-caps +net_admin,+net_raw,+bpf,+perfmon,+ipc_lock \
    --ambient-caps +net_admin,+net_raw,+bpf,+perfmon,+ipc_lock --";
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
        let site = silent(Plan::default());
        let directory = tempfile::tempdir().unwrap();
        let program = public_copy(EXITMARK, directory.path()).unwrap();
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

    /// With a configuration with these tables, and its path.
    fn configured(tables: &str) -> (Self, String) {
        let ground = Self::new();
        let config = Config::default().engine("xdp").more(tables);
        let path = config.write(ground.directory.path()).unwrap();
        (ground, path.to_str().unwrap().to_owned())
    }

    /// With a configuration, its path, and what a stopped box left.
    fn with_stopped_box() -> (Self, String) {
        let (ground, file) = Self::configured("");
        moved(&ground.start(&file, "nothing").stop().unwrap());
        (ground, file)
    }

    fn arguments<'a>(&'a self, command: &[&'a str]) -> Vec<&'a str> {
        let program = self.program.to_str().unwrap();
        let words = SETPRIV.split(' ').chain([program]);
        words.chain(command.iter().copied()).collect()
    }

    /// Starts a box, and checks that an exit frame leaves marked.
    fn start(&self, configuration: &str, after: &str) -> RunningBox {
        let words = self.arguments(&["run", "--config", configuration]);
        let mut command = contained(words[0]);
        command.args(&words[1..]);
        let running = RunningBox::start_by(&self.site.middle, command);
        let running = running.unwrap_or_else(|error| panic!("after {after}: {error}"));
        println!("a box after {after}");
        arrives(&self.site, &Case::exit(0, 40));
        running
    }

    /// Kills a command at each of its steps in turn, until it completes, which takes more than
    /// `least` steps. After each kill a box must start and stop.
    fn at_every_step(&self, command: &[&str], file: &str, least: usize, prepare: impl Fn()) {
        let command = [command, &["--config", file]].concat();
        for step in steps().take_while(|&step| step < MANY) {
            prepare();
            let words = self.arguments(&command);
            match killed_at(&self.site.middle, &words, step).unwrap() {
                Ending::Killed(call) => {
                    println!("killed at {call}");
                    let running = self.start(file, &call);
                    moved(&running.stop().unwrap());
                }
                Ending::Itself(0, _) => {
                    println!("{} steps", step - 1);
                    assert!(step - 1 > least, "{} steps", step - 1);
                    return;
                }
                Ending::Itself(status, said) => panic!("step {step}: {status}: {said}"),
            }
        }
        panic!("there is no end");
    }

    /// Checks that the NICs are as they were, and that nothing is pinned.
    fn is_untouched(&self) {
        assert_eq!(nics(&self.site), self.untouched);
        assert_eq!(pins(&self.site), Vec::<String>::new());
    }
}

/// The NIC settings that a box changes.
fn nics(site: &Site) -> String {
    let mut text = String::new();
    for nic in Role::ALL.map(nic) {
        let features = site.middle.command("ethtool", &["-k", nic]).unwrap();
        let link = site.middle.ip(&format!("-details link show {nic}"));
        let link = link.unwrap();
        let mut words = link
            .split_whitespace()
            .skip_while(|word| *word != "promiscuity");
        let (promiscuity, has_xdp) = (words.nth(1), link.contains("prog/xdp"));
        text += &format!("{nic} {promiscuity:?} {has_xdp}\n{features}");
    }
    text
}

#[test]
fn a_start_a_reload_and_a_stop_that_detaches() {
    needs_root!();
    let (ground, file) = Ground::configured("[pin]\non_stop = \"detach\"");
    ground.at_every_step(&["run"], &file, 30, || ground.is_untouched());
    assert_eq!(nics(&ground.site), ground.untouched);
}

#[test]
fn a_takeover_and_a_stop_that_keeps() {
    needs_root!();
    let (ground, file) = Ground::with_stopped_box();
    ground.at_every_step(&["run"], &file, 30, || ());
    let detach = ground.arguments(&["detach", "--config", &file]);
    ground.site.middle.command(detach[0], &detach[1..]).unwrap();
    assert_eq!(nics(&ground.site), ground.untouched);
}

#[test]
fn a_detachment() {
    needs_root!();
    let (ground, file) = Ground::with_stopped_box();
    ground.at_every_step(&["detach"], &file, 10, || ());
    // The last run completed.
    ground.is_untouched();
}

#[test]
fn a_plain_wire_that_takes_a_box_over() {
    needs_root!();
    let (ground, file) = Ground::with_stopped_box();
    ground.at_every_step(&["detach", "--keep-wire"], &file, 20, || ());
}

/// The attached program has no pin any more, and opening it by its ID requires CAP_SYS_ADMIN.
#[test]
fn a_program_without_a_pin_is_replaced() {
    needs_root!();
    let (ground, file) = Ground::with_stopped_box();
    ground.site.middle.run(|| {
        for role in ["host", "uplink", "incoming"] {
            fs::remove_file(format!("/sys/fs/bpf/exitmark/program_{role}")).unwrap();
        }
    });
    let running = ground.start(&file, "the pins were removed");
    running.wait_log(&["cannot be restored"]);
    moved(&running.stop().unwrap());
}
