//! Packets of switches that send their mirror over a network, built byte by byte from the formats'
//! documents, and what is unwrapped of them.

use crate::count::{MARKED, PLACES, ever, filter, of_link, pcap};
use exitmark_lab::frames::{Frame, tcp};
use exitmark_monitor::cell::Counts;
use exitmark_monitor::filter::{Arrived, Filter, Refusal};
use exitmark_monitor::mirror::{Unwrap, VXLAN_PORT};
use exitmark_monitor::pcap::{Capture, Progress};
use exitmark_monitor::tally::Counter;
use exitmark_policy::packet::{Malformed, Version};
use std::sync::Arc;

pub(crate) const ALL: Unwrap = Unwrap {
    erspan: true,
    vxlan: Some(VXLAN_PORT),
};

const GRE: u8 = 47;
const UDP: u8 = 17;

/// The outer headers of a mirror's packet.
#[derive(Clone, Copy, Default)]
pub(crate) struct Outer {
    pub(crate) is_v6: bool,
    pub(crate) tags: usize,
    /// Bytes of IPv4 options, a multiple of 4.
    pub(crate) options: u8,
    /// The flags and the fragment offset of IPv4.
    pub(crate) fragment: u16,
}

/// What the outer packet carries.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    ErspanII,
    ErspanIII,
    /// With the platform-specific subheader.
    ErspanIIIWithSubheader,
    Vxlan,
}

pub(crate) const KINDS: [Kind; 4] = [
    Kind::ErspanII,
    Kind::ErspanIII,
    Kind::ErspanIIIWithSubheader,
    Kind::Vxlan,
];

