//! Plain wires: the pinned program forwards every frame of `host` and `uplink` unmarked, without
//! a process and without a relay set. Used early in the boot, and when a box is detached while its
//! host is to stay online. `run` takes it over as it takes a box over.

use super::nics::{self, Nics};
use super::parts::{Loaded, Parts};
use super::record::Record;
use super::wire::abandon;
use super::{DaemonError, detach};
use crate::settings::{Engine, Settings, ZeroCopy};
use crossbeam::channel;
use exitmark_datapath::Pins;
use exitmark_nic::{Nic, NicError};
use exitmark_policy::Snapshot;
use exitmark_relays::LiveSet;
use exitmark_service::process;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// The poll interval while waiting for a missing NIC.
const PAUSE: Duration = Duration::from_millis(50);

/// How to treat programs that a box has left on its NICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Keep them: they go on marking and steering without a process.
    Keep,
    /// Replace them by the plain wire.
    Replace,
}

/// Attaches plain wires and leaves them to the kernel. Waits up to `timeout` for missing NICs, and
/// sets up those that are down. Returns the names of the two NICs of each wire; a wire of which a
/// box's programs are attached and kept is left out.
///
/// # Errors
/// A precondition of the settings is not met on this machine, or a box runs. The other wires are
/// attached all the same.
pub(crate) fn wires(
    settings: &Settings,
    timeout: Duration,
    existing: Existing,
) -> Result<Vec<[String; 2]>, DaemonError> {
    if let (Some(user), true) = (&settings.user, process::is_root()) {
        process::become_user(user)?;
    }
    process::forbid_dumps()?;
    if settings.wires.is_empty() {
        return Err(DaemonError::Unmet(
            "engine = \"connect\" uses no NIC, so there is no wire to attach: `systemctl disable \
             exitmark-wire`, or set another engine and [ports]"
                .to_owned(),
        ));
    }
    nics::object(settings)?;
    let deadline = Instant::now() + timeout;
    let mut done = Vec::new();
    let mut failed = None;
    // Held until all are attached: with several wires, each has a directory of its own within it.
    let directory = match settings.wires.len() {
        1 => None,
        _ => Some(Pins::open(&settings.pin.directory)?),
    };
    if existing == Existing::Replace {
        detach::take_off_others(settings, directory.as_ref())?;
    }
    let wires = 0..settings.wires.len();
    let mut waiting: Vec<_> = wires.map(|number| settings.of_wire(number)).collect();
    while !waiting.is_empty() {
        let is_over = Instant::now() >= deadline;
        waiting.retain(|settings| match wire(settings.clone(), existing) {
            Ok(names) => {
                done.extend(names);
                false
            }
            Err(DaemonError::Nic(NicError::Missing(_))) if !is_over => true,
            Err(error) => {
                failed.get_or_insert(error);
                false
            }
        });
        if !waiting.is_empty() {
            thread::sleep(PAUSE);
        }
    }
    drop(directory);
    match failed {
        Some(error) if done.is_empty() => Err(error),
        Some(error) => Err(DaemonError::SomeWires(names_of(&done), Box::new(error))),
        None => Ok(done),
    }
}

fn names_of(wires: &[[String; 2]]) -> String {
    let wires: Vec<_> = wires.iter().map(|names| names.join(" and ")).collect();
    wires.join(", ")
}

/// Attaches the plain wire of these settings.
fn wire(mut settings: Settings, existing: Existing) -> Result<Option<[String; 2]>, DaemonError> {
    if existing == Existing::Keep && !Pins::peek(&settings.pin.directory).is_empty() {
        return Ok(None);
    }
    let Some(ports) = &mut settings.ports else {
        return Ok(None);
    };
    ports.incoming = None;
    let names = [&ports.host, &ports.uplink].map(String::clone);
    // Both before the first one is changed.
    let [host, uplink] = names.each_ref().map(|name| Nic::look(name));
    for nic in [host?, uplink?] {
        if !nic.is_up {
            nic.set_up(false)?;
        }
    }
    // Only what the program does by itself, and none of the policy.
    settings.engine = Engine::Xdp;
    settings.datapath.zero_copy = ZeroCopy::Off;
    settings.rules = Arc::new(settings.rules.passing());
    let nics = Nics::look(&settings)?;
    let pins = Pins::open(&settings.pin.directory)?;
    let record = Record::of(&settings.control.socket, &settings.pin.directory);
    let was_attached = pins.are_attached()?;
    let rules = Arc::clone(&settings.rules);
    let nothing = LiveSet::default().endpoints(&[])?;
    let snapshot = Arc::new(Snapshot::new(1, rules, nothing));
    let (events, _happening) = channel::unbounded();
    let due = Instant::now();
    let kept = (&pins, &record);
    let assembled = Loaded::load(&settings, &nics, &snapshot, &pins).and_then(|loaded| {
        Parts::assemble(&settings, &nics, &snapshot, kept, &events, loaded, due)
    });
    match assembled.and_then(Parts::leave) {
        Ok(()) => Ok(Some(names)),
        Err(error) => Err(abandon(error, pins, &record, was_attached)),
    }
}
