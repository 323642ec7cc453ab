//! The only place that sees every room: start order, signals, stop order.
//!
//! Start: look at the NICs, load the relay set, make the memory, bind the sockets, fill, start
//! the workers, and attach the XDP program only when all of them are ready. Stop: detach, so
//! that no more frames come, drain, join, and put the NICs back as they were.

mod nics;

use crate::datapath::{
    AttachMode, Attachment, Control, Counters, Forwarder, Kernel, KernelError, Links, MAX_QUEUES,
    PerRole, QueueGauge, Role, Tally, Umem, Worker, WorkerLimits, WorkerReport, XskError,
    XskMemory, XskPort, XskSettings,
};
use crate::nic::NicError;
use crate::policy::Snapshot;
use crate::relays::{self, LoadError};
use crate::settings::{Settings, ZeroCopy};
use crossbeam::channel::{self, Receiver, Sender};
use nics::{Nics, Promiscuous};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::signal::SigSet;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Ethernet header and four tags: what comes on top of the MTU in a frame.
const LINK_OVERHEAD: u32 = 14 + 4 * 4;
/// What the kernel keeps free at the start of each buffer (XDP_PACKET_HEADROOM).
const HEADROOM: u32 = 256;
/// Buffers of one page are the largest that an aligned UMEM takes.
const SMALL_CHUNK: u32 = 2048;
const LARGE_CHUNK: u32 = 4096;
/// The longest packet of which drivers make one buffer: a page less what the kernel keeps in it.
const ONE_BUFFER_MTU: u32 = 3498;
/// How long a worker may take to give back a snapshot before its successor is published anyway.
const RETIRE_LIMIT: Duration = Duration::from_secs(2);

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
    /// Sockets cannot be had.
    #[error(transparent)]
    Xsk(#[from] XskError),
    /// The XDP program cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
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

/// A worker's thread and what the daemon holds of it.
struct Running {
    thread: Option<JoinHandle<WorkerReport>>,
    snapshots: Sender<Arc<Snapshot>>,
    retired: Receiver<Arc<Snapshot>>,
    wake: Arc<EventFd>,
    counters: Arc<Counters>,
    gauges: Vec<(Role, QueueGauge)>,
    unaccounted: Arc<AtomicU64>,
}

/// A running box.
struct Daemon {
    settings: Settings,
    snapshot: Arc<Snapshot>,
    kernel: Kernel,
    attachments: Vec<Attachment>,
    promiscuous: Promiscuous,
    workers: Vec<Running>,
    stop: Arc<AtomicBool>,
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
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1, SIGHUP])
        .map_err(|error| DaemonError::System("wait for signals", error))?;
    let mut running = Daemon::start(settings, &signals.handle())?;
    let mut ended_by_itself = true;
    for signal in signals.forever() {
        match signal {
            SIGUSR1 => running.print_counters(),
            SIGHUP => running.reload_relays(),
            _ => {
                ended_by_itself = false;
                break;
            }
        }
    }
    let dead = running.dead_worker();
    running.stop()?;
    match dead {
        Some(worker) if ended_by_itself => Err(DaemonError::WorkerDied(worker)),
        _ => Ok(()),
    }
}

impl Daemon {
    fn start(settings: Settings, signals: &Handle) -> Result<Self, DaemonError> {
        let nics = Nics::look(&settings)?;
        let loaded = relays::load(&settings.relays.consensus, &settings.relays.extra)?;
        let snapshot = Snapshot::new(1, Arc::clone(&settings.rules), loaded.endpoints);
        let snapshot = Arc::new(snapshot);
        let links = Arc::new(links(&settings, &nics));
        let incoming = nics.ports[Role::Incoming].as_ref().map(|nic| nic.mac);
        let kernel = Kernel::load(incoming, &settings.host_prefixes)?;
        let stop = Arc::new(AtomicBool::new(false));
        let workers = start_workers(&settings, &nics, &kernel, &snapshot, &links, &stop, signals)?;
        let mut running = Self {
            promiscuous: Promiscuous::default(),
            attachments: Vec::new(),
            settings,
            snapshot,
            kernel,
            workers,
            stop,
        };
        if let Err(error) = running.attach(&nics) {
            running.end_workers();
            return Err(error);
        }
        running.announce(&nics);
        Ok(running)
    }

