//! SIGHUP: another relay set, at once and as a whole, or the old one.

use crate::craft::{AF11, Packet, TCP, exit, families, segment};
use crate::rig::{Config, PATIENCE, Rig, Side, both_engines, eventually, moved, needs_root};
use exitmark::lab::LabError;
use exitmark::lab::consensus::Order;
use exitmark::lab::site::{INCOMING_MAC, Plan, TORNET_MAC};
use exitmark::policy::Endpoint;
use exitmark::relays::{Flavor, Validity};
use nix::sys::signal::Signal;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Writes a consensus that lists this endpoint among a hundred others.
fn publish(path: &Path, listed: Endpoint) {
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let order = Order {
        relays: 100,
        listed: vec![listed],
        ..Order::full_size(
            Flavor::Microdesc,
            Validity {
                valid_after: now - hour,
                fresh_until: now + hour,
                valid_until: now + 2 * hour,
            },
        )
    };
    // As tor does: a file beside it, then a rename.
    let new = path.with_extension("new");
    std::fs::write(&new, order.write()).unwrap();
    std::fs::rename(&new, path).unwrap();
}

/// Sends a SIGHUP.
fn hang_up(rig: &Rig) {
    rig.running.signal(Signal::SIGHUP).unwrap();
}

/// Waits until this many reloads have ended, well or not, by what the box says of each.
fn settle(rig: &Rig, reloads: usize) {
    eventually("the reload ends", || {
        let log = rig.running.log();
        let ended =
            ["relay set replaced", "stays as it was"].map(|words| log.matches(words).count());
        match ended.iter().sum::<usize>() == reloads {
            true => Ok(()),
            false => Err(LabError(log)),
        }
    });
}

#[test]
fn a_reload_changes_the_class_at_once_and_a_bad_file_changes_nothing() {
    needs_root!();
    both_engines(|| {
        let [first, second] = [[198, 51, 100, 1], [198, 51, 100, 2]].map(IpAddr::from);
        let endpoint = |address| Endpoint::new(address, 9001);
        let files = tempfile::tempdir().unwrap();
        let path = files.path().join("cached-microdesc-consensus");
        publish(&path, endpoint(first));
        let config = Config {
            relays: format!("consensus = [\"{}\"]", path.display()),
            ..Config::default()
        };
        let rig = Rig::silent(Plan::default(), &config);
        let (mut uplink, mut incoming) = (rig.watch(Side::Clearnet), rig.watch(Side::Tornet));
        let port = rig.port(Side::Host);
        let (mut exits, mut relays) = (Vec::new(), Vec::new());
        // After each of these, the endpoint named is the relay and the other one is not.
        type Change<'a> = (&'a str, Option<Box<dyn Fn() + 'a>>, IpAddr);
        let publish_second = || publish(&path, endpoint(second));
        let spoil = || std::fs::write(&path, "network-status-version 3 microdesc\n").unwrap();
        let remove = || std::fs::remove_file(&path).unwrap();
        let publish_first = || publish(&path, endpoint(first));
        let steps: [Change<'_>; 5] = [
            ("start", None, first),
            ("another set", Some(Box::new(publish_second)), second),
            ("a cut file", Some(Box::new(spoil)), second),
            ("no file", Some(Box::new(remove)), second),
            ("the first set again", Some(Box::new(publish_first)), first),
        ];
        for (number, (what, change, relay)) in (1..).zip(steps) {
            if let Some(change) = change {
                change();
                hang_up(&rig);
                settle(&rig, usize::from(number) - 1);
            }
            for address in [first, second] {
                let packet = Packet::new(
                    families()[0].0,
                    address,
                    TCP,
                    segment(40_000 + number, 9001, 20),
                );
                port.send(&packet.outbound(&[])).unwrap();
                let eye = if address == relay {
                    relays.push(packet.framed(TORNET_MAC, INCOMING_MAC, &[]));
                    (&mut incoming, relays.len())
                } else {
                    exits.push(packet.tos(AF11).outbound(&[]));
                    (&mut uplink, exits.len())
                };
                assert!(
                    eye.0.wait_until(PATIENCE, |seen| seen.len() >= eye.1),
                    "{what}"
                );
            }
        }
        let last = rig.running.stop().unwrap();
        moved(&last);
        assert_eq!(
            last.log.matches("relay set replaced").count(),
            2,
            "{}",
            last.log
        );
        assert_eq!(
            last.log.matches("stays as it was").count(),
            2,
            "{}",
            last.log
        );
        for (capture, expected) in [(uplink, exits), (incoming, relays)] {
            let seen: Vec<_> = capture
                .finish()
                .unwrap()
                .into_iter()
                .map(|one| one.bytes)
                .collect();
            assert!(seen == expected);
        }
    });
}

/// Frames keep crossing while the set is replaced again and again; none is lost, and each
/// is wholly of one set or the other.
#[test]
fn no_frame_is_lost_while_sets_change() {
    needs_root!();
    both_engines(|| {
        let files = tempfile::tempdir().unwrap();
        let path = files.path().join("cached-microdesc-consensus");
        let server = families()[0].1;
        publish(&path, Endpoint::new(server, 443));
        let config = Config {
            relays: format!("consensus = [\"{}\"]", path.display()),
            ..Config::default()
        };
        let rig = Rig::silent(Plan::default(), &config);
        let (mut uplink, mut incoming) = (rig.watch(Side::Clearnet), rig.watch(Side::Tornet));
        let port = rig.port(Side::Host);
        let count = |seen: &[exitmark::lab::CapturedFrame]| seen.len();
        let (sets, per_set) = (20_usize, 50_usize);
        for set in 1..=sets {
            let address = if set % 2 == 0 {
                server
            } else {
                families()[0].2
            };
            publish(&path, Endpoint::new(address, 443));
            hang_up(&rig);
            for number in 0..per_set {
                port.send(&exit(0, number).outbound(&[])).unwrap();
            }
            let sent = set * per_set;
            let deadline = std::time::Instant::now() + PATIENCE;
            loop {
                let mut seen = 0;
                for eye in [&mut uplink, &mut incoming] {
                    let so_far = std::cell::Cell::new(0);
                    eye.wait_until(Duration::from_millis(1), |frames| {
                        so_far.set(count(frames));
                        false
                    });
                    seen += so_far.get();
                }
                if seen == sent {
                    break;
                }
                assert!(
                    std::time::Instant::now() < deadline,
                    "{seen} of {sent} arrived"
                );
            }
            settle(&rig, set);
        }
        let last = rig.running.stop().unwrap();
        moved(&last);
        assert_eq!(
            last.log.matches("relay set replaced").count(),
            sets,
            "{}",
            last.log
        );
        let (uplink, incoming) = (uplink.finish().unwrap(), incoming.finish().unwrap());
        assert!(!uplink.is_empty() && !incoming.is_empty());
        for (seen, wanted) in [
            (uplink, exit(0, 0).tos(AF11).outbound(&[])),
            (incoming, exit(0, 0).framed(TORNET_MAC, INCOMING_MAC, &[])),
        ] {
            for frame in seen {
                // Same MACs and same ToS as all that leave this way.
                assert_eq!(frame.bytes[..16], wanted[..16]);
            }
        }
    });
}
