//! Runs the tables of copies for the tap through the kernel engine.

use crate::rig::{Rig, in_namespace};
use exitmark_datapath::{Buffers, IncomingLink, Role};
use exitmark_lab::cases::taps::tables;
use exitmark_lab::differential::slow_path;
use exitmark_lab::site::{INCOMING_MAC, TORNET_MAC};
use exitmark_policy::Answers;
use std::time::Duration;

fn try_tables(buffers: Buffers, first: Option<usize>) {
    in_namespace(move || {
        for table in tables() {
            let settings = table.settings().unwrap();
            let link = settings.incoming().map(|_| IncomingLink {
                port: Role::Incoming,
                own: INCOMING_MAC.parse().unwrap(),
                next_hop: Some(TORNET_MAC.parse().unwrap()),
            });
            let snapshot = table.snapshot(&settings);
            let mut rig = Rig::new(buffers, &snapshot, link);
            let rings = rig.kernel.tap_rings().unwrap();
            let mut answers = Answers::default();
            for case in &table.cases {
                let title = format!("{}: {}, {first:?}", table.name, case.name);
                let length = case.frame.len();
                let reach = first.map_or(length, |bytes| bytes.min(length));
                rig.run_split(case.ingress, &case.frame, reach);
                let mut copies = Vec::new();
                for ring in &rings {
                    while let Some(mut copy) = ring.take() {
                        if copy.is_exit(&snapshot, &mut answers, Duration::ZERO) {
                            assert!(copy.finish(), "{title}");
                            copies.push(copy.bytes().to_vec());
                        }
                    }
                }
                // Without a worker, slow-path frames of a host are not classified.
                let is_unknown = case.ingress == Role::Host && slow_path(&case.frame).is_some();
                let expected = case.copy.clone().filter(|_| !is_unknown);
                assert_eq!(copies, Vec::from_iter(expected), "{title}");
            }
        }
    });
}

#[test]
fn every_copy_by_the_kernel() {
    try_tables(Buffers::Several, None);
    try_tables(Buffers::One, None);
}

#[test]
fn every_copy_with_headers_beyond_the_first_buffer() {
    for first in [14, 18, 34, 40, 54] {
        try_tables(Buffers::Several, Some(first));
    }
}