    fn attach(&mut self, nics: &Nics) -> Result<(), DaemonError> {
        self.promiscuous = Promiscuous::set(nics)?;
        for (role, nic) in nics.present() {
            let attachment = self.kernel.attach(role, &nic.name, nic.index)?;
            if attachment.mode == AttachMode::Generic {
                tracing::warn!(
                    "{} ({role}) takes XDP in generic mode only: it works, several times slower",
                    nic.name
                );
            }
            self.attachments.push(attachment);
        }
        Ok(())
    }

    /// One line for whoever waits for the box to be there.
    fn announce(&self, nics: &Nics) {
        let mut ports = String::new();
        for ((role, nic), attachment) in nics.present().zip(&self.attachments) {
            ports += &format!(" {role}={} xdp={}", nic.name, attachment.mode);
        }
        print_line(&format!(
            "ready: engine=af_xdp workers={} relays={}{ports}",
            self.workers.len(),
            self.snapshot.relays.len(),
        ));
    }

    /// Loads the relay files again. What cannot be used changes nothing.
    fn reload_relays(&mut self) {
        let sources = &self.settings.relays;
        let loaded = match relays::load(&sources.consensus, &sources.extra) {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::error!("the relay set stays as it was: {error}");
                return;
            }
        };
        let generation = self.snapshot.generation + 1;
        let rules = Arc::clone(&self.snapshot.rules);
        let snapshot = Arc::new(Snapshot::new(generation, rules, loaded.endpoints));
        for worker in &self.workers {
            let sent = worker.snapshots.send(Arc::clone(&snapshot));
            if sent.is_ok() {
                let _ = worker.wake.write(1);
                // The last reference ends here, not on the packet path.
                drop(worker.retired.recv_timeout(RETIRE_LIMIT));
            }
        }
        tracing::info!(
            generation = snapshot.generation,
            endpoints = snapshot.relays.len(),
            "relay set replaced"
        );
        self.snapshot = snapshot;
    }

    fn print_counters(&self) {
        let mut tally = Tally::default();
        let mut missed = PerRole::<u64>::default();
        let mut invalid = PerRole::<u64>::default();
        let mut unaccounted = 0;
        for worker in &self.workers {
            tally.add(&worker.counters.read());
            unaccounted += worker.unaccounted.load(Ordering::Relaxed);
            for (role, gauge) in &worker.gauges {
                let troubles = gauge.troubles().unwrap_or_default();
                missed[*role] += troubles.missed;
                invalid[*role] += troubles.tx_invalid;
            }
        }
        let mut line = format!("counters: {tally}");
        let kernel = self.kernel.counts().unwrap_or_default();
        for role in Role::ALL {
            let counts = kernel[role];
            let numbers = [
                ("missed", missed[role]),
                ("tx_invalid", invalid[role]),
                ("to_stack", counts.stack),
                ("no_socket", counts.no_socket),
            ];
            for (name, number) in numbers.into_iter().filter(|&(_, number)| number != 0) {
                line += &format!(" {role}_{name}={number}");
            }
        }
        if unaccounted > 0 {
            tracing::error!(
                unaccounted,
                "frames are in no known place; please report this"
            );
        }
        print_line(&format!("{line} unaccounted={unaccounted}"));
    }

    fn dead_worker(&self) -> Option<usize> {
        self.workers
            .iter()
            .position(|worker| worker.thread.as_ref().is_none_or(JoinHandle::is_finished))
    }

    /// Detaches, drains, joins and checks that every frame is accounted for.
    fn stop(mut self) -> Result<(), DaemonError> {
        self.attachments.clear();
        self.promiscuous = Promiscuous::default();
        let reports = self.end_workers();
        self.print_counters();
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

    fn end_workers(&mut self) -> Vec<Option<WorkerReport>> {
        self.stop.store(true, Ordering::Release);
        for worker in &self.workers {
            let _ = worker.wake.write(1);
        }
        self.workers
            .iter_mut()
            .map(|worker| worker.thread.take()?.join().ok())
            .collect()
    }
}

fn links(settings: &Settings, nics: &Nics) -> Links {
    let links = Links::new(settings.host_mac);
    match (&settings.ports.incoming, nics.incoming_role) {
        (Some(incoming), Some(role)) => match &nics.ports[role] {
            Some(nic) => links.with_incoming(role, nic.mac, incoming.next_hop),
            None => links,
        },
        _ => links,
    }
}

