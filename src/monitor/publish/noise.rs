//! Noise: the meaning of the stated ε, and how it is divided.
//!
//! Take two periods that differ in what one user did, within the configured bound on a user's
//! activity in a period. They yield the same published counts with probabilities that differ by at
//! most a factor of exp(ε) (Dwork and others, "Calibrating Noise to Sensitivity in Private Data
//! Analysis", 2006). ε covers a whole period: it is divided evenly over the tables (total, port,
//! system, country, IP version, encryption, and each cross table), and in each over its measures:
//! flows, bytes and packets, and, if both directions are counted, bytes and packets that came down.
//! A connection adds to both directions, so each has its own part of ε and its own bound. However a
//! user's activity is spread over the rows of a table, it changes the sum of a measure by at most
//! its bound, so every row has noise of the scale bound · measures · tables / ε.
//! `other` is computed from noisy counts and costs nothing. The total is the sum of two rows,
//! attributed and unattributed, each with its own noise.
//!
//! The noise does not protect:
//!
//! - the existence of a row. Rows are selected by exact counts, as without noise, and none has
//!   fewer flows than the threshold with any ε. So a row, or a total, proves that at least so many
//!   flows existed. That one user cannot reach it alone is due to the threshold, which must exceed
//!   the user's bound, and not to ε: an observer with the knowledge that all others come to just
//!   below the threshold learns about the missing one. The same holds for which rows are the
//!   largest, and for whether `other` exists. Noise removes rows that it brings below the
//!   threshold, and adds none;
//! - activity beyond the bound, or in more than one period or part of one: each file spends its own
//!   ε;
//! - the watched seconds, lost packets (rounded), and whether the table of cells was full.

use super::laplace::Laplace;
use super::select::Signed;
use crate::cell::{Counts, Directions};
use rand::SeedableRng;
use rand::rngs::SysRng;
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};
use std::num::{NonZeroU32, NonZeroU64};

/// Flows, bytes and packets; and bytes and packets that came down.
const fn measures(directions: Directions) -> u64 {
    match directions {
        Directions::Out => 3,
        Directions::Both => 5,
    }
}

/// The largest bound on a user: 1 TiB. Keeps scales within the sampler's range.
const MAX_BOUND: u64 = 1 << 40;
/// The largest scale: 4 TiB on every number, so that sums over years stay meaningful.
const MAX_SCALE: u64 = 1 << 42;

/// The privacy parameter, in thousandths, so that scales are fractions of integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Epsilon(NonZeroU32);

impl Epsilon {
    /// ε as a floating-point number.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0.get()) / 1000.0
    }
}

impl TryFrom<f64> for Epsilon {
    type Error = NoiseError;

    fn try_from(epsilon: f64) -> Result<Self, NoiseError> {
        let thousandths = (epsilon * 1000.0).round();
        let is_one = (1.0..=100_000.0).contains(&thousandths);
        let is_exact = (thousandths / 1000.0 - epsilon).abs() < 1e-9;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is whole, and was seen to lie between 1 and 100,000"
        )]
        let thousandths = if is_one && is_exact {
            thousandths as u32
        } else {
            0
        };
        NonZeroU32::new(thousandths)
            .map(Self)
            .ok_or(NoiseError::Epsilon(epsilon))
    }
}

impl From<Epsilon> for f64 {
    fn from(epsilon: Epsilon) -> Self {
        epsilon.as_f64()
    }
}

/// Parameters of the noise: its strength, and the activity that it hides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoiseSettings {
    /// The privacy parameter of a whole period.
    pub epsilon: Epsilon,
    /// Upper bound of one user's activity in a period.
    pub user: Counts,
    /// Seed, for tests: makes the noise reproducible, and so removable.
    pub seed: Option<u64>,
}

