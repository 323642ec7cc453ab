//! The worker threads: UMEM, sockets, start, new snapshots, stop.

use super::nics::Nics;
use super::zero_copy::{self, Binding, Lossy};
use super::{DaemonError, Event, capabilities};
use crate::observe::WorkerReport as BalanceReport;
use crate::settings::{Engine, RingSizes, Settings};
use crossbeam::channel::{self, Receiver, Sender};
use exitmark_datapath::{
    BalanceGauge, Bound, CPU_LATENCY_DEVICE, Cells, Control, Counters, CpuLatency, FilledRings,
    Forwarder, GroupCounts, Guard, Kernel, Links, MAX_QUEUES, PacketPort, PerRole, QueueGauge,
    Rings, Role, Samples, SharedRings, SpinLimits, Tally, TapRing, Umem, Worker, WorkerLimits,
    WorkerPort, WorkerReport, XskError, XskPort, XskSettings, clock,
};
use exitmark_policy::Snapshot;
use exitmark_service::process;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::signal::SigSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes of a frame on top of the MTU: the Ethernet header and four VLAN tags.
const LINK_OVERHEAD: u32 = 14 + 4 * 4;
/// Bytes that the kernel keeps free at the start of each buffer (XDP_PACKET_HEADROOM).
const HEADROOM: u32 = 256;
/// Chunk sizes in bytes. An aligned UMEM allows at most one page.
const SMALL_CHUNK: u32 = 2048;
const LARGE_CHUNK: u32 = 4096;

/// The chunk size for frames of this length. Zero-copy NICs round the space after the headroom down
/// to their own granularity: of a small chunk, igb uses 1,024 bytes (igb_main.c,
/// `igb_setup_srrctl`) and truncates longer frames.
///
/// Rings that are filled before they are bound require whole pages.
const fn chunk_bytes(frame_bytes: u32, filled: bool) -> u32 {
    if frame_bytes + HEADROOM <= SMALL_CHUNK && !filled {
        SMALL_CHUNK
    } else {
        LARGE_CHUNK
    }
}
/// Timeout of a worker's heartbeat for the watchdog; an idle worker wakes every second.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// Timeout for a worker to take a snapshot, and again to return the earlier one.
const RETIRE_LIMIT: Duration = Duration::from_secs(2);

pub(super) fn keep_memory_in_place() {
    // Without the capability the limit stays; registering the UMEM then reports the error.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    // A page fault would stall a worker.
    if let Err(error) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE) {
        tracing::info!("this process' memory can be swapped out: {error}");
    }
}

/// The parts that outlive the workers and what else depends on the NICs.
#[derive(Clone, Copy)]
pub(super) struct Base<'a> {
    pub(super) settings: &'a Settings,
    pub(super) kernel: &'a Kernel,
    pub(super) links: &'a Arc<Links>,
    pub(super) snapshot: &'a Arc<Snapshot>,
    pub(super) events: &'a Sender<Event>,
}

enum Queues {
    Shared(Vec<Bound<SharedRings>>),
    /// For zero-copy sockets, and where workers replace the VLAN tags of frames: only these rings
    /// can send a frame from another place than where it was received.
    Filled(Vec<Bound<FilledRings>>),
}

/// The sockets of every queue, bound and not yet served.
pub(super) struct Sockets {
    umem: Umem,
    queues: Queues,
    is_zero_copy: bool,
    /// The interface index of the NIC `incoming` if its queues have the sockets of another wire.
    send_only: Option<u32>,
    pub(super) rings: RingSizes,
    /// How many buffers the longest packet takes.
    pub(super) buffers_per_packet: u32,
    /// For each zero-copy port, the NIC that loses what the XDP program redirects from it.
    pub(super) lossy: PerRole<Option<Lossy>>,
}