/// A frame in a packet of this kind.
pub(crate) fn wrapped(kind: Kind, outer: Outer, frame: &[u8]) -> Vec<u8> {
    let (protocol, headers) = match kind {
        // GRE with S, the protocol, a sequence number; version 1 and VLAN, session, index.
        Kind::ErspanII => (
            GRE,
            vec![
                0x10, 0x00, 0x88, 0xbe, 0, 0, 0, 7, //
                0x10, 0x64, 0x18, 0x07, 0, 0, 0, 1,
            ],
        ),
        // Version 2 and VLAN, session, timestamp, security group, P and the frame type.
        Kind::ErspanIII => (
            GRE,
            vec![
                0x10, 0x00, 0x22, 0xeb, 0, 0, 0, 8, //
                0x20, 0x64, 0x18, 0x07, 1, 2, 3, 4, 0, 0, 0x80, 0x0e,
            ],
        ),
        Kind::ErspanIIIWithSubheader => (
            GRE,
            vec![
                0x10, 0x00, 0x22, 0xeb, 0, 0, 0, 9, //
                0x20, 0x64, 0x18, 0x07, 1, 2, 3, 4, 0, 0, 0x80, 0x0f, //
                0x0c, 1, 2, 3, 4, 5, 6, 7,
            ],
        ),
        // Ports, length, no checksum; the flag I, and the network identifier.
        Kind::Vxlan => {
            let [high, low] = u16::try_from(16 + frame.len()).unwrap().to_be_bytes();
            (
                UDP,
                vec![
                    0xc3, 0x50, 0x12, 0xb5, high, low, 0, 0, //
                    0x08, 0, 0, 0, 0, 0, 0x2a, 0,
                ],
            )
        }
    };
    let Outer {
        is_v6,
        tags,
        options,
        fragment,
    } = outer;
    let payload = [&headers, frame].concat();
    let length = |bytes: usize| u16::try_from(bytes).unwrap().to_be_bytes();
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for tag in 0..tags {
        let kinds = [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]];
        packet.extend(kinds[tag % 3]);
        packet.extend([0, 9]);
    }
    match is_v6 {
        false => {
            let header = 20 + options;
            packet.extend([0x08, 0x00, 0x40 | (header / 4), 0]);
            packet.extend(length(usize::from(header) + payload.len()));
            packet.extend([0, 7]);
            packet.extend(fragment.to_be_bytes());
            packet.extend([64, protocol, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
            packet.extend(vec![1; usize::from(options)]);
        }
        true => {
            packet.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            packet.extend(length(payload.len()));
            packet.extend([protocol, 64]);
            packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        }
    }
    packet.extend(payload);
    packet
}

fn unwrapping() -> Filter {
    Filter {
        unwrap: ALL,
        ..filter()
    }
}

fn inner() -> Frame {
    tcp("192.0.2.10:40000", "1.2.3.4:443")
        .tos(MARKED)
        .control(0x02)
        .payload(500)
}

fn judged(filter: &Filter, bytes: &[u8]) -> Result<u32, Refusal> {
    use exitmark_monitor::filter::CountedPacket::{V4, V6};
    filter.judge(&Arrived { bytes }).map(|packet| match packet {
        V4(fields) => fields.bytes,
        V6(fields) => fields.bytes,
    })
}

fn outers() -> impl Iterator<Item = Outer> {
    let families = [(false, 0), (false, 40), (true, 0)];
    let outers = families.map(|(is_v6, options)| {
        (0..=4).map(move |tags| Outer {
            is_v6,
            tags,
            options,
            fragment: 0,
        })
    });
    outers.into_iter().flatten()
}

#[test]
fn mirrored_frames_count_by_their_own_length() {
    let filter = unwrapping();
    let tagged = (0..4).fold(inner(), |frame, tag| frame.tag(0x8100, tag));
    for kind in KINDS {
        for outer in outers() {
            for frame in [inner(), tagged.clone()] {
                let packet = wrapped(kind, outer, &frame.build());
                assert_eq!(judged(&filter, &packet), Ok(520), "{kind:?}");
            }
        }
    }
    // Five tags are one too many, outside and inside.
    let five = tagged.tag(0x8100, 4).build();
    let outer = Outer::default();
    let packet = wrapped(Kind::ErspanII, outer, &five);
    assert_eq!(judged(&filter, &packet), Err(Refusal::NotIp));
    let outer = Outer { tags: 5, ..outer };
    let packet = wrapped(Kind::ErspanII, outer, &inner().build());
    assert_eq!(judged(&filter, &packet), Err(Refusal::NotIp));
}

#[test]
fn only_what_is_configured_is_unwrapped() {
    let one = |erspan, vxlan| Filter {
        unwrap: Unwrap { erspan, vxlan },
        ..filter()
    };
    let frame = inner().build();
    for (filter, counted) in [
        (one(false, None), [false, false, false, false]),
        (one(true, None), [true, true, true, false]),
        (one(false, Some(4789)), [false, false, false, true]),
        (one(false, Some(8472)), [false, false, false, false]),
    ] {
        let found = KINDS.map(|kind| {
            let packet = wrapped(kind, Outer::default(), &frame);
            let judged = judged(&filter, &packet);
            assert!(judged.is_ok() || judged == Err(Refusal::Unmarked));
            judged.is_ok()
        });
        assert_eq!(found, counted, "{:?}", filter.unwrap);
        // Frames that no mirror has wrapped count as ever.
        assert!(judged(&filter, &frame).is_ok());
    }
}

#[test]
fn one_level_is_unwrapped() {
    let filter = unwrapping();
    for kind in KINDS {
        let once = wrapped(kind, Outer::default(), &inner().build());
        let twice = wrapped(Kind::ErspanII, Outer::default(), &once);
        assert_eq!(judged(&filter, &twice), Err(Refusal::Unmarked), "{kind:?}");
    }
}

#[test]
fn malformed_mirrors_are_refused() {
    use Malformed::{BadLength, ShortHeader, WrongVersion};
    let frame = inner().build();
    // Offsets from the beginning of GRE or UDP on.
    #[rustfmt::skip]
    let table: [(Kind, usize, u8, Malformed); 14] = [
        // A checksum, a key, routing, another version, no sequence number (type I).
        (Kind::ErspanII, 0, 0x90, WrongVersion),
        (Kind::ErspanII, 0, 0x30, WrongVersion),
        (Kind::ErspanII, 0, 0x50, WrongVersion),
        (Kind::ErspanII, 1, 0x01, WrongVersion),
        (Kind::ErspanII, 0, 0x00, WrongVersion),
        // The version of ERSPAN.
        (Kind::ErspanII, 8, 0x20, WrongVersion),
        (Kind::ErspanII, 8, 0x00, WrongVersion),
        (Kind::ErspanIII, 8, 0x10, WrongVersion),
        // A frame type that is not Ethernet.
        (Kind::ErspanIII, 18, 0x88, WrongVersion),
        (Kind::ErspanIII, 18, 0x84, WrongVersion),
        // No network identifier.
        (Kind::Vxlan, 8, 0x00, WrongVersion),
        // A UDP length without room for a frame.
        (Kind::Vxlan, 4, 0x00, BadLength),
        (Kind::ErspanIII, 0, 0x00, WrongVersion),
        (Kind::Vxlan, 8, 0xf7, WrongVersion),
    ];
    for (kind, at, byte, reason) in table {
        for (outer, l4) in [
            (Outer::default(), 34),
            (
                Outer {
                    is_v6: true,
                    ..Outer::default()
                },
                54,
            ),
        ] {
            let mut packet = wrapped(kind, outer, &frame);
            packet[l4 + at] = byte;
            if reason == BadLength {
                packet[l4 + 5] = 29;
            }
            let expected = Err(Refusal::Malformed(reason));
            assert_eq!(
                judged(&unwrapping(), &packet),
                expected,
                "{kind:?} {at} {byte:#x}"
            );
        }
    }
    // A frame that has no whole Ethernet header.
    for kind in KINDS {
        let packet = wrapped(kind, Outer::default(), &frame[..13]);
        let expected = match kind {
            Kind::Vxlan => BadLength,
            _ => ShortHeader,
        };
        assert_eq!(
            judged(&unwrapping(), &packet),
            Err(Refusal::Malformed(expected))
        );
    }
    // GRE with something else is not a mirror's.
    let mut packet = wrapped(Kind::ErspanII, Outer::default(), &frame);
    packet[36..38].copy_from_slice(&[0x08, 0x00]);
    assert_eq!(judged(&unwrapping(), &packet), Err(Refusal::Unmarked));
}

#[test]
fn the_end_of_the_outer_packet_ends_the_frame() {
    let filter = unwrapping();
    for kind in KINDS {
        let whole = wrapped(kind, Outer::default(), &inner().build());
        let start = whole.len() - inner().build().len();
        // The outer packet ends within the headers of the frame, and padding looks like the rest.
        for end in start..whole.len() {
            let mut packet = whole.clone();
            packet[16..18].copy_from_slice(&u16::try_from(end - 14).unwrap().to_be_bytes());
            let judged = judged(&filter, &packet);
            match end >= start + 14 + 20 + 4 {
                true => assert_eq!(judged, Ok(520), "{kind:?} {end}"),
                false => assert!(judged.is_err(), "{kind:?} {end}"),
            }
        }
    }
}

#[test]
fn truncated_mirrors_count_wholly_or_not_at_all() {
    let filter = unwrapping();
    for kind in KINDS {
        for outer in outers() {
            let packet = wrapped(kind, outer, &inner().build());
            let ports = packet.len() - inner().build().len() + 14 + 20 + 4;
            for kept in 0..packet.len() {
                let judged = judged(&filter, &packet[..kept]);
                match kept >= ports {
                    true => assert_eq!(judged, Ok(520), "{kind:?} {kept}"),
                    false => assert!(judged.is_err(), "{kind:?} {kept}"),
                }
            }
        }
    }
}

#[test]
fn a_first_fragment_carries_a_frame_and_a_later_one_does_not() {
    let frame = inner().build();
    let fragment = |fragment| Outer {
        fragment,
        ..Outer::default()
    };
    for kind in KINDS {
        let mut first = wrapped(kind, fragment(0x2000), &frame);
        first.truncate(200);
        first[16..18].copy_from_slice(&[0, 186]);
        assert_eq!(judged(&unwrapping(), &first), Ok(520), "{kind:?}");
        let later = wrapped(kind, fragment(0x2001), &frame);
        let expected = Err(Refusal::Unmarked);
        assert_eq!(judged(&unwrapping(), &later), expected, "{kind:?}");
    }
}

#[test]
fn captures_of_mirrors_count_like_captures_of_frames() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mirror.pcap");
    let frames: Vec<_> = outers()
        .flat_map(|outer| KINDS.map(|kind| wrapped(kind, outer, &inner().build())))
        .collect();
    for snaplen in [usize::MAX, 240] {
        pcap(&path, &[], &frames, of_link(1), snaplen);
        let mut counter = Counter::new(unwrapping(), Arc::clone(&PLACES), 64);
        let mut capture = Capture::open(&path).unwrap();
        let progress = capture.count_until(ever(), &mut counter);
        assert_eq!(progress.unwrap(), Progress::End);
        let number = frames.len() as u64;
        let counted: Counts = [number, 520 * number, number].into();
        assert_eq!(counter.tally().totals()[0], (Version::V4, counted));
        assert_eq!(counter.refusals().total(), 0);
    }
}
