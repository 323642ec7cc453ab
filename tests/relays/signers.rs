//! Whose signatures count, and how many: authorities that are pinned, each once, and no other.

use crate::site::{Site, authorities, both, certificates, pinned, plan, signed};
use crate::{FLAVORS, listed};
use exitmark::lab::authorities::Authorities;
use exitmark::relays::{Flavor, LoadError, SignatureError, Signatures, Trust, load};

fn signatures_of(good: usize, needed: usize, unknown: usize) -> Signatures {
    Signatures {
        good,
        needed,
        unknown,
    }
}

/// Loads what these of the authorities signed, where most of `trusted` are needed.
fn by(
    flavor: Flavor,
    all: &Authorities,
    signers: &[u8],
    trusted: &Authorities,
) -> Result<Signatures, SignatureError> {
    let order = plan(flavor);
    let text = order.sign_by(all, signers.iter().copied());
    let site = Site::holding(&text, all.certificates_for(order.validity));
    let mut sources = site.sources();
    sources.trust = Trust::MostOf(pinned(trusted));
    // What is told by the other process is told in the same words.
    let _ = both(&sources);
    match load(&sources) {
        Ok(loaded) => Ok(loaded.sources[0].signatures.unwrap()),
        Err(LoadError::Signatures { problem, .. }) => Err(problem),
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
        // No authority signs twice, so whoever repeats a signature makes work and nothing else.
        for signers in [&[0, 1, 2, 3, 3, 3][..], &[0, 1, 2, 3, 4, 4]] {
            let error = by(signers).unwrap_err();
            assert!(matches!(error, SignatureError::Twice { .. }), "{error}");
        }
    }
}

#[test]
fn one_authority_alone_can_be_most_of_one_and_not_of_two() {
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
fn authors_that_are_not_pinned_sign_in_vain() {
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
fn another_network_is_another_network_whatever_it_signs() {
    let strangers = Authorities::family(1, 3);
    for flavor in FLAVORS {
        let few = SignatureError::Unknown(signatures_of(0, 2, 3));
        assert_eq!(by(flavor, &strangers, &[0, 1, 2], &authorities()), Err(few));
        // Tor's own authorities are no authors of a made-up one either.
        let site = Site::new(flavor);
        let mut sources = site.sources();
        sources.trust = Trust::MostOf(exitmark::relays::Authorities::tor_network());
        let error = both(&sources).unwrap_err().to_string();
        assert!(error.contains("5 are needed"), "{error}");
        assert!(error.contains("relays.authorities"), "{error}");
        assert!(error.contains("upgrade exitmark"), "{error}");
    }
}

/// Without certificates of theirs nothing says that others have signed: some are missing.
#[test]
fn an_upgrade_is_advised_where_certificates_of_others_are_there() {
    let (five, three) = (Authorities::new(5), authorities());
    for flavor in FLAVORS {
        let text = plan(flavor).sign_by(&five, [0, 3, 4]);
        let told = |certificates: String| {
            let site = Site::holding(&text, certificates);
            let mut sources = site.sources();
            sources.trust = Trust::MostOf(pinned(&three));
            both(&sources).unwrap_err().to_string()
        };
        let with = told(five.certificates_for(plan(flavor).validity));
        let words = [
            "1 authorities that are known",
            "2 are needed",
            "2 good",
            "upgrade exitmark",
        ];
        for word in words {
            assert!(with.contains(word), "{with}");
        }
        let without = told(certificates());
        assert!(!without.contains("upgrade"), "{without}");
        assert!(
            without.contains("certificates of authorities are missing"),
            "{without}"
        );
    }
}

/// The signatures of a document, each with its line.
fn signatures(text: &str) -> Vec<&str> {
    let begin = text.find("directory-signature ").unwrap();
    let mark = "-----END SIGNATURE-----\n";
    text[begin..].split_inclusive(mark).collect()
}

#[test]
fn a_signer_whom_the_document_does_not_name_is_a_reason_to_refuse() {
    for flavor in FLAVORS {
        let foreign = plan(flavor).sign(&Authorities::family(1, 1));
        let site = Site::new(flavor);
        site.write(signed(flavor) + signatures(&foreign)[0]);
        let error = load(&site.sources()).unwrap_err();
        let LoadError::Signatures { problem, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*problem, SignatureError::NoAuthor { number: 4 });
        site.refusal();
    }
}

#[test]
fn a_signature_of_another_document_is_bad_even_where_enough_are_good() {
    for flavor in FLAVORS {
        let other = exitmark::lab::consensus::Order {
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
            let error = load(&site.sources()).unwrap_err();
            assert!(
                matches!(
                    error,
                    LoadError::Signatures { problem: SignatureError::Bad { number: found, .. }, .. }
                    if found == number
                ),
                "{error}"
            );
            site.refusal();
        }
    }
}

#[test]
fn a_stranger_who_can_be_checked_must_be_right_too() {
    let five = Authorities::new(5);
    let order = plan(Flavor::Ns);
    let text = order.sign(&five);
    let all = signatures(&text);
    // The fourth's words over the fifth's name: neither of them counts, and it is still wrong.
    let (line, _) = all[4].split_once('\n').unwrap();
    let (_, words) = all[3].split_once('\n').unwrap();
    let wrong = text.replace(all[4], &format!("{line}\n{words}"));
    let known = Site::holding(&wrong, five.certificates_for(order.validity));
    let error = known.refusal().to_string();
    assert!(error.contains("signature 5"), "{error}");
    // Nobody can check it without a certificate, and nobody counts on it.
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
        let order = plan(flavor);
        let text = order.sign(&five);
        let line = signatures(&text)[4].lines().next().unwrap();
        let (words, key) = line.rsplit_once(' ').unwrap();
        let other = format!("{words} {}", "AB".repeat(key.len() / 2));
        let wrong = text.replace(line, &other);
        let known = Site::holding(&wrong, five.certificates_for(order.validity));
        let error = load(&known.sources()).unwrap_err();
        assert!(
            matches!(
                error,
                LoadError::Signatures {
                    problem: SignatureError::NoCertificate { number: 5, .. },
                    ..
                }
            ),
            "{error}"
        );
        known.refusal();
        // Of somebody else's certificates nobody expects to know them.
        Site::holding(&wrong, certificates()).load().unwrap();
    }
}
