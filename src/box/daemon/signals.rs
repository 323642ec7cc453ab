//! Turns signals into events for the main thread.

use super::{DaemonError, Event, capabilities};
use crossbeam::channel::Sender;
use exitmark_service::process;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

/// Starts the thread that sends an event for each signal.
pub(super) fn hear(events: Sender<Event>) -> Result<(), DaemonError> {
    let failed = |error| DaemonError::System("wait for signals", error);
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1, SIGHUP]).map_err(failed)?;
    let thread = std::thread::Builder::new().name("exitmark-signals".to_owned());
    thread
        .spawn(move || {
            process::keep_or_say(capabilities::OF_NOBODY);
            for signal in signals.forever() {
                if events.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        })
        .map_err(failed)?;
    Ok(())
}
