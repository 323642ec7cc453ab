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
mod routes;
mod server;

pub use crate::observe::CaptureRequest;
pub use client::Client;
pub use error::ControlError;
pub use listen::{ControlSettings, Listeners, answers};
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
