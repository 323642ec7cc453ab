//! Connects the other modules to a running box: start order, signals, stop order.
//!
//! Start: read the NICs, load the relay set, open the pins, load the XDP program, publish the
//! policy to it, bind the sockets, fill, start the workers, and only then attach, replacing what
//! another process left attached. Stop: remove the sockets from the XSKMAP, so that the kernel
//! decides by itself, drain, join; the programs stay attached unless `pin.on_stop` is `detach`.

mod audit;
mod blind;
mod bound;
mod capabilities;
mod connect;
mod counters;
mod detach;
mod error;
mod faults;
mod groups;
mod in_force;
mod nics;
mod parts;
mod ports;
mod queues;
mod record;
mod relay_handle;
mod relays;
mod report;
mod requests;
mod rising;
mod sides;
mod steering;
mod topology;
mod wire;
mod workers;
mod zero_copy;

use crate::control::{ControlSettings, Listeners, Server};
use crate::settings::{OnStop, Settings};
use audit::AuditHandle;
use blind::Sight;
use bound::BoundState;
use caps::Capability;
use counters::print_line;
use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use exitmark_datapath::{
    Attachment, DropCounters, GroupCounts, Kernel, KernelCounts, Links, PerRole, Pins,
    is_connect_attached,
};
use exitmark_nic::LinkWatch;
use exitmark_policy::{Rules, Snapshot};
use exitmark_service::process::{self, Service};
use groups::GroupLedger;
use in_force::{Engine, InForce};
use nics::Nics;
use nix::unistd::{Gid, Uid};
use parts::Parts;
use ports::Following;
use record::Record;
use relay_handle::Update;
use relays::RelayService;
use requests::{Request, Requests};
use rising::Rising;
use sides::Sides;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use steering::Steering;
use topology::Topology;
use workers::Workers;

pub(crate) use detach::{BY_HAND, Detached, detach};
pub(crate) use error::DaemonError;
pub(crate) use wire::{Existing, wire};

/// How often the main thread retries what failed and checks the relay service.
const TICK: Duration = Duration::from_secs(60);

/// A running box: the state of its main thread.
struct Daemon {
    in_force: InForce,
    bound: BoundState,
    started: (SystemTime, Instant),
    kernel: Kernel,
    /// The kernel's counters when they were last read, and the most frames reported as forwarded.
    counts: KernelCounts,
    forwarded: PerRole<u64>,
    sights: PerRole<Sight>,
    sides: Sides,
    topology: Topology,
    group_ledger: GroupLedger<GroupCounts>,
    /// Ports for which truncated frames were already logged.
    cut_logged: PerRole<bool>,
    following: Following,
    rising: Rising,
    /// Follows rtnetlink link messages; the flag is set while an [`Event::Links`] is pending.
    link_watch: Option<LinkWatch>,
    links_changed: Arc<AtomicBool>,
    pins: Pins,
    record: Record,
    /// Why pins that were removed cannot be made again.
    unpinned: Option<String>,
    /// The open XDP links: they keep the programs attached, also without pins.
    attachments: Vec<Attachment>,
    drop_counters: DropCounters,
    workers: Workers,
    steering: Steering,
    links: Arc<Links>,
    service: Service,
    audit: AuditHandle,
    /// For workers that are started later.
    events: Sender<Event>,
    /// The control server; dropped before everything else stops.
    control: Option<Server>,
}

/// The parts of a box that apply what is in force.
struct Wire<'d> {
    kernel: &'d Kernel,
    workers: &'d mut Workers,
    audit: &'d mut AuditHandle,
    steering: &'d mut Steering,
}

