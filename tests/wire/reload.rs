//! Other relay sets: followed as tor replaces its files, at once and as a whole, or not at all.

use crate::craft::{AF11, Packet, TCP, exit, families, segment};
use crate::rig::{Config, Rig, Side, both_engines, eventually, needs_root, timeout};
use exitmark_lab::authorities::Authorities;
use exitmark_lab::consensus::{ConsensusBuilder, hours_from};
use exitmark_lab::process::NOBODY;
use exitmark_lab::site::Plan;
use exitmark_lab::{Capture, publish};
use exitmark_policy::Endpoint;
use exitmark_relays::Flavor;
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

const NAME: &str = "cached-microdesc-consensus";
const HOUR: Duration = Duration::from_secs(3600);
/// What the box says when it has taken a set on, and when it has not.
pub(crate) const REPLACED: &str = "relay set replaced";
pub(crate) const KEPT: &str = "stays as it was";

pub(crate) static AUTHORITIES: LazyLock<Authorities> = LazyLock::new(|| Authorities::new(3));

/// A consensus that lists this endpoint among a hundred others.
pub(crate) fn listing(listed: Endpoint) -> ConsensusBuilder {
    let validity = hours_from(SystemTime::now() - HOUR, [0, 2, 3]);
    ConsensusBuilder {
        relays: 100,
        listed: vec![listed],
        ..ConsensusBuilder::full_size(Flavor::Microdesc, validity)
    }
}

pub(crate) struct Tor {
    pub(crate) directory: TempDir,
}

impl Tor {
    pub(crate) fn with(builder: &ConsensusBuilder) -> Self {
        let tor = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        tor.publish(builder);
        tor
    }

    pub(crate) fn publish(&self, builder: &ConsensusBuilder) {
        publish(self.directory.path(), NAME, builder, &AUTHORITIES).unwrap();
    }

    pub(crate) fn consensus(&self) -> PathBuf {
        self.directory.path().join(NAME)
    }

    /// A box that follows it.
    pub(crate) fn config(&self, more: &str) -> Config {
        Config::default().relays(format!(
            "consensus = [\"{}\"]\n{}\nstate = \"{}\"\n{more}",
            self.consensus().display(),
            AUTHORITIES.toml(),
            self.directory.path().join("relays.state").display(),
        ))
    }
}

pub(crate) fn relay(address: IpAddr) -> Endpoint {
    Endpoint::new(address, 9001)
}

pub(crate) fn servers() -> [IpAddr; 2] {
    [[198, 51, 100, 1], [198, 51, 100, 2]].map(IpAddr::from)
}

/// How the box treats a flow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Treatment {
    Marked,
    Steered,
    /// By the uplink, unmarked.
    Passed,
}

/// Sends frames, and knows what must have come of each.
pub(crate) struct Prober<'a> {
    rig: &'a Rig,
    uplink: Capture,
    incoming: Capture,
    exits: Vec<Vec<u8>>,
    relays: Vec<Vec<u8>>,
    sent: u16,
}

impl<'a> Prober<'a> {
    pub(crate) fn new(rig: &'a Rig) -> Self {
        Self {
            uplink: rig.watch(Side::Clearnet),
            incoming: rig.watch(Side::Tornet),
            rig,
            exits: Vec::new(),
            relays: Vec::new(),
            sent: 0,
        }
    }

    /// Sends a frame to this server's ORPort, and waits until it is where it must be.
    pub(crate) fn expect(&mut self, server: IpAddr, treatment: Treatment, when: &str) {
        self.sent += 1;
        let text = segment(40_000 + self.sent, 9001, 20);
        let packet = Packet::new(families()[0].0, server, TCP, text);
        let port = self.rig.port(Side::Host);
        port.send(&packet.outbound(&[])).unwrap();
        let (eye, expected) = match treatment {
            Treatment::Steered => {
                self.relays.push(packet.steered());
                (&mut self.incoming, self.relays.len())
            }
            Treatment::Marked | Treatment::Passed => {
                let is_marked = treatment == Treatment::Marked;
                let tos = if is_marked { AF11 } else { 0 };
                self.exits.push(packet.tos(tos).outbound(&[]));
                (&mut self.uplink, self.exits.len())
            }
        };
        assert!(eye.counts(expected), "{when}: not {treatment:?}");
    }

