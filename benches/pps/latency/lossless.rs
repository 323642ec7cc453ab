//! The highest load without loss (RFC 2544, 26.1), and the loss at loads around it (26.3).

use super::pace::{FULL_SPEED, Pacer, Trial};
use exitmark_lab::LabError;

/// The number of bisections: to less than a hundredth.
const STEPS: u32 = 7;
/// The trials at the generator's full speed while no frame is lost: the median counts.
const FULL_SPEEDS: usize = 3;
/// The loads of the plot of loss against load, as fractions of the highest without loss.
const LADDER: [f64; 9] = [0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0];
/// The generator is at its limit if it sends less than this fraction of the requested load.
const REACHED: f64 = 0.97;

pub(super) struct Lossless {
    /// The highest load without loss, if there was one.
    pub(super) best: Option<Trial>,
    pub(super) full: Trial,
    pub(super) tried: Vec<Trial>,
}

impl Lossless {
    /// Replaces the highest load by one of the ladder that is higher and lossless.
    fn raise(&mut self, trial: Trial) {
        if trial.is_lossless() && self.best.is_none_or(|best| best.offered < trial.offered) {
            self.best = Some(trial);
        }
    }
}

/// Searches from the generator's full speed downwards. A load is lossy only if it loses frames
/// twice in a row: the machine itself stalls occasionally.
pub(super) fn search(pacer: &Pacer<'_>) -> Result<Lossless, LabError> {
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
    let full = full_speed(|| twice(FULL_SPEED))?;
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
    Ok(Lossless { best, full, tried })
}

/// The first lossy trial, or the median of all.
fn full_speed(trial: impl FnMut() -> Result<Trial, LabError>) -> Result<Trial, LabError> {
    let mut trials = Vec::new();
    for next in std::iter::repeat_with(trial).take(FULL_SPEEDS) {
        let next = next?;
        if !next.is_lossless() {
            return Ok(next);
        }
        trials.push(next);
    }
    trials.sort_by(|one, other| one.offered.total_cmp(&other.offered));
    Ok(trials[FULL_SPEEDS / 2])
}

/// Tries the loads of the ladder, up to the first above the lossless one that the generator does
/// not reach. Without a lossless load they are fractions of the generator's full speed.
pub(super) fn ladder(pacer: &Pacer<'_>, found: &mut Lossless) -> Result<Vec<Trial>, LabError> {
    let foot = found.best.unwrap_or(found.full).offered;
    let mut curve = Vec::new();
    for part in LADDER {
        // A load that may become the highest lasts as long as those of the search.
        let length = pacer.length / if part < 1.0 { 2 } else { 1 };
        let trial = pacer.trial(foot * part, length)?;
        curve.push(trial);
        found.raise(trial);
        if part > 1.0 && trial.offered < foot * part * REACHED {
            break;
        }
    }
    Ok(curve)
}
