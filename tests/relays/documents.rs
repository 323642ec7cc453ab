//! Parsing: each kind of endpoint comes from its own field, and each kind of bad document is
//! refused with its line or field.

use crate::{FLAVORS, assert_names_no_address, builder, names_an_address, other_than, small};
use exitmark_policy::Endpoint;
use exitmark_relays::{ConsensusDocument, DocumentError, Flavor, UncheckedDocument};

/// Changes the first line with this keyword; returns the document and that line's number.
pub(crate) fn with_line(
    text: &str,
    keyword: &str,
    change: impl Fn(&str) -> String,
) -> (String, usize) {
    let has_it = |line: &str| line.split(' ').next() == Some(keyword);
    let index = text.lines().position(has_it).unwrap();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines[index] = change(&lines[index]);
    (lines.join("\n") + "\n", index + 1)
}

/// The line with its field number `index` (the keyword is 0; negative counts from the end)
/// replaced.
pub(crate) fn with_field(line: &str, index: isize, value: &str) -> String {
    let mut fields: Vec<&str> = line.split(' ').collect();
    let length = isize::try_from(fields.len()).unwrap();
    let index = if index < 0 { length + index } else { index };
    fields[usize::try_from(index).unwrap()] = value;
    fields.join(" ")
}

fn accepted(text: &str) -> ConsensusDocument {
    let document = UncheckedDocument::parse(text.as_bytes());
    document.unwrap().accept_unchecked()
}

/// The error for these bytes, which must not name an address.
fn refusal(bytes: impl AsRef<[u8]>) -> DocumentError {
    let error = UncheckedDocument::parse(bytes.as_ref()).unwrap_err();
    assert_names_no_address(&error);
    error
}

#[test]
fn reads_each_kind_of_endpoint_from_its_own_field() {
    for flavor in FLAVORS {
        let text = small(flavor);
        let relay = |line: &str| {
            let line = with_field(line, -3, "198.51.100.1");
            with_field(&with_field(&line, -2, "1001"), -1, "1002")
        };
        let (text, _) = with_line(&text, "r", relay);
        let (text, _) = with_line(&text, "a", |_| "a [2001:db8:5::1]:1003".to_owned());
        let authority = |line: &str| {
            let line = with_field(line, 4, "198.51.100.2");
            with_field(&with_field(&line, 5, "1004"), 6, "1005")
        };
        let (text, _) = with_line(&text, "dir-source", authority);
        let document = accepted(&text);
        let first = |kind: &[Endpoint]| kind[0].to_string();
        assert_eq!(first(&document.orports), "198.51.100.1:1001");
        assert_eq!(first(&document.further), "[2001:db8:5::1]:1003");
        assert_eq!(first(&document.authorities), "198.51.100.2:1004");
        assert_eq!(document.authorities[1].to_string(), "198.51.100.2:1005");
        // An authority's DirPort is in the set, and another relay's is not.
        let listed: Vec<_> = document.endpoints().map(|one| one.to_string()).collect();
        assert!(listed.contains(&"198.51.100.2:1004".to_owned()));
        assert!(!listed.contains(&"198.51.100.1:1002".to_owned()));
        assert!(!names_an_address(&format!("{document:?}")));
    }
}

#[test]
fn port_0_means_none_where_a_port_is_optional() {
    for flavor in FLAVORS {
        let text = small(flavor);
        let counts = |text: &str| accepted(text).counts();
        let (with, _) = with_line(&text, "r", |line| with_field(line, -1, "9030"));
        let (without, _) = with_line(&text, "r", |line| with_field(line, -1, "0"));
        assert_eq!(counts(&with), counts(&without));
        let (without, _) = with_line(&text, "dir-source", |line| with_field(line, 5, "0"));
        assert_eq!(counts(&without).authorities, counts(&text).authorities - 1);
    }
}

#[test]
fn a_superseded_authority_key_counts_as_its_authority() {
    let text = small(Flavor::Ns);
    let (text, _) = with_line(&text, "r", |line| {
        format!(
            "dir-source labauth0-legacy {} 198.51.100.3 198.51.100.3 1006 1007\n{line}",
            "AB".repeat(20)
        )
    });
    let document = accepted(&text);
    let authorities = document.authorities.iter();
    let listed: Vec<_> = authorities.map(Endpoint::to_string).collect();
    assert!(listed.contains(&"198.51.100.3:1006".to_owned()));
    assert!(listed.contains(&"198.51.100.3:1007".to_owned()));
}

#[test]
fn a_document_that_is_cut_anywhere_is_refused() {
    for flavor in FLAVORS {
        let text = small(flavor);
        let whole = |text: &str| text.ends_with("-----END SIGNATURE-----\n");
        let mut accepted = 0;
        for end in 0..=text.len() {
            let part = &text[..end];
            match UncheckedDocument::parse(part.as_bytes()) {
                // Only a document that lacks nothing but signatures may be accepted.
                Ok(_) => {
                    assert!(whole(part), "accepted {end} of {} bytes", text.len());
                    accepted += 1;
                }
                Err(error) => {
                    assert!(!whole(part), "refused {end} of {} bytes", text.len());
                    assert_names_no_address(&error);
                    let header = part.lines().count() <= 1;
                    let named = match error {
                        DocumentError::Cut(line, _) => line == part.lines().count(),
                        DocumentError::Empty => end == 0,
                        // Too little is left to recognise the document.
                        _ => header,
                    };
                    assert!(named, "{end} bytes: {error}");
                }
            }
        }
        assert_eq!(accepted, 2, "one per signature");
    }
}

