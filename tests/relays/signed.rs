//! Documents signed by the lab's authorities, checked by tor-netdoc's own verification: an oracle
//! that shares no code with the lab.

use crate::site::plan;
use crate::{FLAVORS, START, at};
use exitmark_lab::authorities::Authorities;
use exitmark_lab::consensus::ConsensusBuilder;
use exitmark_relays::Flavor;
use tor_netdoc::doc::authcert::{AuthCert, AuthCertUnverified};
use tor_netdoc::doc::netstatus::{md, plain};
use tor_netdoc::parse2::{ParseInput, parse_netdoc, parse_netdoc_multiple};
use tor_netdoc::types::Fingerprint;

fn parsed(certificates: &str) -> Vec<AuthCertUnverified> {
    parse_netdoc_multiple(&ParseInput::new(certificates, "")).unwrap()
}

fn certificates(authorities: &Authorities) -> Vec<AuthCert> {
    let text = authorities.certificates_for(plan(Flavor::Ns).validity);
    let certificates = parsed(&text).into_iter();
    let verified = certificates.map(|one| one.verify_selfcert(at(START)).unwrap());
    verified.collect()
}

/// Whether a majority of these authorities signed a document, by these certificates.
fn holds(
    flavor: Flavor,
    text: &str,
    trusted: &Authorities,
    certificates: &[AuthCert],
) -> Result<(), String> {
    let trusted: Vec<_> = trusted
        .identities()
        .iter()
        .map(|identity| identity.parse::<Fingerprint>().unwrap().0)
        .collect();
    macro_rules! verify {
        ($document:ty) => {{
            let document: $document =
                parse_netdoc(&ParseInput::new(text, "")).map_err(|error| error.to_string())?;
            let verified = document.verify(&trusted, certificates);
            verified.map(drop).map_err(|error| error.to_string())
        }};
    }
    match flavor {
        Flavor::Ns => verify!(plain::NetworkStatusUnverified),
        Flavor::Microdesc => verify!(md::NetworkStatusUnverified),
    }
}

/// The text with one bit of the byte at this place flipped, so that it stays text.
fn flipped(text: &str, place: usize) -> String {
    let mut bytes = text.as_bytes().to_vec();
    bytes[place] ^= 1;
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_signed_document_is_valid_in_both_flavours() {
    for count in [1, 4, 9] {
        let authorities = Authorities::new(count);
        let certificates = certificates(&authorities);
        assert_eq!(certificates.len(), usize::from(count));
        for flavor in FLAVORS {
            let text = plan(flavor).sign(&authorities);
            holds(flavor, &text, &authorities, &certificates).unwrap();
            let invented = ConsensusBuilder {
                authorities: count,
                ..plan(flavor)
            };
            holds(flavor, &invented.write(), &authorities, &certificates).unwrap_err();
        }
    }
}

#[test]
fn every_signed_byte_is_checked() {
    let authorities = Authorities::new(3);
    let certificates = certificates(&authorities);
    for flavor in FLAVORS {
        let text = plan(flavor).sign(&authorities);
        let keyword = "\ndirectory-signature ";
        let end = text.find(keyword).unwrap() + keyword.len();
        for place in (0..end).step_by(5).chain(end - keyword.len()..end) {
            let spoiled = flipped(&text, place);
            let good = holds(flavor, &spoiled, &authorities, &certificates).is_ok();
            assert!(!good, "{flavor}: byte {place} of {end}");
        }
    }
}

#[test]
fn more_than_half_must_sign_and_each_counts_once() {
    let authorities = Authorities::new(9);
    let certificates = certificates(&authorities);
    for flavor in FLAVORS {
        let by = |signers: &[u8]| {
            let text = plan(flavor).sign_by(&authorities, signers.iter().copied());
            holds(flavor, &text, &authorities, &certificates)
        };
        by(&[0, 1, 2, 3, 4]).unwrap();
        by(&[8, 6, 4, 2, 0]).unwrap();
        by(&[0, 1, 2, 3]).unwrap_err();
        by(&[0, 1, 2, 3, 3, 3]).unwrap_err();
        by(&[7]).unwrap_err();
    }
}

#[test]
fn a_spoiled_signature_discounts_only_its_signer() {
    let authorities = Authorities::new(3);
    let certificates = certificates(&authorities);
    for flavor in FLAVORS {
        let mut text = plan(flavor).sign(&authorities);
        let objects: Vec<_> = text
            .match_indices("BEGIN SIGNATURE-----\n")
            .map(|(place, mark)| place + mark.len())
            .collect();
        // The bits of the first character all belong to the signature's first byte.
        let mut spoil = |place: usize| {
            let other = if text[place..].starts_with('A') {
                "B"
            } else {
                "A"
            };
            text.replace_range(place..=place, other);
            holds(flavor, &text, &authorities, &certificates)
        };
        spoil(objects[1]).unwrap();
        spoil(objects[2]).unwrap_err();
    }
}

#[test]
fn signatures_of_strangers_do_not_count() {
    let (trusted, strangers) = (Authorities::new(3), Authorities::family(1, 3));
    let all = [certificates(&trusted), certificates(&strangers)].concat();
    for flavor in FLAVORS {
        let text = plan(flavor).sign(&strangers);
        holds(flavor, &text, &strangers, &all).unwrap();
        holds(flavor, &text, &trusted, &all).unwrap_err();
        let text = plan(flavor).sign(&trusted);
        holds(flavor, &text, &trusted, &all[3..]).unwrap_err();
    }
}

#[test]
fn a_certificate_is_valid_for_its_period() {
    let authorities = Authorities::new(2);
    let text = authorities.certificates(at(1_000_000), at(2_000_000));
    for (moment, good) in [
        (999_999, false),
        (1_000_000, true),
        (2_000_000, true),
        (2_000_001, false),
    ] {
        for certificate in parsed(&text) {
            let verified = certificate.verify_selfcert(at(moment));
            assert_eq!(verified.is_ok(), good, "at {moment}");
        }
    }
}

#[test]
fn every_byte_of_a_certificate_is_checked() {
    let text = Authorities::new(1).certificates_for(plan(Flavor::Ns).validity);
    let keyword = "\ndir-key-certification\n";
    let end = text.find(keyword).unwrap() + keyword.len();
    for place in 0..end {
        let spoiled = flipped(&text, place);
        let certificate = parse_netdoc::<AuthCertUnverified>(&ParseInput::new(&spoiled, ""));
        let good = certificate.is_ok_and(|good| good.verify_selfcert(at(START)).is_ok());
        assert!(!good, "byte {place} of {end}");
    }
}
