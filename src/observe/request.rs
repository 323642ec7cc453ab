//! What can be asked to be seen of the frames themselves.

use serde::{Deserialize, Serialize};

/// What shall be captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CaptureRequest {
    /// It ends after so many frames.
    pub frames: u64,
    /// It ends after so many seconds.
    pub seconds: u64,
    /// One frame in so many, a power of two.
    pub one_in: u32,
    /// With what follows the headers: what users of the Tor network send. Without addresses only
    /// the payload of TCP and UDP is shown, because other protocols quote packets.
    pub with_payload: bool,
    /// With the addresses of both ends and every field that is computed from them: whom users of
    /// the Tor network talk to. The ports are always there.
    pub with_addresses: bool,
}

impl Default for CaptureRequest {
    fn default() -> Self {
        Self {
            frames: 10_000,
            seconds: 60,
            one_in: 1,
            with_payload: false,
            with_addresses: false,
        }
    }
}

impl CaptureRequest {
    /// Whether every number is within its bounds.
    ///
    /// # Errors
    ///
    /// Which one is not, and what its bounds are.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=1_000_000).contains(&self.frames) {
            return Err(format!("frames is {}; give 1 to 1000000", self.frames));
        }
        if !(1..=3600).contains(&self.seconds) {
            return Err(format!("seconds is {}; give 1 to 3600", self.seconds));
        }
        if !self.one_in.is_power_of_two() || self.one_in > 65536 {
            return Err(format!(
                "one_in is {}; give a power of two, 1 to 65536",
                self.one_in
            ));
        }
        Ok(())
    }
}
