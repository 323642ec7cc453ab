//! The discrete Laplace distribution (two-sided geometric), sampled exactly.
//!
//! A sampler that works with floating point has gaps among its results, and by those the exact
//! number can be told (Mironov, "On Significance of the Least Significant Bits for Differential
//! Privacy", 2012). This one knows integers alone: it is the second algorithm of Canonne, Kamath
//! and Steinke, "The Discrete Gaussian for Differential Privacy", 2020.

use rand::Rng;
use std::num::NonZeroU64;

/// A distribution: the probability of a number `x` is proportional to
/// exp(−|x| · `denominator` / `numerator`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Laplace {
    numerator: NonZeroU64,
    denominator: NonZeroU64,
}

impl Laplace {
    /// Of the scale `numerator` / `denominator`.
    pub const fn new(numerator: NonZeroU64, denominator: NonZeroU64) -> Self {
        Self {
            numerator,
            denominator,
        }
    }

    /// A number of it.
    pub fn sample(&self, random: &mut impl Rng) -> i128 {
        let numerator = u128::from(self.numerator.get());
        loop {
            let fine = below(numerator, random);
            if !decays(fine, numerator, random) {
                continue;
            }
            // How many whole units of the numerator: geometric, by e to one.
            let mut coarse = 0_u32;
            while decays(1, 1, random) {
                coarse += 1;
            }
            let magnitude =
                (fine + numerator * u128::from(coarse)) / u128::from(self.denominator.get());
            let magnitude = i128::try_from(magnitude).unwrap_or(i128::MAX);
            let is_negative = below(2, random) == 1;
            match (is_negative, magnitude) {
                // There is one zero, not two.
                (true, 0) => {}
                (true, _) => return -magnitude,
                (false, _) => return magnitude,
            }
        }
    }
}

/// True with a probability of exp(−`part` / `whole`), for a part that is no more than the whole
/// (von Neumann's: how long a run of ever less likely events lasts, odd or even).
fn decays(part: u128, whole: u128, random: &mut impl Rng) -> bool {
    let mut length = 1_u32;
    while below(whole * u128::from(length), random) < part {
        length += 1;
    }
    length % 2 == 1
}

/// A number below `bound`, which is at least 1; each as likely as the others.
fn below(bound: u128, random: &mut impl Rng) -> u128 {
    // As many bits as the bound has, and again where they are not below it.
    let bits = u128::BITS - (bound - 1).leading_zeros();
    let mask = if bits == 0 {
        0
    } else {
        u128::MAX >> (u128::BITS - bits)
    };
    loop {
        let low = u128::from(random.next_u64());
        // The upper half only where it counts: the generator is the costly part.
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
