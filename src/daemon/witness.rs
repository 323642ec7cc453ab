//! The thread that watches: it fetches samples of both engines, hands them to the witness, and
//! answers what is asked of it.
//!
//! Nothing waits for it but who asks. What it is told of goes before what follows from it: a
//! snapshot is sent here before it is published, and samples are fetched before the mail is read.

use super::{DaemonError, capabilities};
use crate::datapath::{DecidedBy, KernelSamples, Links, Sample, Samples};
use crate::observe::{AuditReport, CaptureRequest, Residence};
use crate::packet::MacAddr;
use crate::policy::Snapshot;
use crate::process;
use crate::witness::{Moment, Witness};
use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use nix::sys::signal::SigSet;
use nix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

/// How often samples are fetched, and how often during a capture. From one fetch to the next each
/// engine makes a bounded number of samples, so this bounds what a capture costs.
const PAUSE: Duration = Duration::from_millis(100);
const CAPTURE_PAUSE: Duration = Duration::from_millis(20);
/// For how long after a look somebody counts as there to look again: samples hold what no frame is
/// to leave behind.
const PRESENCE: Duration = Duration::from_secs(2);
/// The kernel's samples that are fetched at a time: its ring has room for no more.
const BATCH: usize = 4096;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the witness has to say.
#[derive(Default)]
pub(super) struct Told {
    pub(super) audit: AuditReport,
    pub(super) residences: Vec<Residence>,
    /// The host seems to have a recursive resolver of its own.
    pub(super) sees_recursion: bool,
}

enum Ask {
    Follow(Arc<Snapshot>),
    NextHop(Option<MacAddr>),
    Workers(Vec<Arc<Samples>>),
    Report(Sender<Told>),
    Capture(
        CaptureRequest,
        bool,
        Sender<Result<Receiver<Vec<u8>>, String>>,
    ),
}

/// The thread, from outside.
pub(super) struct Watch {
    asks: Option<Sender<Ask>>,
    thread: Option<JoinHandle<Told>>,
    last: Told,
}

impl Watch {
    /// Starts it, with one decision in so many to be told of.
    pub(super) fn start(
        links: Arc<Links>,
        snapshot: &Arc<Snapshot>,
        kernel: KernelSamples,
        workers: Vec<Arc<Samples>>,
        one_in: u32,
    ) -> Result<Self, DaemonError> {
        let (asks, mail) = channel::unbounded();
        let lost_before = kernel.lost();
        let desk = Desk {
            links: Arc::clone(&links),
            witness: Witness::new(links, Arc::clone(snapshot), one_in),
            kernel,
            workers,
            lost_before,
            lost_by_workers: 0,
            samples: Vec::with_capacity(BATCH),
        };
        let thread = thread::Builder::new()
            .name("exitmark-witness".to_owned())
            .spawn(move || {
                // Signals are the main thread's.
                let _ = SigSet::all().thread_block();
                process::keep_or_say(capabilities::OF_NOBODY);
                desk.work(&mail)
            })
            .map_err(|error| DaemonError::System("start the witness", error))?;
        Ok(Self {
            asks: Some(asks),
            thread: Some(thread),
            last: Told::default(),
        })
    }

    fn ask(&self, ask: Ask) {
        if let Some(asks) = &self.asks {
            let _ = asks.send(ask);
        }
    }

    /// Tells of a snapshot that is about to be published.
    pub(super) fn follow(&self, snapshot: &Arc<Snapshot>) {
        self.ask(Ask::Follow(Arc::clone(snapshot)));
    }

    /// Fetches the samples of other workers from now on.
    pub(super) fn fetch_from(&self, workers: Vec<Arc<Samples>>) {
        self.ask(Ask::Workers(workers));
    }

    /// For whoever changes where steered frames are sent, to tell of it before.
    pub(super) fn of_next_hops(&self) -> impl Fn(Option<MacAddr>) + Send + 'static {
        let asks = self.asks.clone();
        move |next_hop| {
            if let Some(asks) = &asks {
                let _ = asks.send(Ask::NextHop(next_hop));
            }
        }
    }

    /// What there is to say: nothing, where the thread has failed.
    pub(super) fn report(&self) -> Told {
        if self.asks.is_none() {
            return Told {
                audit: self.last.audit.clone(),
                residences: self.last.residences.clone(),
                sees_recursion: self.last.sees_recursion,
            };
        }
        let (answer, told) = channel::bounded(1);
        self.ask(Ask::Report(answer));
        told.recv_timeout(PATIENCE).unwrap_or_default()
    }

    /// Begins a capture; see [`Witness::capture`].
    pub(super) fn capture(
        &self,
        request: CaptureRequest,
        knows_relays: bool,
    ) -> Result<Receiver<Vec<u8>>, String> {
        let (answer, told) = channel::bounded(1);
        self.ask(Ask::Capture(request, knows_relays, answer));
        told.recv_timeout(PATIENCE)
            .unwrap_or_else(|_| Err("nobody captures any more; restart exitmark".to_owned()))
    }

    /// `name=number` for the line of counters.
    pub(super) fn numbers(&self) -> [(&'static str, u64); 3] {
        let audit = self.report().audit;
        let mismatches = audit.mismatches.iter().map(|fault| fault.frames).sum();
        [
            ("audit_checked", audit.checked),
            ("audit_mismatches", mismatches),
            ("audit_lost", audit.lost),
        ]
    }

    /// Ends it: what was sampled by now is still looked at, and nothing is sampled any more.
    pub(super) fn end(&mut self) {
        self.asks = None;
        if let Some(last) = self.thread.take().and_then(|thread| thread.join().ok()) {
            last.residences.iter().for_each(log_residence);
            self.last = last;
        }
    }
}

