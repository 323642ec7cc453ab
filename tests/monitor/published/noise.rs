//! The noise has the stated distribution and scale.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "statistics are calculated in floating point; a misfit is not decided by the last bit"
)]

use super::{cell, counts, of_cells, origin, period, plain};
use crate::says;
use exitmark_monitor::cell::{Counts, Directions};
use exitmark_monitor::ledger::Ledger;
use exitmark_monitor::publish::laplace::Laplace;
use exitmark_monitor::publish::{Epsilon, Noise, NoiseSettings, PublishSettings, publish};
use exitmark_monitor::row::{Dimension, Row};
use exitmark_policy::packet::Version;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::num::NonZeroU64;

/// Pearson's chi-square of samples against the discrete Laplace distribution of a scale, in
/// standard deviations beyond its mean. Samples of that distribution are below 5 except for one in
/// thousands of seeds; the seeds here are fixed.
fn misfit(samples: &[i128], scale: f64) -> f64 {
    let number = samples.len() as f64;
    let ratio = (-1.0 / scale).exp();
    // Each bucket holds this many consecutive numbers, so that large scales also have about a
    // hundred.
    let width = (scale / 8.0).ceil().max(1.0) as i128;
    let below = |x: i128| {
        // P(X < x)
        if x <= 0 {
            ratio.powf((1 - x) as f64) / (1.0 + ratio)
        } else {
            1.0 - ratio.powf(x as f64) / (1.0 + ratio)
        }
    };
    let end = ((6.0 * scale) as i128 / width).max(1);
    let mut sum = 0.0;
    let mut buckets = 0.0;
    let mut add = |expected: f64, observed: usize| {
        // The usual condition of the test; rarer numbers count in the tails.
        if expected >= 5.0 {
            sum += (observed as f64 - expected).powi(2) / expected;
            buckets += 1.0;
        }
    };
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let less = |than: i128| sorted.partition_point(|x| *x < than);
    let within = |from: i128, to: i128| less(to) - less(from);
    for bucket in -end..end {
        let (from, to) = (bucket * width, (bucket + 1) * width);
        add(number * (below(to) - below(from)), within(from, to));
    }
    let (first, last) = (-end * width, end * width);
    add(number * below(first), within(i128::MIN, first));
    add(number * (1.0 - below(last)), within(last, i128::MAX));
    let freedom: f64 = buckets - 1.0;
    (sum - freedom) / (2.0 * freedom).sqrt()
}

/// Checks that samples have the distribution of a scale.
#[track_caller]
fn fits(samples: &[i128], scale: f64) {
    let fit = misfit(samples, scale);
    assert!(fit.abs() < 5.0, "scale {scale}: {fit}");
}

fn samples(numerator: u64, denominator: u64, seed: u64) -> Vec<i128> {
    let [numerator, denominator] = [numerator, denominator].map(|n| NonZeroU64::new(n).unwrap());
    let laplace = Laplace::new(numerator, denominator);
    let mut random = ChaCha20Rng::seed_from_u64(seed);
    (0..20_000).map(|_| laplace.sample(&mut random)).collect()
}

#[test]
fn noise_has_the_stated_distribution() {
    for (seed, numerator, denominator) in [
        (0, 1, 3),
        (1, 1, 1),
        (2, 7, 2),
        (3, 40, 1),
        (4, 123_457, 1000),
        (5, 1 << 50, 3),
    ] {
        let scale = numerator as f64 / denominator as f64;
        let drawn = samples(numerator, denominator, seed);
        fits(&drawn, scale);
        // A scale that is a tenth off,
        for wrong in [scale * 1.1, scale / 1.1] {
            let fit = misfit(&drawn, wrong);
            assert!(fit > 5.0, "scale {scale} passes for {wrong}: {fit}");
        }
        // a single side,
        let one_sided: Vec<_> = drawn.iter().map(|x| x.abs()).collect();
        assert!(misfit(&one_sided, scale) > 5.0, "scale {scale}");
        // another shape with the same deviation,
        let side = (scale * 1.5).ceil() as i128;
        let uniform: Vec<_> = (0..20_000)
            .map(|n| n * (2 * side + 1) / 20_000 - side)
            .collect();
        assert!(misfit(&uniform, scale) > 5.0, "scale {scale}");
        // and a doubled zero are detected.
        let mut two_zeros = drawn.clone();
        two_zeros.extend(drawn.iter().filter(|x| **x == 0));
        if two_zeros.len() > drawn.len() + 1000 {
            assert!(misfit(&two_zeros, scale) > 5.0, "scale {scale}");
        }
    }
}

