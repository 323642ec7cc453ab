//! A site with a running box, and the comparison of sent and received frames.

use exitmark_lab::site::{
    HOST_V4, HOST_V6, LastWords, Plan, RELAY_V4, RELAY_V6, RunningBox, Site, TORNET_MAC,
};
use exitmark_lab::{Capture, LabError, Netns, RawPort};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) const EXITMARK: &str = env!("CARGO_BIN_EXE_exitmark");
pub(crate) const UPLINK0_MAC: &str = "02:00:00:00:02:01";
/// The timeout of tests, longer than the box's own ones, such as that of a hung loader (10 s).
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

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
}

/// Skips the test without root.
macro_rules! needs_root {
    () => {
        if !exitmark_lab::is_root() {
            return;
        }
    };
}
pub(crate) use needs_root;

thread_local! {
    static ENGINE: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Runs a test with every frame decided in user space, and with fast-path frames decided in the
/// kernel: the result must be the same.
pub(crate) fn both_engines(test: impl Fn()) {
    for engine in ["af_xdp", "xdp"] {
        println!("engine {engine}");
        ENGINE.set(Some(engine));
        test();
    }
}

/// A configuration; the default is that of the site in main.rs.
pub(crate) struct Config {
    /// Lines before the first table.
    pub(crate) top: &'static str,
    /// The NIC and the next hop of `incoming`.
    pub(crate) incoming: Option<(&'static str, &'static str)>,
    /// More lines in `[steer]`.
    pub(crate) steer: &'static str,
    /// More of the host's addresses, each behind a comma.
    pub(crate) addresses: &'static str,
    /// More lines in `[host]`.
    pub(crate) host: &'static str,
    /// Lines in `[relays]`.
    pub(crate) relays: String,
    /// More tables.
    pub(crate) more: &'static str,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            top: "",
            incoming: Some(("incoming0", TORNET_MAC)),
            steer: "",
            addresses: "",
            host: "",
            relays: format!("extra = [\"{RELAY_V4}:9001\", \"[{RELAY_V6}]:9001\"]"),
            more: "",
        }
    }
}

impl Config {
    pub(crate) fn write(&self, directory: &Path) -> PathBuf {
        let (incoming, steer) = match self.incoming {
            Some((nic, hop)) => (
                format!("incoming = \"{nic}\"\n"),
                format!("[steer]\nnext_hop = \"{hop}\"\n{}\n", self.steer),
            ),
            None => (String::new(), String::new()),
        };
        let engine = match ENGINE.get() {
            Some(engine) => format!("engine = \"{engine}\"\n"),
            None => String::new(),
        };
        let text = format!(
            "{engine}{}\n[ports]\nhost = \"host0\"\nuplink = \"uplink0\"\n{incoming}{steer}\
             [host]\naddresses = [\"{HOST_V4}\", \"{HOST_V6}\"{}]\n{}\n[relays]\n{}\n{}\n",
            self.top, self.addresses, self.host, self.relays, self.more
        );
        let path = directory.join("exitmark.toml");
        std::fs::write(&path, text).unwrap();
        path
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
}

/// A site with a running box.
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
        let site = Site::build(plan).unwrap();
        silence(&site);
        Self::on(site, config)
    }

    /// Starts a box on a site that the test has prepared.
    pub(crate) fn on(site: Site, config: &Config) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let configuration = config.write(directory.path());
        let running = site.run(Path::new(EXITMARK), &configuration).unwrap();
        Self {
            site,
            running,
            directory,
            configuration,
        }
    }

    /// Stops the box, and starts it again with another configuration.
    pub(crate) fn restart(self, config: &Config) -> Self {
        moved(&self.running.stop().unwrap());
        Self::on(self.site, config)
    }

    pub(crate) fn watch(&self, side: Side) -> Capture {
        let (netns, interface) = place(&self.site, side);
        Capture::start(netns, interface, "in", "").unwrap()
    }

    pub(crate) fn port(&self, side: Side) -> RawPort {
        let (netns, interface) = place(&self.site, side);
        RawPort::open(netns, interface).unwrap()
    }

    /// Sends every case's frame, stops the box, and compares all received frames with the cases:
    /// the bytes of each, and no other frame. Returns the counters that changed.
    pub(crate) fn verify(self, cases: &[Case]) -> Moved {
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
                let index = *side as usize;
                expected[index].push((&case.what, frame));
                let number = expected[index].len();
                assert!(
                    eyes[index].wait_until(PATIENCE, |seen| seen.len() >= number),
                    "{} did not arrive at {side:?}",
                    case.what
                );
            }
        }
        let last = self.running.stop().unwrap();
        farewell(&self.site);
        for ((side, mut eye), expected) in Side::ALL.into_iter().zip(eyes).zip(expected) {
            let ended = |frame: &[u8]| frame.ends_with(FAREWELL);
            assert!(
                side == Side::Stack
                    || eye.wait_until(PATIENCE, |seen| seen.iter().any(|one| ended(&one.bytes))),
                "the end of what crosses was not seen at {side:?}"
            );
            let seen = eye.finish().unwrap();
            let seen: Vec<_> = seen.iter().filter(|one| !ended(&one.bytes)).collect();
            for (seen, (what, frame)) in seen.iter().zip(&expected) {
                assert!(
                    seen.bytes == **frame,
                    "{what} at {side:?}:\n{:02x?}\nexpected\n{frame:02x?}",
                    seen.bytes
                );
            }
            assert_eq!(
                seen.len(),
                expected.len(),
                "frames at {side:?}: {seen:02x?}"
            );
        }
        moved(&last)
    }

    /// Waits until `enough` accepts the box's counters.
    pub(crate) fn wait_for(&self, what: &str, enough: impl Fn(&BTreeMap<String, u64>) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let counters = self.running.counters().unwrap();
            if enough(&counters) {
                return;
            }
            assert!(Instant::now() < deadline, "{what} never: {counters:?}");
        }
    }
}