impl Sockets {
    /// Creates the UMEM and binds the sockets, zero-copy if configured and supported by every port.
    /// Rings are large where all frames of a port go through them: also for zero-copy NICs, which
    /// fill their own receive rings from them, and where a port needs the process.
    pub(super) fn bind(
        settings: &Settings,
        nics: &Nics,
        needs_process: bool,
    ) -> Result<Self, DaemonError> {
        let lossy = nics.lossy();
        let binding = zero_copy::choose(settings.datapath.zero_copy, settings.engine, &lossy)?;
        let frame_bytes = nics.common(|nic| nic.mtu) + LINK_OVERHEAD;
        let workers = nics.workers();
        let ports = u32::try_from(nics.present().count()).unwrap_or(3);
        let is_configured =
            settings.engine == Engine::AfXdp || settings.datapath.inbound == Engine::AfXdp;
        let attempt = |zero_copy| -> Result<Self, XskError> {
            let serves_all = zero_copy || needs_process || is_configured;
            let filled = zero_copy || settings.replaces_tags();
            let rings = settings.datapath.rings(serves_all);
            let chunk_bytes = chunk_bytes(frame_bytes, filled);
            let umem = Umem::new(
                XskSettings {
                    ring: rings.ring,
                    in_hand: limits(settings, rings).in_hand(),
                    chunk_bytes,
                    multi_buffer: nics.of_several_buffers().is_some(),
                    zero_copy,
                },
                workers,
                ports,
            )?;
            let (each, names) = (0..workers, nics.names());
            let queues = if filled {
                let bound = each.map(|worker| umem.bind_filled(worker, &names));
                Queues::Filled(bound.collect::<Result<_, _>>()?)
            } else {
                let bound = each.map(|worker| umem.bind(worker, &names));
                Queues::Shared(bound.collect::<Result<_, _>>()?)
            };
            Ok(Self {
                umem,
                queues,
                is_zero_copy: zero_copy,
                send_only: (nics.incoming())
                    .filter(|_| nics.shares_incoming)
                    .map(|nic| nic.index),
                rings,
                buffers_per_packet: frame_bytes.div_ceil(chunk_bytes - HEADROOM),
                lossy: PerRole::from_fn(|role| lossy[role].clone().filter(|_| zero_copy)),
            })
        };
        Ok(match binding {
            Binding::ZeroCopy => attempt(true)?,
            Binding::Copy(reason) => {
                if let Some(lossy) = reason {
                    tracing::info!("copy mode, because {lossy}");
                }
                attempt(false)?
            }
            // All ports share one UMEM and so one mode: if one cannot, none may be zero-copy.
            Binding::Either => attempt(true).or_else(|error| {
                tracing::info!("copy mode, because zero-copy sockets cannot be bound: {error}");
                attempt(false)
            })?,
        })
    }

    pub(super) const fn are_zero_copy(&self) -> bool {
        self.is_zero_copy
    }
}

/// A worker's thread, and the daemon's handles to it.
struct Running {
    thread: Option<JoinHandle<WorkerReport>>,
    snapshots: Sender<Arc<Snapshot>>,
    retired: Receiver<Arc<Snapshot>>,
    wake: Arc<EventFd>,
    sockets: Vec<Served>,
    gauge: Arc<BalanceGauge>,
    samples: Arc<Samples>,
    tap: Option<TapRing>,
}

struct Served {
    role: Role,
    queue: u32,
    socket: OwnedFd,
    gauge: QueueGauge,
}

fn limits(settings: &Settings, rings: RingSizes) -> WorkerLimits {
    let spin = settings.datapath.spin;
    let spin = spin.map_or(SpinLimits::DEFAULT, SpinLimits::fixed);
    WorkerLimits::new(rings.batch, spin)
}

/// The request for fast wake-ups, which the workers of all wires share. It is of the process, like
/// its memory lock: opened once, by root, and withdrawn by the kernel when the process ends.
static CPU_LATENCY: OnceLock<Arc<CpuLatency>> = OnceLock::new();

