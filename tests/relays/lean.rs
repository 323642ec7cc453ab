//! Documents without a `params` line, as tor writes them if no authority votes for a parameter, as
//! in private networks.

use crate::site::{Site, certificates, plan};
use crate::{FLAVORS, other_than};
use exitmark_lab::consensus::ConsensusBuilder;
use exitmark_relays::{Flavor, load};

fn lean(flavor: Flavor) -> ConsensusBuilder {
    ConsensusBuilder {
        has_params: false,
        ..plan(flavor)
    }
}

#[test]
fn a_document_without_parameters_is_accepted() {
    for flavor in FLAVORS {
        let site = Site::of(&lean(flavor));
        let text = std::fs::read_to_string(&site.consensus).unwrap();
        assert!(!text.contains("\nparams"));
        let loaded = site.load().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(loaded.listed, Site::new(flavor).load().unwrap().listed);
        assert_eq!(loaded.sources[0].flavor, flavor);
        assert_eq!(loaded.sources[0].signatures.unwrap().good, 3);
    }
}

/// The parser gets a document with an inserted line; every signed byte is still checked.
#[test]
fn every_byte_of_it_is_signed() {
    for flavor in FLAVORS {
        let site = Site::of(&lean(flavor));
        let good = std::fs::read(&site.consensus).unwrap();
        let end = good.len();
        for at in (0..end).step_by(7).chain(0..120).chain(end - 120..end) {
            let mut flipped = good.clone();
            flipped[at] ^= 1;
            site.write(&flipped);
            assert!(load(&site.sources()).is_err(), "{flavor}: byte {at}");
        }
        // An unsigned empty line is detected.
        let text = String::from_utf8(good).unwrap();
        site.write(text.replacen("\nvote-status", "\nparams\nvote-status", 1));
        let error = site.refusal().to_string();
        assert!(error.contains("not what the authority signed"), "{error}");
    }
}

#[test]
fn errors_have_the_documents_own_line_numbers() {
    for flavor in FLAVORS {
        let text = lean(flavor).write();
        for (wrong, line) in [("consensus-method", 3), ("fresh-until", 5)] {
            let text = text.replacen(wrong, &format!("{wrong} ?"), 1);
            let error = Site::holding(text, certificates()).refusal().to_string();
            assert!(error.contains(&format!("line {line}")), "{error}");
        }
        let first = |text: &str, keyword: &str| {
            let line = text.lines().position(|line| line.starts_with(keyword));
            line.unwrap() + 1
        };
        let entry = |text: &str| text.lines().nth(first(text, "r ") - 1).unwrap().to_owned();
        let mixed = text.replacen(&entry(&text), &entry(&lean(other_than(flavor)).write()), 1);
        let line = first(&mixed, "r ");
        let error = Site::holding(mixed, certificates()).refusal().to_string();
        let words = format!("line {line}: the header");
        assert!(error.contains(&words), "{error}");
    }
}