#[test]
fn invalid_bytes_are_reported_with_their_line() {
    for flavor in FLAVORS {
        let text = small(flavor);
        let third = text.match_indices('\n').nth(1).unwrap().0 + 1;
        let with_byte = |byte: u8| {
            let mut bytes = text.clone().into_bytes();
            bytes[third] = byte;
            bytes
        };
        assert_eq!(refusal(""), DocumentError::Empty);
        assert_eq!(refusal(with_byte(0)), DocumentError::Nul(3));
        assert_eq!(refusal(with_byte(0xff)), DocumentError::NotUtf8(3));
        let converted = text.replace('\n', "\r\n");
        assert_eq!(refusal(converted), DocumentError::CrLf(1));
        assert_eq!(refusal("hello\n"), DocumentError::NotConsensus);
        assert_eq!(refusal(format!("\n{text}")), DocumentError::NotConsensus);
        let vote = text.replace("vote-status consensus", "vote-status vote");
        let expected = DocumentError::OtherDocument(2, "an authority's vote");
        assert_eq!(refusal(vote), expected);
    }
}

#[test]
fn a_line_of_a_megabyte_is_accepted_or_refused() {
    let long = "x".repeat(1 << 20);
    for flavor in FLAVORS {
        let text = small(flavor);
        // A contact may be of any length.
        let (fine, _) = with_line(&text, "contact", |_| format!("contact {long}"));
        UncheckedDocument::parse(fine.as_bytes()).unwrap();
        // A keyword or a nickname may not.
        let (bad, line) = with_line(&text, "params", |_| long.clone());
        let error = refusal(bad);
        assert!(
            matches!(error, DocumentError::Unparsable { line: found, .. } if found.abs_diff(line) <= 1),
            "line {line}: {error}"
        );
        let (bad, line) = with_line(&text, "r", |text| with_field(text, 1, &long));
        let error = refusal(bad);
        assert!(
            matches!(error, DocumentError::Unparsable { line: found, .. } if found == line),
            "line {line}: {error}"
        );
        assert!(error.to_string().len() < 300);
    }
    assert_eq!(refusal(long), DocumentError::NotConsensus);
}

#[test]
fn entries_of_another_flavour_are_reported() {
    for announced in FLAVORS {
        let found = other_than(announced);
        let (begin, text) = (small(announced), small(found));
        let line = 1 + text
            .lines()
            .position(|line| line.starts_with("r "))
            .unwrap();
        let (header, _) = begin.split_once('\n').unwrap();
        let (_, rest) = text.split_once('\n').unwrap();
        let expected = DocumentError::WrongFlavor {
            line,
            announced,
            found,
        };
        assert_eq!(refusal(format!("{header}\n{rest}")), expected);
    }
    let text = small(Flavor::Ns).replacen("version 3", "version 3 shiny", 1);
    assert_eq!(refusal(text), DocumentError::UnknownFlavor);
}

#[test]
fn port_0_is_reported_with_line_and_field() {
    for flavor in FLAVORS {
        let text = small(flavor);
        let orport = with_line(&text, "r", |line| with_field(line, -2, "0"));
        let further = with_line(&text, "a", |_| "a [2001:db8::1]:0".to_owned());
        for ((bad, line), words) in [(orport, "ORPort"), (further, "`a` line")] {
            match refusal(bad) {
                DocumentError::PortZero(found, field) => {
                    assert_eq!(found, line);
                    assert!(field.contains(words), "{field}");
                }
                other => panic!("{other}"),
            }
        }
    }
}

#[test]
fn parse_errors_are_reported_with_their_line() {
    for flavor in FLAVORS {
        let text = small(flavor);
        for (keyword, field, value) in [
            ("r", -2, "65536"),
            ("r", -2, "https"),
            ("r", -3, "192.0.2.256"),
            ("r", -3, "relay.example"),
            ("r", 2, "!"),
            ("a", 1, "192.0.2.1"),
            ("dir-source", 4, "192.0.2"),
            ("dir-source", 6, "-1"),
            ("valid-after", 1, "yesterday"),
        ] {
            let (bad, line) = with_line(&text, keyword, |line| with_field(line, field, value));
            match refusal(bad) {
                DocumentError::Unparsable { line: found, .. } => {
                    assert_eq!(found, line, "{keyword} {field} {value}");
                }
                other => panic!("{keyword} {field} {value}: {other}"),
            }
        }
        let twice = format!("{text}{text}");
        assert!(matches!(refusal(twice), DocumentError::Unparsable { .. }));
    }
}

#[test]
fn times_out_of_order_and_an_empty_network_are_refused() {
    let text = small(Flavor::Ns);
    let (bad, _) = with_line(&text, "fresh-until", |_| {
        "fresh-until 2000-01-01 00:00:00".to_owned()
    });
    assert_eq!(refusal(bad), DocumentError::Lifetime);
    for flavor in FLAVORS {
        assert_eq!(refusal(builder(flavor, 0).write()), DocumentError::NoRelays);
    }
}
