//! Exact sampling of the discrete Laplace distribution (two-sided geometric).
//!
//! A floating-point sampler has gaps in its output, which reveal the exact number (Mironov, "On
//! Significance of the Least Significant Bits for Differential Privacy", 2012). This one uses
//! integers only: algorithm 2 of Canonne, Kamath and Steinke, "The Discrete Gaussian for
//! Differential Privacy", 2020.

use rand::Rng;
use std::num::NonZeroU64;

/// A distribution: the probability of `x` is proportional to exp(−|x| · `denominator` /
/// `numerator`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Laplace {
    numerator: NonZeroU64,
    denominator: NonZeroU64,
}

impl Laplace {
    /// The distribution with scale `numerator` / `denominator`.
    pub const fn new(numerator: NonZeroU64, denominator: NonZeroU64) -> Self {
        Self {
            numerator,
            denominator,
        }
    }

    /// Draws a sample, positive, negative or 0.
    pub fn sample(&self, random: &mut impl Rng) -> i128 {
        let numerator = u128::from(self.numerator.get());
        loop {
            let fine = below(numerator, random);
            if !decays(fine, numerator, random) {
                continue;
            }
            // The number of whole numerators: geometric with ratio 1/e.
            let mut coarse = 0_u32;
            while decays(1, 1, random) {
                coarse += 1;
            }
            let magnitude =
                (fine + numerator * u128::from(coarse)) / u128::from(self.denominator.get());
            let magnitude = i128::try_from(magnitude).unwrap_or(i128::MAX);
            let is_negative = below(2, random) == 1;
            match (is_negative, magnitude) {
                // Zero has no sign: counting −0 as well would make it twice as likely.
                (true, 0) => {}
                (true, _) => return -magnitude,
                (false, _) => return magnitude,
            }
        }
    }
}

/// True with probability exp(−`part` / `whole`), for `part` ≤ `whole` (von Neumann: whether a run
/// of ever less likely events has odd length).
fn decays(part: u128, whole: u128, random: &mut impl Rng) -> bool {
    let mut length = 1_u32;
    while below(whole * u128::from(length), random) < part {
        length += 1;
    }
    length % 2 == 1
}

/// A uniformly random number below `bound`, which is at least 1.
fn below(bound: u128, random: &mut impl Rng) -> u128 {
    // Rejection sampling with as many bits as the bound has.
    let bits = u128::BITS - (bound - 1).leading_zeros();
    let mask = u128::MAX.checked_shr(u128::BITS - bits).unwrap_or(0);
    loop {
        let low = u128::from(random.next_u64());
        // The upper half is drawn only if needed: the generator is the expensive part.
        let high = if bits > u64::BITS {
            u128::from(random.next_u64())
        } else {
            0
        };
        let word = (high << u64::BITS | low) & mask;
        if word < bound {
            return word;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::TryRng;
    use std::convert::Infallible;

    /// Yields these words one after the other, and no more.
    struct Words(Vec<u64>);

    impl Words {
        fn new(words: &[u64]) -> Self {
            Self(words.iter().rev().copied().collect())
        }
    }

    impl TryRng for Words {
        type Error = Infallible;

        fn try_next_u32(&mut self) -> Result<u32, Infallible> {
            unreachable!("whole words are requested")
        }

        fn try_next_u64(&mut self) -> Result<u64, Infallible> {
            let word = self.0.pop();
            Ok(word.expect("more words were requested than are needed"))
        }

        fn try_fill_bytes(&mut self, _: &mut [u8]) -> Result<(), Infallible> {
            unreachable!("whole words are requested")
        }
    }

    /// Runs `make` on these words, and checks that it uses all of them.
    fn made_of<T>(words: &[u64], make: impl FnOnce(&mut Words) -> T) -> T {
        let mut random = Words::new(words);
        let made = make(&mut random);
        assert_eq!(random.0, [0; 0], "not all words were requested");
        made
    }

    #[test]
    fn a_number_below_a_bound_takes_as_many_bits_and_tries_again() {
        const WORD: u128 = 1 << 64;
        for (bound, words, expected) in [
            (1, &[u64::MAX][..], 0),
            (2, &[0xf1], 1),
            (6, &[0xf6, 0xf7, 0xf5], 5),
            (8, &[0xff], 7),
            (9, &[0xf9, 0xf8], 8),
            (WORD, &[u64::MAX], WORD - 1),
            (WORD + 1, &[5, 2], 5),
            (WORD + 1, &[1, 1, 0, 1], WORD),
            (u128::MAX, &[u64::MAX, u64::MAX, 7, 9], 9 << 64 | 7),
        ] {
            let number = made_of(words, |random| below(bound, random));
            assert_eq!(number, expected, "below {bound}");
        }
    }

    #[test]
    fn a_run_of_events_ends_odd_or_even() {
        for (part, whole, words, expected) in [
            // Not below the part at once: a run of one.
            (2, 3, &[2][..], true),
            // Below it, then not below it of 0 to 5.
            (2, 3, &[1, 2], false),
            (2, 3, &[1, 1, 2], true),
            // Of 0 to 0, of 0 to 1, of 0 to 2 (a 3 is rejected), of 0 to 3.
            (1, 1, &[9, 1], false),
            (1, 1, &[9, 0, 3, 1], true),
            (1, 1, &[9, 0, 0, 3], false),
            (0, 3, &[0], true),
        ] {
            let decays = made_of(words, |random| decays(part, whole, random));
            assert_eq!(decays, expected, "{part} of {whole} by {words:?}");
        }
    }

    #[test]
    fn a_sample_is_made_of_a_fine_part_a_coarse_part_and_a_sign() {
        let laplace = |numerator, denominator| {
            let [numerator, denominator] =
                [numerator, denominator].map(|number| NonZeroU64::new(number).unwrap());
            Laplace::new(numerator, denominator)
        };
        // Accepted by a run of one; a run of three adds a unit, a run of two ends.
        const ACCEPTED: u64 = 2;
        const MORE: [u64; 3] = [9, 0, 1];
        const ENOUGH: [u64; 2] = [9, 1];
        for (words, expected) in [
            ([&[2, ACCEPTED][..], &ENOUGH, &[0]].concat(), 1),
            ([&[2, ACCEPTED][..], &ENOUGH, &[1]].concat(), -1),
            ([&[2, ACCEPTED][..], &MORE, &ENOUGH, &[1]].concat(), -2),
            (
                [&[2, ACCEPTED][..], &MORE, &MORE, &ENOUGH, &[0]].concat(),
                4,
            ),
            // A fine part of 1, which a run of two rejects.
            ([&[1, 0, 5, 2, ACCEPTED][..], &ENOUGH, &[0]].concat(), 1),
            // A zero with a sign.
            (
                [&[0, 0][..], &ENOUGH, &[1, 0, 0], &ENOUGH, &[0]].concat(),
                0,
            ),
        ] {
            let sample = made_of(&words, |random| laplace(3, 2).sample(random));
            assert_eq!(sample, expected, "by {words:?}");
        }
    }
}