fn noisy(epsilon: f64, seed: u64) -> PublishSettings {
    PublishSettings {
        noise: Some(NoiseSettings {
            epsilon: Epsilon::try_from(epsilon).unwrap(),
            user: counts(20, 5000, 100),
            seed: Some(seed),
        }),
        ..plain(100, 50)
    }
}

fn large() -> Ledger {
    of_cells([
        (
            cell(443, 1, "US", Version::V4),
            counts(1 << 40, 1 << 50, 1 << 45),
        ),
        (
            cell(80, 2, "DE", Version::V4),
            counts(1 << 30, 1 << 40, 1 << 35),
        ),
    ])
}

/// The noise that was added to a row of the large ledger, over many periods.
fn added(draws: usize, settings: &PublishSettings, of: impl Fn(&Row) -> Option<i128>) -> Vec<i128> {
    added_to(&large(), draws, settings, of)
}

/// Something of a row, over many periods with this ledger.
fn added_to<T>(
    ledger: &Ledger,
    draws: usize,
    settings: &PublishSettings,
    of: impl Fn(&Row) -> Option<T>,
) -> Vec<T> {
    let noise = settings.noise.as_ref().unwrap();
    let mut noise = Noise::new(noise, settings.tables(), settings.directions).unwrap();
    let mut draw = || {
        let rows = publish(ledger, &period(), &origin(), settings, Some(&mut noise));
        rows.iter().find_map(&of).unwrap()
    };
    (0..draws).map(|_| draw()).collect()
}

#[test]
fn epsilon_is_divided_over_all_tables_and_measures() {
    let exact: i128 = large().cells.iter().map(|(_, c)| i128::from(c.flows)).sum();
    let total = |row: &Row| {
        let flows = i128::from(row.counts.flows) - exact;
        (row.dimension == Dimension::Total).then_some(flows)
    };
    let flows = |epsilon: f64, cross: &[Dimension]| -> Vec<i128> {
        let settings = PublishSettings {
            cross: cross.into(),
            ..noisy(epsilon, 7)
        };
        added(if cross.is_empty() { 2000 } else { 6000 }, &settings, total)
    };
    // 20 flows of a user, three measures, six tables.
    let at_one = flows(1.0, &[]);
    fits(&at_one, 360.0);
    // Half the ε doubles the scale.
    let at_half = flows(0.5, &[]);
    fits(&at_half, 720.0);
    assert!(misfit(&at_half, 360.0) > 5.0 && misfit(&at_one, 720.0) > 5.0);
    // Another table takes its share.
    let crossed = flows(1.0, &[Dimension::PortCountry]);
    fits(&crossed, 420.0);
    assert!(misfit(&crossed, 360.0) > 5.0);

    // Rows and measures below the total have their own scale.
    let of_port =
        |row: &Row| (row.port == Some(443)).then_some(i128::from(row.counts.bytes) - (1 << 50));
    let bytes = added(2000, &noisy(1.0, 8), of_port);
    fits(&bytes, 90_000.0);
    let of_v4 = |row: &Row| {
        let packets = i128::from(row.counts.packets) - (1 << 45) - (1 << 35);
        (row.ip_version == Some(4)).then_some(packets)
    };
    let packets = added(2000, &noisy(1.0, 9), of_v4);
    fits(&packets, 1800.0);
}

#[test]
fn what_comes_down_has_a_bound_and_a_share_of_its_own() {
    const DOWN: [u64; 2] = [1 << 50, 1 << 45];
    let mut ledger = large();
    for (_, counts) in &mut ledger.cells {
        [counts.down_bytes, counts.down_packets] = DOWN;
    }
    let mut settings = noisy(1.0, 11);
    settings.directions = Directions::Both;
    settings.noise.as_mut().unwrap().user = [20, 5000, 100, 70_000, 300].into();
    let of_port = |row: &Row| (row.port == Some(443)).then_some(row.counts);
    let drawn = added_to(&ledger, 2000, &settings, of_port);
    let of = |exact: u64, of: fn(&Counts) -> u64| -> Vec<i128> {
        let drawn = drawn.iter().map(of);
        drawn
            .map(|shown| i128::from(shown) - i128::from(exact))
            .collect()
    };
    // A user's bound, five measures, six tables.
    fits(&of(1 << 40, |counts| counts.flows), 600.0);
    fits(&of(1 << 50, |counts| counts.bytes), 150_000.0);
    fits(&of(1 << 45, |counts| counts.packets), 3000.0);
    fits(&of(DOWN[0], |counts| counts.down_bytes), 2_100_000.0);
    fits(&of(DOWN[1], |counts| counts.down_packets), 9000.0);
    // Nothing is drawn for a direction that is not published.
    settings.directions = Directions::Out;
    let drawn = added_to(&ledger, 100, &settings, of_port);
    let is_up = |counts: &Counts| (counts.down_bytes, counts.down_packets) == (0, 0);
    assert!(drawn.iter().all(is_up));
}

