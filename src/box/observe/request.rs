//! The parameters of a capture.

use serde::{Deserialize, Serialize};

/// The parameters of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CaptureRequest {
    /// The number of frames after which the capture ends, 1 to 1,000,000.
    pub frames: u64,
    /// The time after which the capture ends, 1 to 3,600 seconds.
    pub seconds: u64,
    /// One frame in this many is captured: a power of two, 1 to 65,536.
    pub one_in: u32,
    /// Includes payload, which is data of Tor users. Without addresses only the payload of TCP and
    /// UDP is included, because other protocols quote packets.
    pub with_payload: bool,
    /// Includes the addresses of both ends and every field computed from them, which reveal the
    /// destinations of Tor users. Ports are always included.
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
    /// Checks that every number is within its bounds.
    ///
    /// # Errors
    ///
    /// The first number that is not, with its bounds.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=1_000_000).contains(&self.frames) {
            return Err(format!("frames is {}; give 1 to 1000000", self.frames));
        }
        if !(1..=3600).contains(&self.seconds) {
            return Err(format!("seconds is {}; give 1 to 3600", self.seconds));
        }
        let one_in = self.one_in;
        if !one_in.is_power_of_two() || one_in > 65536 {
            return Err(format!(
                "one_in is {one_in}; give a power of two, 1 to 65536"
            ));
        }
        Ok(())
    }
}