impl Engine for Wire<'_> {
    fn rules(&self, settings: &Settings) -> Arc<Rules> {
        self.steering.numbered(settings)
    }

    fn check(&self, settings: &Settings) -> Result<(), DaemonError> {
        if !self.workers.suit(settings) {
            return Err(DaemonError::Unmet(
                "host.vlan and steer.vlan differ in the number of their tags, and the sockets of \
                 this process cannot replace tags: changed only by a restart, which loses no \
                 fast-path frame: `systemctl restart exitmark`, or stop and start it"
                    .to_owned(),
            ));
        }
        nics::object(settings)
    }

    fn change(&mut self, settings: &Settings) -> Result<(), DaemonError> {
        self.steering.change(settings)
    }

    fn publish(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), DaemonError> {
        self.audit.follow(snapshot);
        self.kernel.publish(snapshot)?;
        self.workers.publish(snapshot);
        Ok(())
    }

    fn changed(&mut self, _: &Settings) {
        self.steering.forget();
    }
}

/// What the main thread waits for.
enum Event {
    Signal(i32),
    Relays(Update),
    /// The outcome of the reconfiguration with this number: its relay set, or why it was refused.
    Reconfigured(u64, Result<Update, String>),
    RelayServiceEnded,
    /// The next hop, its MAC address or its carrier has changed.
    NextHop,
    Links,
    Request(Request),
    WorkerEnded(usize),
}

/// Runs the box until SIGTERM or SIGINT. SIGHUP reads the configuration at `path` again, SIGUSR1
/// prints the counters.
///
/// # Errors
/// A precondition of the settings is not met on this machine, or a worker failed.
pub(crate) fn run(settings: Settings, path: &Path) -> Result<(), DaemonError> {
    let service = Service::find();
    if let (Some(user), true) = (&settings.user, process::is_root()) {
        process::become_user(user)?;
    }
    process::forbid_dumps()?;
    let (events, happening) = channel::unbounded();
    listen(events.clone())?;
    if settings.engine == crate::settings::Engine::Connect {
        return connect::run(settings, path, events, &happening, service);
    }
    let mut running = Daemon::start(settings, path, events, service)?;
    let end = running.follow(&happening);
    // Pending control requests fail at once instead of waiting.
    drop(happening);
    let stopped = running.stop();
    end.and(stopped)
}

/// Starts the thread that sends an event for each signal.
fn listen(events: Sender<Event>) -> Result<(), DaemonError> {
    let failed = |error| DaemonError::System("wait for signals", error);
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1, SIGHUP]).map_err(failed)?;
    let thread = std::thread::Builder::new().name("exitmark-signals".to_owned());
    thread
        .spawn(move || {
            process::keep_or_say(capabilities::NONE);
            for signal in signals.forever() {
                if events.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        })
        .map_err(failed)?;
    Ok(())
}

/// Undoes a failed start: detaches, unless the box was attached before and goes on by itself.
fn abandon(error: DaemonError, pins: Pins, record: &Record, was_attached: bool) -> DaemonError {
    if !was_attached && let Err(failed) = detach::take_off(pins, record) {
        tracing::error!(
            "the NIC settings cannot be restored: {failed}; `exitmark detach` restores them"
        );
    }
    error
}

/// Opens the control and metrics sockets and loads the relay set, before any map is created.
fn begin(settings: &Settings) -> Result<(Listeners, RelayService, Update), DaemonError> {
    let listeners = Listeners::open(&ControlSettings {
        socket: settings.control.socket.clone(),
        group: settings.control.group.clone(),
        metrics: settings.metrics,
    })?;
    let (relay_service, first) = match process::is_root() {
        true => RelayService::begin(settings)?,
        false => process::without(&[Capability::CAP_DAC_OVERRIDE], || {
            RelayService::begin(settings)
        })?,
    };
    Ok((listeners, relay_service, first))
}

