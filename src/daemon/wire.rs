//! The wire alone: the pinned program forwards every frame of `host` and `uplink` unmarked, without
//! a process and without a relay set. Early in the boot, and where a box is taken off and its host
//! is to stay online. `run` takes it over as it takes a box over.

use super::parts::Parts;
use super::record::Record;
use super::{DaemonError, Nics, abandon};
use crate::datapath::Pins;
use crate::nic::{Nic, NicError};
use crate::policy::Snapshot;
use crate::process;
use crate::relays::LiveSet;
use crate::settings::{Engine, Settings, ZeroCopy};
use crossbeam::channel;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long a NIC that is missing is waited for between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// What becomes of programs that a box has left on its NICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// They mark and steer without a process, and stay.
    Stays,
    /// The wire takes their place.
    Goes,
}

/// Makes a plain wire and leaves it to the kernel. Waits for as long as `patience` for NICs that are
/// not there yet, and sets those up that are down. Returns the names of the two; none where a box's
/// programs are attached that stay: then nothing has changed.
///
/// # Errors
/// The machine is not as the settings require, or a box runs.
pub fn wire(
    mut settings: Settings,
    patience: Duration,
    attached: Attached,
) -> Result<Option<[String; 2]>, DaemonError> {
    if let (Some(user), true) = (&settings.user, process::is_root()) {
        process::become_user(user)?;
    }
    process::forbid_dumps()?;
    if attached == Attached::Stays && !Pins::peek(&settings.pin.directory).is_empty() {
        return Ok(None);
    }
    let names = [&settings.ports.host, &settings.ports.uplink].map(String::clone);
    for name in &names {
        let nic = appears(name, patience)?;
        if !nic.is_up {
            nic.set_up()?;
        }
    }
    // What the program can do by itself, and nothing of the policy.
    settings.engine = Engine::Xdp;
    settings.datapath.zero_copy = ZeroCopy::Off;
    settings.ports.incoming = None;
    settings.rules = Arc::new(settings.rules.passing());
    let nics = Nics::look(&settings)?;
    let pins = Pins::open(&settings.pin.directory)?;
    let record = Record::of(&settings.control.socket, &settings.pin.directory);
    let was_attached = pins.are_attached()?;
    let rules = Arc::clone(&settings.rules);
    let nothing = LiveSet::default().endpoints(&[])?;
    let snapshot = Arc::new(Snapshot::new(1, rules, nothing));
    let (events, _happening) = channel::unbounded();
    let assembled = Parts::assemble(&settings, &nics, &snapshot, (&pins, &record), &events);
    match assembled.and_then(Parts::leave) {
        Ok(()) => Ok(Some(names)),
        Err(error) => Err(abandon(error, pins, &record, was_attached)),
    }
}

/// The NIC of this name, when it is there.
fn appears(name: &str, patience: Duration) -> Result<Nic, NicError> {
    let deadline = Instant::now() + patience;
    loop {
        match Nic::look(name) {
            Err(NicError::Missing(_)) if Instant::now() < deadline => thread::sleep(PAUSE),
            found => return found,
        }
    }
}