/// Opens the request for fast wake-ups, if the configuration permits one and it has an effect.
pub(super) fn open_cpu_latency(settings: &Settings) {
    let limit = CpuLatency::useful_limit().filter(|_| settings.permits_fast_wakes());
    let Some(limit) = limit else {
        return;
    };
    match CpuLatency::open(limit) {
        Ok(latency) => {
            CPU_LATENCY.get_or_init(|| Arc::new(latency));
        }
        Err(error) => tracing::info!(
            "a frame after a pause waits until its core is awake: {CPU_LATENCY_DEVICE} cannot be \
             opened: {error}"
        ),
    }
}

/// All workers, one for each queue, and what they share with the XDP program.
pub(super) struct Workers {
    running: Vec<Running>,
    guards: Arc<Cells>,
    counts: Arc<Cells>,
    stop: Arc<AtomicBool>,
    /// The counts of closed sockets only.
    closed: Sums,
    /// Whether the workers can replace the VLAN tags of a frame.
    replace_tags: bool,
    /// Whether the workers copy frames for the tap.
    have_tap: bool,
}

/// The counts of the workers, and those of their sockets since this process began.
#[derive(Clone, Default)]
pub(super) struct Sums {
    pub(super) tally: Tally,
    /// Of each of the first groups, as many as were asked for.
    pub(super) groups: Vec<GroupCounts>,
    pub(super) missed: PerRole<u64>,
    pub(super) invalid: PerRole<u64>,
    pub(super) cut: PerRole<u64>,
    pub(super) unaccounted: u64,
}

impl Workers {
    /// Whether the workers can do what these settings require.
    pub(super) fn suit(&self, settings: &Settings) -> bool {
        self.replace_tags || !settings.replaces_tags()
    }

    /// Starts one worker per queue. No frame reaches them before [`Self::admit`].
    pub(super) fn start(base: Base<'_>, sockets: Sockets) -> Result<Self, DaemonError> {
        let mut workers = Self {
            running: Vec::new(),
            guards: Arc::new(base.kernel.guards()?),
            counts: Arc::new(base.kernel.worker_counters()?),
            stop: Arc::default(),
            closed: Sums::default(),
            replace_tags: matches!(sockets.queues, Queues::Filled(_)),
            have_tap: base.settings.tap().is_some(),
        };
        let forwarder = || Forwarder::new(Arc::clone(base.snapshot), Arc::clone(base.links));
        let limits = limits(base.settings, sockets.rings);
        let send_only = sockets.send_only.map(|nic| (nic, sockets.rings.ring));
        match sockets.queues {
            Queues::Shared(shares) => {
                for share in shares {
                    workers.add(share, send_only, forwarder(), limits, base.events)?;
                }
            }
            Queues::Filled(shares) => {
                for share in shares {
                    workers.add(share, send_only, forwarder(), limits, base.events)?;
                }
            }
        }
        tracing::info!(
            workers = workers.running.len(),
            umem_mib = sockets.umem.bytes() >> 20,
            "packet memory is made"
        );
        Ok(workers)
    }