/// Starts the relay service and the control server.
fn serve(
    relay_service: RelayService,
    listeners: Listeners,
    events: Sender<Event>,
) -> Result<Server, DaemonError> {
    // Also without documents, which a reload may add.
    let of_relay_service = match process::is_root() {
        true => capabilities::OF_ROOTS_RELAY_SERVICE,
        false => capabilities::OF_RELAY_SERVICE,
    };
    relay_service.start(events.clone(), of_relay_service)?;
    let started = listeners.serve(Arc::new(Requests(events)), || {
        process::keep_or_say(capabilities::NONE);
    });
    started.map_err(|error| DaemonError::System("answer the control socket", error))
}

/// Keeps these capabilities of the main thread, and forbids system calls to all threads; sockets of
/// these families stay allowed.
fn confine(
    capabilities: &'static [Capability],
    families: &[nix::libc::c_int],
) -> Result<(), DaemonError> {
    process::keep(capabilities)
        .map_err(|error| DaemonError::System("give up capabilities", error))?;
    process::forbid_system_calls(&[], families)
        .map_err(|error| DaemonError::System("forbid system calls to itself", error))
}

/// With `on_stop = "detach"`, makes sure that this process can remove its pins: chowns them and
/// checks that the directory is accessible.
fn own_pins(settings: &Settings, pins: &Pins) -> Result<(), DaemonError> {
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

impl Daemon {
    fn start(
        settings: Settings,
        path: &Path,
        events: Sender<Event>,
        service: Service,
    ) -> Result<Self, DaemonError> {
        let nics = Nics::look(&settings)?;
        nics.remark(&settings);
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
        let (listeners, relay_service, first) = match begin(&settings) {
            Ok(begun) => begun,
            Err(error) => return Err(abandon(error, pins, &record, was_attached)),
        };
        let rules = Arc::clone(&settings.rules);
        let in_force = InForce::new(settings, path, rules, relay_service.handle(), first);
        let (settings, snapshot) = (&in_force.settings, &in_force.snapshot);
        let parts = match Parts::assemble(settings, &nics, snapshot, (&pins, &record), &events) {
            Ok(parts) => parts,
            Err(error) => return Err(abandon(error, pins, &record, was_attached)),
        };
        let ready = parts.describe(snapshot.relays.len());
        let mut daemon = Self {
            in_force,
            bound: parts.assembly.bound,
            started: (SystemTime::now(), Instant::now()),
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
            link_watch: None,
            links_changed: Arc::default(),
            pins,
            record,
            unpinned: None,
            attachments: parts.assembly.attachments,
            drop_counters: parts.drop_counters,
            workers: parts.assembly.workers,
            steering: parts.steering,
            links: parts.links,
            service,
            audit: parts.audit,
            events: events.clone(),
            control: None,
        };
        // The baseline: earlier counts must not raise alarms.
        daemon.look_at_counters();
        match daemon.settle(relay_service, listeners, events) {
            Ok(()) => {}
            Err(error) => {
                let _ = daemon.workers.dismiss(&daemon.kernel);
                daemon.workers.end();
                daemon.leave_to_kernel();
                return Err(abandon(error, daemon.pins, &daemon.record, was_attached));
            }
        }
        print_line(&ready);
        daemon.service.is_ready(&ready);
        Ok(daemon)
    }

    /// Starts the relay service, the link watch and the control server, and drops capabilities.
    fn settle(
        &mut self,
        relay_service: RelayService,
        listeners: Listeners,
        events: Sender<Event>,
    ) -> Result<(), DaemonError> {
        own_pins(&self.in_force.settings, &self.pins)?;
        let changed = Arc::clone(&self.links_changed);
        self.link_watch = Some(ports::watch(events.clone(), changed)?);
        self.control = Some(serve(relay_service, listeners, events)?);
        // AF_XDP stays allowed: the sockets of a port that comes back are opened later.
        confine(capabilities::OF_MAIN, &[nix::libc::AF_XDP])
    }

    /// The event loop; returns when the box is to stop.
    fn follow(&mut self, happening: &Receiver<Event>) -> Result<(), DaemonError> {
        let mut looked = Instant::now();
        let mut looked_at_ports = Instant::now();
        loop {
            let workers = &self.workers;
            self.service.beat(|| workers.are_alive());
            let rest = TICK
                .saturating_sub(looked.elapsed())
                .min(blind::LOOK.saturating_sub(looked_at_ports.elapsed()));
            let timeout = self
                .service
                .until_watchdog()
                .map_or(rest, |due| due.min(rest));
            let event = happening.recv_timeout(timeout);
            if looked.elapsed() >= TICK {
                looked = Instant::now();
                let (in_force, mut wire) = self.split();
                in_force.look_around(&mut wire);
            }
            if looked_at_ports.elapsed() >= blind::LOOK {
                self.look_at_links()?;
                self.look_at_pins();
                self.look_at_counters();
                looked_at_ports = Instant::now();
            }
            match event {
                Ok(Event::Signal(SIGUSR1)) => self.print_counters(),
                Ok(Event::Signal(SIGHUP)) => {
                    let (in_force, mut wire) = self.split();
                    in_force.reload(&mut wire, None);
                }
                Ok(Event::Signal(_)) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Ok(Event::Relays(update)) => {
                    let (in_force, mut wire) = self.split();
                    in_force.publish_relays(&mut wire, update);
                }
                Ok(Event::Reconfigured(number, outcome)) => {
                    let (in_force, mut wire) = self.split();
                    in_force.reconfigured(&mut wire, number, outcome);
                }
                Ok(Event::RelayServiceEnded) => self.in_force.without_relay_service(),
                Ok(Event::NextHop) => self.steering.log_change(),
                Ok(Event::Links) => {
                    // Before the check: a change during it sends another event.
                    self.links_changed.store(false, Ordering::Release);
                    self.look_at_links()?;
                }
                Ok(Event::Request(request)) => self.answer(request),
                Ok(Event::WorkerEnded(worker)) => return Err(DaemonError::WorkerDied(worker)),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// What is in force, and the parts that apply it.
    fn split(&mut self) -> (&mut InForce, Wire<'_>) {
        let wire = Wire {
            kernel: &self.kernel,
            workers: &mut self.workers,
            audit: &mut self.audit,
            steering: &mut self.steering,
        };
        (&mut self.in_force, wire)
    }

    /// Closes the sockets where zero-copy kept the program from redirecting, and allows redirects:
    /// a queue leaves zero-copy mode when its socket is closed.
    fn leave_to_kernel(&mut self) {
        if let Some((unblocked, longest)) = self.bound.afterwards {
            self.workers.close();
            self.links.allow_redirects(unblocked, longest);
        }
    }

    /// Removes the sockets from the XSKMAP, drains, joins and checks that every frame is accounted
    /// for. Then the kernel decides by itself, or with `on_stop = "detach"` the box is detached.
    fn stop(mut self) -> Result<(), DaemonError> {
        self.service.is_stopping();
        self.in_force.stop();
        self.control = None;
        self.link_watch = None;
        self.steering.end();
        let dismissed = self.workers.dismiss(&self.kernel);
        let reports = self.workers.end();
        self.audit.end();
        if let Err(error) = self.kernel.forget_samples() {
            tracing::warn!("the last samples stay in the kernel's memory: {error}");
        }
        self.print_counters();
        self.leave_to_kernel();
        if self.in_force.settings.pin.on_stop == OnStop::Detach {
            detach::take_off(self.pins, &self.record)?;
        }
        dismissed?;
        reports
            .into_iter()
            .enumerate()
            .find_map(|(index, report)| match report {
                None => Some(DaemonError::WorkerDied(index)),
                Some(report) if report.balance.unaccounted() > 0 || !report.pool_is_sound => {
                    Some(DaemonError::FramesLost(index, report.balance.unaccounted()))
                }
                Some(_) => None,
            })
            .map_or(Ok(()), Err)
    }
}
