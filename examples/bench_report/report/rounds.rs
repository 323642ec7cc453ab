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
    let ratio = |(mine, its): (&f64, &f64)| (*its > 0.0).then(|| mine / its);
    let ratios: Option<Vec<_>> = mine.iter().zip(its).map(ratio).collect();
    median(ratios?.into_iter())
}

/// The median of the differences; a round that only one of them has is left out.
pub(crate) fn difference<T: Copy + Into<Option<f64>>>(mine: &[T], its: &[T]) -> Option<f64> {
    let pairs = mine.iter().zip(its);
    median(pairs.filter_map(|(&mine, &its)| Some(mine.into()? - its.into()?)))
}
