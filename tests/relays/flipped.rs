//! One byte of a good document or of its certificates is another one. Where it is the document,
//! that is refused, wherever the byte is. Where it is the certificates, it is refused or makes no
//! difference.

use crate::real::{self, real};
use crate::site::{authorities, certificates, loader, parsed_certificates, pinned, plan, signed};
use crate::site::{Site, checked};
use crate::{FLAVORS, assert_names_no_address, listed, order};
use exitmark::lab::Random;
use exitmark::policy::Endpoint;
use exitmark::relays::{self, Certificates, Flavor, Signatures, UncheckedDocument};

/// A bit of the case of letters, the lowest one, the highest one, all of them, and those that
/// make another digit of a digit.
const MASKS: [u8; 6] = [0x20, 0x01, 0x80, 0xff, 0x02, 0x08];

type Outcome = Option<(Vec<Endpoint>, Signatures)>;

fn outcome(
    bytes: &[u8],
    certificates: &Certificates,
    authorities: &relays::Authorities,
) -> Outcome {
    let document = UncheckedDocument::parse(bytes).inspect_err(assert_names_no_address);
    let verified = document.ok()?.verify(certificates, authorities);
    let (document, signatures) = verified.inspect_err(assert_names_no_address).ok()?;
    Some((document.endpoints().collect(), signatures))
}

/// Flips every one of these, and returns how many there were. None may be accepted.
fn all_refused(
    bytes: &[u8],
    certificates: &Certificates,
    authorities: &relays::Authorities,
    flips: impl Iterator<Item = (usize, u8)>,
) -> usize {
    assert!(outcome(bytes, certificates, authorities).is_some());
    let mut bytes = bytes.to_vec();
    let mut refused = 0;
    for (place, mask) in flips {
        bytes[place] ^= mask;
        assert!(
            outcome(&bytes, certificates, authorities).is_none(),
            "byte {place} of {}, mask {mask:#04x}: accepted",
            bytes.len()
        );
        bytes[place] ^= mask;
        refused += 1;
    }
    refused
}

/// Places and masks by chance: half of them anywhere, half of them among the last bytes, where
/// what is signed ends and the signatures are.
fn chance(length: usize, tail: usize, count: usize) -> impl Iterator<Item = (usize, u8)> {
    let mut random = Random::new(0x00f1_1bed);
    (0..count).map(move |number| {
        let place = match number % 2 {
            0 => random.below(length),
            _ => length - 1 - random.below(tail),
        };
        (place, 1 + random.byte() % 255)
    })
}

#[test]
fn every_byte_of_a_small_document_counts() {
    let (certificates, authorities) = (parsed_certificates(), pinned(&authorities()));
    for flavor in FLAVORS {
        let bytes = signed(flavor).into_bytes();
        let flips = (0..bytes.len()).flat_map(|place| MASKS.map(|mask| (place, mask)));
        let refused = all_refused(&bytes, &certificates, &authorities, flips);
        assert_eq!(refused, bytes.len() * MASKS.len());
        println!("{flavor}, {} bytes: {refused} of {refused} refused", bytes.len());
    }
}

#[test]
fn every_bit_of_the_last_signature_counts() {
    let (certificates, authorities) = (parsed_certificates(), pinned(&authorities()));
    for flavor in FLAVORS {
        let text = signed(flavor);
        let from = text.rfind("directory-signature ").unwrap();
        let flips = (from..text.len()).flat_map(|place| (1..=255).step_by(2).map(move |mask| (place, mask)));
        let refused = all_refused(text.as_bytes(), &certificates, &authorities, flips);
        println!("{flavor}, the last signature: {refused} of {refused} refused");
    }
}

#[test]
fn bytes_of_a_full_document_count() {
    let all = exitmark::lab::authorities::Authorities::new(9);
    for flavor in FLAVORS {
        let order = order(flavor, 7_000);
        let certificates = all.certificates_for(order.validity);
        let certificates = Certificates::parse(certificates.as_bytes()).unwrap();
        let bytes = order.sign(&all).into_bytes();
        let flips = chance(bytes.len(), 4_000, 300);
        let refused = all_refused(&bytes, &certificates, &pinned(&all), flips);
        println!("{flavor}, {} bytes: {refused} of {refused} refused", bytes.len());
    }
}

