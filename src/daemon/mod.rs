//! The only place that sees every room: start order, signals, stop order.
//!
//! Start: look at the NICs, load the relay set, take hold of the pins, load the XDP program, give
//! it the policy, bind the sockets, fill, start the workers, and only then attach: in the place
//! of what another process left, if it did. Stop: take the sockets away, so that the kernel
//! decides by itself, drain, join; the attachment stays, unless detaching was asked for.

mod detach;
mod nics;
mod relays;
mod workers;

use crate::datapath::{
    AttachMode, Attachment, IncomingLink, Kernel, KernelError, Links, MAX_QUEUES, PerRole,
    PinError, Pins, Role, Spill, XdpState, XskError, xdp_state,
};
use crate::nic::NicError;
use crate::policy::{Rules, Snapshot};
use crate::relays::{LoadError, Refused};
use crate::settings::{Engine, Inbound, OnStop, Settings};
use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use nics::Nics;
use relays::{Keeper, Prompter, Update};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};
use workers::{Sockets, Workers};

pub use detach::detach;

/// How long a worker may give no sign of life: with what is on its way to it by then, less than
/// 10 ms of frames are lost. Much less gives false alarms on a busy machine.
const PATIENCE: Duration = Duration::from_millis(8);

/// How often the main thread looks around while nothing happens.
const TICK: Duration = Duration::from_secs(60);

/// Why the box cannot run, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A NIC is not as required.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// A NIC is down.
    #[error("{0} ({1}) is down; `ip link set dev {0} up` sets it up")]
    Down(String, Role),
    /// The ports do not take packets of the same length.
    #[error(
        "{0} has MTU {1} but {2} has MTU {3}; a wire needs the same on every port: \
         `ip link set dev {2} mtu {1}`"
    )]
    Mtu(String, u32, String, u32),
    /// The ports have different numbers of queues.
    #[error(
        "{0} has {1} receive queues but {2} has {3}; every port needs the same number: \
         `ethtool -L {2} combined {1}`"
    )]
    Queues(String, u32, String, u32),
    /// More queues than can be served.
    #[error(
        "{0} has {1} receive queues, more than {MAX_QUEUES}: `ethtool -L {0} combined {MAX_QUEUES}`"
    )]
    TooManyQueues(String, u32),
    /// The next hop is the box itself.
    #[error("steer.next_hop is the MAC address of {0} itself; name the router on that network")]
    NextHopIsSelf(String),
    /// The relay set cannot be loaded.
    #[error(transparent)]
    Relays(#[from] LoadError),
    /// It can, and makes no sense.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// There is nobody to read documents.
    #[error("relays.user = \"{0}\": there is no such user; `useradd --system {0}` makes one")]
    NoSuchUser(String),
    /// Root may do everything, and is not to read documents.
    #[error("relays.user is root; documents from outside need a user who may do nothing")]
    LoaderIsRoot,
    /// Sockets cannot be had.
    #[error(transparent)]
    Xsk(#[from] XskError),
    /// The XDP program cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Nothing can be pinned.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The kernel engine needs what the NIC cannot do.
    #[error(
        "engine = \"xdp\" must redirect what arrives at {0}, but a NIC by which it leaves takes no \
         redirected frames: its driver has no ndo_xdp_xmit (a veth pair has it while its other \
         end polls: `ethtool -K PEER gro on`); engine = \"af_xdp\" does without"
    )]
    NoRedirect(Role),
    /// The operating system refuses something basic.
    #[error("cannot {0}: {1}")]
    System(&'static str, #[source] io::Error),
    /// A worker ended by itself.
    #[error("worker {0} ended without being told to; frames were not forwarded any more")]
    WorkerDied(usize),
    /// Frames are missing at the end.
    #[error("worker {0} cannot account for {1} frames; please report this")]
    FramesLost(usize, usize),
}

/// A running box.
struct Daemon {
    settings: Settings,
    snapshot: Arc<Snapshot>,
    /// The rules while the relay set is stale, if nothing is to be marked and steered then.
    passing: Arc<Rules>,
    prompter: Prompter,
    /// What the kernel would not take.
    unpublished: Option<Update>,
    kernel: Kernel,
    pins: Pins,
    workers: Workers,
}

/// What the main thread waits for.
enum Event {
    Signal(i32),
    /// Another relay set is to be published.
    Relays(Update),
    /// A worker has ended by itself.
    WorkerEnded(usize),
}

