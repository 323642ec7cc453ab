//! Attacks a capture without addresses: all of a frame is known except 16 bits of the other
//! address, and every value of them is tried. All give the same capture, so the capture does not
//! reveal the address.
//!
//! The frames are the worst case: every field that a sender may derive from an address is derived
//! from it: checksums, identifications, sequence numbers, timestamps, flow labels, MAC addresses.

use crate::forged::{Direction, Forger, frames};
use crate::rig::{NOON, ground, ground_host, showing};
use exitmark_box::audit::Sampler;
use exitmark_box::observe::CaptureRequest;
use exitmark_datapath::{DecidedBy, Excerpt, Outcome, Role, Sample};
use exitmark_lab::frames::{tcp, udp};
use exitmark_policy::Rule;
use std::sync::Arc;

const CANDIDATES: usize = 1 << 16;
const TRUE: u16 = 0x9c07;
/// A generation that the auditor does not know, so that it skips the samples.
const UNKNOWN: u64 = 99;

/// Captures frames one after the other.
struct Eyes {
    sampler: Sampler,
    pieces: crossbeam::channel::Receiver<Vec<u8>>,
}

impl Eyes {
    fn new(with_payload: bool, with_addresses: bool) -> Self {
        Self::knowing(true, with_payload, with_addresses)
    }

    /// With or without a current relay set.
    fn knowing(knows_relays: bool, with_payload: bool, with_addresses: bool) -> Self {
        let ground = ground();
        let links = Arc::new(ground.links());
        links.remember_hosts([ground_host()]);
        let request = CaptureRequest {
            frames: 1_000_000,
            ..showing(with_payload, with_addresses)
        };
        let (sampler, pieces) = ground.capturing(links, request, knows_relays);
        pieces.try_iter().for_each(drop);
        Self { sampler, pieces }
    }

    /// The frame's block in the file.
    fn capture(&mut self, direction: Direction, rule: Option<Rule>, frame: &[u8]) -> Vec<u8> {
        let (ingress, egress) = match direction {
            Direction::Outbound => (Role::Host, Role::Uplink),
            Direction::Inbound => (Role::Uplink, Role::Host),
        };
        self.sampler.add(&Sample {
            by: DecidedBy::Kernel,
            arrived: NOON,
            latency: None,
            ingress,
            outcome: Outcome::Forward(egress),
            rule,
            generation: UNKNOWN,
            frame_bytes: frame.len(),
            before: Excerpt::of(frame),
            after: Excerpt::of(frame),
        });
        let blocks: Vec<_> = self.pieces.try_iter().collect();
        assert_eq!(blocks.len(), 1, "one block a frame");
        blocks.concat()
    }
}

/// The number of candidates that give the same block as the true one.
fn fitting(
    eyes: &mut Eyes,
    direction: Direction,
    candidates: usize,
    frame: impl Fn(u16) -> Vec<u8>,
) -> usize {
    let rule = match direction {
        Direction::Outbound => Some(Rule::ExitProtocol),
        Direction::Inbound => None,
    };
    fitting_by(eyes, direction, rule, candidates, frame)
}

/// The same for frames that matched this rule.
fn fitting_by(
    eyes: &mut Eyes,
    direction: Direction,
    rule: Option<Rule>,
    candidates: usize,
    frame: impl Fn(u16) -> Vec<u8>,
) -> usize {
    let captured = eyes.capture(direction, rule, &frame(TRUE));
    (0..=u16::MAX)
        .cycle()
        .skip(TRUE.into())
        .take(candidates)
        .filter(|&candidate| eyes.capture(direction, rule, &frame(candidate)) == captured)
        .count()
}

fn report(failures: &[String]) {
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
}

#[test]
fn every_candidate_fits_every_kind_of_frame() {
    let mut failures = Vec::new();
    // With payload the headers are redacted by the same rules, so fewer candidates suffice.
    for (with_payload, candidates) in [(false, CANDIDATES), (true, CANDIDATES / 16)] {
        for kind in frames() {
            let mut eyes = Eyes::new(with_payload, false);
            // Requested payload may itself contain the other side's address.
            if with_payload && kind.has_revealing_payload {
                continue;
            }
            let fit = fitting(&mut eyes, kind.direction, candidates, |address| {
                (kind.build)(Forger::with(address))
            });
            if fit != candidates {
                failures.push(format!(
                    "{}, payload {with_payload}: {fit} of {candidates} candidates fit",
                    kind.name
                ));
            }
        }
    }
    report(&failures);
}

