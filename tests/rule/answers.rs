//! A second implementation of the rules for TCP's control bits, compared for every control byte.

use exitmark_box::settings::Settings;
use exitmark_datapath::{Forwarder, Links, Role};
use exitmark_lab::frames::tcp;
use exitmark_policy::{Class, EndpointSet, Snapshot};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const ENDS: [(&str, &str, bool); 4] = [
    ("192.0.2.10:40000", "198.51.100.7:443", false),
    ("192.0.2.10:40000", "198.18.0.1:9001", true),
    ("[2001:db8:1::10]:40000", "[2001:db8:51::7]:443", false),
    ("[2001:db8:1::10]:40000", "[2001:db8:18::1]:9001", true),
];

fn forwarder(top: &str) -> Forwarder {
    let text = format!(
        "{top}\n[ports]\nhost = \"a\"\nuplink = \"b\"\n\
         [host]\naddresses = [\"192.0.2.10\", \"2001:db8:1::10\"]\n\
         [relays]\nextra = [\"198.18.0.1:9001\", \"[2001:db8:18::1]:9001\"]\n"
    );
    let settings = Settings::parse(&text, Path::new("")).unwrap();
    let relays = EndpointSet::new(settings.relays.sources.extra.iter().copied()).unwrap();
    let snapshot = Snapshot::new(1, settings.rules, relays);
    Forwarder::new(Arc::new(snapshot), Arc::new(Links::new(None)))
}

/// The class of a segment that answers one of no connection, or that accepts one (RFC 9293, section
/// 3.10.7).
fn answer(control: u8, sequence: u32) -> Option<Class> {
    let has = |bit: u32| control >> bit & 1 == 1;
    let (rst, syn, ack) = (has(2), has(1), has(4));
    match (rst, syn, ack, sequence) {
        (_, true, true, _) => Some(Class::Reply),
        (true, _, false, _) | (true, _, true, 0) => Some(Class::Host),
        _ => None,
    }
}

#[test]
fn every_control_byte_by_relay_set_and_by_host_mark() {
    for (top, by_mark) in [("", false), ("classify_by = \"host-mark\"", true)] {
        let mut forwarder = forwarder(top);
        let mut answers = 0;
        for (source, destination, listed) in ENDS {
            for control in 0..=u8::MAX {
                for sequence in [0, 1, 0x0100, 0x0001_0000, 0x0100_0000, u32::MAX] {
                    for tos in [0, 0x28] {
                        let segment = tcp(source, destination).control(control);
                        let mut frame = segment.sequence(sequence).tos(tos).build();
                        let length = frame.len();
                        let (_, verdict) =
                            forwarder.forward(Role::Host, &mut frame, length, Duration::ZERO);
                        let is_relay = if by_mark { tos == 0 } else { listed };
                        let flow = if is_relay { Class::Relay } else { Class::Exit };
                        let answer = answer(control, sequence);
                        answers += u32::from(answer.is_some());
                        assert_eq!(
                            verdict.unwrap().class(),
                            answer.unwrap_or(flow),
                            "control {control:#04x}, sequence {sequence}, ToS {tos:#04x}, {top}"
                        );
                    }
                }
            }
        }
        assert!(answers > 0);
    }
}
