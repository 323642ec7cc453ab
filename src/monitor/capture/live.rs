//! Counts at a tap. The main thread receives and counts, and never blocks: every second it passes
//! its table to the aggregation thread and goes on with an empty one.

use super::aggregator::{Aggregator, TallyBatch};
use super::metrics::Shared;
use super::{CaptureError, cannot, filter, now, open_periods};
use crate::filter::Arrived;
use crate::period::SYSTEM_CALLS;
use crate::places::Places;
use crate::settings::Settings;
use crate::tally::{Counter, Tally};
use crate::tap::{Tap, TapCounters, TapSettings, Taps, return_large_blocks};
use caps::Capability;
use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};
use exitmark_service::http;
use exitmark_service::process::{self, Service};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often a table is passed on, which is also how much too late a period may end; and how long a
/// signal may wait.
const TURN: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_millis(200);
/// Cells of the counting thread's table. It is passed on early when a quarter of them are used:
/// half of the cells are reserved for connections.
const CELLS: usize = 32_768;

/// Capabilities of the counting thread: it restores the NIC's settings at the end.
const OF_MAIN: &[Capability] = &[Capability::CAP_NET_ADMIN];
pub(super) const NO_CAPABILITIES: &[Capability] = &[];

#[derive(Default)]
struct SignalFlags {
    stop: Arc<AtomicBool>,
    counters: Arc<AtomicBool>,
}

impl SignalFlags {
    fn listen() -> Result<Self, CaptureError> {
        let flags = Self::default();
        for (signal, flag) in [
            (SIGTERM, &flags.stop),
            (SIGINT, &flags.stop),
            (SIGUSR1, &flags.counters),
        ] {
            flag::register(signal, Arc::clone(flag)).map_err(cannot("wait for signals"))?;
        }
        Ok(flags)
    }
}

/// Counts until SIGTERM or SIGINT; SIGUSR1 prints the counters.
pub(crate) fn run(settings: &Settings) -> Result<(), CaptureError> {
    return_large_blocks();
    let service = Service::find();
    if let (Some(user), true) = (&settings.user, process::is_root()) {
        process::become_user(user)?;
    }
    process::forbid_dumps()?;
    let flags = SignalFlags::listen()?;
    let places = Arc::new(Places::load(&settings.places)?);
    let listener = settings.metrics.map(http::listen_for_metrics).transpose()?;
    let started = Instant::now();
    let opened = open_periods(settings, &places, Some(&settings.state), now(started))?;
    let interfaces = settings.interfaces.iter();
    let each: Vec<_> = interfaces
        .map(|interface| TapSettings {
            interface: interface.clone(),
            filter: filter(settings),
            ring: settings.ring,
        })
        .collect();
    let taps = Taps::open(&each)?;
    let shared = Shared::of(places.described(), &settings.interfaces);
    if let Some(listener) = listener {
        shared
            .serve(listener, || process::keep_or_say(NO_CAPABILITIES))
            .map_err(cannot("serve metrics"))?;
    }
    let (periods, ..) = &opened;
    let ready = format!(
        "interface={} queues={} period={}",
        settings.interfaces.join(","),
        taps.each().iter().map(Tap::queues).sum::<usize>(),
        periods.status().running
    );
    let cells = settings.cells.min(CELLS);
    let [first, spare] = [(); 2].map(|()| Tally::of_a_turn(Arc::clone(&places), cells));
    let whole = Tally::new(Arc::clone(&places), settings.cells);
    let (batch_sender, batches) = bounded(2);
    let (give_back, emptied) = bounded(2);
    let aggregator = Aggregator::new(opened, whole, shared, started, &settings.interfaces);
    let thread = std::thread::Builder::new()
        .name("monitor-totals".to_owned())
        .spawn(move || {
            process::keep_or_say(NO_CAPABILITIES);
            aggregator.run(&batches, &give_back);
        })
        .map_err(cannot("start the aggregation thread"))?;
    process::keep(OF_MAIN).map_err(cannot("give up capabilities"))?;
    process::forbid_system_calls(&SYSTEM_CALLS, &[])
        .map_err(cannot("forbid system calls to itself"))?;
    let mut listening = Listening {
        counter: Counter::of(filter(settings), first),
        taps,
        spare: Some(spare),
        batch_sender,
        emptied,
        handed_over: Instant::now(),
        counters_read: Vec::new(),
        service,
    };
    let _ = process::print(&format!("ready {ready}\n"));
    listening.service.is_ready(&ready);
    let outcome = listening.listen(&flags);
    listening.service.is_stopping();
    let Listening {
        taps, batch_sender, ..
    } = listening;
    // The aggregation thread ends when its channel is closed.
    drop(batch_sender);
    let aggregated = thread.join().map_err(|_| aggregation_ended());
    let closed = taps.close().map_err(CaptureError::from);
    outcome.and(aggregated).and(closed)
}

