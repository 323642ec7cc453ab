//! A next hop by its address: resolved, updated, lost and resolved again.

use crate::craft::{exit, noise, relay};
use crate::rig::{Case, Config, PACE, Rig, Side, arrives, needs_root, timeout, wait_until};
use exitmark_lab::site::{INCOMING_MAC, Plan, Site, TORNET_MAC};
use exitmark_lab::{Capture, CapturedFrame, RawPort};
use exitmark_policy::packet::MacAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const ROUTER_V4: &str = "203.0.113.1";
const ROUTER_V6: &str = "2001:db8:3::1";
const NEW_MAC: &str = "02:00:00:00:03:77";
/// The load in frames per second.
const RATE: u32 = 2_000;
/// The number of frames, a second's, within which the box must use the new address.
const FOLLOWED: usize = 2_000;

fn mac(text: &str) -> MacAddr {
    text.parse().unwrap()
}

fn by_address(address: &str) -> Config {
    Config::default().next_hop(address)
}

/// Sends relay frames at a steady pace until it is dropped.
struct Load {
    until: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u32>>,
}

impl Load {
    fn start(rig: &Rig, family: usize) -> Self {
        let until = Arc::new(AtomicBool::new(false));
        let (stop, port) = (Arc::clone(&until), rig.port(Side::Host));
        let thread = std::thread::spawn(move || pace(&port, family, &stop));
        Self {
            until,
            thread: Some(thread),
        }
    }

    fn finish(mut self) -> u32 {
        self.until.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

fn pace(port: &RawPort, family: usize, stop: &AtomicBool) -> u32 {
    let frame = relay(family, 60).outbound(&[]);
    let begin = Instant::now();
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        port.send(&frame).unwrap();
        sent += 1;
        let due = begin + Duration::from_secs(1) * sent / RATE;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    sent
}

/// Sends relay frames until one is steered.
#[track_caller]
fn is_steered(rig: &Rig, port: &RawPort, when: &str) {
    let mut eye = rig.watch(Side::Tornet);
    let (sent, steered) = (relay(0, 60).outbound(&[]), relay(0, 60).steered());
    let is_steered = || {
        port.send(&sent).unwrap();
        eye.wait_until(PACE, |captured| {
            captured.iter().any(|one| one.bytes == steered)
        })
    };
    wait_until(when, is_steered, || "no frame");
}

/// Waits for a frame to this address.
fn captured(eye: &mut Capture, what: &str, to: MacAddr) {
    let is_it = |frame: &CapturedFrame| MacAddr::destination_of(&frame.bytes) == Some(to);
    let found = eye.wait_until(timeout(), |captured| captured.iter().any(is_it));
    assert!(found, "{what}");
}

#[test]
fn a_next_hop_that_changes_its_mac_address_is_followed_within_a_second() {
    needs_root!();
    for (engine, family, address) in [("xdp", 0, ROUTER_V4), ("af_xdp", 1, ROUTER_V6)] {
        let rig = Rig::lively(Plan::default(), &by_address(address).engine(engine));
        let mut eye = rig.watch(Side::Tornet);
        let load = Load::start(&rig, family);
        captured(&mut eye, "steered to the router", mac(TORNET_MAC));
        // Without an announcement on the wire.
        let change = format!("link set dev eth0 address {NEW_MAC}");
        rig.site.tornet.ip(&change).unwrap();
        let changed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        captured(&mut eye, "steered to the new address", mac(NEW_MAC));
        let sent = load.finish();
        let last = rig.stop();

        let frames = eye.finish().unwrap();
        let steered: Vec<_> = frames
            .iter()
            .filter(|frame| MacAddr::source_of(&frame.bytes) == Some(mac(INCOMING_MAC)))
            .filter(|frame| frame.bytes.len() == relay(family, 60).outbound(&[]).len())
            .map(|frame| (frame.time, MacAddr::destination_of(&frame.bytes).unwrap()))
            .collect();
        let known = [mac(TORNET_MAC), mac(NEW_MAC)];
        let is_right = steered.iter().all(|(_, to)| known.contains(to));
        assert!(is_right, "{engine}: to a wrong address");
        let is_late = |&&(time, to): &&(Duration, MacAddr)| time >= changed && to == known[0];
        let late = steered.iter().filter(is_late).count();
        println!("{engine} {address}: {late} of {sent} frames to the old address after the change");
        assert!(late <= FOLLOWED, "{engine}: {late}, at {RATE} a second");
        assert_eq!(last.counters.get("unsteered"), None, "{engine}");
        // No frame to the old address after that.
        let is_new = |&(_, to): &(Duration, MacAddr)| to == known[1];
        let first_new = steered.iter().position(is_new).unwrap();
        assert!(steered[first_new..].iter().all(is_new));
    }
}

#[test]
fn without_a_next_hop_relay_traffic_leaves_by_the_uplink_or_is_dropped() {
    needs_root!();
    for (engine, drops) in [("xdp", false), ("af_xdp", true)] {
        let mut config = by_address(ROUTER_V4).engine(engine);
        let mut name = "unsteered";
        if drops {
            config = config.steer("on_unavailable = \"drop\"");
            name = "dropped_steer_unavailable";
        }
        let rig = Rig::lively(Plan::default(), &config);
        let port = rig.port(Side::Host);
        let frame = relay(0, 60).outbound(&[]);
        is_steered(&rig, &port, "steered at first");
        // The router stops answering, and answers again; the link is lost, and comes back.
        let address = "203.0.113.1/24 dev eth0";
        let address = [format!("addr del {address}"), format!("addr add {address}")];
        let link = ["link set eth0 down", "link set eth0 up"].map(str::to_owned);
        for [away, back] in &[address, link] {
            rig.site.tornet.ip(away).unwrap();
            let before = rig.count(name);
            let moves = || {
                port.send(&frame).unwrap();
                rig.count(name) > before
            };
            wait_until(away, moves, || format!("{name} does not move"));
            // Unmarked by the uplink, or dropped; other traffic is forwarded as before.
            let mut eye = rig.watch(Side::Clearnet);
            port.send(&frame).unwrap();
            let end = exit(0, noise(9, 20).len()).outbound(&[]);
            port.send(&end).unwrap();
            let is_end = |frame: &CapturedFrame| frame.bytes.len() == end.len();
            assert!(eye.wait_until(timeout(), |captured| captured.iter().any(is_end)));
            let captured = eye.finish().unwrap();
            let came = captured.iter().any(|one| one.bytes == frame);
            assert_eq!(came, !drops, "{away}");
            rig.site.tornet.ip(back).unwrap();
            is_steered(&rig, &port, back);
        }
        let last = rig.stop();
        assert_eq!(last.log.matches("ALARM").count(), 2, "{}", last.log);
    }
}

#[test]
fn a_box_whose_next_hop_is_away_starts_and_waits_for_it() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    site.tornet.ip("link set eth0 down").unwrap();
    let rig = Rig::on(site, &by_address(ROUTER_V4));
    let frame = relay(0, 60).outbound(&[]);
    arrives(&rig.site, &Case::untouched("unsteered", Side::Host, frame));
    rig.site.tornet.ip("link set eth0 up").unwrap();
    is_steered(&rig, &rig.port(Side::Host), "steered at last");
    rig.stop();
}
