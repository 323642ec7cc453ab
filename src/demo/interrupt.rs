//! Ctrl-C and SIGTERM, noticed between steps: what was made is then removed by unwinding the
//! stack, never in a signal's own context.

use super::DemoError;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// How long it may take to notice a signal while waiting for a connection.
const SLICE: Duration = Duration::from_millis(50);

/// Notes the last signal that asked the demo to end. From then on these signals do nothing else
/// in this process.
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

    /// An error if a signal came.
    pub(super) fn check(&self) -> Result<(), DemoError> {
        match self.noted.load(Ordering::SeqCst) {
            0 => Ok(()),
            signal => Err(DemoError::Interrupted(u8::try_from(signal).unwrap_or(0))),
        }
    }

    /// What another thread sends; none if it ended without.
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