    fn add<R: Rings>(
        &mut self,
        mut share: Bound<R>,
        send_only: Option<(u32, u32)>,
        forwarder: Forwarder,
        limits: WorkerLimits,
        events: &Sender<Event>,
    ) -> Result<(), DaemonError> {
        let number = self.running.len();
        let queue = u32::try_from(number).unwrap_or(u32::MAX);
        let mut served = Vec::new();
        for (role, port) in share.ports.iter() {
            if let Some(port) = port {
                served.push(serve(role, queue, port)?);
            }
        }
        let mut ports = PerRole::from_fn(|role| share.ports[role].take().map(WorkerPort::Rings));
        if let Some((nic, room)) = send_only {
            let port = PacketPort::open(nic, room)
                .map_err(|error| DaemonError::System("open a socket to send by incoming", error))?;
            ports[Role::Incoming] = Some(WorkerPort::SendOnly(port));
        }
        let samples = Arc::<Samples>::default();
        let mut forwarder = forwarder.sampled_into(Arc::clone(&samples));
        let tap = self.have_tap.then(TapRing::own);
        if let Some(ring) = &tap {
            forwarder = forwarder.tapped_into(ring.clone());
        }
        let worker = Worker::new(ports, share.memory, share.pool, forwarder, limits)
            .counting(Counters::over(Arc::clone(&self.counts), number))
            .guarded(Guard::new(Arc::clone(&self.guards), queue));
        let (snapshots, snapshots_in) = channel::bounded(1);
        let (retired_out, retired) = channel::bounded(1);
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|error| DaemonError::System("make an event descriptor", error.into()))?;
        let wake = Arc::new(wake);
        let gauge = Arc::<BalanceGauge>::default();
        let control = Control {
            snapshots: snapshots_in,
            retired: retired_out,
            stop: Arc::clone(&self.stop),
            wake: Arc::clone(&wake),
            gauge: Arc::clone(&gauge),
            cpu_latency: CPU_LATENCY.get().cloned(),
        };
        let (events, stop_requested) = (events.clone(), Arc::clone(&self.stop));
        let thread = thread::Builder::new()
            .name("exitmark-worker".to_owned())
            .spawn(move || {
                // Wakes the main thread however this one ends, unless it was requested to stop.
                let _ended = OnDrop(events, number, stop_requested);
                // Signals are the main thread's; here they would interrupt the packet path.
                let _ = SigSet::all().thread_block();
                process::keep_or_say(capabilities::NONE);
                worker.run(&control)
            })
            .map_err(|error| DaemonError::System("start a worker", error))?;
        self.running.push(Running {
            thread: Some(thread),
            snapshots,
            retired,
            wake,
            sockets: served,
            gauge,
            samples,
            tap,
        });
        Ok(())
    }

    pub(super) const fn count(&self) -> usize {
        self.running.len()
    }

    /// The samples of each worker, in the order of the queues.
    pub(super) fn samples(&self) -> Vec<Arc<Samples>> {
        let each = self.running.iter().map(|worker| &worker.samples);
        each.cloned().collect()
    }

    /// The rings of the copies for the tap; none without a tap.
    pub(super) fn tap_rings(&self) -> Vec<TapRing> {
        let rings = self.running.iter().filter_map(|worker| worker.tap.clone());
        rings.collect()
    }

    /// The counters of the tap's sender: those behind the last queue's.
    pub(super) fn counters_of_tap(&self) -> Counters {
        Counters::over(Arc::clone(&self.counts), MAX_QUEUES)
    }

    /// Adds the sockets to the XSKMAP: the XDP program may hand frames over.
    pub(super) fn admit(&self, kernel: &Kernel) -> Result<(), DaemonError> {
        for served in self.running.iter().flat_map(|worker| &worker.sockets) {
            kernel.admit(served.role, served.queue, served.socket.as_fd())?;
        }
        Ok(())
    }

    /// Removes the sockets from the XSKMAP.
    pub(super) fn dismiss(&self, kernel: &Kernel) -> Result<(), DaemonError> {
        for served in self.running.iter().flat_map(|worker| &worker.sockets) {
            kernel.dismiss(served.role, served.queue)?;
        }
        Ok(())
    }

    /// Sends a snapshot to every worker; it takes effect with the worker's next turn.
    pub(super) fn publish(&self, snapshot: &Arc<Snapshot>) {
        for worker in &self.running {
            let sent = worker
                .snapshots
                .send_timeout(Arc::clone(snapshot), RETIRE_LIMIT);
            if sent.is_ok() {
                let _ = worker.wake.write(1);
                // The last reference ends here, not on the packet path.
                drop(worker.retired.recv_timeout(RETIRE_LIMIT));
            }
        }
    }

    /// The sums of all workers, and of this many groups.
    pub(super) fn sums(&self, groups: usize) -> Sums {
        let mut sums = self.closed.clone();
        sums.groups.resize_with(groups, GroupCounts::default);
        // Includes queues that are not served any more, and the tap.
        for queue in 0..=MAX_QUEUES {
            let counters = Counters::over(Arc::clone(&self.counts), queue);
            sums.tally.add(&counters.read());
            for (sum, more) in sums.groups.iter_mut().zip(counters.read_groups(groups)) {
                sum.add(&more);
            }
        }
        for worker in &self.running {
            sums.unaccounted += worker.gauge.read().1;
            for served in &worker.sockets {
                let troubles = served.gauge.troubles().unwrap_or_default();
                sums.missed[served.role] += troubles.missed;
                sums.invalid[served.role] += troubles.tx_invalid;
                sums.cut[served.role] += served.gauge.cut();
            }
        }
        sums
    }

    pub(super) fn balances(&self) -> Vec<BalanceReport> {
        let running = (0..).zip(&self.running);
        running
            .map(|(queue, worker)| {
                let (balance, unaccounted) = worker.gauge.read();
                BalanceReport {
                    wire: String::new(),
                    queue,
                    total: balance.total as u64,
                    pool: balance.pool as u64,
                    in_hand: balance.in_hand as u64,
                    receiving: balance.receiving as u64,
                    sending: balance.sending as u64,
                    unaccounted,
                }
            })
            .collect()
    }

    /// Whether every worker, also an idle one, has stamped its heartbeat within [`SIGN_OF_LIFE`].
    pub(super) fn are_alive(&self) -> bool {
        (0..self.running.len()).all(|queue| {
            let queue = u32::try_from(queue).unwrap_or(u32::MAX);
            Guard::age(&self.guards, queue, clock()) < SIGN_OF_LIFE
        })
    }

    /// Closes the sockets, after [`Self::end`].
    pub(super) fn close(&mut self) {
        self.closed = Sums {
            tally: Tally::default(),
            unaccounted: 0,
            ..self.sums(0)
        };
        self.running.clear();
    }

    /// Takes over the counts of the closed sockets of earlier workers.
    pub(super) fn succeed(&mut self, others: &Self) {
        self.closed.clone_from(&others.closed);
    }

    /// Makes every worker drain, and waits for their reports.
    pub(super) fn end(&mut self) -> Vec<Option<WorkerReport>> {
        self.stop.store(true, Ordering::Release);
        for worker in &self.running {
            let _ = worker.wake.write(1);
        }
        self.running
            .iter_mut()
            .map(|worker| worker.thread.take()?.join().ok())
            .collect()
    }
}