/// Runs the box until SIGTERM or SIGINT. SIGHUP loads the relay set again, SIGUSR1 prints the
/// counters.
///
/// # Errors
/// The machine is not as the settings require, or a worker failed.
pub fn run(settings: Settings) -> Result<(), DaemonError> {
    // A core dump would hold packets, and so destination addresses.
    nix::sys::prctl::set_dumpable(false)
        .map_err(|error| DaemonError::System("forbid core dumps", error.into()))?;
    let (events, happening) = channel::unbounded();
    hear_signals(events.clone())?;
    let mut running = Daemon::start(settings, events)?;
    let dead = running.follow(&happening);
    running.stop()?;
    match dead {
        Some(worker) => Err(DaemonError::WorkerDied(worker)),
        None => Ok(()),
    }
}

/// Makes events of signals, for as long as the process lives.
fn hear_signals(events: Sender<Event>) -> Result<(), DaemonError> {
    let failed = |error| DaemonError::System("wait for signals", error);
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1, SIGHUP]).map_err(failed)?;
    let thread = std::thread::Builder::new().name("exitmark-signals".to_owned());
    thread
        .spawn(move || {
            for signal in signals.forever() {
                if events.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        })
        .map_err(failed)?;
    Ok(())
}

impl Daemon {
    fn start(settings: Settings, events: Sender<Event>) -> Result<Self, DaemonError> {
        let nics = Nics::look(&settings)?;
        let pins = Pins::open(&settings.pin.directory)?;
        let (keeper, first) = Keeper::begin(&settings)?;
        let passing = Arc::new(settings.rules.passing());
        let rules = if first.passes {
            &passing
        } else {
            &settings.rules
        };
        let snapshot = Arc::new(Snapshot::new(1, Arc::clone(rules), first.endpoints));
        let was_attached = pins.are_attached()?;
        match Parts::assemble(&settings, &nics, &snapshot, &pins, &events) {
            Ok(parts) => {
                let prompter = keeper.prompter();
                keeper.start(events)?;
                parts.announce(&nics, snapshot.relays.len());
                Ok(Self {
                    settings,
                    snapshot,
                    passing,
                    prompter,
                    unpublished: None,
                    kernel: parts.kernel,
                    pins,
                    workers: parts.workers,
                })
            }
            Err(error) => {
                // What was there before goes on by itself; what was not shall not stay.
                if !was_attached && let Err(failed) = detach::take_off(pins) {
                    tracing::error!("the NICs cannot be set back: {failed}");
                }
                Err(error)
            }
        }
    }

    /// Does what is asked for until the end; returns the worker that ended by itself, if one did.
    fn follow(&mut self, happening: &Receiver<Event>) -> Option<usize> {
        loop {
            let event = match happening.recv_timeout(TICK) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => {
                    self.look_around();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return None,
            };
            match event {
                Event::Signal(SIGUSR1) => self.print_counters(),
                Event::Signal(SIGHUP) => self.prompter.prompt(),
                Event::Signal(_) => return None,
                Event::Relays(update) => self.publish(update),
                Event::WorkerEnded(worker) => return Some(worker),
            }
        }
    }

    /// Does again what failed, and what nobody else does any more.
    fn look_around(&mut self) {
        if let Some(update) = self.unpublished.take() {
            self.publish(update);
        }
        let passes = Arc::ptr_eq(&self.snapshot.rules, &self.passing);
        if !passes && self.prompter.is_overdue() {
            tracing::error!(
                "ALARM: nobody follows the relay files any more, and the relay set is stale: \
                 nothing is marked or steered any more; restart exitmark"
            );
            self.publish(Update {
                endpoints: self.snapshot.relays.clone(),
                passes: true,
                loading: Duration::ZERO,
            });
        }
    }

    /// Lets another relay set come into force, in the kernel and in every worker.
    fn publish(&mut self, update: Update) {
        let started = Instant::now();
        let rules = if update.passes {
            &self.passing
        } else {
            &self.settings.rules
        };
        let generation = self.snapshot.generation + 1;
        let snapshot = Snapshot::new(generation, Arc::clone(rules), update.endpoints.clone());
        let snapshot = Arc::new(snapshot);
        if let Err(error) = self.kernel.publish(&snapshot) {
            tracing::error!("the relay set stays as it was, and is tried again: {error}");
            self.unpublished = Some(update);
            return;
        }
        self.unpublished = None;
        self.workers.publish(&snapshot);
        tracing::info!(
            generation = snapshot.generation,
            endpoints = snapshot.relays.len(),
            loading_ms = update.loading.as_millis(),
            publishing_ms = started.elapsed().as_millis(),
            "relay set replaced"
        );
        self.snapshot = snapshot;
    }

