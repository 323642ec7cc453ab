//! One byte is another than what was signed, wherever it stands: the document is refused.
//!
//! Through the two steps that both ways of loading share, so that whole documents can be tried.

use crate::real::{CERTIFICATES, EARLIER, MICRODESC, NS, real};
use crate::site::{authorities, certificates, parsed_certificates, pinned, plan, signed};
use crate::{FLAVORS, assert_names_no_address};
use exitmark::lab::Random;
use exitmark::lab::consensus::Order;
use exitmark::relays::{Authorities, Certificates, UncheckedDocument};
use std::io::Write;

/// How many bytes of a large document are tried; a build without optimizations takes its time.
const SAMPLES: usize = if cfg!(debug_assertions) { 150 } else { 5_000 };

/// Whether these bytes are believed.
fn is_believed(bytes: &[u8], certificates: &Certificates, trusted: &Authorities) -> bool {
    let Ok(document) = UncheckedDocument::parse(bytes) else {
        return false;
    };
    match document.verify(certificates, trusted) {
        Ok(_) => true,
        Err(error) => {
            assert_names_no_address(&error);
            false
        }
    }
}

/// Changes the byte at each of these places by each of these masks, one at a time, on two threads.
/// Returns where the document was still believed.
fn flip(
    bytes: &[u8],
    samples: &[(usize, u8)],
    certificates: &Certificates,
    trusted: &Authorities,
) -> Vec<(usize, u8)> {
    assert!(is_believed(bytes, certificates, trusted), "as it was");
    std::thread::scope(|scope| {
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
    })
}

/// Every one of the samples must be refused; says how many were, to whoever watches.
fn all_are_refused(
    what: &str,
    bytes: &[u8],
    samples: &[(usize, u8)],
    certificates: &Certificates,
    trusted: &Authorities,
) {
    let believed = flip(bytes, samples, certificates, trusted);
    let line = |place| 1 + bytes[..place].iter().filter(|&&byte| byte == b'\n').count();
    let lines: Vec<_> = believed.iter().map(|&(place, _)| line(place)).collect();
    let refused = samples.len() - believed.len();
    // Not by a print macro: what a passing test prints is swallowed.
    let _ = writeln!(
        std::io::stderr(),
        "{what}: {refused} of {} flipped bytes refused",
        samples.len()
    );
    assert!(believed.is_empty(), "{what}: believed in lines {lines:?}");
}

/// The part of a document that nobody signs is small enough to try all of it.
fn signatures(bytes: &[u8]) -> std::ops::Range<usize> {
    let keyword = b"\ndirectory-signature ";
    let mut windows = bytes.windows(keyword.len());
    windows.position(|part| part == keyword).unwrap()..bytes.len()
}

/// Places anywhere and what is done to them, the same ones each time.
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
        // The last bit, and the case of a letter.
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
        let order = Order {
            relays: 7_000,
            ..plan(flavor)
        };
        let text = order.sign(&authorities());
        let samples = anywhere(text.len(), SAMPLES);
        let what = format!("full size, {flavor}");
        all_are_refused(&what, text.as_bytes(), &samples, &certificates, &trusted);
    }
}

#[test]
fn any_byte_of_a_real_document_counts() {
    for name in [NS, MICRODESC, EARLIER] {
        let Some((bytes, certificates)) = real(name).zip(real(CERTIFICATES)) else {
            return;
        };
        let certificates = Certificates::parse(&certificates).unwrap();
        let trusted = Authorities::tor_network();
        let samples = anywhere(bytes.len(), SAMPLES / 2);
        all_are_refused(name, &bytes, &samples, &certificates, &trusted);
    }
}

#[test]
fn any_byte_of_real_signatures_counts() {
    for name in [NS, MICRODESC] {
        let Some((bytes, certificates)) = real(name).zip(real(CERTIFICATES)) else {
            return;
        };
        let certificates = Certificates::parse(&certificates).unwrap();
        let trusted = Authorities::tor_network();
        // Of each byte one bit; a prime step visits every column of the lines.
        let samples: Vec<_> = signatures(&bytes).step_by(23).map(|at| (at, 1)).collect();
        let what = format!("{name}, signatures");
        all_are_refused(&what, &bytes, &samples, &certificates, &trusted);
    }
}

#[test]
fn another_byte_in_a_certificate_costs_the_document_or_nothing() {
    let trusted = pinned(&authorities());
    for flavor in FLAVORS {
        let document = signed(flavor);
        // As many as are needed, so that each is.
        let three = certificates();
        let (third, _) = three
            .rmatch_indices("dir-key-certificate-version ")
            .next()
            .unwrap();
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
        // What the identity key signs leaves next to nothing: bits that base64 does not use.
        println!("certificates, {flavor}: {refused} refused, {believed} without effect");
        assert!(believed * 50 < refused, "{believed} of {refused}");
    }
}
