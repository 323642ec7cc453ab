//! Any bytes as a frame, from any port, with every configuration of the table of cases: no panic,
//! only permitted bits change, and a rewritten frame is not rewritten again.
#![no_main]

use exitmark_datapath::{Forwarder, Outcome, Role};
use exitmark_lab::cases::tables;
use exitmark_policy::packet::{Version, ipv4_header_checksum_is_good};
use exitmark_policy::{FRAGMENT_LIFETIME, Remark, Rule, Verdict};
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

thread_local! {
    static BOX: RefCell<Fuzzed> = RefCell::new(Fuzzed::new());
}

/// A forwarder for each table. The clock advances between frames so that all fragment entries
/// expire.
struct Fuzzed {
    forwarders: Vec<Forwarder>,
    now: Duration,
}

impl Fuzzed {
    fn new() -> Self {
        let forwarders = tables().into_iter().map(|table| {
            let settings = table.settings().expect("the tables are valid");
            let links = Arc::new(table.links(&settings));
            Forwarder::new(Arc::new(table.snapshot(&settings)), links)
        });
        Self {
            forwarders: forwarders.collect(),
            now: Duration::ZERO,
        }
    }

    fn forward(
        &mut self,
        choice: u8,
        frame: &mut Vec<u8>,
        frame_bytes: usize,
    ) -> (Outcome, Option<Verdict>) {
        self.now += FRAGMENT_LIFETIME;
        let table = usize::from(choice) / 3 % self.forwarders.len();
        let ingress = Role::ALL[usize::from(choice) % 3];
        self.forwarders[table].forward(ingress, frame, frame_bytes, self.now)
    }
}

/// The frame with all bits that may change taken from `other`.
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

fn try_frame(fuzzed: &mut Fuzzed, choice: u8, before: &[u8]) {
    let ingress = Role::ALL[usize::from(choice) % 3];
    let mut after = before.to_vec();
    let (outcome, verdict) = fuzzed.forward(choice, &mut after, before.len());
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
        // A header that extends into another buffer, or beyond the end, has no checksum to verify.
        if let (Some(old), Some(new)) = (before.get(header.clone()), after.get(header)) {
            assert_eq!(
                ipv4_header_checksum_is_good(old),
                ipv4_header_checksum_is_good(new)
            );
        }
    }
    if let Some(verdict) = verdict {
        let mut again = after.clone();
        let (same, second) = fuzzed.forward(choice, &mut again, before.len());
        let second = second.expect("outbound frames have a verdict");
        // The host's own mark is gone if the box has set another one or cleared it.
        let is_stable = verdict.rule != Rule::HostMarked || remark.is_none();
        if is_stable {
            assert_eq!((same, second.rule), (outcome, verdict.rule));
            assert_eq!(second.remark, None);
            assert_eq!(again, after);
        }
    }
    // The readable part of a frame in several buffers may end anywhere.
    let mut part = before[..before.len() / 2].to_vec();
    fuzzed.forward(choice, &mut part, before.len());
}

fuzz_target!(|input: &[u8]| {
    if let [choice, frame @ ..] = input {
        BOX.with_borrow_mut(|fuzzed| try_frame(fuzzed, *choice, frame));
    }
});