    /// Every frame was where it had to be, as it had to be.
    pub(crate) fn check(self) {
        for (capture, expected) in [(self.uplink, self.exits), (self.incoming, self.relays)] {
            let captured = capture.finish().unwrap();
            let captured: Vec<_> = captured.into_iter().map(|one| one.bytes).collect();
            assert!(captured == expected);
        }
    }
}

#[test]
fn a_new_file_changes_the_class_by_itself_and_a_bad_one_changes_nothing() {
    both_engines(|| {
        use Treatment::{Marked, Steered};
        let [first, second] = servers();
        let tor = Tor::with(&listing(relay(first)));
        let rig = Rig::silent(Plan::default(), &tor.config("retain = \"0s\""));
        let mut prober = Prober::new(&rig);
        let both = |prober: &mut Prober<'_>, relay, when: &str| {
            for server in servers() {
                prober.expect(server, if server == relay { Steered } else { Marked }, when);
            }
        };
        both(&mut prober, first, "at the start");
        tor.publish(&listing(relay(second)));
        rig.said(REPLACED, 1..=1);
        both(&mut prober, second, "another set");

        // Each of these is refused, and said once.
        let good = std::fs::read(tor.consensus()).unwrap();
        let certificates = tor.directory.path().join("cached-certs");
        let write = |bytes: &[u8]| replace(&tor.consensus(), bytes);
        let mut wrong = good.clone();
        wrong[good.len() / 3] ^= 1;
        let strangers = listing(relay(first)).sign(&Authorities::family(1, 3));
        let mut older = listing(relay(first));
        older.validity.valid_after -= HOUR;
        #[rustfmt::skip]
        let spoil: [(&str, &dyn Fn()); 6] = [
            ("cut", &|| write(&good[..good.len() / 2])),
            ("empty", &|| write(b"")),
            ("a byte", &|| write(&wrong)),
            ("a stranger's", &|| write(strangers.as_bytes())),
            ("no file", &|| std::fs::remove_file(tor.consensus()).unwrap()),
            ("older", &|| tor.publish(&older)),
        ];
        for (number, (what, spoil)) in (1..).zip(spoil) {
            spoil();
            rig.said(KEPT, number..=number);
            both(&mut prober, second, what);
        }
        tor.publish(&listing(relay(second)));
        std::fs::remove_file(&certificates).unwrap();
        rig.said(KEPT, 7..=7);
        both(&mut prober, second, "no certificates");

        tor.publish(&listing(relay(first)));
        rig.said(REPLACED, 2..=2);
        both(&mut prober, first, "the first set again");
        prober.check();
        let counters = rig.stop().counters;
        assert!(counters["relay_sets_refused"] >= 7, "{counters:?}");
    });
}

pub(crate) fn replace(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    std::fs::write(&new, bytes).unwrap();
    std::fs::rename(&new, path).unwrap();
}

#[test]
fn who_has_left_is_remembered_over_a_restart_and_then_forgotten() {
    both_engines(|| {
        use Treatment::{Marked, Steered};
        let [first, second] = servers();
        let tor = Tor::with(&listing(relay(first)));
        let config = tor.config("");
        let rig = Rig::silent(Plan::default(), &config);
        tor.publish(&listing(relay(second)));
        rig.said(REPLACED, 1..=1);
        let mut prober = Prober::new(&rig);
        for server in servers() {
            prober.expect(server, Steered, "both count");
        }
        prober.check();
        let rig = rig.restart(&config);
        let mut prober = Prober::new(&rig);
        prober.expect(first, Steered, "remembered over the restart");
        prober.check();
        // Time passes for the box when it is configured to remember less.
        let rig = rig.restart(&tor.config("retain = \"0s\""));
        let mut prober = Prober::new(&rig);
        prober.expect(first, Marked, "forgotten");
        prober.expect(second, Steered, "listed");
        prober.check();
        rig.stop();
    });
}

