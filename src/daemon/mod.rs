//! The only place that sees every room: start order, signals, stop order.
//!
//! Start: look at the NICs, load the relay set, take hold of the pins, load the XDP program, give
//! it the policy, bind the sockets, fill, start the workers, and only then attach: in the place
//! of what another process left, if it did. Stop: take the sockets away, so that the kernel
//! decides by itself, drain, join; the attachment stays, unless detaching was asked for.

mod blind;
mod capabilities;
mod counters;
mod detach;
mod error;
mod faults;
mod nics;
mod parts;
mod ports;
mod prompter;
mod queues;
mod record;
mod relays;
mod reload;
mod report;
mod requests;
mod rising;
mod sides;
mod signals;
mod standing;
mod steering;
mod topology;
mod wire;
mod witness;
mod workers;
mod zero_copy;

use crate::control::{ControlSettings, Listeners, Server};
use crate::datapath::{
    Attachment, Kernel, KernelCounts, KernelError, Links, PerRole, Pins, Watches,
};
use crate::nic::LinkWatch;
use crate::policy::{Rules, Snapshot};
use crate::process::{self, Service};
use crate::settings::{OnStop, Settings};
use blind::Sight;
use counters::print_line;
use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use nics::Nics;
use nix::unistd::{Gid, Uid};
use parts::Parts;
use ports::Following;
use prompter::{Prompter, Update};
use record::Record;
use relays::Keeper;
use reload::Reloading;
use requests::{Request, Requests};
use rising::Rising;
use sides::Sides;
use signal_hook::consts::{SIGHUP, SIGUSR1};
use standing::Standing;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use steering::Steering;
use topology::Topology;
use witness::Watch;
use workers::Workers;

pub use detach::{Detached, detach};
pub use error::DaemonError;
pub use wire::{Attached, wire};

/// How often the main thread looks around while nothing happens.
const TICK: Duration = Duration::from_secs(60);

/// A running box.
struct Daemon {
    settings: Settings,
    /// Where the settings were read.
    path: PathBuf,
    standing: Standing,
    started: (SystemTime, Instant),
    snapshot: Arc<Snapshot>,
    /// The rules while the relay set is stale, if nothing is to be marked and steered then.
    passing: Arc<Rules>,
    is_passing: bool,
    prompter: Prompter,
    /// What the kernel would not take.
    unpublished: Option<Update>,
    /// Nobody keeps the relay set any more, and it is stale.
    is_orphaned: bool,
    /// A configuration of which the relay set is being read.
    reloading: Option<Reloading>,
    /// Why the last reload was refused, if it was.
    refused_reload: Option<String>,
    /// Nobody keeps the relay set any more.
    is_unkept: bool,
    /// How many relay sets were ordered for other configurations.
    orders: u64,
    /// How many configurations came into force after the first, and how many were refused.
    reloads: (u64, u64),
    kernel: Kernel,
    /// What it counted when it was read last, and the most that was seen to be forwarded.
    counts: KernelCounts,
    forwarded: PerRole<u64>,
    /// Whether each port's program sees what its NIC receives.
    sights: PerRole<Sight>,
    /// Whether the host is behind `host`.
    sides: Sides,
    /// What of the site the box does not serve.
    topology: Topology,
    /// Of which ports it was said that frames arrive cut.
    cut_told: PerRole<bool>,
    following: Following,
    rising: Rising,
    /// Follows the links; what it has told of and nobody has looked at yet.
    link_watch: Option<LinkWatch>,
    links_changed: Arc<AtomicBool>,
    pins: Pins,
    record: Record,
    /// Why pins that were removed cannot be made again.
    unpinned: Option<String>,
    /// Keep the programs where they are, also without pins.
    attachments: Vec<Attachment>,
    watches: Watches,
    workers: Workers,
    steering: Steering,
    links: Arc<Links>,
    service: Service,
    watch: Watch,
    /// For workers that are started later.
    events: Sender<Event>,
    /// Answers whoever asks; dropped before all else ends.
    control: Option<Server>,
}

/// What the main thread waits for.
enum Event {
    Signal(i32),
    /// Another relay set is to be published.
    Relays(Update),
    /// The relay set of a configuration that was ordered by this number, or why there is none.
    Reconfigured(u64, Result<Update, String>),
    /// Nobody keeps the relay set any more.
    KeeperEnded,
    /// Whether, and to whom, frames can be steered has changed.
    Way,
    /// A link of this machine has changed.
    Links,
    /// Somebody asks something by the control socket.
    Request(Request),
    /// A worker has ended by itself.
    WorkerEnded(usize),
}