/// Why the noise cannot be configured.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NoiseError {
    /// ε is not in 0.001 to 100, or has more than three decimals. Holds the number.
    #[error("an epsilon of {0}: it is a number from 0.001 to 100 with at most three decimals")]
    Epsilon(f64),
    /// A bound on a user's activity is out of range.
    #[error(
        "what one user may add in a period ({0}) is {1}: set at least 1 and at most {MAX_BOUND}"
    )]
    Bound(&'static str, u64),
    /// The scale of the noise is too large to be useful.
    #[error(
        "one user's {what} ({bound}) are hidden by noise of the scale {scale}, which is more than \
         {MAX_SCALE}: raise epsilon, or set fewer {what}"
    )]
    Scale {
        /// The measure, by its key in the configuration.
        what: &'static str,
        /// The bound on one user's activity in a period, in this measure.
        bound: u64,
        /// The scale of the noise that hides it.
        scale: u64,
    },
    /// One user alone can reach the threshold.
    #[error(
        "one user may add {user} flows in a period, and {threshold} are shown: a row could be \
         of a single user; set the threshold above {user}"
    )]
    Threshold {
        /// The bound on a user's flows.
        user: u64,
        /// The flows that a row needs at least.
        threshold: u64,
    },
    /// The kernel provides no random numbers.
    #[error("the kernel gives no random numbers to seed the noise with: {0}")]
    System(String),
}

impl Eq for NoiseError {}

impl NoiseSettings {
    /// Checks the parameters against the threshold.
    ///
    /// # Errors
    /// A bound, a scale or the threshold is out of range.
    pub fn check(
        &self,
        threshold: u64,
        tables: u64,
        directions: Directions,
    ) -> Result<(), NoiseError> {
        self.scales(tables, directions)?;
        let user = self.user.flows;
        if threshold <= user {
            return Err(NoiseError::Threshold { user, threshold });
        }
        Ok(())
    }

    /// The distributions of the measures, with ε divided over this many tables.
    fn scales(&self, tables: u64, directions: Directions) -> Result<Counts<Laplace>, NoiseError> {
        let shares = measures(directions).saturating_mul(tables);
        let scale = |what, bound: u64| {
            let numerator = (bound <= MAX_BOUND)
                .then(|| bound.saturating_mul(1000).saturating_mul(shares))
                .and_then(NonZeroU64::new)
                .ok_or(NoiseError::Bound(what, bound))?;
            let scale = numerator.get() / u64::from(self.epsilon.0.get());
            if scale > MAX_SCALE {
                return Err(NoiseError::Scale { what, bound, scale });
            }
            Ok(Laplace::new(numerator, self.epsilon.0.into()))
        };
        let (down_bytes, down_packets) = match directions {
            Directions::Both => (self.user.down_bytes, self.user.down_packets),
            // Not drawn.
            Directions::Out => (self.user.bytes, self.user.packets),
        };
        Ok(Counts {
            flows: scale("flows", self.user.flows)?,
            bytes: scale("bytes", self.user.bytes)?,
            packets: scale("packets", self.user.packets)?,
            down_bytes: scale("down_bytes", down_bytes)?,
            down_packets: scale("down_packets", down_packets)?,
        })
    }
}

/// The source of noise: a random generator, and the distribution for each measure.
#[derive(Debug)]
pub struct Noise {
    random: ChaCha20Rng,
    scales: Counts<Laplace>,
    directions: Directions,
}

impl Noise {
    /// Prepares noise for periods with this many tables.
    ///
    /// # Errors
    /// A parameter is out of range, or the kernel provides no random numbers.
    pub fn new(
        settings: &NoiseSettings,
        tables: u64,
        directions: Directions,
    ) -> Result<Self, NoiseError> {
        let random = match settings.seed {
            Some(seed) => ChaCha20Rng::seed_from_u64(seed),
            None => ChaCha20Rng::try_from_rng(&mut SysRng)
                .map_err(|error| NoiseError::System(error.to_string()))?,
        };
        let scales = settings.scales(tables, directions)?;
        Ok(Self {
            random,
            scales,
            directions,
        })
    }