#[test]
fn bytes_of_real_documents_count() {
    for name in [real::NS, real::MICRODESC, real::EARLIER] {
        let Some((bytes, certificates)) = real(name).zip(real(real::CERTIFICATES)) else {
            return;
        };
        let certificates = Certificates::parse(&certificates).unwrap();
        let authorities = relays::Authorities::tor_network();
        let flips = chance(bytes.len(), 8_000, 200);
        let refused = all_refused(&bytes, &certificates, &authorities, flips);
        println!("{name}, {} bytes: {refused} of {refused} refused", bytes.len());
    }
}

/// Flips bytes of certificates. Returns how many flips were refused, and how many made no
/// difference; there is nothing else.
fn refused_or_the_same(
    bytes: &[u8],
    certificates: &[u8],
    authorities: &relays::Authorities,
    flips: impl Iterator<Item = (usize, u8)>,
) -> [usize; 2] {
    let outcome = |certificates: &[u8]| {
        let certificates = Certificates::parse(certificates);
        let certificates = certificates.inspect_err(assert_names_no_address).ok()?;
        outcome(bytes, &certificates, authorities)
    };
    let good = outcome(certificates);
    assert!(good.is_some());
    let mut certificates = certificates.to_vec();
    let mut counts = [0, 0];
    for (place, mask) in flips {
        certificates[place] ^= mask;
        let now = outcome(&certificates);
        let is_same = now == good;
        assert!(
            now.is_none() || is_same,
            "byte {place}, mask {mask:#04x}: another set"
        );
        counts[usize::from(is_same)] += 1;
        certificates[place] ^= mask;
    }
    counts
}

#[test]
fn every_byte_of_certificates_counts_or_makes_no_difference() {
    let text = order(Flavor::Microdesc, 1).sign(&authorities());
    let certificates = certificates();
    let flips = (0..certificates.len()).flat_map(|place| [0x01, 0x20, 0xff].map(|mask| (place, mask)));
    let [refused, same] = refused_or_the_same(
        text.as_bytes(),
        certificates.as_bytes(),
        &pinned(&authorities()),
        flips,
    );
    println!(
        "certificates, {} bytes: {refused} refused, {same} made no difference",
        certificates.len()
    );
    assert!(refused > 50 * same, "nearly all of it is signed");
}

#[test]
fn bytes_of_real_certificates_count_or_make_no_difference() {
    let Some((bytes, certificates)) = real(real::MICRODESC).zip(real(real::CERTIFICATES)) else {
        return;
    };
    let authorities = relays::Authorities::tor_network();
    let flips = chance(certificates.len(), 2_000, 150);
    let [refused, same] = refused_or_the_same(&bytes, &certificates, &authorities, flips);
    println!(
        "real certificates, {} bytes: {refused} refused, {same} made no difference",
        certificates.len()
    );
    assert!(refused > 0);
}

#[test]
fn a_confined_process_refuses_flipped_bytes_too() {
    for flavor in FLAVORS {
        let good = plan(flavor).sign(&authorities()).into_bytes();
        let site = Site::new(flavor);
        let (loader, sources) = (loader(), checked([&site.consensus]));
        let before = listed(&loader.load(&sources).unwrap());
        for (place, mask) in chance(good.len(), 1_200, 120) {
            let mut bytes = good.clone();
            bytes[place] ^= mask;
            site.write(&bytes);
            let error = loader.load(&sources).unwrap_err();
            assert!(
                matches!(error, relays::LoadError::Told { .. }),
                "byte {place}, mask {mask:#04x}: {error}"
            );
        }
        site.write(&good);
        assert_eq!(listed(&loader.load(&sources).unwrap()), before);
    }
}
