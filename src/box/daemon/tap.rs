//! The tap of a wire: the NIC that gets copies of the exit packets, and the thread that sends them.
//!
//! The NIC may be missing, down or removed at any time. Nothing waits for it: the copies are then
//! lost and counted, and the port is opened again by itself when the NIC is back.

use super::nics::configured;
use super::workers::Base;
use super::workers::Workers;
use super::{DaemonError, capabilities};
use crate::settings::Settings;
use crossbeam::channel::{self, Sender};
use exitmark_datapath::{PacketPort, TapChange, TapControl, TapSender};
use exitmark_nic::{LinkState, Nic, NicError, Overview, index_of, is_link_local};
use exitmark_policy::Snapshot;
use exitmark_service::process;
use nix::sys::signal::SigSet;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// What a fault of the tap causes.
const LOSS: &str = "exit packets are not copied";
/// The alarms: copies are lost, and the NIC has an address.
const DOWN: &str = "tap_down";
const ADDRESS: &str = "address";
/// How many changes the thread may be behind.
const CHANGES: usize = 16;

/// The tap of a wire.
pub(super) struct Tap {
    /// The configured name of the NIC.
    name: String,
    /// The interface index of the NIC by which the thread sends.
    open: Option<u32>,
    /// The text of each alarm.
    faults: BTreeMap<&'static str, String>,
    changes: Sender<TapChange>,
    stop: Arc<AtomicBool>,
    is_lost: Arc<AtomicBool>,
    snapshot: Arc<Mutex<Arc<Snapshot>>>,
    thread: Option<JoinHandle<()>>,
}

