//! Tier: root. The tap in its own namespaces: what it receives and refuses, that it sends nothing
//! and leaves nothing behind, and its filter compared with the parser.
#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

mod filter;
mod generic;
mod received;
mod refused;

use exitmark_lab::tap::{SPAN, TAP, TapSite};
use exitmark_lab::{Capture, Netns, RawPort, eventually};
use exitmark_monitor::filter::Filter;
use exitmark_monitor::tap::{Tap, TapCounters, TapError, TapSettings};
use exitmark_policy::packet::Dscp;
use std::net::IpAddr;
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(10);
const MARK: u8 = 0x28;
const HOST_V4: &str = "192.0.2.10";
const HOST_V6: &str = "2001:db8:1::10";
/// Another clearnet address of the host.
const SECOND_V4: &str = "192.0.2.11";

fn settings() -> TapSettings {
    let clearnet = [HOST_V4, SECOND_V4, HOST_V6];
    let clearnet = clearnet.map(|address| address.parse::<IpAddr>().unwrap());
    TapSettings {
        interface: TAP.to_owned(),
        filter: Filter::outbound(Dscp::AF11, clearnet.into_iter().collect()),
        ring: 256,
    }
}

/// The monitor, and the network whose copy its NIC receives.
struct Rig {
    monitor: Netns,
    network: Netns,
}

impl Rig {
    fn new(queues: u32, mtu: u32) -> Self {
        let TapSite { monitor, network } = TapSite::build(queues, mtu).unwrap();
        Self { monitor, network }
    }

    fn open(&self) -> Result<Tap, TapError> {
        self.open_with(settings())
    }

    fn open_with(&self, settings: TapSettings) -> Result<Tap, TapError> {
        self.monitor.run(move || Tap::open(&settings))
    }

    /// A network with an open tap, and a port that sends to it.
    fn opened(queues: u32) -> (Self, Tap, RawPort) {
        let rig = Self::new(queues, 1500);
        let tap = rig.open().unwrap();
        let port = rig.port();
        (rig, tap, port)
    }

    fn close(&self, tap: Tap) {
        self.monitor.run(move || tap.close()).unwrap();
    }

    fn port(&self) -> RawPort {
        RawPort::open(&self.network, SPAN).unwrap()
    }

    /// Captures what the tap sends.
    fn watch(&self) -> Capture {
        Capture::start(&self.network, SPAN, "in", "").unwrap()
    }

    fn link(&self) -> String {
        self.monitor.ip("-details link show dev tap0").unwrap()
    }
}

fn receive(tap: &mut Tap, count: usize) -> Vec<Vec<u8>> {
    let deadline = Instant::now() + TIMEOUT;
    let mut packets = Vec::new();
    while packets.len() < count {
        assert!(Instant::now() < deadline, "{} of {count}", packets.len());
        tap.receive(Duration::from_millis(20), |batch| {
            assert!((1..=64).contains(&batch.len()));
            for packet in batch {
                packets.push(packet.bytes.to_vec());
            }
        })
        .unwrap();
    }
    packets
}

fn wait_for(tap: &Tap, what: &str, enough: impl Fn(&TapCounters) -> bool) -> TapCounters {
    eventually(what, || {
        let counters = tap.counters().unwrap();
        match enough(&counters) {
            true => Ok(counters),
            false => Err(format!("{counters:?}")),
        }
    })
}