#[test]
fn other_is_the_noisy_total_minus_the_rows() {
    let settings = noisy(1.0, 3);
    let mut noise = Noise::new(
        settings.noise.as_ref().unwrap(),
        settings.tables(),
        settings.directions,
    )
    .unwrap();
    let mut ledger = large();
    let rare = (1001..1200).map(|port| cell(port, 3, "FR", Version::V6));
    let rare = rare.map(|cell| (cell, counts(30, 1 << 20, 90)));
    ledger.cells.extend(rare);
    let rows = publish(&ledger, &period(), &origin(), &settings, Some(&mut noise));
    let ports = rows.iter().filter(|row| row.dimension == Dimension::Port);
    let sum: u64 = ports.map(|row| row.counts.flows).sum();
    assert_eq!(sum, rows[0].counts.flows);
    let versions = rows.iter().filter(|row| row.ip_version.is_some());
    assert_eq!(versions.count(), 2, "both are shown: neither is other");
    let about = rows[0].about.as_ref().unwrap();
    assert!((about.epsilon - 1.0).abs() < f64::EPSILON);
}

#[test]
fn a_row_that_noise_brings_below_the_threshold_joins_other() {
    let settings = noisy(1.0, 4);
    let mut noise = Noise::new(
        settings.noise.as_ref().unwrap(),
        settings.tables(),
        settings.directions,
    )
    .unwrap();
    let mut ledger = large();
    let barely = counts(100, 1 << 20, 1 << 10);
    ledger.cells.push((cell(22, 1, "US", Version::V4), barely));
    let mut draw = || {
        let rows = publish(&ledger, &period(), &origin(), &settings, Some(&mut noise));
        let ports = rows.iter().filter(|row| row.dimension == Dimension::Port);
        let ports: Vec<_> = ports.collect();
        let of = |port: Option<u16>| ports.iter().any(|row| row.port == port);
        assert!(of(Some(443)) && of(Some(80)));
        assert_ne!(of(Some(22)), of(None), "it is its own row, or the other");
        assert!(ports.iter().all(|row| row.other || row.counts.flows >= 100));
        of(Some(22))
    };
    let own = (0..400).filter(|_| draw()).count();
    // Half of the distribution, plus the probability of its middle.
    assert!((150..250).contains(&own), "{own}");
}

#[test]
fn negative_noisy_counts_become_zero() {
    let mut settings = noisy(0.01, 5);
    settings.noise.as_mut().unwrap().user = counts(1, 1 << 29, 1);
    let mut noise = Noise::new(
        settings.noise.as_ref().unwrap(),
        settings.tables(),
        settings.directions,
    )
    .unwrap();
    let ledger = of_cells([(cell(443, 1, "US", Version::V4), counts(1_000_000, 10, 10))]);
    let mut draw = || publish(&ledger, &period(), &origin(), &settings, Some(&mut noise));
    let draws: Vec<_> = (0..200).map(|_| draw()[0].counts.bytes).collect();
    let none = draws.iter().filter(|bytes| **bytes == 0).count();
    assert!((60..140).contains(&none), "half of them: {none}");
    assert!(draws.iter().all(|bytes| *bytes < 1 << 50));
}

#[test]
fn only_a_seed_gives_the_same_noise() {
    let rows = |seed: Option<u64>| {
        let mut settings = noisy(1.0, 0);
        settings.noise.as_mut().unwrap().seed = seed;
        let mut noise = Noise::new(
            settings.noise.as_ref().unwrap(),
            settings.tables(),
            settings.directions,
        )
        .unwrap();
        publish(&large(), &period(), &origin(), &settings, Some(&mut noise))
    };
    assert_eq!(rows(Some(1)), rows(Some(1)));
    assert_ne!(rows(Some(1)), rows(Some(2)));
    assert_ne!(rows(None), rows(None));
}

#[test]
fn refuses_invalid_noise() {
    for epsilon in [0.0, -1.0, f64::NAN, f64::INFINITY, 0.0001, 100.1, 0.3333] {
        assert!(Epsilon::try_from(epsilon).is_err(), "{epsilon}");
    }
    for (user, expected) in [
        (counts(0, 1, 1), "flows"),
        (counts(1, u64::MAX, 1), "bytes"),
        (counts(1, 1 << 40, 1), "raise epsilon"),
        (counts(100, 1, 1), "set the threshold above 100"),
    ] {
        let mut settings = noisy(0.3, 1);
        settings.noise.as_mut().unwrap().user = user;
        says(&settings.check().unwrap_err(), expected);
    }
    assert!(noisy(0.3, 1).check().is_ok());
}