/// Runs the box until SIGTERM or SIGINT. SIGHUP reads the configuration at `path` again, SIGUSR1
/// prints the counters.
///
/// # Errors
/// The machine is not as the settings require, or a worker failed.
pub fn run(settings: Settings, path: &Path) -> Result<(), DaemonError> {
    let service = Service::find();
    if let (Some(user), true) = (&settings.user, process::is_root()) {
        process::become_user(user)?;
    }
    process::forbid_dumps()?;
    let (events, happening) = channel::unbounded();
    signals::hear(events.clone())?;
    let mut running = Daemon::start(settings, path, events, service)?;
    let end = running.follow(&happening);
    // Whoever still waits for an answer hears that there is none.
    drop(happening);
    let stopped = running.stop();
    end.and(stopped)
}

/// What was there before goes on by itself; what was not shall not stay.
fn abandon(error: DaemonError, pins: Pins, record: &Record, was_attached: bool) -> DaemonError {
    if !was_attached && let Err(failed) = detach::take_off(pins, record) {
        tracing::error!("the NICs cannot be set back: {failed}");
    }
    error
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
        let was_attached = pins.are_attached()?;
        let (listeners, keeper, first) = match Self::begin(&settings) {
            Ok(begun) => begun,
            Err(error) => return Err(abandon(error, pins, &record, was_attached)),
        };
        let passing = Arc::new(settings.rules.passing());
        let rules = if first.passes {
            &passing
        } else {
            &settings.rules
        };
        let is_passing = first.passes;
        let snapshot = Arc::new(Snapshot::new(1, Arc::clone(rules), first.endpoints));
        let parts = match Parts::assemble(&settings, &nics, &snapshot, (&pins, &record), &events) {
            Ok(parts) => parts,
            Err(error) => return Err(abandon(error, pins, &record, was_attached)),
        };
        let ready = parts.describe(snapshot.relays.len());
        let mut daemon = Self {
            settings,
            path: path.to_owned(),
            standing: parts.assembly.standing,
            started: (SystemTime::now(), Instant::now()),
            snapshot,
            passing,
            is_passing,
            prompter: keeper.prompter(),
            unpublished: None,
            is_orphaned: false,
            reloading: None,
            refused_reload: None,
            is_unkept: false,
            orders: 0,
            reloads: (0, 0),
            kernel: parts.kernel,
            counts: KernelCounts::default(),
            forwarded: PerRole::default(),
            sights: PerRole::default(),
            sides: Sides::default(),
            topology: Topology::default(),
            cut_told: PerRole::default(),
            following: Following::default(),
            rising: Rising::default(),
            link_watch: None,
            links_changed: Arc::default(),
            pins,
            record,
            unpinned: None,
            attachments: parts.assembly.attachments,
            watches: parts.watches,
            workers: parts.assembly.workers,
            steering: parts.steering,
            links: parts.links,
            service,
            watch: parts.watch,
            events: events.clone(),
            control: None,
        };
        // What was counted before this process is no finding of its own.
        daemon.look_at_counters();
        match daemon.settle(keeper, listeners, events) {
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

    /// What there is before the first map: sockets to be asked by, and a relay set.
    fn begin(settings: &Settings) -> Result<(Listeners, Keeper, Update), DaemonError> {
        let listeners = Listeners::open(&ControlSettings {
            socket: settings.control.socket.clone(),
            group: settings.control.group.clone(),
            metrics: settings.metrics,
        })?;
        let (keeper, first) = match process::is_root() {
            true => Keeper::begin(settings)?,
            false => process::by_own_right(|| Keeper::begin(settings))?,
        };
        Ok((listeners, keeper, first))
    }

    /// Gives up what is not needed any more, and lets others ask.
    fn settle(
        &mut self,
        keeper: Keeper,
        listeners: Listeners,
        events: Sender<Event>,
    ) -> Result<(), DaemonError> {
        let of_keeper = match process::is_root() && keeper.follows_files() {
            true => capabilities::OF_ROOTS_KEEPER,
            false => capabilities::OF_NOBODY,
        };
        if !process::is_root() {
            self.own_pins()?;
        }
        keeper.start(events.clone(), of_keeper)?;
        let changed = Arc::clone(&self.links_changed);
        self.link_watch = Some(ports::watch(events.clone(), changed)?);
        let started = listeners.serve(Arc::new(Requests::new(events)), || {
            process::keep_or_say(capabilities::OF_NOBODY);
        });
        let failed = |error| DaemonError::System("answer the control socket", error);
        self.control = Some(started.map_err(failed)?);
        process::keep(capabilities::OF_MAIN)
            .map_err(|error| DaemonError::System("give up capabilities", error))?;
        // The sockets of a port that is back are opened later.
        process::forbid_system_calls(&[], &[nix::libc::AF_XDP])
            .map_err(|error| DaemonError::System("forbid system calls to itself", error))
    }

    /// Sees to it that this process will be able to undo what it shall undo, whoever pinned it.
    fn own_pins(&self) -> Result<(), DaemonError> {
        if self.settings.pin.on_stop == OnStop::Keep {
            return Ok(());
        }
        let directory = &self.settings.pin.directory;
        self.pins.give_to(Uid::effective(), Gid::effective())?;
        process::by_own_right(|| std::fs::read_dir(directory).map(drop))
            .map_err(|_| DaemonError::UnreachablePins(directory.clone()))
    }

    /// Does what is asked for until the end.
    fn follow(&mut self, happening: &Receiver<Event>) -> Result<(), DaemonError> {
        let mut looked = Instant::now();
        let mut looked_at_ports = Instant::now();
        loop {
            let workers = &self.workers;
            self.service.beat(|| workers.are_alive());
            let rest = TICK
                .saturating_sub(looked.elapsed())
                .min(blind::LOOK.saturating_sub(looked_at_ports.elapsed()));
            let patience = self.service.patience().map_or(rest, |due| due.min(rest));
            let event = happening.recv_timeout(patience);
            if looked.elapsed() >= TICK {
                looked = Instant::now();
                self.look_around();
            }
            if looked_at_ports.elapsed() >= blind::LOOK {
                self.look_at_links()?;
                self.look_at_pins();
                self.look_at_counters();
                looked_at_ports = Instant::now();
            }
            match event {
                Ok(Event::Signal(SIGUSR1)) => self.print_counters(),
                Ok(Event::Signal(SIGHUP)) => self.reload(None),
                Ok(Event::Signal(_)) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Ok(Event::Relays(update)) => self.publish_relays(update),
                Ok(Event::Reconfigured(number, outcome)) => self.reconfigured(number, outcome),
                Ok(Event::KeeperEnded) => self.without_keeper(),
                Ok(Event::Way) => self.steering.tell(),
                Ok(Event::Links) => {
                    // Before the look: what changes during it is told of again.
                    self.links_changed.store(false, Ordering::Release);
                    self.look_at_links()?;
                }
                Ok(Event::Request(request)) => self.answer(request),
                Ok(Event::WorkerEnded(worker)) => return Err(DaemonError::WorkerDied(worker)),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Does again what failed, and what nobody else does any more.
    fn look_around(&mut self) {
        if let Some(update) = self.unpublished.take() {
            self.publish_relays(update);
        }
        let is_overdue = self.prompter.is_overdue();
        if is_overdue && !self.is_orphaned {
            tracing::error!(
                "ALARM: nobody follows the relay files any more, and the relay set is stale: \
                 nothing is marked or steered any more; restart exitmark"
            );
        }
        let was_orphaned = std::mem::replace(&mut self.is_orphaned, is_overdue);
        if was_orphaned != is_overdue {
            self.publish_relays(Update {
                endpoints: self.snapshot.relays.clone(),
                passes: self.prompter.is_past_its_end(),
                loading: Duration::ZERO,
            });
        }
    }

    /// Lets another relay set come into force.
    fn publish_relays(&mut self, update: Update) {
        let started = Instant::now();
        let loading = update.loading;
        match self.publish(update) {
            Ok(()) => tracing::info!(
                generation = self.snapshot.generation,
                endpoints = self.snapshot.relays.len(),
                loading_ms = loading.as_millis(),
                publishing_ms = started.elapsed().as_millis(),
                "relay set replaced"
            ),
            Err(error) => {
                tracing::error!("the relay set stays as it was, and is tried again: {error}");
            }
        }
    }

    /// Lets the rules in force and a relay set come into force, in the kernel and in every
    /// worker: what the kernel does not take is kept to be tried again.
    fn publish(&mut self, update: Update) -> Result<(), KernelError> {
        let rules = if update.passes {
            &self.passing
        } else {
            &self.settings.rules
        };
        let generation = self.snapshot.generation + 1;
        let snapshot = Snapshot::new(generation, Arc::clone(rules), update.endpoints);
        let snapshot = Arc::new(snapshot);
        self.watch.follow(&snapshot);
        if let Err(error) = self.kernel.publish(&snapshot) {
            self.unpublished = Some(Update {
                endpoints: snapshot.relays.clone(),
                ..update
            });
            return Err(error);
        }
        self.unpublished = None;
        self.is_passing = update.passes;
        self.workers.publish(&snapshot);
        self.snapshot = snapshot;
        Ok(())
    }

    /// Lets the program decide where it could not beside zero-copy sockets: when a socket is closed
    /// its queue leaves that mode.
    fn leave_to_kernel(&mut self) {
        if let Some((unblocked, longest)) = self.standing.afterwards {
            self.workers.close();
            self.links.allow_redirects(unblocked, longest);
        }
    }

    /// Takes the sockets away, drains, joins and checks that every frame is accounted for. The
    /// kernel decides by itself from then on, or the NICs are set back.
    fn stop(mut self) -> Result<(), DaemonError> {
        self.service.is_stopping();
        self.reloading = None;
        self.control = None;
        self.link_watch = None;
        self.steering.end();
        let dismissed = self.workers.dismiss(&self.kernel);
        let reports = self.workers.end();
        self.watch.end();
        if let Err(error) = self.kernel.forget_samples() {
            tracing::warn!("the last samples stay in the kernel's memory: {error}");
        }
        self.print_counters();
        self.leave_to_kernel();
        if self.settings.pin.on_stop == OnStop::Detach {
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
