//! A site with a running box, and the comparison of sent and received frames.

use crate::craft::{AF11, Packet, ethernet, exit, relay};
use exitmark_box::observe::{Report, Warning};
use exitmark_datapath::Role;
use exitmark_lab::site::{FAR_END, Plan, Site, nic, nic_mac};
use exitmark_lab::{Capture, CapturedFrame, FinalState, Netns, RawPort, RunningBox, contained};
pub(crate) use exitmark_lab::{Config, both_engines, eventually, needs_root, timeout, wait_until};
use std::collections::BTreeMap;
use std::ops::RangeBounds;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

pub(crate) const EXITMARK: &str = env!("CARGO_BIN_EXE_exitmark");
pub(crate) const UPLINK0_MAC: &str = nic_mac(Role::Uplink);
/// The interval of frames that are sent until one arrives.
pub(crate) const PACE: Duration = Duration::from_millis(20);

/// The receiver or sender of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Host,
    Clearnet,
    Tornet,
    /// The box's own network stack, captured on `incoming0`.
    Stack,
}

impl Side {
    pub(crate) const ALL: [Self; 4] = [Self::Host, Self::Clearnet, Self::Tornet, Self::Stack];

    const fn place(self, site: &Site) -> (&Netns, &'static str) {
        match self {
            Self::Host => (&site.host, FAR_END),
            Self::Clearnet => (&site.clearnet, FAR_END),
            Self::Tornet => (&site.tornet, FAR_END),
            Self::Stack => (&site.middle, nic(Role::Incoming)),
        }
    }
}

/// One frame, with the expected receiver and bytes; `None` if it must not arrive.
pub(crate) struct Case {
    pub(crate) what: String,
    pub(crate) from: Side,
    pub(crate) sent: Vec<u8>,
    pub(crate) arrives: Option<(Side, Vec<u8>)>,
}

impl Case {
    pub(crate) fn new(
        what: impl Into<String>,
        from: Side,
        sent: Vec<u8>,
        arrives: Option<(Side, Vec<u8>)>,
    ) -> Self {
        Self {
            what: what.into(),
            from,
            sent,
            arrives,
        }
    }

    /// A frame that the wire forwards unchanged.
    pub(crate) fn untouched(what: impl Into<String>, from: Side, frame: Vec<u8>) -> Self {
        let to = match from {
            Side::Host => Side::Clearnet,
            _ => Side::Host,
        };
        Self::new(what, from, frame.clone(), Some((to, frame)))
    }

    /// The host's packet, which leaves by the uplink with this ToS byte.
    pub(crate) fn to_uplink(what: &str, sent: &Packet, tos: u8, tags: &[(u16, u16)]) -> Self {
        let arrives = sent.clone().tos(tos).outbound(tags);
        let arrives = Some((Side::Clearnet, arrives));
        let what = format!("{what}, ToS {:#04x}", sent.tos);
        Self::new(what, Side::Host, sent.outbound(tags), arrives)
    }

    /// The host's packet, which is steered with this ToS byte.
    pub(crate) fn to_tornet(what: &str, sent: &Packet, tos: u8) -> Self {
        let arrives = Some((Side::Tornet, sent.clone().tos(tos).steered()));
        let what = format!("{what}, ToS {:#04x}", sent.tos);
        Self::new(what, Side::Host, sent.outbound(&[]), arrives)
    }

    /// Checks that all captured frames are the expected one.
    #[track_caller]
    fn is_all(&self, captured: &[CapturedFrame]) {
        let (_, expected) = self.arrives.as_ref().unwrap();
        let is_all = captured.iter().all(|one| one.bytes == *expected);
        assert!(is_all, "{}: {captured:02x?}", self.what);
    }

    /// Exit traffic, which is marked.
    pub(crate) fn exit(family: usize, bytes: usize) -> Self {
        Self::to_uplink("exit", &exit(family, bytes), AF11, &[])
    }

    /// A packet to the listed relay, which is steered.
    pub(crate) fn relay(family: usize, bytes: usize) -> Self {
        Self::to_tornet("relay", &relay(family, bytes), 0)
    }

    /// A packet for the host on the network of `incoming`, which the host receives.
    pub(crate) fn to_host(what: impl Into<String>, sent: &Packet, tags: &[(u16, u16)]) -> Self {
        let arrives = Some((Side::Host, sent.delivered(tags)));
        Self::new(what, Side::Tornet, sent.incoming(tags), arrives)
    }
}

