//! Malicious and damaged documents, loaded in this process and by a confined one: both refuse them
//! for the same reason, and the message names no address.

use crate::documents::{with_field, with_line};
use crate::site::{Site, both, certificates, loader, parsed_certificates, pinned, signed};
use crate::site::{authorities, unchecked};
use crate::{FLAVORS, assert_names_no_address, listed, other_than, small};
use exitmark_relays::{Flavor, LoadError, MAX_DOCUMENT, UncheckedDocument};
use std::fmt::Write;

#[test]
fn both_ways_load_the_same_set() {
    for flavor in FLAVORS {
        let loaded = Site::new(flavor).load().unwrap();
        let document = UncheckedDocument::parse(signed(flavor).as_bytes()).unwrap();
        let all = document.accept_unchecked().endpoints().collect();
        assert_eq!(listed(&loaded), all);
        let signatures = loaded.sources[0].signatures.unwrap();
        assert_eq!((signatures.good, signatures.needed), (3, 2));
    }
}

#[test]
fn a_truncated_signed_document_is_refused_or_lacks_an_unneeded_signature() {
    let (certificates, authorities) = (parsed_certificates(), pinned(&authorities()));
    for flavor in FLAVORS {
        let text = signed(flavor);
        let whole = UncheckedDocument::parse(text.as_bytes()).unwrap();
        let whole: Vec<_> = whole.accept_unchecked().endpoints().collect();
        let mut good = Vec::new();
        for end in 0..=text.len() {
            let document = UncheckedDocument::parse(&text.as_bytes()[..end]);
            let Ok(document) = document else { continue };
            match document.verify(&certificates, &authorities) {
                Ok((document, signatures)) => {
                    assert!(document.endpoints().eq(whole.iter().copied()));
                    good.push(signatures.good);
                }
                Err(error) => assert_names_no_address(&error),
            }
        }
        assert_eq!(good, [2, 3], "two of three are needed");
    }
}

#[test]
fn a_document_cut_where_a_section_begins_is_refused_by_both() {
    for flavor in FLAVORS {
        let text = signed(flavor);
        let site = Site::new(flavor);
        let mut keywords = Vec::new();
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            let keyword = line.split([' ', '\n']).next().unwrap();
            if !keywords.contains(&keyword) {
                keywords.push(keyword);
                site.write(&text[..start]);
                let error = site.refusal();
                let said = error.to_string();
                let expected = if start == 0 { "empty" } else { "cut off" };
                assert!(said.contains(expected), "before {keyword}: {error}");
            }
            start += line.len();
        }
        assert!(keywords.len() > 20, "{keywords:?}");
    }
}

/// Damages of a document, each with a part of the expected error.
fn damages(text: &str, flavor: Flavor) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let (header, rest) = text.split_once('\n').unwrap();
    let other = small(other_than(flavor));
    let (other_header, _) = other.split_once('\n').unwrap();
    let footer = text.find("directory-footer").unwrap();
    let signatures = text.find("directory-signature ").unwrap();
    let bytes = |text: String| text.into_bytes();
    let with_byte = |byte: u8| {
        let mut bytes = text.as_bytes().to_vec();
        bytes[footer - 20] = byte;
        bytes
    };
    let changed = |keyword: &str, line: &str| with_line(text, keyword, |_| line.to_owned()).0;
    let long = "x".repeat(1 << 20);
    vec![
        ("empty", Vec::new(), "empty"),
        ("a line end", bytes("\n".into()), "not a consensus"),
        (
            "the other flavour's header",
            bytes(format!("{other_header}\n{rest}")),
            "parts of two documents",
        ),
        (
            "the header twice",
            bytes(format!("{header}\n{text}")),
            "line 2",
        ),
        ("twice", bytes(format!("{text}{text}")), "line "),
        (
            "no footer",
            bytes(format!("{}{}", &text[..footer], &text[signatures..])),
            "`directory-footer`",
        ),
        (
            "no signatures",
            bytes(text[..signatures].into()),
            "signatures are missing",
        ),
        ("a NUL", with_byte(0), "NUL"),
        ("many NULs", vec![0; 100_000], "NUL"),
        ("no UTF-8", with_byte(0xc3), "UTF-8"),
        (
            "compressed",
            b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4F".to_vec(),
            "UTF-8",
        ),
        (
            "a byte order mark",
            bytes(format!("\u{feff}{text}")),
            "not a consensus",
        ),
        ("CR LF", bytes(text.replace('\n', "\r\n")), "CR LF"),
        (
            "a long line",
            bytes(changed("params", &format!("params {long}=1"))),
            "",
        ),
        (
            "a long nickname",
            bytes(with_line(text, "r", |line| with_field(line, 1, &long)).0),
            "line ",
        ),
        ("one long line", bytes(long.clone()), "not a consensus"),
        (
            "with an unknown consensus method",
            bytes(changed("consensus-method", "consensus-method 4294967295")),
            "",
        ),
        (
            "with an invalid consensus method",
            bytes(changed("consensus-method", "consensus-method many")),
            "line ",
        ),
        (
            "a vote",
            bytes(changed("vote-status", "vote-status vote")),
            "vote",
        ),
    ]
}

