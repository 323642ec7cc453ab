//! A next hop by its address: resolved, updated, lost and resolved again.

use crate::craft::{exit, noise, relay};
use crate::rig::{Config, PATIENCE, Rig, Side, eventually, moved, needs_root};
use exitmark_lab::site::{INCOMING_MAC, Plan, TORNET_MAC};
use exitmark_lab::{Capture, LabError, RawPort};
use exitmark_policy::packet::MacAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const ROUTER_V4: &str = "203.0.113.1";
const ROUTER_V6: &str = "2001:db8:3::1";
const NEW_MAC: &str = "02:00:00:00:03:77";
/// The load in frames per second.
const PACE: u32 = 2_000;
/// The number of frames, a second's, within which the box must use the new address.
const FOLLOWED: usize = 2_000;

fn mac(text: &str) -> MacAddr {
    text.parse().unwrap()
}

fn by_address(address: &'static str) -> Config {
    Config {
        incoming: Some(("incoming0", address)),
        ..Config::default()
    }
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
        let due = begin + Duration::from_secs(1) * sent / PACE;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    sent
}

fn seen(eye: &mut Capture, what: &str, enough: impl Fn(MacAddr) -> bool) {
    let found = eye.wait_until(PATIENCE, |seen| {
        seen.iter()
            .any(|frame| MacAddr::destination_of(&frame.bytes).is_some_and(&enough))
    });
    assert!(found, "{what}");
}

#[test]
fn a_next_hop_that_changes_its_mac_address_is_followed_within_a_second() {
    needs_root!();
    for (engine, family, address) in [("xdp", 0, ROUTER_V4), ("af_xdp", 1, ROUTER_V6)] {
        let config = Config {
            top: match engine {
                "xdp" => "engine = \"xdp\"",
                _ => "engine = \"af_xdp\"",
            },
            ..by_address(address)
        };
        let rig = Rig::lively(Plan::default(), &config);
        let mut eye = rig.watch(Side::Tornet);
        let load = Load::start(&rig, family);
        seen(&mut eye, "steered to the router", |to| {
            to == mac(TORNET_MAC)
        });
        // Without an announcement on the wire.
        let change = format!("link set dev eth0 address {NEW_MAC}");
        rig.site.tornet.ip(&change).unwrap();
        let changed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        seen(&mut eye, "steered to the new address", |to| {
            to == mac(NEW_MAC)
        });
        let sent = load.finish();
        let last = rig.running.stop().unwrap();
        moved(&last);

        let frames = eye.finish().unwrap();
        let steered: Vec<_> = frames
            .iter()
            .filter(|frame| MacAddr::source_of(&frame.bytes) == Some(mac(INCOMING_MAC)))
            .filter(|frame| frame.bytes.len() == relay(family, 60).outbound(&[]).len())
            .map(|frame| (frame.time, MacAddr::destination_of(&frame.bytes).unwrap()))
            .collect();
        let wrong = steered
            .iter()
            .filter(|(_, to)| *to != mac(TORNET_MAC) && *to != mac(NEW_MAC));
        assert_eq!(wrong.count(), 0, "{engine}: to a wrong address");
        let late = steered
            .iter()
            .filter(|&&(time, to)| time >= changed && to == mac(TORNET_MAC))
            .count();
        println!("{engine} {address}: {late} of {sent} frames to the old address after the change");
        assert!(
            late <= FOLLOWED,
            "{engine}: {late} frames, at {PACE} a second"
        );
        assert_eq!(last.counters.get("unsteered"), None, "{engine}");
        // No frame to the old address after that.
        let first_new = steered
            .iter()
            .position(|&(_, to)| to == mac(NEW_MAC))
            .unwrap();
        assert!(
            steered[first_new..]
                .iter()
                .all(|&(_, to)| to == mac(NEW_MAC))
        );
    }
}