/// Memory and sockets: zero-copy where asked for, and where every port can.
fn bind(settings: &Settings, nics: &Nics) -> Result<(Umem, Vec<crate::datapath::Bound>), XskError> {
    let frame_bytes = nics.common(|nic| nic.mtu) + LINK_OVERHEAD;
    let chunk_bytes = if frame_bytes + HEADROOM <= SMALL_CHUNK {
        SMALL_CHUNK
    } else {
        LARGE_CHUNK
    };
    let workers = nics.common(|nic| nic.queues);
    let ports = u32::try_from(nics.present().count()).unwrap_or(3);
    let attempt = |zero_copy| {
        let umem = Umem::new(
            XskSettings {
                ring: settings.datapath.ring,
                in_hand: WorkerLimits::new(settings.datapath.batch).in_hand(),
                chunk_bytes,
                multi_buffer: nics.common(|nic| nic.mtu) > ONE_BUFFER_MTU,
                zero_copy,
            },
            workers,
            ports,
        )?;
        let bound = (0..workers)
            .map(|worker| umem.bind(worker, &nics.names()))
            .collect::<Result<Vec<_>, _>>()?;
        Ok((umem, bound))
    };
    match settings.datapath.zero_copy {
        ZeroCopy::Require => attempt(true),
        ZeroCopy::Off => attempt(false),
        // One memory has one mode: where the second port cannot, the first must not either.
        ZeroCopy::Auto => attempt(true).or_else(|error| {
            tracing::info!("copy mode, because not every port is zero-copy: {error}");
            attempt(false)
        }),
    }
}

fn start_workers(
    settings: &Settings,
    nics: &Nics,
    kernel: &Kernel,
    snapshot: &Arc<Snapshot>,
    links: &Arc<Links>,
    stop: &Arc<AtomicBool>,
    signals: &Handle,
) -> Result<Vec<Running>, DaemonError> {
    // Without the capability the limit stays what it is, and registering the memory says so.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let (umem, bound) = bind(settings, nics)?;
    let limits = WorkerLimits::new(settings.datapath.batch);
    let mut workers = Vec::new();
    for (queue, share) in (0..).zip(bound) {
        let mut gauges = Vec::new();
        for (role, port) in share.ports.iter() {
            if let Some(port) = port {
                kernel.admit(role, queue, port)?;
                let gauge = port
                    .gauge()
                    .map_err(|error| DaemonError::System("watch a socket", error))?;
                gauges.push((role, gauge));
                tracing::info!(
                    queue,
                    port = role.name(),
                    "bound {}",
                    if port.is_zero_copy() {
                        "zero-copy"
                    } else {
                        "in copy mode"
                    }
                );
            }
        }
        let forwarder = Forwarder::new(Arc::clone(snapshot), Arc::clone(links));
        let worker = Worker::new(share.ports, share.memory, share.pool, forwarder, limits);
        workers.push(start_worker(
            worker,
            gauges,
            Arc::clone(stop),
            signals.clone(),
        )?);
    }
    tracing::info!(
        workers = workers.len(),
        umem_mib = umem.bytes() >> 20,
        "packet memory is made"
    );
    Ok(workers)
}

fn start_worker(
    worker: Worker<XskPort>,
    gauges: Vec<(Role, QueueGauge)>,
    stop: Arc<AtomicBool>,
    signals: Handle,
) -> Result<Running, DaemonError> {
    let (snapshots, snapshots_in) = channel::bounded(1);
    let (retired_out, retired) = channel::bounded(1);
    let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
        .map_err(|error| DaemonError::System("make an event descriptor", error.into()))?;
    let wake = Arc::new(wake);
    let unaccounted = Arc::new(AtomicU64::new(0));
    let control = Control {
        snapshots: snapshots_in,
        retired: retired_out,
        stop,
        wake: Arc::clone(&wake),
        unaccounted: Arc::clone(&unaccounted),
    };
    let counters = worker.counters();
    let thread = thread::Builder::new()
        .name("exitmark-worker".to_owned())
        .spawn(move || {
            // Wakes the main thread however this one ends.
            let _ended = OnDrop(signals);
            // Signals are the main thread's; here they would interrupt the packet path.
            let _ = SigSet::all().thread_block();
            worker.run(&control)
        })
        .map_err(|error| DaemonError::System("start a worker", error))?;
    Ok(Running {
        thread: Some(thread),
        snapshots,
        retired,
        wake,
        counters,
        gauges,
        unaccounted,
    })
}

struct OnDrop(Handle);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Prints a line at once; nobody listening is no reason to stop.
fn print_line(line: &str) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

const _: () = {
    const fn moves_to_another_thread<T: Send>() {}
    moves_to_another_thread::<Worker<XskPort>>();
    moves_to_another_thread::<XskMemory>();
};