#[test]
fn every_candidate_fits_a_frame_cut_anywhere() {
    let mut failures = Vec::new();
    for kind in frames() {
        let mut eyes = Eyes::new(false, false);
        for length in 1..(kind.build)(Forger::with(TRUE)).len() {
            let fit = fitting(&mut eyes, kind.direction, 16, |address| {
                (kind.build)(Forger::with(address))[..length].to_vec()
            });
            if fit != 16 {
                failures.push(format!("{} cut to {length}: {fit} of 16", kind.name));
            }
        }
    }
    report(&failures);
}

/// Relays are listed publicly, and many have a unique port.
#[test]
fn every_port_fits_a_frame_to_or_from_a_relay() {
    let mut failures = Vec::new();
    for (host, other) in [
        ("192.0.2.10:40000", "198.51.100.7:0"),
        ("[2001:db8:1::10]:40000", "[2001:db8:51::7]:0"),
    ] {
        for (direction, rule, knows_relays) in [
            (Direction::Outbound, Some(Rule::ToListedRelay), true),
            (Direction::Outbound, Some(Rule::FromRelayAddress), true),
            (Direction::Outbound, Some(Rule::NotHostMarked), true),
            (Direction::Outbound, Some(Rule::Refuses), true),
            (Direction::Outbound, Some(Rule::NoUserSpace), true),
            (Direction::Inbound, None, true),
            // Without a relay set, it is unknown which of these go to relays.
            (Direction::Outbound, Some(Rule::ExitProtocol), false),
            (Direction::Outbound, Some(Rule::HostMarked), false),
            (Direction::Outbound, Some(Rule::ToExemptPrefix), false),
            (Direction::Outbound, Some(Rule::FromListener), false),
            (Direction::Outbound, Some(Rule::Accepts), false),
        ] {
            let mut eyes = Eyes::knowing(knows_relays, false, false);
            for build in [tcp, udp] {
                let fit = fitting_by(&mut eyes, direction, rule, CANDIDATES / 16, |port| {
                    let other = other.replace(":0", &format!(":{port}"));
                    match direction {
                        Direction::Outbound => build(host, &other).build(),
                        Direction::Inbound => build(&other, host).build(),
                    }
                });
                if fit != CANDIDATES / 16 {
                    failures.push(format!("{host} {direction:?} {rule:?}: {fit} ports fit"));
                }
            }
        }
    }
    report(&failures);
}

/// Exit traffic to a listed relay, which is possible with a host mark.
#[test]
fn the_port_of_a_listed_relay_is_hidden_in_every_class() {
    let mut eyes = Eyes::new(false, false);
    let relay = ground().snapshot.relays.iter().next().unwrap();
    let shows = |eyes: &mut Eyes, to: &str| {
        let frame = tcp("192.0.2.10:40000", to).build();
        let port = frame[36..38].to_vec();
        let block = eyes.capture(Direction::Outbound, Some(Rule::HostMarked), &frame);
        block
            .windows(4)
            .any(|ports| ports == [&[0x9c, 0x40], &port[..]].concat())
    };
    assert!(relay.address.is_ipv4());
    for (port, is_shown) in [(relay.port, false), (relay.port - 1, true)] {
        let to = format!("{}:{port}", relay.address);
        assert_eq!(shows(&mut eyes, &to), is_shown, "{to}");
    }
}

/// A checksum also covers the payload: here two bytes of it, in a frame whose addresses are shown.
#[test]
fn checksums_do_not_reveal_payload_that_was_not_requested() {
    let mut failures = Vec::new();
    for kind in frames().into_iter().filter(|kind| kind.is_stream) {
        let mut eyes = Eyes::new(false, true);
        let fit = fitting(&mut eyes, kind.direction, CANDIDATES, |payload| {
            (kind.build)(Forger::with(TRUE).saying(payload))
        });
        if fit != CANDIDATES {
            failures.push(format!("{}: {fit} of {CANDIDATES} payloads fit", kind.name));
        }
    }
    report(&failures);
}

/// The attack works: it finds the address in a capture with addresses.
#[test]
fn a_capture_with_addresses_reveals_the_candidate() {
    for kind in frames() {
        let mut eyes = Eyes::new(true, true);
        let fit = fitting(&mut eyes, kind.direction, 4096, |address| {
            (kind.build)(Forger::with(address))
        });
        assert_eq!(fit, 1, "{}", kind.name);
    }
}
