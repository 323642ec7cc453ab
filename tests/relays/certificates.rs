//! `cached-certs` that does not match the document, is damaged, or is missing.

use crate::site::{Site, authorities, certificates, plan, signed};
use crate::{FLAVORS, START, at};
use exitmark_lab::authorities::Authorities;
use exitmark_relays::{DocumentError, Flavor, LoadError, SignatureError, load};
use std::fs;

/// The error of a load, which both ways of loading report alike.
fn refusal(flavor: Flavor, certificates: impl AsRef<[u8]>) -> LoadError {
    let site = Site::holding(signed(flavor), certificates);
    let _ = site.refusal();
    load(&site.sources()).unwrap_err()
}

fn lacks_certificates(error: &LoadError) -> bool {
    let LoadError::Signatures(_, problem) = error else {
        return false;
    };
    matches!(
        problem,
        SignatureError::NoCertificate(1.., _) | SignatureError::TooFew { .. }
    )
}

#[test]
fn refuses_files_that_are_not_certificates() {
    for (bytes, expected) in [
        (Vec::new(), DocumentError::Empty),
        (b"hello\n".to_vec(), DocumentError::NotCertificates),
        (
            signed(Flavor::Ns).into_bytes(),
            DocumentError::NotCertificates,
        ),
        (
            format!("\n{}", certificates()).into_bytes(),
            DocumentError::NotCertificates,
        ),
        (
            certificates().replace('\n', "\r\n").into_bytes(),
            DocumentError::CrLf(1),
        ),
        (
            certificates()
                .replace("dir-key-published", "\0")
                .into_bytes(),
            DocumentError::Nul(4),
        ),
        (
            [b"dir-key-certificate-version 3\n", &[0xff; 9][..]].concat(),
            DocumentError::NotUtf8(2),
        ),
        (
            "dir-key-certificate-version 3\n".repeat(513).into_bytes(),
            DocumentError::TooManyCertificates(512),
        ),
    ] {
        match refusal(Flavor::Ns, bytes) {
            LoadError::Document(path, problem) => {
                assert_eq!(problem, expected);
                assert_eq!(path.file_name().unwrap(), "cached-certs");
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn missing_certificates_say_where_tor_keeps_them() {
    for flavor in FLAVORS {
        let site = Site::new(flavor);
        fs::remove_file(&site.certificates).unwrap();
        let error = site.refusal();
        assert!(matches!(error, LoadError::Certificates { .. }), "{error}");
        let said = error.to_string();
        for word in [
            "cached-certs",
            "beside its consensus",
            "relays.certificates",
        ] {
            assert!(said.contains(word), "{said}");
        }
        fs::create_dir(&site.certificates).unwrap();
        let error = site.refusal();
        assert!(matches!(error, LoadError::NotRegular { .. }), "{error}");
    }
}

#[test]
fn certificates_of_strangers_do_not_count() {
    let strangers = Authorities::family(1, 3).certificates_for(plan(Flavor::Ns).validity);
    for flavor in FLAVORS {
        assert!(lacks_certificates(&refusal(flavor, &strangers)));
        // Additional certificates do no harm.
        for both in [
            strangers.clone() + &certificates(),
            certificates() + &strangers,
        ] {
            Site::holding(signed(flavor), both).load().unwrap();
        }
    }
}

#[test]
fn a_certificate_must_not_have_expired_at_valid_after() {
    let of = |from, until| authorities().certificates(at(from), at(until));
    for flavor in FLAVORS {
        let expired = of(START - 1_000, START - 1);
        assert!(lacks_certificates(&refusal(flavor, expired)));
        // At the limits; a later expiry does not matter. A certificate that is not valid yet is
        // accepted: some of tor's authorities sign with their next key before its date.
        for (from, until) in [
            (START - 1_000, START),
            (START, START + 1),
            (START + 260_000, START + 1_000_000),
        ] {
            let site = Site::holding(signed(flavor), of(from, until));
            site.load().unwrap();
        }
        // An expired one before or after the right one does no harm.
        let old = of(START - 1_000, START - 1);
        for both in [old.clone() + &certificates(), certificates() + &old] {
            Site::holding(signed(flavor), both).load().unwrap();
        }
    }
}

#[test]
fn an_authority_without_a_certificate_does_not_count() {
    let text = certificates();
    let begin = "dir-key-certificate-version ";
    let starts: Vec<_> = text.match_indices(begin).map(|(start, _)| start).collect();
    let (one, two) = (starts[1], starts[2]);
    let pieces = [&text[..one], &text[one..two], &text[two..]];
    let good = |flavor, certificates: &str| {
        let loaded = Site::holding(signed(flavor), certificates).load().unwrap();
        loaded.sources[0].signatures.unwrap().good
    };
    for flavor in FLAVORS {
        assert_eq!(good(flavor, &text), 3);
        for missing in 0..3 {
            let rest = (0..3).filter(|&number| number != missing);
            let rest: String = rest.map(|number| pieces[number]).collect();
            assert_eq!(good(flavor, &rest), 2);
            // Half a certificate does not count.
            let half = &pieces[missing][..pieces[missing].len() / 2];
            assert_eq!(good(flavor, &format!("{rest}{half}")), 2);
            // Neither does one that is patched together from two.
            let other = pieces[(missing + 1) % 3];
            let cut = "dir-key-certification\n";
            let (head, _) = pieces[missing].split_once(cut).unwrap();
            let (_, tail) = other.split_once(cut).unwrap();
            let patched = format!("{rest}{head}{cut}{tail}");
            assert_eq!(good(flavor, &patched), 2);
            // One of three is not a majority.
            assert!(lacks_certificates(&refusal(flavor, pieces[missing])));
        }
    }
}

#[test]
fn a_stranger_cannot_certify_an_authoritys_key() {
    // The authority's identity with the stranger's keys.
    let stranger = Authorities::family(1, 1);
    let (own, theirs) = (&authorities().identities()[0], &stranger.identities()[0]);
    let forged = stranger
        .certificates_for(plan(Flavor::Ns).validity)
        .replace(theirs, own);
    for flavor in FLAVORS {
        let text = plan(flavor).sign(&stranger).replace(theirs, own);
        let one = Authorities::new(1);
        let site = Site::holding(text, &forged);
        let sources = site.sources_of(&one);
        let error = load(&sources).unwrap_err();
        assert!(lacks_certificates(&error), "{error}");
        crate::site::both(&sources).unwrap_err();
    }
}