fn serve<R: Rings>(role: Role, queue: u32, port: &XskPort<R>) -> Result<Served, DaemonError> {
    let watch = |error| DaemonError::System("watch a socket", error);
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
    Ok(Served {
        role,
        queue,
        socket: port.as_fd().try_clone_to_owned().map_err(watch)?,
        gauge: port.gauge().map_err(watch)?,
    })
}

struct OnDrop(Sender<Event>, usize, Arc<AtomicBool>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        if !self.2.load(Ordering::Acquire) {
            let _ = self.0.send(Event::WorkerEnded(self.1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_copy_always_has_large_chunks() {
        for (mtu, copy, zero_copy) in [
            (1500, SMALL_CHUNK, LARGE_CHUNK),
            (1762, SMALL_CHUNK, LARGE_CHUNK),
            (1763, LARGE_CHUNK, LARGE_CHUNK),
            (9000, LARGE_CHUNK, LARGE_CHUNK),
        ] {
            assert_eq!(chunk_bytes(mtu + LINK_OVERHEAD, false), copy, "{mtu}");
            assert_eq!(chunk_bytes(mtu + LINK_OVERHEAD, true), zero_copy, "{mtu}");
        }
        // What igb uses of a chunk holds a frame of full size with its tags.
        let step = 1024;
        assert!((LARGE_CHUNK - HEADROOM) / step * step >= 1500 + LINK_OVERHEAD);
    }
}
