//! A wire: the NICs `host` and `uplink`, and the program, maps, pins, sockets and workers between
//! them. A box has one or several, which share the policy, the relay set, and possibly the NIC
//! `incoming`.

use super::audit::AuditHandle;
use super::blind::Sight;
use super::bound::BoundState;
use super::counters::Counted;
use super::faults::PortFault;
use super::groups::GroupLedger;
use super::link_loss::Carrying;
use super::nics::Nics;
use super::parts::{Loaded, Parts};
use super::ports::Following;
use super::record::Record;
use super::rising::Rising;
use super::sides::Sides;
use super::steering::Steering;
use super::tap::Tap;
use super::topology::Topology;
use super::workers::Workers;
use super::{DaemonError, Event, detach, tap};
use crate::settings::{OnStop, Settings};
use caps::Capability;
use crossbeam::channel::Sender;
use exitmark_datapath::{
    Attachment, DropCounters, GroupCounts, Kernel, KernelCounts, Links, PerRole, Pins, Role,
    is_connect_attached,
};
use exitmark_nic::Nic;
use exitmark_policy::Snapshot;
use exitmark_policy::packet::MacAddr;
use exitmark_service::process;
use nix::unistd::{Gid, Uid};
use std::sync::Arc;
use std::time::Instant;

/// A wire that is about to be set up: its NICs are checked, its pins are locked.
pub(super) struct Prepared {
    /// The settings of the box, with the ports and the pin directory of this wire.
    pub(super) settings: Settings,
    pub(super) nics: Nics,
    pub(super) pins: Pins,
    pub(super) record: Record,
    was_attached: bool,
}

/// A wire that is set up.
pub(super) struct Wire {
    /// The settings of the box, with the ports and the pin directory of this wire.
    pub(super) settings: Settings,
    /// The snapshot in force.
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) bound: BoundState,
    pub(super) kernel: Kernel,
    /// The kernel's counters when they were last read, and the most frames reported as forwarded.
    pub(super) counts: KernelCounts,
    pub(super) forwarded: PerRole<u64>,
    pub(super) sights: PerRole<Sight>,
    pub(super) sides: Sides,
    pub(super) topology: Topology,
    pub(super) group_ledger: GroupLedger<GroupCounts>,
    /// Ports for which truncated frames were already logged.
    pub(super) cut_logged: PerRole<bool>,
    pub(super) following: Following,
    pub(super) rising: Rising,
    pub(super) pins: Pins,
    pub(super) record: Record,
    /// Why pins that were removed cannot be made again.
    pub(super) unpinned: Option<String>,
    /// The open XDP links: they keep the programs attached, also without pins.
    pub(super) attachments: Vec<Attachment>,
    pub(super) drop_counters: DropCounters,
    pub(super) workers: Workers,
    pub(super) steering: Steering,
    pub(super) links: Arc<Links>,
    pub(super) audit: AuditHandle,
    /// The tap, if the wire has one.
    pub(super) tap: Option<Tap>,
    /// The MAC addresses of the hosts behind the other wires; `None` until each of these is known
    /// to have a host.
    pub(super) other_macs: Option<Vec<MacAddr>>,
    /// The loss of a link, if it is carried from one side to the other.
    pub(super) carrying: Option<Carrying>,
    /// For workers that are started later.
    pub(super) events: Sender<Event>,
    was_attached: bool,
}

impl Prepared {
    /// Checks the NICs of a wire and opens its pins. Nothing is changed. `of_box` has all wires.
    pub(super) fn look(settings: Settings, of_box: &Settings) -> Result<Self, DaemonError> {
        detach::set_up_held(&settings)?;
        let nics = Nics::look(&settings)?;
        nics.remark(&settings);
        tap::check(&settings, of_box)?;
        let pins = Pins::open(&settings.pin.directory)?;
        let record = Record::of(&settings.control.socket, &settings.pin.directory);
        if is_connect_attached(&pins)? {
            return Err(DaemonError::Unmet(format!(
                "engine connect is attached by the pins in {}: `exitmark detach` first, or another \
                 pin.directory",
                settings.pin.directory.display()
            )));
        }
        let was_attached = pins.are_attached()?;
        Ok(Self {
            settings,
            nics,
            pins,
            record,
            was_attached,
        })
    }