    fn print_counters(&self) {
        let sums = self.workers.sums();
        let kernel = self.kernel.counts().unwrap_or_default();
        let engines = [
            ("af_xdp_decided", sums.tally.decided()),
            ("xdp_decided", kernel.tally.decided()),
        ];
        let mut tally = sums.tally;
        tally.add(&kernel.tally);
        let mut line = format!("counters: {tally}");
        for role in Role::ALL {
            let numbers = [
                ("missed", sums.missed[role]),
                ("tx_invalid", sums.invalid[role]),
                ("to_stack", kernel.to_stack[role]),
                ("handed", kernel.handed[role]),
                ("spilled", kernel.spilled[role]),
            ];
            for (name, number) in numbers.into_iter().filter(|&(_, number)| number != 0) {
                line += &format!(" {role}_{name}={number}");
            }
        }
        for (name, number) in engines {
            line += &format!(" {name}={number}");
        }
        for (name, number) in self.prompter.numbers() {
            line += &format!(" {name}={number}");
        }
        if sums.unaccounted > 0 {
            tracing::error!(
                unaccounted = sums.unaccounted,
                "frames are in no known place; please report this"
            );
        }
        print_line(&format!("{line} unaccounted={}", sums.unaccounted));
    }

    /// Takes the sockets away, drains, joins and checks that every frame is accounted for. The
    /// kernel decides by itself from then on, or the NICs are set back.
    fn stop(mut self) -> Result<(), DaemonError> {
        let dismissed = self.workers.dismiss(&self.kernel);
        let reports = self.workers.end();
        self.print_counters();
        if self.settings.pin.on_stop == OnStop::Detach {
            detach::take_off(self.pins)?;
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

/// What a box is made of, assembled and attached.
struct Parts {
    engine: Engine,
    kernel: Kernel,
    workers: Workers,
    attachments: Vec<Attachment>,
}

impl Parts {
    fn assemble(
        settings: &Settings,
        nics: &Nics,
        snapshot: &Arc<Snapshot>,
        pins: &Pins,
        events: &Sender<Event>,
    ) -> Result<Self, DaemonError> {
        let (kernel, counters_were_there) = Kernel::load_pinned(pins)?;
        kernel.publish(snapshot)?;
        for (role, nic) in nics.ports.iter() {
            kernel.set_port(role, nic.as_ref().map(|nic| nic.index))?;
        }
        let sockets = Sockets::bind(settings, nics)?;
        let engine = match settings.engine {
            Engine::Auto if sockets.are_zero_copy() => Engine::AfXdp,
            Engine::Auto => Engine::Xdp,
            chosen => chosen,
        };
        let netns = detach::netns()?;
        let incoming = incoming_link(settings, nics);
        let links = Links::over(kernel.links()?, settings.host_mac, incoming);
        links.remember_host(kernel.learnt_host(pins, netns));
        let (all, spill) = handover(settings, engine, &sockets);
        links.hand_over(all, spill);
        links.name_nics(netns, nics.numbers());
        let links = Arc::new(links);
        let guards = kernel.guards()?;
        let workers = Workers::start(settings, sockets, snapshot, &links, guards, events)?;
        let mut parts = Self {
            engine,
            kernel,
            workers,
            attachments: Vec::new(),
        };
        let port = incoming.map(|link| link.port);
        if let Err(error) = parts.attach(nics, pins, &links, port, settings.engine) {
            // The programs that were there are put back before their successors' workers end.
            for attachment in parts.attachments.drain(..).rev() {
                if let Err(error) = attachment.revert(pins) {
                    tracing::error!("what was there before cannot be put back: {error}");
                }
            }
            parts.workers.end();
            return Err(error);
        }
        let taken_over = parts.attachments.iter().any(Attachment::is_taken_over);
        parts.attachments.iter_mut().for_each(Attachment::keep);
        if taken_over && !counters_were_there {
            tracing::info!("what another build left is taken over; the counters start anew");
        } else if taken_over {
            tracing::info!("the box that was there is taken over");
        }
        Ok(parts)
    }

    /// Lets frames come: from here on the box is there, with or without this process.
    fn attach(
        &mut self,
        nics: &Nics,
        pins: &Pins,
        links: &Links,
        incoming: Option<Role>,
        asked: Engine,
    ) -> Result<(), DaemonError> {
        self.workers.admit(&self.kernel)?;
        // As far as it can be told beforehand, the program knows from its first frame on.
        let reach = Reach::look(nics, incoming)?;
        links.allow_redirects(reach.unblocked, nics.longest_redirect(reach.long));
        for remark in self.kernel.clear(pins, nics.numbers())? {
            tracing::warn!("{remark}");
        }
        detach::set_promiscuous(pins, nics)?;
        for (role, nic) in nics.present() {
            let attachment = self.kernel.attach(pins, role, &nic.name, nic.index)?;
            if attachment.mode == AttachMode::Generic {
                tracing::warn!(
                    "{} ({role}) takes XDP in generic mode only: it works, several times slower; \
                     when that has been mended, `exitmark detach` before the next start",
                    nic.name
                );
            }
            self.attachments.push(attachment);
        }
        let reach = Reach::look(nics, incoming)?;
        self.settle_engine(nics, asked, reach.unblocked)?;
        links.allow_redirects(reach.unblocked, nics.longest_redirect(reach.long));
        self.kernel.watch_drops(pins)?;
        self.kernel.pin_maps(pins)?;
        for layout in self.kernel.tidy(pins)? {
            tracing::info!("the maps that a build with layout {layout} left are removed");
        }
        Ok(())
    }

    /// Where the program may not decide, the box ends with this process; where it was asked to
    /// decide, there is none at all.
    fn settle_engine(
        &mut self,
        nics: &Nics,
        asked: Engine,
        unblocked: PerRole<bool>,
    ) -> Result<(), DaemonError> {
        for (role, _) in nics.present().filter(|&(role, _)| !unblocked[role]) {
            if asked == Engine::Xdp {
                return Err(DaemonError::NoRedirect(role));
            }
            self.engine = Engine::AfXdp;
            tracing::warn!(
                "not every NIC by which frames from {role} leave takes redirected ones: they are \
                 forwarded by this process alone, and by nothing when it ends"
            );
        }
        Ok(())
    }

    /// One line for whoever waits for the box to be there.
    fn announce(&self, nics: &Nics, relays: usize) {
        let mut ports = String::new();
        for ((role, nic), attachment) in nics.present().zip(&self.attachments) {
            ports += &format!(" {role}={} xdp={}", nic.name, attachment.mode);
        }
        let engine = match self.engine {
            Engine::AfXdp => "af_xdp",
            Engine::Xdp | Engine::Auto => "xdp",
        };
        print_line(&format!(
            "ready: engine={engine} workers={} relays={relays}{ports}",
            self.workers.count(),
        ));
    }
}

fn incoming_link(settings: &Settings, nics: &Nics) -> Option<IncomingLink> {
    let port = nics.incoming_role?;
    Some(IncomingLink {
        port,
        own: nics.ports[port].as_ref()?.mac,
        next_hop: settings.ports.incoming.as_ref()?.next_hop,
    })
}

/// What XDP's redirects reach.
struct Reach {
    /// From which ports the program may decide frames: every way out takes redirects, or the
    /// port has the program in generic mode, which sends to any NIC.
    unblocked: PerRole<bool>,
    /// Whether frames in several buffers get as far.
    long: bool,
}

impl Reach {
    fn look(nics: &Nics, incoming: Option<Role>) -> Result<Self, DaemonError> {
        let mut states = PerRole::<Option<XdpState>>::default();
        for (role, nic) in nics.present() {
            states[role] = Some(xdp_state(nic.index)?);
        }
        let unblocked = PerRole::from_fn(|from| {
            let ways_out = match from {
                Role::Host => [Some(Role::Uplink), incoming],
                Role::Uplink | Role::Incoming => [Some(Role::Host), None],
            };
            states[from].is_some_and(|state| state.is_generic)
                || ways_out
                    .into_iter()
                    .flatten()
                    .all(|to| states[to].is_some_and(|state| state.takes_redirects))
        });
        let mut present = states.iter().filter_map(|(_, state)| *state);
        Ok(Self {
            unblocked,
            long: present.all(|state| state.takes_long_redirects),
        })
    }
}

/// Which ports' frames are all for user space, and when the XDP program takes them on itself.
fn handover(settings: &Settings, engine: Engine, sockets: &Sockets) -> (PerRole<bool>, Spill) {
    let inbound = match settings.datapath.inbound {
        // A copy costs more than what the kernel does with such a frame.
        Inbound::Auto => engine == Engine::AfXdp && sockets.are_zero_copy(),
        Inbound::AfXdp => true,
        Inbound::Xdp => false,
    };
    let all = PerRole::from_fn(|role| match role {
        Role::Host => engine == Engine::AfXdp,
        Role::Uplink | Role::Incoming => inbound,
    });
    // Room in the ring for packets of the longest kind.
    let packets = u64::from(settings.datapath.ring / sockets.buffers_per_packet);
    let (credit, hard_credit) = if settings.datapath.spill {
        (packets / 2, packets * 3 / 4)
    } else {
        (i64::MAX.unsigned_abs(), i64::MAX.unsigned_abs())
    };
    let spill = Spill {
        patience: PATIENCE,
        credit,
        hard_credit,
    };
    (all, spill)
}

/// Prints a line at once; nobody listening is no reason to stop.
fn print_line(line: &str) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
