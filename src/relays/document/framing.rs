//! Checks the encoding and the first and last lines of a consensus before it is parsed, and finds
//! the line numbers of entries.
//!
//! This only serves better error messages: a document that passes is still to be parsed.

use super::Flavor;
use crate::DocumentError;
use std::borrow::Cow;

/// Checks encoding, header and end; returns the text with the flavour that its header announces.
pub(super) fn check(bytes: &[u8]) -> Result<(&str, Flavor), DocumentError> {
    let text = text(bytes)?;
    let flavor = announced_flavor(text)?;
    check_end(text)?;
    Ok((text, flavor))
}

/// A document with a `params` line, and how many bytes were inserted for that.
pub(super) struct Complete<'a> {
    pub(super) text: Cow<'a, str>,
    pub(super) added_bytes: usize,
}

impl Complete<'_> {
    /// Converts a line number of the text to one of the original document.
    pub(super) const fn line(&self, line: usize) -> usize {
        // The inserted line is the second.
        let is_moved = self.added_bytes > 0 && line > 1;
        if is_moved { line - 1 } else { line }
    }
}

/// Inserts an empty `params` line into a document without one. tor omits it if no authority votes
/// for a parameter, as in a private network, but the parser requires it.
pub(super) fn complete(text: &str) -> Complete<'_> {
    const LINE: &str = "params\n";
    let header_end = text.find('\n').map_or(text.len(), |end| end + 1);
    if preamble(text).any(|line| keyword(line) == "params") {
        return Complete {
            text: text.into(),
            added_bytes: 0,
        };
    }
    let (header, rest) = text.split_at(header_end);
    Complete {
        text: [header, LINE, rest].concat().into(),
        added_bytes: LINE.len(),
    }
}

/// The bytes as text: UTF-8 without NUL and CR LF, as directory documents are.
pub(super) fn text(bytes: &[u8]) -> Result<&str, DocumentError> {
    if bytes.is_empty() {
        return Err(DocumentError::Empty);
    }
    let line = |offset| line_at(bytes, offset);
    let text = std::str::from_utf8(bytes);
    let text = text.map_err(|error| DocumentError::NotUtf8(line(error.valid_up_to())))?;
    if let Some(offset) = text.find('\0') {
        return Err(DocumentError::Nul(line(offset)));
    }
    if let Some(offset) = text.find("\r\n") {
        return Err(DocumentError::CrLf(line(offset)));
    }
    Ok(text)
}

/// The line number of the relay list's entry `index`. Lines count from 1, entries from 0.
pub(super) fn entry_line(text: &str, index: usize) -> usize {
    nth_line_of(text, "r", 1, index)
}

/// The line number of `a` item number `further` of entry `index`, both counted from 0.
pub(super) fn further_line(text: &str, index: usize, further: usize) -> usize {
    nth_line_of(text, "a", entry_line(text, index), further)
}

/// The flavour by the number of fields of an `r` line: 9 with the keyword, or 8 if the digest is on
/// an `m` line (dir-spec, "Microdescriptor consensus").
pub(super) fn entry_flavor(text: &str, line: usize) -> Option<Flavor> {
    let mut fields = text.lines().nth(line.checked_sub(1)?)?.split_whitespace();
    if fields.next() != Some("r") {
        return None;
    }
    match fields.count() {
        8 => Some(Flavor::Ns),
        7 => Some(Flavor::Microdesc),
        _ => None,
    }
}

fn announced_flavor(text: &str) -> Result<Flavor, DocumentError> {
    let other = |line, found| Err(DocumentError::OtherDocument(line, found));
    let mut header = text.lines().next().unwrap_or_default().split([' ', '\t']);
    let first = header.next().unwrap_or_default();
    if first.starts_with('@') {
        let found = "a cache of descriptors, or an archived document with an `@` line";
        return other(1, found);
    }
    match first {
        "network-status-version" => {}
        "router" => return other(1, "a relay's descriptor"),
        "extra-info" => return other(1, "a relay's extra-info document"),
        "onion-key" => return other(1, "a list of microdescriptors"),
        "dir-key-certificate-version" => return other(1, "an authority's certificate"),
        "network-status-diff-version" => return other(1, "a difference between consensuses"),
        "consensus-digest" => return other(1, "a set of detached signatures"),
        _ => return Err(DocumentError::NotConsensus),
    }
    if header.next() != Some("3") {
        return other(1, "a network status of another version than 3");
    }
    // Only this line distinguishes a vote's preamble from that of an ns consensus.
    let is_vote = |line: &str| line.split([' ', '\t']).eq(["vote-status", "vote"]);
    if let Some(index) = preamble(text).position(is_vote) {
        return other(index + 1, "an authority's vote");
    }
    match header.next() {
        None | Some("" | "ns") => Ok(Flavor::Ns),
        Some("microdesc") => Ok(Flavor::Microdesc),
        Some(_) => Err(DocumentError::UnknownFlavor),
    }
}