/// A site whose stacks send nothing by themselves and answer nothing.
pub(crate) fn silent(plan: Plan) -> Site {
    let site = Site::build(plan).unwrap();
    site.silence().unwrap();
    site
}

pub(crate) fn watch(site: &Site, side: Side) -> Capture {
    let (netns, interface) = side.place(site);
    Capture::start(netns, interface, "in", "").unwrap()
}

pub(crate) fn port(site: &Site, side: Side) -> RawPort {
    let (netns, interface) = side.place(site);
    RawPort::open(netns, interface).unwrap()
}

/// Sends a frame, which must arrive; others may arrive, too.
#[track_caller]
pub(crate) fn arrives(site: &Site, case: &Case) {
    let (to, expected) = case.arrives.as_ref().unwrap();
    let mut eye = watch(site, *to);
    port(site, case.from).send(&case.sent).unwrap();
    assert!(eye.sees(expected), "{}: not at {to:?}", case.what);
}

/// Sends a frame, which must arrive, and no other frame.
#[track_caller]
pub(crate) fn passes(site: &Site, case: &Case) {
    let (to, _) = case.arrives.as_ref().unwrap();
    let mut eye = watch(site, *to);
    port(site, case.from).send(&case.sent).unwrap();
    assert!(eye.counts(1), "{}: not at {to:?}", case.what);
    case.is_all(&eye.finish().unwrap());
}

/// Checks that an exit frame and a relay frame leave marked and steered, or both unchanged by the
/// uplink, and no other frame.
#[track_caller]
pub(crate) fn classifies(site: &Site, is_enforced: bool, when: &str) {
    let mut eyes = [Side::Clearnet, Side::Tornet].map(|side| watch(site, side));
    let port = port(site, Side::Host);
    let frames = [exit(0, 60), relay(1, 60)].map(|packet| packet.outbound(&[]));
    for frame in &frames {
        port.send(frame).unwrap();
    }
    let expected = match is_enforced {
        true => [vec![exit(0, 60).marked()], vec![relay(1, 60).steered()]],
        false => [frames.to_vec(), Vec::new()],
    };
    for (eye, expected) in eyes.iter_mut().zip(expected) {
        let arrived = eye.wait_until(timeout(), |captured| {
            captured.iter().map(|one| &one.bytes).eq(&expected)
        });
        assert!(arrived, "{when}: enforced: {is_enforced}");
    }
}

#[track_caller]
pub(crate) fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
}

/// The message with which a box with this configuration does not start.
#[track_caller]
pub(crate) fn refused(site: &Site, config: &Config) -> String {
    let directory = tempfile::tempdir().unwrap();
    let configuration = config.write(directory.path()).unwrap();
    let refused = site.run(EXITMARK, &configuration);
    refused.err().unwrap().to_string()
}

pub(crate) fn exitmark(site: &Site, arguments: &[&str]) -> Output {
    let mut command = Command::new(EXITMARK);
    command.args(arguments);
    site.middle.output(command).unwrap()
}

/// Runs `exitmark capture` with these arguments, and sends frames until it ends. Returns the path of
/// the capture.
#[track_caller]
pub(crate) fn capture(rig: &Rig, arguments: &[&str], send: impl Fn()) -> PathBuf {
    let name = format!("capture{}.pcapng", arguments.len());
    let out = rig.directory.path().join(name);
    let mut command = contained(EXITMARK);
    command.args(["capture", "--seconds", "20", "--out"]);
    command.arg(&out).args(arguments);
    let mut child = rig.site.middle.start(command).unwrap();
    let status = loop {
        send();
        if let Ok(status) = child.wait(PACE) {
            break status;
        }
    };
    assert!(status.success(), "{status}");
    out
}

pub(crate) fn detach(site: &Site) -> String {
    site.middle.command(EXITMARK, &["detach"]).unwrap()
}

pub(crate) struct Rig {
    pub(crate) site: Site,
    pub(crate) running: RunningBox,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) configuration: PathBuf,
}

impl Rig {
    /// Starts a box with real network stacks on every end.
    pub(crate) fn lively(plan: Plan, config: &Config) -> Self {
        Self::on(Site::build(plan).unwrap(), config)
    }

    /// Starts a box with ends that send nothing by themselves and answer nothing.
    pub(crate) fn silent(plan: Plan, config: &Config) -> Self {
        Self::on(silent(plan), config)
    }

    /// Starts a box on a site that the test has prepared.
    pub(crate) fn on(site: Site, config: &Config) -> Self {
        Self::by(site, config, |_| contained(EXITMARK))
    }