    /// Adds noise to counts, each measure with its own sample; they may become negative. A direction
    /// that is not counted stays 0.
    pub(super) fn blur(&mut self, amount: Signed) -> Signed {
        let exact = amount.zip(self.scales);
        let mut left = measures(self.directions);
        // What comes down is last.
        exact.map(|(exact, scale)| match left.checked_sub(1) {
            None => 0,
            Some(fewer) => {
                left = fewer;
                exact + scale.sample(&mut self.random)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(epsilon: f64, flows: u64) -> NoiseSettings {
        NoiseSettings {
            epsilon: epsilon.try_into().unwrap(),
            user: [flows, 1, 1, 1, 1].into(),
            seed: Some(7),
        }
    }

    #[test]
    fn epsilon_converts_back_to_its_number() {
        for number in [0.001, 0.5, 1.234, 100.0] {
            let epsilon = Epsilon::try_from(number).unwrap();
            assert_eq!((epsilon.as_f64(), f64::from(epsilon)), (number, number));
        }
        for number in [0.0, -1.0, 0.0004, 0.0015, 100.001, f64::NAN, f64::INFINITY] {
            assert!(Epsilon::try_from(number).is_err(), "{number}");
        }
    }

    #[test]
    fn bounds_are_checked_at_their_limits() {
        let check = |flows| settings(100.0, flows).check(u64::MAX, 1, Directions::Out);
        assert_eq!(check(1), Ok(()));
        assert_eq!(check(MAX_BOUND), Ok(()));
        assert_eq!(MAX_BOUND, 1_099_511_627_776);
        for flows in [0, MAX_BOUND + 1] {
            assert_eq!(check(flows), Err(NoiseError::Bound("flows", flows)));
        }
    }

    #[test]
    fn a_scale_is_bound_by_measures_by_tables_by_epsilon() {
        // 2^40 · 3 · 8 / 6 is the largest.
        assert_eq!(
            settings(6.0, MAX_BOUND).check(u64::MAX, 8, Directions::Out),
            Ok(())
        );
        assert_eq!(MAX_SCALE, 4_398_046_511_104);
        let too_large = NoiseError::Scale {
            what: "flows",
            bound: MAX_BOUND,
            scale: (MAX_BOUND * 24_000) / 5999,
        };
        let refused = settings(5.999, MAX_BOUND).check(u64::MAX, 8, Directions::Out);
        assert_eq!(refused, Err(too_large));
        let expected = |measures: u64| {
            let of = |bound: u64| {
                let numerator = NonZeroU64::new(bound * measures * 6 * 1000).unwrap();
                Laplace::new(numerator, NonZeroU64::new(500).unwrap())
            };
            [10, 1, 1, 1, 1].map(of).into()
        };
        let scales = |directions| settings(0.5, 10).scales(6, directions).unwrap();
        assert_eq!(scales(Directions::Out), expected(3));
        assert_eq!(scales(Directions::Both), expected(5));
    }

    #[test]
    fn the_threshold_is_more_than_one_user_may_add() {
        let refused = NoiseError::Threshold {
            user: 10,
            threshold: 10,
        };
        assert_eq!(
            settings(1.0, 10).check(10, 6, Directions::Both),
            Err(refused)
        );
        assert_eq!(settings(1.0, 10).check(11, 6, Directions::Both), Ok(()));
    }

    #[test]
    fn each_measure_that_is_counted_has_its_own_noise() {
        let settings = NoiseSettings {
            user: [1000, 1_000_000, 10_000, 10_000_000, 20_000].into(),
            ..settings(1.0, 1)
        };
        let exact = Counts::from([1 << 50, 1 << 60, 1 << 55, 1 << 61, 1 << 56]);
        for directions in [Directions::Out, Directions::Both] {
            let mut noise = Noise::new(&settings, 6, directions).unwrap();
            let mut random = ChaCha20Rng::seed_from_u64(7);
            let scales = settings.scales(6, directions).unwrap();
            let added = scales.map(|scale| scale.sample(&mut random));
            assert!(<[_; 5]>::from(added).iter().all(|added| *added != 0));
            let mut expected = exact + added;
            if directions == Directions::Out {
                (expected.down_bytes, expected.down_packets) = (0, 0);
            }
            assert_eq!(noise.blur(exact), expected);
        }
    }
}
