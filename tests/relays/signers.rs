//! Which signatures count: those of pinned authorities, once each.

use crate::site::{Site, authorities, both, certificates, plan, signed};
use crate::{FLAVORS, listed};
use exitmark_lab::authorities::Authorities;
use exitmark_relays::{Flavor, LoadError, SignatureError, Signatures, Trust, load};

fn signatures_of(good: usize, needed: usize, unknown: usize) -> Signatures {
    Signatures {
        good,
        needed,
        unknown,
    }
}

/// Loads a document signed by these authorities; a majority of `trusted` is needed.
fn by(
    flavor: Flavor,
    all: &Authorities,
    signers: &[u8],
    trusted: &Authorities,
) -> Result<Signatures, SignatureError> {
    let builder = plan(flavor);
    let text = builder.sign_by(all, signers.iter().copied());
    let site = Site::holding(&text, all.certificates_for(builder.validity));
    let sources = site.sources_of(trusted);
    // The loader process reports the same message.
    let _ = both(&sources);
    match load(&sources) {
        Ok(loaded) => Ok(loaded.sources[0].signatures.unwrap()),
        Err(LoadError::Signatures(_, problem)) => Err(problem),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn more_than_half_of_the_pinned_must_sign_each_once() {
    let nine = Authorities::new(9);
    for flavor in FLAVORS {
        let by = |signers: &[u8]| by(flavor, &nine, signers, &nine);
        let good = |good| Ok(signatures_of(good, 5, 0));
        let few = |good| Err(SignatureError::TooFew { good, needed: 5 });
        assert_eq!(by(&[0, 1, 2, 3, 4, 5, 6, 7, 8]), good(9));
        assert_eq!(by(&[8, 6, 4, 2, 0]), good(5));
        assert_eq!(by(&[0, 1, 2, 3]), few(4));
        assert_eq!(by(&[7]), few(1));
        // No authority signs twice; a repeated signature only costs time.
        for signers in [&[0, 1, 2, 3, 3, 3][..], &[0, 1, 2, 3, 4, 4]] {
            let error = by(signers).unwrap_err();
            assert!(matches!(error, SignatureError::Twice { .. }), "{error}");
        }
    }
}

#[test]
fn one_authority_is_a_majority_of_one_but_not_of_two() {
    for flavor in FLAVORS {
        let (one, two) = (Authorities::new(1), Authorities::new(2));
        assert!(by(flavor, &two, &[0], &one).is_ok());
        assert_eq!(
            by(flavor, &two, &[0], &two),
            Err(SignatureError::TooFew { good: 1, needed: 2 })
        );
    }
}

#[test]
fn signatures_of_unpinned_authors_do_not_count() {
    let (five, three) = (Authorities::new(5), authorities());
    for flavor in FLAVORS {
        let by = |signers: &[u8]| by(flavor, &five, signers, &three);
        assert_eq!(by(&[0, 1, 2, 3, 4]), Ok(signatures_of(3, 2, 2)));
        assert_eq!(by(&[3, 4, 2, 1]), Ok(signatures_of(2, 2, 2)));
        let unknown = |good, unknown| Err(SignatureError::Unknown(signatures_of(good, 2, unknown)));
        assert_eq!(by(&[0, 3, 4]), unknown(1, 2));
        assert_eq!(by(&[3, 4]), unknown(0, 2));
        assert_eq!(by(&[0]), Err(SignatureError::TooFew { good: 1, needed: 2 }));
    }
}

#[test]
fn refuses_documents_of_another_network() {
    let strangers = Authorities::family(1, 3);
    for flavor in FLAVORS {
        let few = SignatureError::Unknown(signatures_of(0, 2, 3));
        assert_eq!(by(flavor, &strangers, &[0, 1, 2], &authorities()), Err(few));
        // The Tor network's authorities are not authors of a generated document either.
        let site = Site::new(flavor);
        let mut sources = site.sources();
        sources.trust = Trust::Majority(exitmark_relays::Authorities::tor_network());
        let error = both(&sources).unwrap_err().to_string();
        assert!(error.contains("5 are needed"), "{error}");
        assert!(error.contains("relays.authorities"), "{error}");
        assert!(error.contains("upgrade exitmark"), "{error}");
    }
}

/// Without certificates of other authorities, their signatures cannot be recognised: the message
/// is that certificates are missing.
#[test]
fn advises_an_upgrade_if_unknown_authorities_have_signed() {
    let (five, three) = (Authorities::new(5), authorities());
    for flavor in FLAVORS {
        let text = plan(flavor).sign_by(&five, [0, 3, 4]);
        let load_with = |certificates: String| {
            let site = Site::holding(&text, certificates);
            both(&site.sources_of(&three)).unwrap_err().to_string()
        };
        let with = load_with(five.certificates_for(plan(flavor).validity));
        for word in [
            "1 authorities that are known",
            "2 are needed",
            "2 good",
            "upgrade exitmark",
        ] {
            assert!(with.contains(word), "{with}");
        }
        let without = load_with(certificates());
        assert!(!without.contains("upgrade"), "{without}");
        let words = "certificates of authorities are missing";
        assert!(without.contains(words), "{without}");
    }
}

/// The problem with the signatures of a site's document, which both ways of loading report alike.
fn problem_of(site: &Site) -> SignatureError {
    match site.refusal() {
        LoadError::Signatures(_, problem) => problem,
        error => panic!("{error}"),
    }
}

/// The signatures of a document, each with its line.
fn signatures(text: &str) -> Vec<&str> {
    let begin = text.find("directory-signature ").unwrap();
    let mark = "-----END SIGNATURE-----\n";
    text[begin..].split_inclusive(mark).collect()
}

#[test]
fn refuses_a_signer_that_the_document_does_not_list() {
    for flavor in FLAVORS {
        let foreign = plan(flavor).sign(&Authorities::family(1, 1));
        let site = Site::new(flavor);
        site.write(signed(flavor) + signatures(&foreign)[0]);
        assert_eq!(problem_of(&site), SignatureError::NoAuthor(4));
    }
}

#[test]
fn a_signature_of_another_document_is_bad_even_where_enough_are_good() {
    for flavor in FLAVORS {
        let other = exitmark_lab::consensus::ConsensusBuilder {
            seed: 9,
            ..plan(flavor)
        };
        let other = other.sign(&authorities());
        let text = signed(flavor);
        for (number, (mine, theirs)) in
            (1..).zip(signatures(&text).into_iter().zip(signatures(&other)))
        {
            let site = Site::new(flavor);
            site.write(text.replace(mine, theirs));
            let SignatureError::Bad(found, _) = problem_of(&site) else {
                panic!("{}", site.refusal());
            };
            assert_eq!(found, number);
        }
    }
}

#[test]
fn a_checkable_signature_of_a_stranger_must_be_good() {
    let five = Authorities::new(5);
    let builder = plan(Flavor::Ns);
    let text = builder.sign(&five);
    let all = signatures(&text);
    // The fourth's signature under the fifth's identity: neither of them counts, but it is bad.
    let (line, _) = all[4].split_once('\n').unwrap();
    let (_, words) = all[3].split_once('\n').unwrap();
    let wrong = text.replace(all[4], &format!("{line}\n{words}"));
    let known = Site::holding(&wrong, five.certificates_for(builder.validity));
    let error = known.refusal().to_string();
    assert!(error.contains("signature 5"), "{error}");
    // Without a certificate it cannot be checked, and does not count.
    let unknown = Site::holding(&wrong, certificates());
    assert_eq!(
        listed(&unknown.load().unwrap()),
        listed(&Site::holding(&text, certificates()).load().unwrap())
    );
}

#[test]
fn a_stranger_with_a_certificate_signs_with_the_key_that_it_names() {
    let five = Authorities::new(5);
    for flavor in FLAVORS {
        let builder = plan(flavor);
        let text = builder.sign(&five);
        let line = signatures(&text)[4].lines().next().unwrap();
        let (words, key) = line.rsplit_once(' ').unwrap();
        let other = format!("{words} {}", "AB".repeat(key.len() / 2));
        let wrong = text.replace(line, &other);
        let known = Site::holding(&wrong, five.certificates_for(builder.validity));
        let problem = problem_of(&known);
        let is_it = matches!(problem, SignatureError::NoCertificate(5, _));
        assert!(is_it, "{problem}");
        // Certificates of authorities that are not pinned may be missing.
        Site::holding(&wrong, certificates()).load().unwrap();
    }
}