#[test]
fn a_start_without_any_consensus_goes_on_with_the_set_of_the_last_time() {
    both_engines(|| {
        let [first, _] = servers();
        let tor = Tor::with(&listing(relay(first)));
        let config = tor.config("");
        let rig = Rig::silent(Plan::default(), &config);
        replace(&tor.consensus(), b"network-status-version 3 microdesc\n");
        rig.said(KEPT, 1..=1);
        let rig = rig.restart(&config);
        let words = "continuing with the relay set of the previous run";
        rig.running.wait_log(&[words]);
        let mut prober = Prober::new(&rig);
        prober.expect(first, Treatment::Steered, "of the last time");
        prober.check();
        rig.stop();
    });
}

/// The newest consensus passes its end by a day while the box runs.
#[test]
fn a_stale_set_lets_all_pass_or_goes_on() {
    both_engines(|| {
        let [first, second] = servers();
        for (when_stale, to_relay, to_other) in [
            ("pass", Treatment::Passed, Treatment::Passed),
            ("keep", Treatment::Steered, Treatment::Marked),
        ] {
            // Long enough for the box to start and be queried first.
            let until_stale = Duration::from_secs(4);
            let mut builder = listing(relay(first));
            let end = SystemTime::now() + until_stale - 24 * HOUR;
            builder.validity = hours_from(end - 3 * HOUR, [0, 1, 3]);
            let tor = Tor::with(&builder);
            let config = tor.config(&format!("when_stale = \"{when_stale}\""));
            let rig = Rig::silent(Plan::default(), &config);
            let mut prober = Prober::new(&rig);
            // On a busy machine it may be stale before the box is there.
            let is_late = rig.running.log().contains("ALARM");
            if !is_late {
                prober.expect(first, Treatment::Steered, "before");
            }
            rig.said("ALARM", 1..=1);
            if when_stale == "pass" && !is_late {
                rig.said(REPLACED, 1..);
            }
            prober.expect(first, to_relay, when_stale);
            prober.expect(second, to_other, when_stale);
            // A consensus that is fresh ends it.
            tor.publish(&listing(relay(first)));
            let replaced = if when_stale == "pass" { 2 } else { 0 };
            rig.counts("relay_set_stale", 0);
            rig.said(REPLACED, replaced..=replaced);
            prober.expect(first, Treatment::Steered, "afterwards");
            prober.expect(second, Treatment::Marked, "afterwards");
            prober.check();
            rig.stop();
        }
    });
}

#[test]
fn a_signal_has_the_files_read_at_once() {
    needs_root!();
    let [first, _] = servers();
    let tor = Tor::with(&listing(relay(first)));
    let rig = Rig::silent(Plan::default(), &tor.config(""));
    rig.running.signal(Signal::SIGHUP).unwrap();
    rig.said("relay set confirmed", 1..=1);
    replace(&tor.consensus(), b"");
    rig.said(KEPT, 1..=1);
    // The same reason is said again to whoever asks.
    rig.running.signal(Signal::SIGHUP).unwrap();
    rig.said(KEPT, 2..=2);
    rig.stop();
}

/// Frames are forwarded while the set is replaced again and again; none is lost, and each
/// is wholly of one set or the other.
#[test]
fn no_frame_is_lost_while_sets_change() {
    both_engines(|| {
        let server = families()[0].1;
        let tor = Tor::with(&listing(Endpoint::new(server, 443)));
        let rig = Rig::silent(Plan::default(), &tor.config("retain = \"0s\""));
        let (mut uplink, mut incoming) = (rig.watch(Side::Clearnet), rig.watch(Side::Tornet));
        let port = rig.port(Side::Host);
        let (sets, per_set) = (20_usize, 50_usize);
        for set in 1..=sets {
            let (_, _, elsewhere) = families()[0];
            let address = if set % 2 == 0 { server } else { elsewhere };
            tor.publish(&listing(Endpoint::new(address, 443)));
            for number in 0..per_set {
                port.send(&exit(0, number).outbound(&[])).unwrap();
            }
            let sent = set * per_set;
            eventually("all arrive", || {
                let captured = [&mut uplink, &mut incoming].map(|eye| eye.so_far().len());
                match captured.iter().sum::<usize>() {
                    captured if captured == sent => Ok(()),
                    captured => Err(format!("{captured} of {sent}")),
                }
            });
            rig.said(REPLACED, set..=set);
        }
        rig.stop();
        let (uplink, incoming) = (uplink.finish().unwrap(), incoming.finish().unwrap());
        assert!(!uplink.is_empty() && !incoming.is_empty());
        let (marked, steered) = (exit(0, 0).marked(), exit(0, 0).steered());
        for (captured, wanted) in [(uplink, marked), (incoming, steered)] {
            for frame in captured {
                // Same MACs and same ToS as all that leave this way.
                assert_eq!(frame.bytes[..16], wanted[..16]);
            }
        }
    });
}