#[test]
fn both_refuse_and_name_every_damage() {
    for flavor in FLAVORS {
        let site = Site::new(flavor);
        for (what, bytes, words) in damages(&signed(flavor), flavor) {
            assert_ne!(bytes, signed(flavor).into_bytes(), "{what}");
            site.write(bytes);
            let said = site.refusal().to_string();
            assert!(said.contains(words), "{what}: {said}");
            assert!(said.len() < 600, "{what}: {said}");
        }
    }
}

#[test]
fn both_agree_on_every_damage_without_signatures() {
    for flavor in FLAVORS {
        let site = Site::new(flavor);
        for (what, bytes, _) in damages(&signed(flavor), flavor) {
            site.write(bytes);
            // The parser decides which of them are accepted: a method is only a number.
            if let Ok(loaded) = both(&unchecked([&site.consensus])) {
                assert!(!loaded.listed.is_empty(), "{what}");
                assert_eq!(loaded.sources[0].signatures, None);
            }
        }
    }
}

#[test]
fn refuses_text_behind_or_between_signatures() {
    for flavor in FLAVORS {
        let text = signed(flavor);
        let site = Site::new(flavor);
        let mark = "-----END SIGNATURE-----\n";
        let first = text.find(mark).unwrap() + mark.len();
        let (before, end) = text.split_at(text.find("directory-signature ").unwrap());
        let lines: Vec<_> = end.lines().take(4).collect();
        let (start, rest) = lines[2].split_at(10);
        let plays = [
            format!("{text}\n"),
            format!("{text}x-nothing\n"),
            format!("{text}# nothing\n"),
            format!("{}x-nothing\n{}", &text[..first], &text[first..]),
            format!("{}\n{}", &text[..first], &text[first..]),
            // The same in another notation.
            format!("{before}{}", end.replacen(' ', "  ", 1)),
            format!("{before}{}", end.replacen('\n', " \n", 1)),
            text.replacen(lines[0], &lines[0].to_lowercase(), 1),
            text.replacen(&lines[2..].join("\n"), &lines[2..].concat(), 1),
            text.replacen(lines[2], &format!("{start}\n{rest}"), 1),
        ];
        for (number, play) in plays.iter().enumerate() {
            assert_ne!(*play, text, "{number}");
            site.write(play);
            match site.refusal() {
                LoadError::Signatures { .. } | LoadError::Document { .. } => {}
                error => panic!("{number}: {error}"),
            }
        }
    }
}

/// A document of nearly the maximum size, with one entry that has as many such lines as fit.
fn enormous(flavor: Flavor, keyword: &str, line: &str) -> String {
    let text = signed(flavor);
    let place = text.find(keyword).unwrap();
    let room = usize::try_from(MAX_DOCUMENT).unwrap() - text.len();
    let mut out = String::with_capacity(text.len() + room);
    out.push_str(&text[..place]);
    for _ in 0..room / (line.len() + 1) {
        writeln!(out, "{line}").unwrap();
    }
    out.push_str(&text[place..]);
    out
}

#[test]
fn a_document_that_exhausts_memory_ends_only_the_loader() {
    for (keyword, line) in [
        ("m ", "a [::1]:1"),
        ("r ", "x"),
        ("directory-signature ", "x"),
    ] {
        let site = Site::holding(enormous(Flavor::Microdesc, keyword, line), certificates());
        let error = loader().load(&site.sources()).unwrap_err();
        let is_it = matches!(error, LoadError::Reported { .. } | LoadError::Loader(_));
        assert!(is_it, "{error}");
        println!("{line:?} before {keyword:?}: {error}");
        assert_names_no_address(&error);
    }
    Site::new(Flavor::Ns).load().unwrap();
}
