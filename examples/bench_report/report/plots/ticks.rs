//! Where an axis has its ticks, and what stands at them.

/// A position on an axis, and its label.
pub(super) type Tick = (f64, String);

/// From zero to at least this, in steps of 1, 2 or 5 times a power of ten.
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
    // At most six steps reach the greatest value; the one after it is for luck.
    (0..=7)
        .map(|number| f64::from(number) * step)
        .take_while(|value| *value < most + step)
        .map(|value| (value, format!("{value:.digits$}")))
        .collect()
}

/// Powers of ten around these positions, which are logarithms.
pub(super) fn decades(least: f64, most: f64) -> Vec<Tick> {
    let first = least.floor();
    // More decades than these no clock can tell.
    (0..20)
        .map(|number| first + f64::from(number))
        .take_while(|power| *power < most + 1.0 || *power < first + 1.5)
        .map(|power| {
            let value = 10_f64.powf(power);
            let digits = if value >= 1.0 { 0 } else { 2 };
            (power, format!("{value:.digits$}"))
        })
        .collect()
}