/// A frame that the box's end of each link sends when the box has stopped, as the last one.
const FAREWELL: &[u8] = b"exitmark's test: nothing comes after this";

fn farewell(site: &Site) {
    let frame = crate::craft::ethernet(
        "ff:ff:ff:ff:ff:ff",
        "02:00:00:00:00:01",
        &[],
        0x88b5,
        FAREWELL,
    );
    for interface in ["host0", "uplink0", "incoming0"] {
        let port = RawPort::open(&site.middle, interface).unwrap();
        port.send(&frame).unwrap();
    }
}

fn place(site: &Site, side: Side) -> (&Netns, &'static str) {
    match side {
        Side::Host => (&site.host, "eth0"),
        Side::Clearnet => (&site.clearnet, "eth0"),
        Side::Tornet => (&site.tornet, "eth0"),
        Side::Stack => (&site.middle, "incoming0"),
    }
}

/// Removes every address: a stack without one neither sends nor answers.
pub(crate) fn silence(site: &Site) {
    for side in Side::ALL {
        let (netns, interface) = place(site, side);
        let key = format!("net/ipv6/conf/{interface}/disable_ipv6");
        netns.sysctl(&key, "1").unwrap();
        netns.ip(&format!("addr flush dev {interface}")).unwrap();
    }
}

/// Counters that are not 0.
pub(crate) type Moved = Vec<(String, u64)>;

/// The counters that changed, after checking that the box ended with status 0, that every frame is
/// accounted for, and that every received frame was forwarded or dropped for a named reason.
pub(crate) fn moved(last: &LastWords) -> Moved {
    assert!(last.status.success(), "{}\n{}", last.status, last.log);
    assert_eq!(last.counters.get("unaccounted"), Some(&0), "{}", last.log);
    let sum = |chosen: &dyn Fn(&str) -> bool| -> u64 {
        let counters = last.counters.iter();
        counters
            .filter(|(name, _)| chosen(name))
            .map(|(_, number)| number)
            .sum()
    };
    assert_eq!(
        sum(&|name| name.ends_with("_received")),
        sum(&|name| name.ends_with("_forwarded") || name.starts_with("dropped_")),
        "{:?}",
        last.counters
    );
    // Counters by engine may differ: either one counts the same frames; sizes are compared
    // elsewhere.
    let by_engine = |name: &str| {
        ["_decided", "_handed", "_spilled", "_bytes"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    let nonzero = last
        .counters
        .iter()
        .filter(|&(name, &number)| number != 0 && !by_engine(name))
        // Not counters of frames.
        .filter(|(name, _)| !name.starts_with("relay_set") && !name.starts_with("audit_"))
        // Counted only until the host sends, which depends on timing.
        .filter(|(name, _)| *name != "host_by_uplink");
    nonzero.map(|(name, &n)| (name.clone(), n)).collect()
}

/// Checks that exactly these counters have changed so far.
#[track_caller]
pub(crate) fn assert_moved(moved: &Moved, expected: &[(&str, u64)]) {
    let mut expected: Moved = expected.iter().map(|&(n, v)| (n.to_owned(), v)).collect();
    expected.sort();
    assert_eq!(*moved, expected);
}

/// Repeats an action until it succeeds.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T, LabError>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < deadline, "{what}: {error}"),
        }
    }
}
