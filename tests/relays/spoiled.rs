//! Arbitrary input: never a panic, never an address in an error.

use crate::{FLAVORS, assert_names_no_address, names_an_address, small};
use exitmark_relays::UncheckedDocument;
use proptest::prelude::*;
use proptest::sample::Index;

#[derive(Clone, Debug)]
enum Spoil {
    Byte(Index, u8),
    Remove(Index, usize),
    Word(Index, &'static str),
    DoubleLine(Index),
    RemoveLine(Index),
    SwapLines(Index, Index),
}

fn spoil() -> impl Strategy<Value = Spoil> {
    let words = prop::sample::select(vec![
        "",
        "0",
        "-1",
        "65536",
        "99999999999999999999",
        "r",
        "a",
        "m",
        "dir-source",
        "-legacy",
        "x-legacy",
        "directory-footer",
        "directory-signature",
        "-----BEGIN SIGNATURE-----",
        "-----END SIGNATURE-----",
        "-",
        "[::]:0",
        "[2001:db8::1]:443",
        "192.0.2.1",
        "\u{b}",
        "\u{c}",
        "\t",
        "\u{e4}\u{4e2d}",
        "9999-12-31 23:59:59",
        "0000-00-00",
        "=",
        "A=",
        "a=b=c",
        "network-status-version",
        "opt",
        "1-99999999999",
        "Cons=1-4294967295",
    ]);
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Spoil::Byte(at, byte)),
        (any::<Index>(), 1..200_usize).prop_map(|(at, length)| Spoil::Remove(at, length)),
        (any::<Index>(), words).prop_map(|(at, word)| Spoil::Word(at, word)),
        any::<Index>().prop_map(Spoil::DoubleLine),
        any::<Index>().prop_map(Spoil::RemoveLine),
        (any::<Index>(), any::<Index>()).prop_map(|(one, other)| Spoil::SwapLines(one, other)),
    ]
}

fn spoiled(mut bytes: Vec<u8>, spoil: &Spoil) -> Vec<u8> {
    let in_lines = |bytes: &[u8], change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut lines: Vec<Vec<u8>> = bytes
            .split_inclusive(|&byte| byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect();
        change(&mut lines);
        lines.concat()
    };
    if bytes.is_empty() {
        return bytes;
    }
    match spoil {
        Spoil::Byte(at, byte) => {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
            bytes
        }
        Spoil::Remove(at, length) => {
            let at = at.index(bytes.len());
            bytes.drain(at..(at + length).min(bytes.len()));
            bytes
        }
        Spoil::Word(at, word) => {
            let mut words: Vec<&[u8]> = bytes
                .split_inclusive(|&byte| byte == b' ' || byte == b'\n')
                .collect();
            let at = at.index(words.len());
            let end = [*words[at].last().unwrap()];
            let word = [word.as_bytes(), &end].concat();
            words[at] = &word;
            words.concat()
        }
        Spoil::DoubleLine(at) => in_lines(&bytes, &|lines| {
            let at = at.index(lines.len());
            lines.insert(at, lines[at].clone());
        }),
        Spoil::RemoveLine(at) => in_lines(&bytes, &|lines| {
            lines.remove(at.index(lines.len()));
        }),
        Spoil::SwapLines(one, other) => in_lines(&bytes, &|lines| {
            let (one, other) = (one.index(lines.len()), other.index(lines.len()));
            lines.swap(one, other);
        }),
    }
}

proptest! {
    #[test]
    fn a_spoiled_document_is_read_or_refused(
        microdesc: bool,
        spoils in prop::collection::vec(spoil(), 1..6),
    ) {
        let flavor = FLAVORS[usize::from(microdesc)];
        let bytes = spoils.iter().fold(small(flavor).into_bytes(), spoiled);
        match UncheckedDocument::parse(&bytes) {
            Ok(document) => {
                let document = document.accept_unchecked();
                prop_assert!(document.endpoints().all(|endpoint| endpoint.port != 0));
                let shown = format!("{document:?}");
                prop_assert!(!names_an_address(&shown));
            }
            Err(error) => assert_names_no_address(&error),
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes: Vec<u8>) {
        assert_names_no_address(&UncheckedDocument::parse(&bytes).unwrap_err());
    }
}