    /// Starts a box by this command, whose directory this is and to which arguments are added.
    pub(crate) fn by(site: Site, config: &Config, command: impl FnOnce(&Path) -> Command) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let configuration = config.write(directory.path()).unwrap();
        let mut command = command(directory.path());
        command.args(["run", "--config"]).arg(&configuration);
        let running = RunningBox::start_by(&site.middle, command).unwrap();
        Self {
            site,
            running,
            directory,
            configuration,
        }
    }

    /// Runs `ip` in the box's namespace.
    #[track_caller]
    pub(crate) fn ip(&self, line: impl AsRef<str>) -> String {
        self.site.middle.ip(line.as_ref()).unwrap()
    }

    /// The namespaces of the host, the clearnet and the tornet.
    pub(crate) const fn ends(&self) -> [&Netns; 3] {
        [&self.site.host, &self.site.clearnet, &self.site.tornet]
    }

    /// Stops the box, and starts it again with another configuration.
    pub(crate) fn restart(self, config: &Config) -> Self {
        Self::on(self.leave(), config)
    }

    /// Stops the box as [`moved`] checks it.
    #[track_caller]
    pub(crate) fn stop(self) -> FinalState {
        let last = self.running.stop().unwrap();
        moved(&last);
        last
    }

    /// Like [`stop`](Self::stop), for a site that is used further.
    #[track_caller]
    pub(crate) fn leave(self) -> Site {
        moved(&self.running.stop().unwrap());
        self.site
    }

    pub(crate) fn watch(&self, side: Side) -> Capture {
        watch(&self.site, side)
    }

    pub(crate) fn port(&self, side: Side) -> RawPort {
        port(&self.site, side)
    }

    /// Sends a frame repeatedly until it arrives, and no other frame.
    #[track_caller]
    pub(crate) fn assert_forwarded(&self, case: &Case) {
        let (to, expected) = case.arrives.as_ref().unwrap();
        let mut eye = self.watch(*to);
        let port = self.port(case.from);
        let assert_forwarded = || {
            // A recreated far end may not exist yet.
            let _ = port.send(&case.sent);
            eye.wait_until(PACE, |captured| {
                captured.iter().any(|one| one.bytes == *expected)
            })
        };
        wait_until(&case.what, assert_forwarded, || self.running.log());
        case.is_all(&eye.finish().unwrap());
    }

    /// Sends every case's frame, stops the box, and compares all received frames with the cases:
    /// the bytes of each, and no other frame. The counters that changed must be these, given as
    /// `name=number`.
    #[track_caller]
    pub(crate) fn verify(self, cases: &[Case], counters: impl AsRef<str>) {
        let mut eyes = Side::ALL.map(|side| self.watch(side));
        let ports = Side::ALL.map(|side| self.port(side));
        let mut expected = Side::ALL.map(|_| Vec::new());
        for case in cases {
            let before = self.running.counters().unwrap();
            ports[case.from as usize].send(&case.sent).unwrap();
            if case.arrives.is_none() {
                self.wait_for(&case.what, |counters| *counters != before);
            }
            if let Some((side, frame)) = &case.arrives {
                let (what, index) = (&case.what, *side as usize);
                expected[index].push((what, frame));
                let arrived = eyes[index].counts(expected[index].len());
                assert!(arrived, "{what} did not arrive at {side:?}");
            }
        }
        let last = self.running.stop().unwrap();
        farewell(&self.site);
        for ((side, mut eye), expected) in Side::ALL.into_iter().zip(eyes).zip(expected) {
            let ended = |frame: &CapturedFrame| frame.bytes.ends_with(FAREWELL);
            let is_over = side == Side::Stack
                || eye.wait_until(timeout(), |captured| captured.iter().any(ended));
            assert!(
                is_over,
                "the end of what is forwarded was not seen at {side:?}"
            );
            let captured = eye.finish().unwrap();
            let captured: Vec<_> = captured.iter().filter(|one| !ended(one)).collect();
            for (captured, (what, frame)) in captured.iter().zip(&expected) {
                let bytes = &captured.bytes;
                assert!(
                    bytes == *frame,
                    "{what} at {side:?}:\n{bytes:02x?}\nexpected\n{frame:02x?}"
                );
            }
            let (number, wanted) = (captured.len(), expected.len());
            assert_eq!(number, wanted, "frames at {side:?}: {captured:02x?}");
        }
        assert_moved(&moved(&last), counters.as_ref());
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, enough: impl Fn(&Counters) -> bool) {
        eventually(what, || {
            let counters = self.running.counters().unwrap();
            match enough(&counters) {
                true => Ok(()),
                false => Err(format!("{counters:?}")),
            }
        });
    }

    /// Waits until a counter has this value.
    #[track_caller]
    pub(crate) fn counts(&self, name: &str, number: u64) {
        self.wait_for(name, |counters| counters.get(name) == Some(&number));
    }

    pub(crate) fn count(&self, name: &str) -> u64 {
        count(&self.running.counters().unwrap(), name)
    }

    /// Waits until the log has these words so often.
    #[track_caller]
    pub(crate) fn said(&self, words: &str, times: impl RangeBounds<usize>) {
        let said = || times.contains(&self.running.log().matches(words).count());
        wait_until(words, said, || self.running.log());
    }

    pub(crate) fn status(&self) -> Report {
        self.site.status().unwrap()
    }

    /// Waits until there is a warning of this kind, and returns it.
    #[track_caller]
    pub(crate) fn warning(&self, kind: &str) -> Warning {
        self.warned(kind, true).unwrap()
    }

    /// Waits until there is no warning of this kind.
    #[track_caller]
    pub(crate) fn no_warning(&self, kind: &str) {
        assert_eq!(self.warned(kind, false), None);
    }

    #[track_caller]
    fn warned(&self, kind: &str, is_wanted: bool) -> Option<Warning> {
        eventually(&format!("a warning {kind}: {is_wanted}"), || {
            let warnings = self.status().warnings;
            let found = warnings.iter().find(|one| one.kind == kind);
            match found.is_some() == is_wanted {
                true => Ok(found.cloned()),
                false => Err(format!("{warnings:?}\n{}", self.running.log())),
            }
        })
    }
}

