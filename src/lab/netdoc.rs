//! Writes the text of the directory protocol: lines, hexadecimal, base64, objects (dir-spec,
//! "Document meta-format").

/// Upper-case hexadecimal, the form of fingerprints.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// Base64 without padding, the form of consensus entries.
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let part = |index| usize::from(chunk.get(index).copied().unwrap_or(0));
        let bits = part(0) << 16 | part(1) << 8 | part(2);
        for position in 0..=chunk.len() {
            out.push(char::from(ALPHABET[bits >> (18 - 6 * position) & 0x3f]));
        }
    }
    out
}

/// Appends an object: padded base64 in lines of 64 characters between `BEGIN` and `END` lines.
pub(super) fn object(out: &mut String, label: &str, bytes: &[u8]) {
    let mut text = base64(bytes);
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    *out += &format!("-----BEGIN {label}-----\n");
    for (position, character) in text.chars().enumerate() {
        if position % 64 == 0 && position != 0 {
            out.push('\n');
        }
        out.push(character);
    }
    *out += &format!("\n-----END {label}-----\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_matches_rfc_4648() {
        for (bytes, text) in [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn objects_have_lines_of_64_characters_and_padding() {
        let zeros = "A".repeat(64);
        for (length, last) in [(49, "AA==\n"), (48, "")] {
            let mut out = String::new();
            object(&mut out, "THING", &vec![0; length]);
            let expected = format!("-----BEGIN THING-----\n{zeros}\n{last}-----END THING-----\n");
            assert_eq!(out, expected);
        }
    }
}
