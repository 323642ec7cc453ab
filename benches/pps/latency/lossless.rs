//! The highest load that loses nothing (RFC 2544, 26.1), and the loss at loads around it (26.3).

use super::pace::{FULL_SPEED, Pacer, Trial};
use exitmark::lab::LabError;

/// How often the range in which the load lies is halved: to less than a hundredth.
const STEPS: u32 = 7;
/// The loads of the plot of loss against load, as parts of the highest without loss.
const LADDER: [f64; 9] = [0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0];
/// Below this part of what was asked for, the generator is at its end.
const REACHED: f64 = 0.97;

pub(super) struct Lossless {
    /// The highest load of which everything arrived.
    pub(super) best: Trial,
    /// All loads that were tried, in their order.
    pub(super) tried: Vec<Trial>,
}

/// Looks for it from the generator's full speed downwards. A load is lossy only when it loses
/// frames twice in a row: the machine itself stops for a moment now and then.
pub(super) fn search(pacer: &Pacer<'_>) -> Result<Result<Lossless, String>, LabError> {
    let mut tried = Vec::new();
    let mut twice = |rate| {
        for _ in 0..2 {
            let trial = pacer.trial(rate, pacer.length)?;
            tried.push(trial);
            if trial.is_lossless() {
                break;
            }
        }
        Ok::<_, LabError>(tried[tried.len() - 1])
    };
    let full = twice(FULL_SPEED)?;
    let mut best = full.is_lossless().then_some(full);
    let (mut low, mut high) = (0.0, full.offered);
    for _ in 0..STEPS {
        if full.is_lossless() {
            break;
        }
        let trial = twice(f64::midpoint(low, high))?;
        if trial.is_lossless() {
            low = f64::midpoint(low, high);
            best = Some(trial);
        } else {
            high = f64::midpoint(low, high);
        }
    }
    Ok(match best {
        Some(best) => Ok(Lossless { best, tried }),
        None => Err(format!(
            "it lost frames at every load down to {high:.0} frames a second"
        )),
    })
}

/// Tries the loads of the ladder, up to the first above the lossless one that the generator does
/// not reach.
pub(super) fn ladder(pacer: &Pacer<'_>, lossless: f64) -> Result<Vec<Trial>, LabError> {
    let mut curve = Vec::new();
    for part in LADDER {
        let trial = pacer.trial(lossless * part, pacer.length / 2)?;
        curve.push(trial);
        if part > 1.0 && trial.offered < lossless * part * REACHED {
            break;
        }
    }
    Ok(curve)
}
