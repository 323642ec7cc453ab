//! The hash of a cell's key.
//!
//! Clients of Tor choose ports and destinations, and so the keys. Tabulation hashing (Zobrist 1970;
//! Pătraşcu and Thorup, The Power of Simple Tabulation Hashing, 2011) takes one random word for
//! each byte of the key. With linear probing it needs a constant expected number of probes for any
//! keys chosen without knowing the words.

use std::hash::{BuildHasher, RandomState};

/// Bytes of a key that are hashed: a key has 49 bits.
const BYTES: usize = 7;

pub(super) struct Hash {
    words: Box<[[u32; 256]; BYTES]>,
}

impl Hash {
    /// Takes random words from the standard library's seed for hash maps.
    pub(super) fn new() -> Self {
        let random = RandomState::new();
        let mut words = Box::new([[0; 256]; BYTES]);
        for (index, word) in words.as_flattened_mut().iter_mut().enumerate() {
            let [a, b, c, d, ..] = random.hash_one(index).to_ne_bytes();
            *word = u32::from_ne_bytes([a, b, c, d]);
        }
        Self { words }
    }

    #[inline]
    pub(super) fn of(&self, key: u64) -> u32 {
        let bytes = key.to_le_bytes();
        let words = self.words.iter().zip(bytes);
        words.fold(0, |hash, (words, byte)| hash ^ words[usize::from(byte)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With one word for each byte, a byte's contribution does not depend on the others.
    #[test]
    fn each_byte_of_a_key_adds_a_random_word() {
        let hash = Hash::new();
        let others = [0, 0x1234_5678_9abc, 0xffff_ffff_ffff];
        for byte in 0..BYTES {
            let change = |other: u64, to: u64| {
                let other = other & !(0xff << (8 * byte));
                hash.of(other) ^ hash.of(other | to << (8 * byte))
            };
            let [first, rest @ ..] = others.map(|other| change(other, 0x5a));
            assert_eq!(rest, [first; 2], "byte {byte}");
            // But for one chance in 2^32 each.
            assert_ne!(first, 0, "byte {byte}");
            assert_ne!(first, change(0, 0xa5), "byte {byte}");
        }
    }
}