    /// The interface index of the NIC `incoming`, if it has one.
    pub(super) fn incoming(&self) -> Option<u32> {
        Some(self.nics.incoming()?.index)
    }

    /// Loads the program of this wire.
    pub(super) fn load(&self, snapshot: &Snapshot) -> Result<Loaded, DaemonError> {
        Loaded::load(&self.settings, &self.nics, snapshot, &self.pins)
    }

    /// Undoes a failed start: detaches, unless the wire was attached before and goes on by itself.
    pub(super) fn abandon(self, error: DaemonError) -> DaemonError {
        abandon(error, self.pins, &self.record, self.was_attached)
    }

    /// Sets the wire up.
    pub(super) fn start(
        self,
        loaded: Loaded,
        snapshot: &Arc<Snapshot>,
        events: &Sender<Event>,
        due: Instant,
    ) -> Result<Wire, DaemonError> {
        let (settings, nics) = (&self.settings, &self.nics);
        let kept = (&self.pins, &self.record);
        let parts = match Parts::assemble(settings, nics, snapshot, kept, events, loaded, due) {
            Ok(parts) => parts,
            Err(error) => return Err(self.abandon(error)),
        };
        let mut wire = Wire {
            settings: self.settings,
            snapshot: Arc::clone(snapshot),
            bound: parts.assembly.bound,
            kernel: parts.kernel,
            counts: KernelCounts::default(),
            forwarded: PerRole::default(),
            sights: PerRole::default(),
            sides: Sides::default(),
            topology: Topology::default(),
            group_ledger: GroupLedger::default(),
            cut_logged: PerRole::default(),
            following: Following::default(),
            rising: Rising::default(),
            pins: self.pins,
            record: self.record,
            unpinned: None,
            attachments: parts.assembly.attachments,
            drop_counters: parts.drop_counters,
            workers: parts.assembly.workers,
            steering: parts.steering,
            links: parts.links,
            audit: parts.audit,
            tap: parts.tap,
            other_macs: None,
            carrying: None,
            events: events.clone(),
            was_attached: self.was_attached,
        };
        match wire.settle() {
            Ok(()) => Ok(wire),
            Err(error) => {
                wire.end();
                Err(wire.abandon(error))
            }
        }
    }
}

/// Undoes a failed start: detaches, unless the box was attached before and goes on by itself.
pub(super) fn abandon(
    error: DaemonError,
    pins: Pins,
    record: &Record,
    was_attached: bool,
) -> DaemonError {
    if !was_attached && let Err(failed) = detach::take_off(pins, record) {
        tracing::error!(
            "the NIC settings cannot be restored: {failed}; `exitmark detach` restores them"
        );
    }
    error
}

/// With `on_stop = "detach"`, makes sure that this process can remove its pins: chowns them and
/// checks that the directory is accessible.
pub(super) fn own_pins(settings: &Settings, pins: &Pins) -> Result<(), DaemonError> {
    if process::is_root() || settings.pin.on_stop == OnStop::Keep {
        return Ok(());
    }
    let directory = &settings.pin.directory;
    pins.give_to(Uid::effective(), Gid::effective())?;
    let reach = [
        Capability::CAP_DAC_OVERRIDE,
        Capability::CAP_DAC_READ_SEARCH,
    ];
    process::without(&reach, || std::fs::read_dir(directory).map(drop)).map_err(|_| {
        DaemonError::Unmet(format!(
            "pin.on_stop = \"detach\": the user of this process cannot access {}; mount a BPF \
             file system of its own (`mount -t bpf -o mode=711 bpf DIRECTORY`) and name a \
             directory in it in pin.directory, or use \"keep\"",
            directory.display()
        ))
    })
}

impl Wire {
    /// Whether the host's NIC has carrier, as far as was last observed.
    pub(super) fn has_host_link(&self) -> bool {
        let mut faults = self.following.faults[Role::Host].iter();
        !faults.any(PortFault::is_without_link)
    }

