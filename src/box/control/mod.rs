//! The control interface of a running box: HTTP/1.1 on a Unix socket, and only the metrics on a
//! loopback port.
//!
//! This module owns the sockets, the limits on clients, and the client for the commands. It acts on
//! the box only through [`Operations`]. A client may be slow, dead or hostile, and must never block
//! the box or another client.

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

/// The default path of the control socket.
pub const DEFAULT_SOCKET: &str = "/run/exitmark/control.sock";

/// The operations of a running box. Each call runs on its own thread and may block.
pub trait Operations: Send + Sync + 'static {
    /// The current report. Takes milliseconds.
    fn report(&self) -> Report;

    /// Reloads the configuration; takes up to half a minute. Only one reload runs at a time.
    ///
    /// # Errors
    ///
    /// Why the configuration in force stays, as a message for the user.
    fn reload(&self) -> Result<Reloaded, String>;

    /// Starts a capture. The channel carries pcapng bytes until the sender is dropped; dropping the
    /// receiver ends the capture. The receiver may be slow, so the sender must not block on it.
    ///
    /// # Errors
    ///
    /// Why the capture is refused, as a message for the user.
    fn capture(&self, request: &CaptureRequest) -> Result<Receiver<Vec<u8>>, String>;
}

/// The result of a successful reload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The generation of the snapshot now in force.
    pub generation: u64,
    /// The keys whose values have changed, in order.
    pub changed: Vec<String>,
}