/// Refuses a NIC that cannot be a tap of this wire. It may be missing. Alternative names can make it a
/// port of any wire of the box.
pub(super) fn check(settings: &Settings, of_box: &Settings) -> Result<(), DaemonError> {
    let Some(name) = settings.tap() else {
        return Ok(());
    };
    let nic = match Nic::look(name) {
        Ok(nic) => nic,
        Err(NicError::Missing(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let key = match settings.table_of_nics() {
        "wire" => "wire.tap",
        _ => "ports.tap",
    };
    for (number, wire) in of_box.wires.iter().enumerate() {
        for (role, port) in configured(&of_box.of_wire(number)).iter() {
            let index = port.as_deref().map(index_of).transpose()?;
            if index.flatten() == Some(nic.index) {
                return Err(DaemonError::Unmet(format!(
                    "{key} = \"{name}\" is the NIC {}, which is {role} of the wire {}: the tap gets \
                     copies only; name a NIC of its own",
                    nic.name, wire.name
                )));
            }
        }
    }
    nic.refuse_bundles()?;
    let address = nic.addresses.iter().find(|one| !is_link_local(one));
    if let Some(address) = address {
        return Err(DaemonError::Unmet(format!(
            "{0} ({key}) has the address {address}: the tap is for copies only, and this machine \
             would send its own packets there; remove it with `ip addr del {address} dev {0}`",
            nic.name
        )));
    }
    Ok(())
}

impl Tap {
    /// Starts the thread, if the wire has a tap. The NIC need not be there.
    pub(super) fn start(base: Base<'_>, workers: &Workers) -> Result<Option<Self>, DaemonError> {
        let Some(name) = base.settings.tap() else {
            return Ok(None);
        };
        let sender = TapSender::new(base.kernel.tap_rings()?, workers.counters_of_tap());
        let (changes, received) = channel::bounded(CHANGES);
        let mut tap = Self {
            name: name.to_owned(),
            open: None,
            faults: BTreeMap::new(),
            changes,
            stop: Arc::default(),
            is_lost: Arc::default(),
            snapshot: Arc::new(Mutex::new(Arc::clone(base.snapshot))),
            thread: None,
        };
        tap.serve(workers);
        tap.follow(None, &[]);
        let control = TapControl {
            changes: received,
            stop: Arc::clone(&tap.stop),
            is_lost: Arc::clone(&tap.is_lost),
            snapshot: Arc::clone(&tap.snapshot),
        };
        let thread = thread::Builder::new()
            .name("exitmark-tap".to_owned())
            .spawn(move || {
                let _ = SigSet::all().thread_block();
                process::keep_or_say(capabilities::NONE);
                sender.run(&control);
            })
            .map_err(|error| DaemonError::System("start the tap's thread", error))?;
        tap.thread = Some(thread);
        Ok(Some(tap))
    }

    /// Sends the copies of these workers too, in place of those of earlier ones.
    pub(super) fn serve(&self, workers: &Workers) {
        let _ = self
            .changes
            .try_send(TapChange::Workers(workers.tap_rings()));
    }

    /// Judges slow-path frames by this snapshot from now on.
    pub(super) fn publish(&self, snapshot: &Arc<Snapshot>) {
        let mut in_force = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        *in_force = Arc::clone(snapshot);
    }

    /// Whether copies can be sent.
    pub(super) fn is_up(&self) -> bool {
        !self.faults.contains_key(DOWN)
    }

    /// The alarms: kind and text.
    pub(super) fn faults(&self) -> impl Iterator<Item = (&str, &str)> {
        let faults = self.faults.iter();
        faults.map(|(kind, text)| (*kind, text.as_str()))
    }

    /// The configured name of the NIC.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Looks at the NIC: opens a port of it if it is back, and notes what is wrong. `overview` is of
    /// this machine's NICs, if it is known; `ports` are the interface indexes of all wires' ports.
    pub(super) fn follow(&mut self, overview: Option<&Overview>, ports: &[u32]) {
        let lost = self.look(overview, ports).err();
        let address = match overview {
            Some(overview) => self.address(overview),
            // Until the next look.
            None => self.faults.get(ADDRESS).cloned(),
        };
        for (kind, fault) in [(DOWN, lost), (ADDRESS, address)] {
            if fault.as_ref() == self.faults.get(kind) {
                continue;
            }
            if let Some(text) = fault {
                tracing::error!("ALARM: {text}");
                self.faults.insert(kind, text);
            } else {
                tracing::info!("{} (tap): fault cleared: {kind}", self.name);
                self.faults.remove(kind);
            }
        }
    }

    /// The fault if this machine has an address on the NIC. Copies are sent nevertheless.
    fn address(&self, overview: &Overview) -> Option<String> {
        let (address, name) = (overview.address_of(self.open?)?, &self.name);
        Some(format!(
            "{name} (tap) was given the address {address}, so this machine sends its own packets \
             there, and the next start is refused: `ip address del {address} dev {name}`"
        ))
    }

    /// Opens a port of the NIC if it has a link, and closes it otherwise.
    fn look(&mut self, overview: Option<&Overview>, ports: &[u32]) -> Result<(), String> {
        let found = self.usable(overview, ports);
        let is_lost = self.is_lost.swap(false, Ordering::AcqRel);
        let wanted = found.as_ref().ok().copied();
        if is_lost || self.open != wanted {
            self.close();
        }
        let index = found?;
        if self.open.is_none() {
            let port = PacketPort::open(index, TapSender::ROOM).map_err(|error| {
                format!("{} (tap) cannot be opened: {error}: {LOSS}", self.name)
            })?;
            let sent = self.changes.try_send(TapChange::Port(Some(port)));
            self.open = sent.is_ok().then_some(index);
        }
        Ok(())
    }

    /// The interface index of the NIC if it can send, otherwise what is wrong with it.
    fn usable(&self, overview: Option<&Overview>, ports: &[u32]) -> Result<u32, String> {
        let name = &self.name;
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            return Err(format!(
                "the thread of the tap {name} has ended, a fault of exitmark: {LOSS}; report it, then \
                 restart"
            ));
        }
        let index = index_of(name).map_err(|error| error.to_string())?;
        let state = index.and_then(|index| LinkState::of_index(index).ok().flatten());
        let Some(state) = state else {
            return Err(format!(
                "{name} (tap) is missing: {LOSS} until a NIC of this name is there, which is then used \
                 by itself"
            ));
        };
        if ports.contains(&state.index) {
            return Err(format!(
                "{name} (tap) is a name of the NIC {}, a port of a wire, where copies must not leave: \
                 {LOSS} until another NIC has this name",
                state.name
            ));
        }
        let bundle = state.master.zip(overview);
        if let Some(bundle) = bundle.and_then(|(master, overview)| overview.bundle(master)) {
            return Err(format!(
                "{name} (tap) was made a port of {} ({}), which would forward the copies: {LOSS}; `ip \
                 link set dev {name} nomaster`",
                bundle.name, bundle.kind
            ));
        }
        match (state.is_up, state.has_carrier) {
            (false, _) => Err(format!(
                "{name} (tap) is set down: {LOSS} until `ip link set dev {name} up`"
            )),
            (true, false) => Err(format!(
                "{name} (tap) has no link: {LOSS}; check the cable and the other end"
            )),
            (true, true) => Ok(state.index),
        }
    }

    fn close(&mut self) {
        if self.open.is_some() && self.changes.try_send(TapChange::Port(None)).is_ok() {
            self.open = None;
        }
    }

    /// Sends what is left, and ends the thread. Then no more frames are copied.
    pub(super) fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the tap's thread has panicked");
        }
    }
}

/// Also of a start that has failed.
impl Drop for Tap {
    fn drop(&mut self) {
        self.end();
    }
}