    /// Publishes a snapshot; fails without a change.
    pub(super) fn publish(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), DaemonError> {
        self.audit.follow(snapshot);
        if let Err(error) = self.kernel.publish(snapshot) {
            self.audit.follow(&self.snapshot);
            return Err(error.into());
        }
        self.workers.publish(snapshot);
        if let Some(tap) = &self.tap {
            tap.publish(snapshot);
        }
        Ok(())
    }

    /// Other settings of the box, with the ports and the pin directory of this wire.
    pub(super) fn with_ports(&self, settings: &Settings) -> Settings {
        let wires = &settings.wires;
        let number = wires.iter().position(|wire| wire.name == self.name());
        settings.of_wire(number.unwrap_or_default())
    }

    /// Its name in the configuration.
    pub(super) fn name(&self) -> &str {
        let wire = self.settings.wires.first();
        wire.map_or("", |wire| wire.name.as_str())
    }

    /// The interface index of the NIC `incoming`, if it has one.
    pub(super) fn incoming(&self) -> Option<u32> {
        Some(self.incoming_nic()?.index)
    }

    /// The NIC `incoming`, if it has one.
    pub(super) fn incoming_nic(&self) -> Option<&Nic> {
        let port = self.bound.of(self.links.incoming_port()?)?;
        Some(&port.nic)
    }

    /// The NIC names, attach modes and engine, as announced when the box is ready.
    pub(super) fn describe(&self) -> String {
        let ports = self.bound.ports.iter();
        ports
            .map(|port| format!(" {}={} xdp={}", port.role, port.nic.name, port.mode))
            .collect()
    }

    /// What follows the attachment.
    fn settle(&mut self) -> Result<(), DaemonError> {
        self.carrying = Carrying::of(&self.settings);
        own_pins(&self.settings, &self.pins)
    }

    /// Closes the sockets where zero-copy kept the program from redirecting, and allows redirects:
    /// a queue leaves zero-copy mode when its socket is closed.
    pub(super) fn leave_to_kernel(&mut self) {
        if let Some((unblocked, longest)) = self.bound.afterwards {
            self.workers.close();
            self.links.allow_redirects(unblocked, longest);
        }
    }

    /// Ends the threads and leaves forwarding to the program, after a failed start.
    pub(super) fn end(&mut self) {
        self.stop_carrying();
        self.steering.end();
        let _ = self.workers.dismiss(&self.kernel);
        self.workers.end();
        self.end_tap();
        self.audit.end();
        self.leave_to_kernel();
    }

    fn end_tap(&mut self) {
        if let Some(tap) = &mut self.tap {
            tap.end();
        }
    }

    /// Undoes a failed start, after [`Self::end`].
    pub(super) fn abandon(self, error: DaemonError) -> DaemonError {
        abandon(error, self.pins, &self.record, self.was_attached)
    }

    /// Removes the sockets from the XSKMAP, drains, joins and checks that every frame is accounted
    /// for. Then the kernel decides by itself, or with `on_stop = "detach"` and without `keeps` the
    /// wire is detached.
    pub(super) fn stop(mut self, keeps: bool) -> (Counted, Result<(), DaemonError>) {
        self.stop_carrying();
        self.steering.end();
        let dismissed = self.workers.dismiss(&self.kernel);
        let reports = self.workers.end();
        self.end_tap();
        self.audit.end();
        if let Err(error) = self.kernel.forget_samples() {
            tracing::warn!("the last samples stay in the kernel's memory: {error}");
        }
        let counted = self.counted();
        self.leave_to_kernel();
        let left = match self.settings.pin.on_stop {
            OnStop::Detach if !keeps => detach::take_off(self.pins, &self.record).map(drop),
            OnStop::Detach | OnStop::Keep => Ok(()),
        };
        let failure = reports.into_iter().enumerate().find_map(|(index, report)| {
            let Some(report) = report else {
                return Some(DaemonError::WorkerDied(index));
            };
            let unaccounted = report.balance.unaccounted();
            let is_sound = unaccounted == 0 && report.pool_is_sound;
            (!is_sound).then_some(DaemonError::FramesLost(index, unaccounted))
        });
        let stopped = left.and(dismissed);
        (counted, stopped.and(failure.map_or(Ok(()), Err)))
    }
}
