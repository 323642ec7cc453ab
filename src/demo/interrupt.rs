//! Ctrl-C, SIGTERM and SIGHUP, checked between steps: cleanup happens by unwinding the stack, never
//! in a signal handler.

use super::DemoError;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// How often a wait for a connection checks for a signal.
const SLICE: Duration = Duration::from_millis(50);

/// Records the last termination signal. From then on these signals have no other effect in this
/// process.
pub(super) struct Interrupt {
    noted: Arc<AtomicUsize>,
}

impl Interrupt {
    pub(super) fn watch() -> Result<Self, DemoError> {
        let noted = Arc::new(AtomicUsize::new(0));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let number = usize::try_from(signal).unwrap_or(1);
            flag::register_usize(signal, Arc::clone(&noted), number).map_err(DemoError::Signals)?;
        }
        Ok(Self { noted })
    }

    /// Fails if a signal was received.
    pub(super) fn check(&self) -> Result<(), DemoError> {
        match self.noted.load(Ordering::SeqCst) {
            0 => Ok(()),
            signal => Err(DemoError::Interrupted(u8::try_from(signal).unwrap_or(0))),
        }
    }

    /// Receives from another thread; `None` if that thread ended without sending.
    pub(super) fn receive<T>(&self, from: &Receiver<T>) -> Result<Option<T>, DemoError> {
        loop {
            self.check()?;
            match from.recv_timeout(SLICE) {
                Ok(value) => return Ok(Some(value)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }
}