/// A frame that the box's end of each link sends when the box has stopped, as the last one.
const FAREWELL: &[u8] = b"exitmark's test: nothing comes after this";

fn farewell(site: &Site) {
    let (to, from) = ("ff:ff:ff:ff:ff:ff", "02:00:00:00:00:01");
    let frame = ethernet(to, from, &[], 0x88b5, FAREWELL);
    for role in Role::ALL {
        let port = RawPort::open(&site.middle, nic(role)).unwrap();
        port.send(&frame).unwrap();
    }
}

pub(crate) type Counters = BTreeMap<String, u64>;

/// A counter, which is absent while it is 0.
pub(crate) fn count(counters: &Counters, name: &str) -> u64 {
    counters.get(name).copied().unwrap_or(0)
}

/// The counters that changed, after checking that the box ended with status 0, that every frame is
/// accounted for, and that every received frame was forwarded or dropped for a named reason.
#[track_caller]
pub(crate) fn moved(last: &FinalState) -> Counters {
    assert!(last.status.success(), "{}\n{}", last.status, last.log);
    assert_eq!(last.counters.get("unaccounted"), Some(&0), "{}", last.log);
    let counters = &last.counters;
    let sum = |chosen: fn(&str) -> bool| -> u64 {
        let chosen = counters.iter().filter(|(name, _)| chosen(name));
        chosen.map(|(_, number)| number).sum()
    };
    let received = sum(|name| name.ends_with("_received"));
    let gone = sum(|name| name.ends_with("_forwarded") || name.starts_with("dropped_"));
    assert_eq!(received, gone, "{counters:?}");
    // Counters by engine may differ: either one counts the same frames; sizes are compared
    // elsewhere.
    let ends = ["_decided", "_handed", "_spilled", "_bytes"];
    let by_engine = |name: &str| ends.iter().any(|end| name.ends_with(end));
    let nonzero = counters
        .iter()
        .filter(|&(name, &number)| number != 0 && !by_engine(name))
        // Not counters of frames.
        .filter(|(name, _)| !name.starts_with("relay_set") && !name.starts_with("audit_"))
        // Counted only until the host sends, which depends on timing.
        .filter(|(name, _)| *name != "host_by_uplink");
    nonzero.map(|(name, &n)| (name.clone(), n)).collect()
}

/// Checks that exactly these counters have changed so far, given as `name=number`.
#[track_caller]
pub(crate) fn assert_moved(moved: &Counters, expected: &str) {
    let expected = expected.split_whitespace().map(|one| {
        let (name, number) = one.split_once('=').unwrap();
        (name.to_owned(), number.parse().unwrap())
    });
    assert_eq!(*moved, expected.collect());
}