/// For whoever reads the log after a test: the box itself tells while it runs.
fn log_residence(times: &Residence) {
    if times.samples == 0 {
        return;
    }
    let micros = |wanted: f64| {
        let quantile = times.quantiles.iter().find(|(part, _)| *part >= wanted);
        quantile.map_or(0.0, |(_, seconds)| seconds * 1e6)
    };
    tracing::info!(
        engine = times.engine,
        samples = times.samples,
        "sampled frames were in the box for {:.1} µs, 99 of 100 for no more than {:.1} µs",
        micros(0.5),
        micros(0.99)
    );
}

/// What the thread has before it.
struct Desk {
    links: Arc<Links>,
    witness: Witness,
    kernel: KernelSamples,
    workers: Vec<Arc<Samples>>,
    /// Of the kernel's, which counts on when processes end.
    lost_before: u64,
    /// Of workers that have ended.
    lost_by_workers: u64,
    samples: Vec<Sample>,
}

/// Samples of these for which there was no room.
fn lost(workers: &[Arc<Samples>]) -> u64 {
    workers.iter().map(|worker| worker.lost()).sum()
}

impl Desk {
    fn work(mut self, mail: &Receiver<Ask>) -> Told {
        loop {
            let pause = if self.witness.is_capturing() {
                CAPTURE_PAUSE
            } else {
                PAUSE
            };
            match mail.recv_timeout(pause) {
                Ok(ask) => self.turn(Some(ask), mail),
                Err(RecvTimeoutError::Timeout) => self.turn(None, mail),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.turn(None, mail);
        self.witness.end();
        self.told()
    }

    fn turn(&mut self, first: Option<Ask>, mail: &Receiver<Ask>) {
        // First the samples, then the mail: what they were judged by was sent before.
        self.fetch();
        let mut questions = Vec::new();
        for ask in first.into_iter().chain(mail.try_iter()) {
            match ask {
                Ask::Follow(snapshot) => self.witness.auditor().follow(snapshot),
                Ask::NextHop(mac) => self.witness.auditor().expect_next_hop(mac, monotonic()),
                Ask::Workers(workers) => {
                    self.lost_by_workers += lost(&self.workers);
                    self.workers = workers;
                }
                question => questions.push(question),
            }
        }
        let now = monotonic();
        self.links.sample_until(now + PRESENCE);
        self.witness.look(now);
        for sample in self.samples.drain(..) {
            self.witness.see(&sample);
        }
        for worker in &self.workers {
            while let Some(time) = worker.next_residence() {
                self.witness.resided(DecidedBy::Worker, time);
            }
        }
        let of_workers = self.lost_by_workers + lost(&self.workers);
        let of_kernel = self.kernel.lost().saturating_sub(self.lost_before);
        self.witness.tick(now, of_kernel + of_workers);
        for question in questions {
            self.answer(question);
        }
    }

    fn fetch(&mut self) {
        self.samples.extend(self.kernel.take(BATCH));
        for worker in &self.workers {
            // As many as there are now: more may come while these are fetched.
            let waiting = worker.waiting();
            let next = std::iter::from_fn(|| worker.next());
            self.samples.extend(next.take(waiting));
        }
    }

    fn answer(&mut self, question: Ask) {
        match question {
            Ask::Report(answer) => {
                let _ = answer.send(self.told());
            }
            Ask::Capture(request, knows_relays, answer) => {
                let moment = Moment {
                    monotonic: monotonic(),
                    wall: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(),
                };
                let _ = answer.send(self.witness.capture(request, moment, knows_relays));
            }
            Ask::Follow(_) | Ask::NextHop(_) | Ask::Workers(_) => {}
        }
    }

    fn told(&self) -> Told {
        Told {
            audit: self.witness.audit(),
            residences: self.witness.residences(),
            sees_recursion: self.witness.sees_recursion(),
        }
    }
}

/// The clock of both engines.
fn monotonic() -> Duration {
    // Linux always has it.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}
