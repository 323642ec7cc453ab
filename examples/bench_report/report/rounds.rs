//! Figures that are taken within rounds: what disturbs a round disturbs both sides of a ratio.

/// None of nothing.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<_> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    Some(f64::midpoint(sorted[last / 2], sorted[last.div_ceil(2)]))
}

/// The median of the ratios; none where a divisor is 0.
pub(crate) fn ratio(mine: &[f64], its: &[f64]) -> Option<f64> {
    let ratios = mine.iter().zip(its).map(|(mine, its)| mine / its);
    median(ratios).filter(|ratio| ratio.is_finite())
}

/// The median of the differences.
pub(crate) fn difference(mine: &[f64], its: &[f64]) -> Option<f64> {
    median(mine.iter().zip(its).map(|(mine, its)| mine - its))
}