/// Checks that the end is not missing. A document that was cut exactly after a signature passes;
/// only counting the good signatures detects that.
fn check_end(text: &str) -> Result<(), DocumentError> {
    let line = text.lines().count();
    let cut = |missing| Err(DocumentError::Cut(line, missing));
    if !text.ends_with('\n') {
        return cut("its last line does not end");
    }
    if !text.contains("\ndirectory-footer") {
        return cut("`directory-footer` and the signatures are missing");
    }
    let Some((_, signature)) = text.rsplit_once("\ndirectory-signature ") else {
        return cut("the signatures are missing");
    };
    if !signature.contains("\n-----END SIGNATURE-----\n") {
        return cut("its last signature does not end");
    }
    Ok(())
}

/// The line that holds the byte at `offset`, counted from 1.
fn line_at(bytes: &[u8], offset: usize) -> usize {
    let before = bytes.iter().take(offset);
    1 + before.filter(|&&byte| byte == b'\n').count()
}

/// The line number of item `index` with this keyword, counted from 0 at line `from`.
fn nth_line_of(text: &str, wanted: &str, from: usize, index: usize) -> usize {
    text.lines()
        .zip(1..)
        .skip(from - 1)
        .filter(|(line, _)| keyword(line) == wanted)
        .nth(index)
        .map_or(from, |(_, line)| line)
}

/// The lines before the first authority.
fn preamble(text: &str) -> impl Iterator<Item = &str> {
    let is_before = |line: &&str| keyword(line) != "dir-source";
    text.lines().take_while(is_before)
}

fn keyword(line: &str) -> &str {
    line.split([' ', '\t']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kind_of_another_document() {
        for (text, word) in [
            ("router lab 192.0.2.1 9001 0 0\n", "descriptor"),
            ("@downloaded-at 2024-01-01 00:00:00\nrouter\n", "cache"),
            ("onion-key\n", "microdescriptors"),
            ("dir-key-certificate-version 3\n", "certificate"),
            ("network-status-version 2\n", "another version"),
            ("network-status-version 3\nvote-status vote\n", "vote"),
            ("network-status-diff-version 1\n", "difference"),
        ] {
            let error = check(text.as_bytes()).unwrap_err();
            let DocumentError::OtherDocument(_, found) = error else {
                panic!("{text:?}: {error}");
            };
            assert!(found.contains(word), "{text:?}: {found}");
        }
        assert_eq!(check(b"hello\n"), Err(DocumentError::NotConsensus));
        let shiny = check(b"network-status-version 3 shiny\n");
        assert_eq!(shiny, Err(DocumentError::UnknownFlavor));
    }

    #[test]
    fn names_the_line_of_bad_bytes() {
        assert_eq!(check(b""), Err(DocumentError::Empty));
        for (bytes, error) in [
            (&b"one\ntwo\n\xff\n"[..], DocumentError::NotUtf8(3)),
            (b"one\ntwo\0\n", DocumentError::Nul(2)),
            (b"one\ntwo\r\nthree\r\n", DocumentError::CrLf(2)),
        ] {
            assert_eq!(check(bytes), Err(error));
        }
    }

    #[test]
    fn inserts_the_params_line_that_private_networks_omit() {
        let without = "network-status-version 3\nvote-status consensus\ndir-source x\nparams y\n";
        let complete = super::complete(without);
        assert_eq!(complete.added_bytes, complete.text.len() - without.len());
        assert_eq!(complete.text.lines().nth(1), Some("params"));
        assert_eq!([1, 2, 3, 9].map(|line| complete.line(line)), [1, 1, 2, 8]);
        let with = without.replacen("dir-source", "params a=1\ndir-source", 1);
        let complete = super::complete(&with);
        assert_eq!((&*complete.text, complete.added_bytes), (&*with, 0));
        assert_eq!(complete.line(9), 9);
    }

    #[test]
    fn finds_the_lines_of_entries() {
        let text = "router-like\nr one\na 1\nr two\nr-like\na 2\na 3\nr\tthree\n";
        assert_eq!(entry_line(text, 0), 2);
        assert_eq!(entry_line(text, 1), 4);
        assert_eq!(entry_line(text, 2), 8);
        assert_eq!(further_line(text, 0, 0), 3);
        assert_eq!(further_line(text, 1, 1), 7);
    }

    #[test]
    fn recognises_the_flavour_by_the_number_of_fields() {
        let text = "r 2 3 4 5 6 7 8 9\nr 2 3 4 5 6 7 8\nr 2 3\ns 2 3 4 5 6 7 8\n";
        assert_eq!(entry_flavor(text, 1), Some(Flavor::Ns));
        assert_eq!(entry_flavor(text, 2), Some(Flavor::Microdesc));
        for line in [0, 3, 4, 5] {
            assert_eq!(entry_flavor(text, line), None);
        }
    }
}
