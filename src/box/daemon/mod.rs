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
mod captures;
mod connect;
mod counters;
mod detach;
mod error;
mod faults;
mod groups;
mod in_force;
mod link_loss;
mod nics;
mod parts;
mod plain;
mod ports;
mod queues;
mod record;
mod relay_handle;
mod relays;
mod report;
mod requests;
mod rising;
mod roaming;
mod sides;
mod sources;
mod starting;
mod steering;
mod tap;
mod topology;
mod wire;
mod wires;
mod workers;
mod zero_copy;

use crate::control::{ControlSettings, Listeners, Server};
use crate::settings::Settings;
use caps::Capability;
use counters::{Counted, print_line};
use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use exitmark_nic::LinkWatch;
use exitmark_service::process::{self, Service};
use in_force::InForce;
use relay_handle::Update;
use relays::RelayService;
use requests::{Request, Requests};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use starting::PreparedWires;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use wire::Wire;
use wires::Wires;

pub(crate) use detach::{BY_HAND, Detached, detach};
pub(crate) use error::DaemonError;
pub(crate) use plain::{Existing, wires};

/// How often the main thread retries what failed and checks the relay service.
const TICK: Duration = Duration::from_secs(60);

/// A running box: the state of its main thread.
struct Daemon {
    in_force: InForce,
    wires: Wires,
    started: (SystemTime, Instant),
    /// Follows rtnetlink link messages; the flag is set while an [`Event::Links`] is pending.
    link_watch: Option<LinkWatch>,
    links_changed: Arc<AtomicBool>,
    service: Service,
    /// The control server; dropped before everything else stops.
    control: Option<Server>,
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
    // Before the process gives up being root.
    workers::open_cpu_latency(&settings);
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
    // The next start takes the programs over.
    let keeps = matches!(end, Err(DaemonError::WireIsBack(_)));
    let stopped = running.stop(keeps);
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
/// these families stay allowed, and so do these calls.
fn confine(
    capabilities: &'static [Capability],
    calls: &[i64],
    families: &[nix::libc::c_int],
) -> Result<(), DaemonError> {
    process::keep(capabilities)
        .map_err(|error| DaemonError::System("give up capabilities", error))?;
    process::forbid_system_calls(calls, families)
        .map_err(|error| DaemonError::System("forbid system calls to itself", error))
}

impl Daemon {
    fn start(
        settings: Settings,
        path: &Path,
        events: Sender<Event>,
        service: Service,
    ) -> Result<Self, DaemonError> {
        sources::refuse_listener(&settings)?;
        let prepared = PreparedWires::look(&settings)?;
        let (listeners, relay_service, first) = match begin(&settings) {
            Ok(begun) => begun,
            Err(error) => return Err(prepared.abandon(error)),
        };
        let rules = Arc::clone(&settings.rules);
        let in_force = InForce::new(settings, path, rules, relay_service.handle(), first);
        let wires = prepared.start(&in_force.snapshot, &events)?;
        wires.log_failures();
        let mut daemon = Self {
            in_force,
            wires,
            started: (SystemTime::now(), Instant::now()),
            link_watch: None,
            links_changed: Arc::default(),
            service,
            control: None,
        };
        let ready = daemon.describe();
        // The baseline: earlier counts must not raise alarms.
        daemon.look_at_counters();
        if let Err(error) = daemon.settle(relay_service, listeners, events) {
            return Err(daemon.wires.abandon(error));
        }
        print_line(&ready);
        daemon.service.is_ready(&ready);
        Ok(daemon)
    }

    /// The line that announces readiness, on stdout and to the service manager.
    fn describe(&self) -> String {
        let wires = &self.wires.all;
        let engine = wires.first().map_or("", |wire| wire.bound.engine.name());
        let workers: usize = wires.iter().map(|wire| wire.workers.count()).sum();
        let relays = self.in_force.snapshot.relays.len();
        let ports: String = wires.iter().map(Wire::describe).collect();
        format!("ready: engine={engine} workers={workers} relays={relays}{ports}")
    }

