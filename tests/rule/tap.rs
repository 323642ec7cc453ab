//! Runs the tables of copies for the tap through the forwarder.

use exitmark_datapath::{Direction, Forwarder, IncomingLink, Links, Role, TapRing};
use exitmark_lab::cases::taps::tables;
use exitmark_lab::cases::{HOST6, WEB6};
use exitmark_lab::frames::{extension, tcp};
use exitmark_lab::site::{INCOMING_MAC, TORNET_MAC};
use exitmark_policy::packet::{Headers, ipv4_header_checksum_is_good, parse};
use std::sync::Arc;
use std::time::Duration;

#[test]
fn every_copy_by_the_forwarder() {
    for table in tables() {
        let settings = table.settings().unwrap();
        let link = settings.incoming().map(|_| IncomingLink {
            port: Role::Incoming,
            own: INCOMING_MAC.parse().unwrap(),
            next_hop: Some(TORNET_MAC.parse().unwrap()),
        });
        let ring = TapRing::own();
        let mut forwarder = Forwarder::new(table.snapshot(&settings), Arc::new(Links::new(link)))
            .tapped_into(ring.clone());
        for case in &table.cases {
            let title = format!("{}: {}", table.name, case.name);
            let mut frame = case.frame.clone();
            let length = frame.len();
            forwarder.forward(case.ingress, &mut frame, length, Duration::ZERO);
            let copy = ring.take().map(|mut copy| {
                assert!(copy.finish(), "{title}");
                let is_answer = copy.direction() == Direction::In;
                assert_eq!(is_answer, case.ingress != Role::Host, "{title}");
                copy.bytes().to_vec()
            });
            assert_eq!(copy, case.copy, "{title}");
            assert!(ring.take().is_none(), "{title}");
            if let Some(copy) = copy
                && let Headers::V4(packet) = parse(&copy, length)
            {
                let words = usize::from(copy[packet.l3] & 0x0f);
                let header = &copy[packet.l3..][..4 * words];
                assert!(ipv4_header_checksum_is_good(header), "{title}");
            }
        }
    }
}

/// A frame with one IPv6 extension header of `bytes` bytes, and `segment` bytes of TCP, whose header
/// has `words` words.
fn extended(bytes: usize, words: u8, segment: usize) -> Vec<u8> {
    const PAYLOAD_LENGTH: usize = 14 + 4;
    const EXTENSION: usize = 14 + 40;
    let frame = tcp(HOST6, WEB6).extensions(&[extension::DESTINATION]);
    let mut frame = frame.words(words).payload(segment).build();
    frame[EXTENSION + 1] = u8::try_from(bytes / 8 - 1).unwrap();
    frame.splice(EXTENSION + 8..EXTENSION + 8, vec![0; bytes - 8]);
    let length = u16::try_from(frame.len() - EXTENSION).unwrap();
    frame[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 2].copy_from_slice(&length.to_be_bytes());
    frame
}

#[test]
fn a_copy_whose_headers_are_longer_than_184_bytes_is_refused() {
    let tables = tables();
    let settings = tables[0].settings().unwrap();
    let ring = TapRing::own();
    let links = Arc::new(Links::new(None));
    let snapshot = tables[0].snapshot(&settings);
    let mut forwarder = Forwarder::new(snapshot, links).tapped_into(ring.clone());
    // The TCP header is behind 54 bytes and the extension header.
    for (bytes, words, segment, expected) in [
        (8, 5, 900, Some(54 + 8 + 20)),
        (104, 5, 900, Some(54 + 104 + 20)),
        (104, 6, 900, Some(54 + 104 + 24)),
        (104, 7, 900, None),
        (112, 5, 900, None),
        // The byte with the length of the TCP header is behind the copy, then the ports are, then
        // the end of the extension header.
        (120, 5, 900, None),
        (128, 5, 900, None),
        (136, 5, 900, None),
        // The packet ends within the TCP header.
        (112, 5, 17, Some(183)),
        (112, 5, 18, Some(184)),
        (112, 5, 19, None),
    ] {
        let title = format!("{bytes}, {words}, {segment}");
        // With and without padding behind the packet.
        for padding in [0, 9] {
            let mut frame = extended(bytes, words, segment);
            frame.resize(frame.len() + padding, 0);
            let length = frame.len();
            forwarder.forward(Role::Host, &mut frame, length, Duration::ZERO);
            let mut copy = ring.take().expect(&title);
            let sent = copy.finish().then(|| copy.bytes().len());
            assert_eq!(sent, expected, "{title}, {padding}");
        }
    }
}