/// The process that reads documents is ended or stopped from outside: frames flow on by the old
/// set, and the next document is read.
#[test]
fn a_loader_that_dies_or_hangs_costs_a_refresh() {
    needs_root!();
    let [first, second] = servers();
    for (signal, user) in [
        (Signal::SIGKILL, 0),
        (Signal::SIGILL, NOBODY),
        (Signal::SIGSTOP, 0),
        (Signal::SIGSTOP, NOBODY),
    ] {
        // One of full size takes long enough to be caught.
        let mut large = listing(relay(second));
        large.relays = 20_000;
        // Newer than what the box started with, however many boxes it takes.
        large.validity.valid_after += Duration::from_secs(600);
        let large = large.sign(&AUTHORITIES);
        let (tor, mut rig, caught) = (0..CATCHES)
            .find_map(|_| {
                let tor = Tor::with(&listing(relay(first)));
                let mut rig = Rig::silent(Plan::default(), &tor.config("retain = \"0s\""));
                // The document alone, so that it is the only one that is read.
                replace(&tor.consensus(), large.as_bytes());
                let caught = catch(&mut rig, user)?;
                Some((tor, rig, caught))
            })
            .expect("every loader ended before it was caught");
        let pid = rig.running.pid();
        nix::sys::signal::kill(caught, signal).unwrap();
        let mut prober = Prober::new(&rig);
        prober.expect(first, Treatment::Steered, "meanwhile");
        rig.said(KEPT, 1..=1);
        prober.expect(first, Treatment::Steered, "by the old set");
        prober.expect(second, Treatment::Marked, "by the old set");
        assert!(children(pid).is_empty(), "{signal}: it is still there");
        rig.running.signal(Signal::SIGHUP).unwrap();
        rig.said(REPLACED, 1..=1);
        prober.expect(second, Treatment::Steered, "by the new set");
        prober.check();
        rig.stop();
        drop(tor);
    }
}

/// Boxes until one's loader is caught: a busy machine may give it all of its time at once.
const CATCHES: usize = 20;

/// The box's loader, once it is this user; none if it has read the document meanwhile.
fn catch(rig: &mut Rig, user: u32) -> Option<nix::unistd::Pid> {
    let deadline = std::time::Instant::now() + timeout();
    loop {
        let children = children(rig.running.pid());
        for &child in &children {
            // Before it is a loader it is a part of the box itself.
            let command = std::fs::read_to_string(format!("/proc/{child}/cmdline"));
            let status = std::fs::read_to_string(format!("/proc/{child}/status"));
            let is_user = status.is_ok_and(|text| text.contains(&format!("\nUid:\t{user}\t")));
            if is_user && command.is_ok_and(|words| words.contains("load-relays")) {
                return Some(nix::unistd::Pid::from_raw(child));
            }
        }
        if children.is_empty() && rig.running.log().contains(REPLACED) {
            return None;
        }
        assert!(std::time::Instant::now() < deadline, "no child came");
        std::hint::spin_loop();
    }
}

fn children(pid: u32) -> BTreeSet<i32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let lines: String = threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .collect();
    let numbers = lines.split_whitespace();
    numbers.map(|number| number.parse().unwrap()).collect()
}