    /// Starts the relay service, the link watch and the control server, and drops capabilities.
    fn settle(
        &mut self,
        relay_service: RelayService,
        listeners: Listeners,
        events: Sender<Event>,
    ) -> Result<(), DaemonError> {
        let changed = Arc::clone(&self.links_changed);
        self.link_watch = Some(ports::watch(events.clone(), changed)?);
        self.wires.watch(&events)?;
        self.control = Some(serve(relay_service, listeners, events)?);
        // The sockets of a port that comes back are opened later. Those of AF_PACKET, by which several
        // wires and taps send, are used by other threads.
        let settings = &self.in_force.settings;
        let has_tap = settings.wires.iter().any(|wire| wire.ports.tap.is_some());
        let (calls, families): (&[_], &[_]) = match settings.wires.len() {
            0 | 1 if !has_tap => (&[], &[nix::libc::AF_XDP]),
            _ => (
                &[nix::libc::SYS_sendmmsg],
                &[nix::libc::AF_XDP, nix::libc::AF_PACKET],
            ),
        };
        confine(capabilities::OF_MAIN, calls, families)
    }

    /// Compares the counts with those of the last look.
    fn look_at_counters(&mut self) {
        let lacks_relays = self.in_force.relay_service.numbers.report().is_missing;
        self.wires.look_at_counters(lacks_relays);
    }

    fn print_counters(&self) {
        let wires = self.wires.all.iter().map(Wire::counted);
        Counted::print(wires.collect(), self.in_force.relay_service.numbers());
    }

    /// The event loop; returns when the box is to stop.
    fn follow(&mut self, happening: &Receiver<Event>) -> Result<(), DaemonError> {
        let mut looked = Instant::now();
        let mut looked_at_ports = Instant::now();
        loop {
            let wires = &self.wires;
            self.service.beat(|| wires.are_alive());
            let rest = TICK
                .saturating_sub(looked.elapsed())
                .min(blind::LOOK.saturating_sub(looked_at_ports.elapsed()));
            let timeout = self
                .service
                .until_watchdog()
                .map_or(rest, |due| due.min(rest));
            let event = happening.recv_timeout(timeout);
            let (in_force, wires) = (&mut self.in_force, &mut self.wires);
            if looked.elapsed() >= TICK {
                looked = Instant::now();
                in_force.look_around(wires);
            }
            if looked_at_ports.elapsed() >= blind::LOOK {
                self.wires.look_at_links()?;
                self.wires.look_at_failed()?;
                self.wires.all.iter_mut().for_each(Wire::look_at_pins);
                self.look_at_counters();
                looked_at_ports = Instant::now();
            }
            let (in_force, wires) = (&mut self.in_force, &mut self.wires);
            match event {
                Ok(Event::Signal(SIGUSR1)) => self.print_counters(),
                Ok(Event::Signal(SIGHUP)) => in_force.reload(wires, None),
                Ok(Event::Signal(_)) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Ok(Event::Relays(update)) => in_force.publish_relays(wires, update),
                Ok(Event::Reconfigured(number, outcome)) => {
                    in_force.reconfigured(wires, number, outcome);
                }
                Ok(Event::RelayServiceEnded) => in_force.without_relay_service(),
                Ok(Event::NextHop) => {
                    let wires = wires.all.iter_mut();
                    wires.for_each(|wire| wire.steering.log_change());
                }
                Ok(Event::Links) => {
                    // Before the check: a change during it sends another event.
                    self.links_changed.store(false, Ordering::Release);
                    self.wires.look_at_links()?;
                }
                Ok(Event::Request(request)) => self.answer(request),
                Ok(Event::WorkerEnded(worker)) => return Err(DaemonError::WorkerDied(worker)),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Stops every wire; the first failure is reported after all are stopped.
    fn stop(mut self, keeps: bool) -> Result<(), DaemonError> {
        self.service.is_stopping();
        self.in_force.stop();
        self.control = None;
        self.link_watch = None;
        let relays = self.in_force.relay_service.numbers();
        let (counted, stopped) = self.wires.stop(keeps);
        Counted::print(counted, relays);
        stopped
    }
}
