//! The highest load that loses nothing (RFC 2544, 26.1), and the loss at loads around it (26.3).

use super::pace::{FULL_SPEED, Pacer, Trial};
use exitmark::lab::LabError;

/// How often the range in which the load lies is halved: to less than a hundredth.
const STEPS: u32 = 7;
/// How often the generator's full speed is tried while nothing is lost: the median counts.
const FULL_SPEEDS: usize = 3;
/// The loads of the plot of loss against load, as parts of the highest without loss.
const LADDER: [f64; 9] = [0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0];
/// Below this part of what was asked for, the generator is at its end.
const REACHED: f64 = 0.97;

pub(super) struct Lossless {
    /// The highest load of which everything arrived, if there was one.
    pub(super) best: Option<Trial>,
    /// The generator at its full speed.
    pub(super) full: Trial,
    /// All loads that were tried, in their order.
    pub(super) tried: Vec<Trial>,
}

impl Lossless {
    /// Whether the generator came to its end before the forwarder did.
    pub(super) fn is_generator_bound(&self) -> bool {
        self.full.is_lossless()
    }

    /// Takes a load of the ladder for the highest, if it is.
    fn raise(&mut self, trial: Trial) {
        if trial.is_lossless() && self.best.is_none_or(|best| best.offered < trial.offered) {
            self.best = Some(trial);
        }
    }
}

/// Looks for it from the generator's full speed downwards. A load is lossy only when it loses
/// frames twice in a row: the machine itself stops for a moment now and then.
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

/// The first that is lossy, or else the median.
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
/// not reach. Without a lossless one the ladder stands on the generator's full speed.
pub(super) fn ladder(pacer: &Pacer<'_>, found: &mut Lossless) -> Result<Vec<Trial>, LabError> {
    let foot = found.best.unwrap_or(found.full).offered;
    let mut curve = Vec::new();
    for part in LADDER {
        // One that may turn out to be the highest lasts as long as those of the search.
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
