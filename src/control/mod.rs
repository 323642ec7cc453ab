//! The control socket: what a running box can be asked, over HTTP/1.1 on a Unix socket, and the
//! metrics alone on a loopback port.
//!
//! This room owns the sockets, the bounds on whoever connects, and the client for the commands.
//! It does nothing to the box itself: that is behind [`Operations`]. Whoever connects may be
//! slow, dead or hostile, and must never hold up the box or another one who asks.

mod capture;
mod client;
mod error;
mod listen;
mod patience;
mod routes;
mod server;

pub use client::Client;
pub use error::ControlError;
pub use listen::{ControlSettings, Listeners};
pub use server::Server;

use crate::observe::Report;
use crossbeam::channel::Receiver;
use serde::{Deserialize, Serialize};

/// Where the socket is, unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/exitmark/control.sock";

/// What can be asked of a running box. Each call has a thread for itself, which may wait.
pub trait Operations: Send + Sync + 'static {
    /// The box at this moment. Takes milliseconds.
    fn report(&self) -> Report;

    /// Reads the configuration anew; takes up to half a minute. There is one at a time.
    ///
    /// # Errors
    ///
    /// Why the configuration in force stays, in words for whoever asked.
    fn reload(&self) -> Result<Reloaded, String>;

    /// Begins to capture: pcapng bytes, until the sender is gone. When the receiver is gone,
    /// nobody wants the rest. A reader may be slow, so whoever sends must not wait for room.
    ///
    /// # Errors
    ///
    /// Why there is no capture, in words for whoever asked.
    fn capture(&self, request: &CaptureRequest) -> Result<Receiver<Vec<u8>>, String>;
}

/// A configuration that came into force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The generation of rules that it is.
    pub generation: u64,
    /// The keys whose values are others than before.
    pub changed: Vec<String>,
}

/// What shall be captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CaptureRequest {
    /// It ends after so many frames.
    pub frames: u64,
    /// It ends after so many seconds.
    pub seconds: u64,
    /// One frame in so many, a power of two.
    pub one_in: u32,
    /// With what follows the headers: what users of the Tor network send.
    pub with_payload: bool,
    /// With the addresses of both ends: whom users of the Tor network talk to.
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