#[test]
fn without_a_next_hop_relay_traffic_leaves_by_the_uplink_or_is_dropped() {
    needs_root!();
    for (engine, drops) in [("engine = \"xdp\"", false), ("engine = \"af_xdp\"", true)] {
        let config = Config {
            top: engine,
            steer: match drops {
                true => "on_unavailable = \"drop\"",
                false => "",
            },
            ..by_address(ROUTER_V4)
        };
        let rig = Rig::lively(Plan::default(), &config);
        let port = rig.port(Side::Host);
        let frame = relay(0, 60);
        let steered = frame.framed(TORNET_MAC, INCOMING_MAC, &[]);
        let is_steered = |rig: &Rig, when: &str| {
            let mut eye = rig.watch(Side::Tornet);
            eventually(when, || {
                port.send(&frame.outbound(&[]))?;
                match eye.wait_until(Duration::from_millis(20), |seen| {
                    seen.iter().any(|one| one.bytes == steered)
                }) {
                    true => Ok(()),
                    false => Err(LabError("no frame".to_owned())),
                }
            });
        };
        is_steered(&rig, "steered at first");
        let states: [(&str, &str); 2] = [
            // The router stops answering, and answers again.
            (
                "addr del 203.0.113.1/24 dev eth0",
                "addr add 203.0.113.1/24 dev eth0",
            ),
            // The link is lost, and comes back.
            ("link set eth0 down", "link set eth0 up"),
        ];
        for (away, back) in states {
            rig.site.tornet.ip(away).unwrap();
            let name = match drops {
                true => "dropped_steer_unavailable",
                false => "unsteered",
            };
            let count = |rig: &Rig| {
                let counters = rig.running.counters().unwrap();
                counters.get(name).copied().unwrap_or(0)
            };
            let before = count(&rig);
            eventually(away, || {
                port.send(&frame.outbound(&[]))?;
                match count(&rig) > before {
                    true => Ok(()),
                    false => Err(LabError(format!("{name} does not move"))),
                }
            });
            // Unmarked by the uplink, or dropped; other traffic is forwarded as before.
            let mut eye = rig.watch(Side::Clearnet);
            port.send(&frame.outbound(&[])).unwrap();
            let end = exit(0, noise(9, 20).len()).outbound(&[]);
            port.send(&end).unwrap();
            assert!(eye.wait_until(PATIENCE, |seen| {
                seen.iter().any(|one| one.bytes.len() == end.len())
            }));
            let seen = eye.finish().unwrap();
            let came = seen.iter().any(|one| one.bytes == frame.outbound(&[]));
            assert_eq!(came, !drops, "{away}");
            rig.site.tornet.ip(back).unwrap();
            is_steered(&rig, back);
        }
        let last = rig.running.stop().unwrap();
        moved(&last);
        assert_eq!(last.log.matches("ALARM").count(), 2, "{}", last.log);
    }
}

#[test]
fn a_box_whose_next_hop_is_away_starts_and_waits_for_it() {
    needs_root!();
    let site = exitmark_lab::site::Site::build(Plan::default()).unwrap();
    site.tornet.ip("link set eth0 down").unwrap();
    let rig = Rig::on(site, &by_address(ROUTER_V4));
    let mut eye = rig.watch(Side::Clearnet);
    let frame = relay(0, 60).outbound(&[]);
    rig.port(Side::Host).send(&frame).unwrap();
    assert!(eye.wait_until(PATIENCE, |seen| seen.iter().any(|one| one.bytes == frame)));
    rig.site.tornet.ip("link set eth0 up").unwrap();
    let mut eye = rig.watch(Side::Tornet);
    let steered = relay(0, 60).framed(TORNET_MAC, INCOMING_MAC, &[]);
    eventually("steered at last", || {
        rig.port(Side::Host).send(&frame)?;
        match eye.wait_until(Duration::from_millis(20), |seen| {
            seen.iter().any(|one| one.bytes == steered)
        }) {
            true => Ok(()),
            false => Err(LabError("no frame".to_owned())),
        }
    });
    moved(&rig.running.stop().unwrap());
}
