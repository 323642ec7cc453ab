//! Statistics within rounds: a disturbance of a round affects both sides of a ratio.

/// The median; `None` without values.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<_> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    Some(f64::midpoint(sorted[last / 2], sorted[last.div_ceil(2)]))
}

/// The median of the ratios; `None` if a divisor is 0.
pub(crate) fn ratio(mine: &[f64], its: &[f64]) -> Option<f64> {
    let ratio = |(mine, its): (&f64, &f64)| (*its > 0.0).then(|| mine / its);
    let ratios: Option<Vec<_>> = mine.iter().zip(its).map(ratio).collect();
    median(ratios?.into_iter())
}

/// The median of the differences; rounds that only one side has are omitted.
pub(crate) fn difference<T: Copy + Into<Option<f64>>>(mine: &[T], its: &[T]) -> Option<f64> {
    let pairs = mine.iter().zip(its);
    median(pairs.filter_map(|(&mine, &its)| Some(mine.into()? - its.into()?)))
}
