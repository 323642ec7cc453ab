//! A document with any single byte changed is refused.
//!
//! Calls the two steps that both ways of loading share, which is fast enough for whole documents.

use crate::real::{CERTIFICATES, EARLIER, MICRODESC, NS, real};
use crate::site::{authorities, certificates, parsed_certificates, pinned, plan, signed};
use crate::{FLAVORS, assert_names_no_address};
use exitmark_lab::Random;
use exitmark_lab::consensus::ConsensusBuilder;
use exitmark_relays::{Authorities, Certificates, UncheckedDocument};
use std::io::Write;

/// How many bytes of a large document are tried; fewer in a slow debug build.
const SAMPLES: usize = if cfg!(debug_assertions) { 150 } else { 5_000 };

fn is_believed(bytes: &[u8], certificates: &Certificates, trusted: &Authorities) -> bool {
    let Ok(document) = UncheckedDocument::parse(bytes) else {
        return false;
    };
    let verified = document.verify(certificates, trusted);
    verified.inspect_err(assert_names_no_address).is_ok()
}

/// Changes the byte at each of these places by its mask, one at a time, on two threads. Asserts that
/// the document is refused each time, and prints how often it was.
fn all_are_refused(
    what: &str,
    bytes: &[u8],
    samples: &[(usize, u8)],
    certificates: &Certificates,
    trusted: &Authorities,
) {
    assert!(is_believed(bytes, certificates, trusted), "as it was");
    let believed: Vec<(usize, u8)> = std::thread::scope(|scope| {
        let halves = samples.chunks(samples.len().div_ceil(2));
        let threads: Vec<_> = halves
            .map(|half| {
                scope.spawn(move || {
                    let mut bytes = bytes.to_vec();
                    let mut believed = Vec::new();
                    for &(place, mask) in half {
                        bytes[place] ^= mask;
                        if is_believed(&bytes, certificates, trusted) {
                            believed.push((place, mask));
                        }
                        bytes[place] ^= mask;
                    }
                    believed
                })
            })
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().unwrap();
        threads.into_iter().flat_map(join).collect()
    });
    let line = |place| 1 + bytes[..place].iter().filter(|&&byte| byte == b'\n').count();
    let lines: Vec<_> = believed.iter().map(|&(place, _)| line(place)).collect();
    let (count, refused) = (samples.len(), samples.len() - believed.len());
    // Not by a print macro: the output of a passing test is captured.
    let mut out = std::io::stderr();
    let _ = writeln!(out, "{what}: {refused} of {count} flipped bytes refused");
    assert!(believed.is_empty(), "{what}: believed in lines {lines:?}");
}

/// The unsigned part of a document, which is small enough to try all of it.
fn signatures(bytes: &[u8]) -> std::ops::Range<usize> {
    let keyword = b"\ndirectory-signature ";
    let mut windows = bytes.windows(keyword.len());
    windows.position(|part| part == keyword).unwrap()..bytes.len()
}

/// Pseudo-random places and masks, the same ones each time.
fn anywhere(length: usize, count: usize) -> Vec<(usize, u8)> {
    let mut random = Random::new(7);
    let mut sample = || {
        let place = random.word() % u64::try_from(length).unwrap();
        (usize::try_from(place).unwrap(), random.byte().max(1))
    };
    (0..count).map(|_| sample()).collect()
}

#[test]
fn every_byte_of_a_small_document_counts() {
    let (certificates, trusted) = (parsed_certificates(), pinned(&authorities()));
    for flavor in FLAVORS {
        let text = signed(flavor);
        let places = 0..text.len();
        // Flips the lowest bit, and the case of a letter.
        let samples: Vec<_> = places
            .flat_map(|place| [1, 0x20].map(|mask| (place, mask)))
            .collect();
        let what = format!("small, {flavor}");
        all_are_refused(&what, text.as_bytes(), &samples, &certificates, &trusted);
    }
}

#[test]
fn any_byte_of_a_full_sized_document_counts() {
    let (certificates, trusted) = (parsed_certificates(), pinned(&authorities()));
    for flavor in FLAVORS {
        let builder = ConsensusBuilder {
            relays: 7_000,
            ..plan(flavor)
        };
        let text = builder.sign(&authorities());
        let samples = anywhere(text.len(), SAMPLES);
        let what = format!("full size, {flavor}");
        all_are_refused(&what, text.as_bytes(), &samples, &certificates, &trusted);
    }
}

/// Flips bytes of these real documents, if there are any.
fn all_of_real(what: &str, names: &[&'static str], samples: fn(&[u8]) -> Vec<(usize, u8)>) {
    for &name in names {
        let Some((bytes, certificates)) = real(name).zip(real(CERTIFICATES)) else {
            return;
        };
        let certificates = Certificates::parse(&certificates).unwrap();
        let trusted = Authorities::tor_network();
        let what = format!("{name}{what}");
        all_are_refused(&what, &bytes, &samples(&bytes), &certificates, &trusted);
    }
}

#[test]
fn any_byte_of_a_real_document_counts() {
    all_of_real("", &[NS, MICRODESC, EARLIER], |bytes| {
        anywhere(bytes.len(), SAMPLES / 2)
    });
}

#[test]
fn any_byte_of_real_signatures_counts() {
    // One bit of each byte; a prime step visits every column of the lines.
    all_of_real(", signatures", &[NS, MICRODESC], |bytes| {
        signatures(bytes).step_by(23).map(|at| (at, 1)).collect()
    });
}

#[test]
fn a_changed_byte_in_a_certificate_is_detected_or_harmless() {
    let trusted = pinned(&authorities());
    for flavor in FLAVORS {
        let document = signed(flavor);
        // Only as many certificates as needed, so that each one matters.
        let three = certificates();
        let third = three.rfind("dir-key-certificate-version ").unwrap();
        let mut bytes = three.into_bytes();
        bytes.truncate(third);
        let (mut believed, mut refused) = (0, 0);
        for place in (0..bytes.len()).step_by(3) {
            bytes[place] ^= 1;
            let certificates = Certificates::parse(&bytes);
            let is_good =
                certificates.is_ok_and(|good| is_believed(document.as_bytes(), &good, &trusted));
            *[&mut refused, &mut believed][usize::from(is_good)] += 1;
            bytes[place] ^= 1;
        }
        // Nearly every bit is signed; only the unused bits of base64 have no effect.
        println!("certificates, {flavor}: {refused} refused, {believed} without effect");
        assert!(believed * 50 < refused, "{believed} of {refused}");
    }
}
