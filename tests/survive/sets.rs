//! Relay sets that are swapped under load; all of them list the test's relays.

use crate::flows::listed;
use exitmark_lab::authorities::Authorities;
use exitmark_lab::consensus::{ConsensusBuilder, hours_from};
use exitmark_lab::{LabError, replace};
use exitmark_policy::{Endpoint, EndpointSet};
use exitmark_relays::{Flavor, UncheckedDocument};
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

/// The number of endpoints in a large set.
const LARGE: usize = 16_384;

/// Consensus documents, in pairs of two different ones, and their signers.
pub(crate) struct Sets {
    pub(crate) authorities: Authorities,
    pub(crate) certificates: String,
    pub(crate) small: [String; 2],
    pub(crate) large: [String; 2],
}

impl Sets {
    pub(crate) fn invent() -> Self {
        let authorities = Authorities::new(3);
        let certificates = authorities.certificates_for(builder(1, 16).validity);
        Self {
            certificates,
            small: [1, 2].map(|seed| builder(seed, 16).sign(&authorities)),
            large: [3, 4].map(|seed| large(seed, &authorities)),
            authorities,
        }
    }
}

fn builder(seed: u32, relays: u32) -> ConsensusBuilder {
    // One time for all: a document must not be older than the one in force.
    static NOW: LazyLock<SystemTime> = LazyLock::new(SystemTime::now);
    let validity = hours_from(*NOW - Duration::from_secs(3600), [0, 2, 3]);
    ConsensusBuilder {
        seed,
        relays,
        listed: listed(),
        ..ConsensusBuilder::full_size(Flavor::Microdesc, validity)
    }
}

fn endpoints(document: &str) -> EndpointSet {
    let document = UncheckedDocument::parse(document.as_bytes()).unwrap();
    EndpointSet::new(document.accept_unchecked().endpoints()).unwrap()
}

/// A document with exactly the number of endpoints of a large set.
fn large(seed: u32, authorities: &Authorities) -> String {
    let mut builder = builder(seed, 8_000);
    let more = LARGE - endpoints(&builder.sign(authorities)).len();
    // Shared address space (RFC 6598), without generated relays and flows of the test.
    let base = 0x6440_0000 + (seed << 16);
    let addresses = (base..).take(more).map(std::net::Ipv4Addr::from);
    let fill = addresses.map(|address| Endpoint::new(address.into(), 443));
    builder.listed.extend(fill);
    let document = builder.sign(authorities);
    assert_eq!(endpoints(&document).len(), LARGE);
    document
}

/// Replaces a document as tor does: writes a temporary file, and renames it.
pub(crate) fn publish(path: &Path, document: &str) -> Result<(), LabError> {
    replace(path, document)
        .map_err(|error| LabError(format!("cannot write {}: {error}", path.display())))
}
