//! Runs the tables of copies for the tap through the forwarder.

use exitmark_datapath::{Direction, Forwarder, IncomingLink, Links, Role, TapRing};
use exitmark_lab::cases::taps::tables;
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
