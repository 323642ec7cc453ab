//! The positions and labels of an axis' ticks.

use super::super::table::{count, whole};

/// A position on an axis, and its label.
pub(super) type Tick = (f64, String);

/// The width of a letter and the space between two labels, as fractions of the axis' length.
const LETTER: f64 = 0.015;

/// Removes labels that would overlap the one to their right.
pub(super) fn thinned(mut ticks: Vec<Tick>) -> Vec<Tick> {
    let length = match (ticks.first(), ticks.last()) {
        (Some(first), Some(last)) => last.0 - first.0,
        _ => 0.0,
    };
    let mut free = f64::INFINITY;
    for (position, label) in ticks.iter_mut().rev() {
        let letters = u32::try_from(label.len()).unwrap_or(u32::MAX);
        let half = f64::from(letters.saturating_add(2)) * LETTER * length / 2.0;
        if *position + half > free {
            label.clear();
        } else {
            free = *position - half;
        }
    }
    ticks
}

/// Ticks from 0 to at least `most`, in steps of 1, 2 or 5 times a power of ten.
pub(super) fn linear(most: f64) -> Vec<Tick> {
    let most = if most > 0.0 { most } else { 1.0 };
    let rough = most / 6.0;
    let power = 10_f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    let step = steps
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    let digits = if step >= 1.0 {
        0
    } else if step >= 0.1 {
        1
    } else {
        2
    };
    // At most six steps reach the greatest value; the seventh covers rounding.
    (0..=7)
        .map(|number| f64::from(number) * step)
        .take_while(|value| *value < most + step)
        .map(|value| (value, format!("{value:.digits$}")))
        .collect()
}

/// Ticks at powers of ten around these positions, which are logarithms.
pub(super) fn decades(least: f64, most: f64) -> Vec<Tick> {
    let first = least.floor();
    // No clock resolves more decades.
    (0..20)
        .map(|number| first + f64::from(number))
        .take_while(|power| *power < most + 1.0 || *power < first + 1.5)
        .map(|power| {
            let value = 10_f64.powf(power);
            let label = if value >= 1.0 {
                count(whole(value))
            } else {
                format!("{value:.2}")
            };
            (power, label)
        })
        .collect()
}