fn aggregation_ended() -> CaptureError {
    "the aggregation thread has exited; the log says why, and up to a minute is lost".into()
}

/// State of the counting thread.
struct Listening {
    counter: Counter,
    taps: Taps,
    /// An empty table to go on with.
    spare: Option<Tally>,
    batch_sender: Sender<TallyBatch>,
    emptied: Receiver<Tally>,
    handed_over: Instant,
    /// The taps' counters, as last read.
    counters_read: Vec<TapCounters>,
    service: Service,
}

impl Listening {
    fn listen(&mut self, flags: &SignalFlags) -> Result<(), CaptureError> {
        let outcome = self.listen_until(flags).and_then(|()| self.drain());
        // What was counted before a fault is passed on, too.
        let handed_over = self.hand_over(flags, true);
        outcome.and(handed_over)
    }

    fn listen_until(&mut self, flags: &SignalFlags) -> Result<(), CaptureError> {
        while !flags.stop.load(Ordering::Relaxed) {
            let counter = &mut self.counter;
            let received = self.taps.receive(TIMEOUT, |batch| counter.count(batch))?;
            if received == 0 {
                // Nothing of the last packet may remain in memory.
                self.counter.rinse();
            }
            let is_due =
                self.handed_over.elapsed() >= TURN || flags.counters.load(Ordering::Relaxed);
            let used = self.counter.tally().occupancy();
            if is_due || used.used > used.capacity / 4 {
                self.hand_over(flags, false)?;
            }
        }
        Ok(())
    }

    /// Counts what the queues still hold; the filter lets nothing more in.
    fn drain(&mut self) -> Result<(), CaptureError> {
        self.taps.shut();
        let counter = &mut self.counter;
        let mut count = |batch: &[Arrived<'_>]| counter.count(batch);
        while self.taps.receive(Duration::ZERO, &mut count)? > 0 {}
        Ok(())
    }

    /// Passes the table to the aggregation thread if an empty one is available. While that thread
    /// blocks on a disk none is, and the current table keeps filling. The last call waits.
    fn hand_over(&mut self, flags: &SignalFlags, is_last: bool) -> Result<(), CaptureError> {
        // The watchdog is fed even then: a restart does not repair a disk.
        self.service.beat(|| true);
        if self.spare.is_none() {
            let emptied = match is_last {
                true => self.emptied.recv().map_err(TryRecvError::from),
                false => self.emptied.try_recv(),
            };
            self.spare = match emptied {
                Ok(spare) => Some(spare),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => return Err(aggregation_ended()),
            };
        }
        let Some(spare) = self.spare.take() else {
            return Ok(());
        };
        let say = flags.counters.swap(false, Ordering::Relaxed);
        // If the NIC is gone, its last known counters are kept.
        self.counters_read = self.taps.counters(&self.counters_read);
        let now = Instant::now();
        let batch = TallyBatch {
            counted: self.counter.exchange(spare),
            watched: now - std::mem::replace(&mut self.handed_over, now),
            taps: self.counters_read.clone(),
            say,
            is_last,
        };
        self.batch_sender
            .send(batch)
            .map_err(|_| aggregation_ended())
    }
}
