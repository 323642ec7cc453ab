//! Any bytes as a frame, by any port, under every configuration of the table of cases: no
//! panic, nothing changes that may not, and what was marked once is not marked again.
#![no_main]

use exitmark::datapath::{Forwarder, Outcome, Role};
use exitmark::lab::cases::tables;
use exitmark::packet::{Version, ipv4_header_checksum_is_good};
use exitmark::policy::{Remark, Snapshot};
use libfuzzer_sys::fuzz_target;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

static SNAPSHOTS: LazyLock<Vec<Arc<Snapshot>>> = LazyLock::new(|| {
    let snapshot = |table: &exitmark::lab::cases::Table| {
        let settings = table.settings().expect("the tables have no mistake");
        Arc::new(table.snapshot(&settings))
    };
    tables().iter().map(snapshot).collect()
});

/// A forwarder that has seen nothing.
fn forwarder(table: usize) -> Forwarder {
    let tables = tables();
    let settings = tables[table]
        .settings()
        .expect("the tables have no mistake");
    let links = tables[table].links(&settings);
    Forwarder::new(Arc::clone(&SNAPSHOTS[table]), Arc::new(links))
}

/// The frame with the bits that may differ taken from `other`.
fn with_what_may_change(
    frame: &[u8],
    other: &[u8],
    outcome: Outcome,
    remark: Option<Remark>,
) -> Vec<u8> {
    let mut allowed = frame.to_vec();
    let mut take = |at: usize, bits: u8| {
        allowed[at] = allowed[at] & !bits | other[at] & bits;
    };
    if let Outcome::Forward(Role::Incoming | Role::Host) = outcome {
        (0..frame.len().min(12)).for_each(|at| take(at, 0xff));
    }
    match remark {
        Some(Remark {
            l3,
            version: Version::V4,
            ..
        }) => {
            take(l3 + 1, 0xfc);
            take(l3 + 10, 0xff);
            take(l3 + 11, 0xff);
        }
        Some(Remark {
            l3,
            version: Version::V6,
            ..
        }) => {
            take(l3, 0x0f);
            take(l3 + 1, 0xc0);
        }
        None => {}
    }
    allowed
}

fuzz_target!(|input: &[u8]| {
    let [choice, before @ ..] = input else {
        return;
    };
    let ingress = Role::ALL[usize::from(*choice) % 3];
    let table = usize::from(*choice) / 3 % SNAPSHOTS.len();
    let mut after = before.to_vec();
    let (outcome, verdict) =
        forwarder(table).forward(ingress, &mut after, before.len(), Duration::ZERO);
    assert_eq!(verdict.is_some(), ingress == Role::Host);
    let remark = verdict.and_then(|verdict| verdict.remark);
    assert_eq!(after, with_what_may_change(before, &after, outcome, remark));
    if ingress == Role::Uplink {
        assert_eq!(after, before);
    }
    if let Some(Remark {
        l3,
        version: Version::V4,
        ..
    }) = remark
    {
        let header = l3..l3 + usize::from(before[l3] & 0x0f) * 4;
        assert_eq!(
            ipv4_header_checksum_is_good(&before[header.clone()]),
            ipv4_header_checksum_is_good(&after[header]),
        );
    }
    if let Some(verdict) = verdict {
        let mut again = after.clone();
        let (same, second) =
            forwarder(table).forward(ingress, &mut again, before.len(), Duration::ZERO);
        let second = second.expect("outbound frames have a verdict");
        assert_eq!((same, second.rule), (outcome, verdict.rule));
        assert_eq!(second.remark, None);
        assert_eq!(again, after);
    }
    // The readable part of a frame in several buffers may end anywhere.
    let mut part = before[..before.len() / 2].to_vec();
    forwarder(table).forward(ingress, &mut part, before.len(), Duration::ZERO);
});
