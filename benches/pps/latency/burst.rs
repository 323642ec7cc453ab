//! The longest burst at full speed without loss (RFC 2544, 26.4).

use super::pace::Pacer;
use exitmark_lab::LabError;

/// The longest tried burst in frames. A forwarder that loses none of it may handle more.
pub(super) const LONGEST: u32 = 65_536;
/// The first burst of the search, about the size of a NIC's ring.
const FIRST: u32 = 1024;
/// The search ends with a precision of a sixteenth.
const PARTS: u32 = 16;

/// Doubles the burst until frames are lost, then bisects.
pub(super) fn longest(pacer: &Pacer<'_>) -> Result<Result<u32, String>, LabError> {
    let (mut fine, mut lossy) = (0, LONGEST + 1);
    let mut frames = FIRST;
    while fine < LONGEST && lossy - fine > 1.max(fine / PARTS) {
        if arrives(pacer, frames)? {
            fine = frames;
        } else {
            lossy = frames;
        }
        frames = match (fine, lossy) {
            (_, lossy) if lossy > LONGEST => (fine * 2).min(LONGEST),
            (fine, lossy) => u32::midpoint(fine, lossy),
        };
    }
    Ok(match fine {
        0 => Err("not even one frame arrived".to_owned()),
        frames => Ok(frames),
    })
}

/// As for loads, a burst is lossy only if it loses frames twice.
fn arrives(pacer: &Pacer<'_>, frames: u32) -> Result<bool, LabError> {
    for _ in 0..2 {
        let before = pacer.traffic.counts()?;
        pacer.traffic.send(pacer.site, frames)?.finish()?;
        let counts = pacer.settled(&before)?;
        if counts.arrived() >= counts.sent {
            return Ok(true);
        }
    }
    Ok(false)
}
