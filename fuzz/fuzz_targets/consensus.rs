//! Any bytes as a consensus document: no panic, no unbounded work, and no error that repeats
//! sensitive words of the document.
#![no_main]

use exitmark_relays::UncheckedDocument;
use libfuzzer_sys::fuzz_target;
use std::net::{IpAddr, SocketAddr};

/// Whether a word is sensitive: an address, or an identity in base64 or hexadecimal.
fn is_sensitive(word: &str) -> bool {
    let is_address =
        word.len() > 6 && (word.parse::<IpAddr>().is_ok() || word.parse::<SocketAddr>().is_ok());
    let is_identity = word.len() >= 27 && word.bytes().any(|byte| !byte.is_ascii_lowercase());
    is_address || is_identity && !word.contains('-')
}

fuzz_target!(|bytes: &[u8]| {
    match UncheckedDocument::parse(bytes) {
        Ok(document) => {
            let document = document.accept_unchecked();
            assert!(document.counts().orports > 0);
            assert!(document.endpoints().all(|endpoint| endpoint.port != 0));
        }
        Err(error) => {
            let said = format!("{error} {error:?}");
            let text = String::from_utf8_lossy(bytes);
            for word in text.split_whitespace().filter(|word| is_sensitive(word)) {
                assert!(!said.contains(word), "{said} repeats {word}");
            }
        }
    }
});
