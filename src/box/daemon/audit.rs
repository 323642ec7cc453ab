//! The audit thread: it fetches samples of both engines, hands them to the [`Sampler`], and answers
//! reports and captures.
//!
//! Only a request waits for it. A snapshot is sent here before it is published, and samples are
//! fetched before messages are read, so that no sample is judged by a later snapshot.

use super::{DaemonError, capabilities};
use crate::audit::{CapturePart, Moment, Sampler};
use crate::observe::{AuditReport, CaptureRequest, LatencyReport};
use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use exitmark_datapath::{DecidedBy, KernelSamples, Links, Sample, Samples};
use exitmark_policy::Snapshot;
use exitmark_policy::packet::MacAddr;
use exitmark_service::process;
use nix::sys::signal::SigSet;
use nix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

/// The interval of fetching samples, normally and during a capture. Each engine makes a bounded
/// number of samples per interval, which bounds the cost of a capture.
const PAUSE: Duration = Duration::from_millis(100);
const CAPTURE_PAUSE: Duration = Duration::from_millis(20);
/// How long after a fetch the engines go on sampling: without a reader, no frame's content must
/// stay in memory.
const PRESENCE: Duration = Duration::from_secs(2);
/// The most kernel samples fetched at a time, which is its ring's capacity.
const BATCH: usize = 4096;
/// Timeout for an answer of the audit thread.
const TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone, Default)]
pub(super) struct SamplerReport {
    pub(super) audit: AuditReport,
    pub(super) latencies: Vec<LatencyReport>,
    /// The host seems to run a recursive resolver.
    pub(super) has_recursion: bool,
}

enum Message {
    Follow(Arc<Snapshot>),
    NextHop(usize, Option<MacAddr>),
    Workers(Vec<Arc<Samples>>),
    Report(Sender<SamplerReport>),
    Capture(
        CaptureRequest,
        CapturePart,
        bool,
        Sender<Result<Receiver<Vec<u8>>, String>>,
    ),
}

pub(super) struct AuditHandle {
    messages: Option<Sender<Message>>,
    thread: Option<JoinHandle<SamplerReport>>,
    last: SamplerReport,
}

impl AuditHandle {
    /// Starts the thread; one decision in `one_in` is sampled.
    pub(super) fn start(
        links: Arc<Links>,
        snapshot: &Arc<Snapshot>,
        kernel: KernelSamples,
        workers: Vec<Arc<Samples>>,
        one_in: u32,
    ) -> Result<Self, DaemonError> {
        let (messages, incoming) = channel::unbounded();
        let lost_before = kernel.lost();
        let audit = AuditThread {
            links: Arc::clone(&links),
            sampler: Sampler::new(links, Arc::clone(snapshot), one_in),
            kernel,
            workers,
            lost_before,
            lost_by_workers: 0,
            samples: Vec::with_capacity(BATCH),
        };
        let thread = thread::Builder::new()
            .name("exitmark-audit".to_owned())
            .spawn(move || {
                // Signals are the main thread's.
                let _ = SigSet::all().thread_block();
                process::keep_or_say(capabilities::NONE);
                audit.work(&incoming)
            })
            .map_err(|error| DaemonError::System("start the audit thread", error))?;
        Ok(Self {
            messages: Some(messages),
            thread: Some(thread),
            last: SamplerReport::default(),
        })
    }

    fn send(&self, message: Message) {
        if let Some(messages) = &self.messages {
            let _ = messages.send(message);
        }
    }

    /// Announces a snapshot that is about to be published.
    pub(super) fn follow(&self, snapshot: &Arc<Snapshot>) {
        self.send(Message::Follow(Arc::clone(snapshot)));
    }

    /// Fetches the samples of other workers from now on.
    pub(super) fn fetch_from(&self, workers: Vec<Arc<Samples>>) {
        self.send(Message::Workers(workers));
    }

    /// A function that announces a next hop's MAC address, by its number, before frames are sent to
    /// it.
    pub(super) fn of_next_hops(&self) -> impl Fn(usize, Option<MacAddr>) + Send + 'static {
        let messages = self.messages.clone();
        move |number, next_hop| {
            if let Some(messages) = &messages {
                let _ = messages.send(Message::NextHop(number, next_hop));
            }
        }
    }

    /// The current report, or the last one after [`Self::end`]; empty if the thread has failed.
    pub(super) fn report(&self) -> SamplerReport {
        if self.messages.is_none() {
            return self.last.clone();
        }
        let (answer, answered) = channel::bounded(1);
        self.send(Message::Report(answer));
        answered.recv_timeout(TIMEOUT).unwrap_or_default()
    }

    pub(super) fn capture(
        &self,
        request: CaptureRequest,
        part: CapturePart,
        knows_relays: bool,
    ) -> Result<Receiver<Vec<u8>>, String> {
        let (answer, answered) = channel::bounded(1);
        self.send(Message::Capture(request, part, knows_relays, answer));
        answered
            .recv_timeout(TIMEOUT)
            .unwrap_or_else(|_| Err("the audit thread has exited; restart exitmark".to_owned()))
    }

    /// The audit's names and numbers for the line of counters.
    pub(super) fn numbers(&self) -> [(&'static str, u64); 3] {
        let audit = self.report().audit;
        let mismatches = audit.mismatches.iter().map(|kind| kind.frames).sum();
        [
            ("audit_checked", audit.checked),
            ("audit_mismatches", mismatches),
            ("audit_lost", audit.lost),
        ]
    }

    /// Stops the thread after it has audited the samples made so far.
    pub(super) fn end(&mut self) {
        self.messages = None;
        if let Some(last) = self.thread.take().and_then(|thread| thread.join().ok()) {
            last.latencies.iter().for_each(log_latency);
            self.last = last;
        }
    }
}

/// Logs the sampled latency at the end; a running box reports it in its status.
fn log_latency(times: &LatencyReport) {
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
        "latency of sampled frames: p50 {:.1} µs, p99 {:.1} µs",
        micros(0.5),
        micros(0.99)
    );
}

struct AuditThread {
    links: Arc<Links>,
    sampler: Sampler,
    kernel: KernelSamples,
    workers: Vec<Arc<Samples>>,
    /// Kernel samples lost before this process started: that counter outlives processes.
    lost_before: u64,
    /// Samples lost by workers that have ended.
    lost_by_workers: u64,
    samples: Vec<Sample>,
}

/// How many samples of these workers were lost because their buffers were full.
fn lost(workers: &[Arc<Samples>]) -> u64 {
    workers.iter().map(|worker| worker.lost()).sum()
}

impl AuditThread {
    fn work(mut self, incoming: &Receiver<Message>) -> SamplerReport {
        loop {
            let pause = if self.sampler.is_capturing() {
                CAPTURE_PAUSE
            } else {
                PAUSE
            };
            match incoming.recv_timeout(pause) {
                Ok(message) => self.turn(Some(message), incoming),
                Err(RecvTimeoutError::Timeout) => self.turn(None, incoming),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.turn(None, incoming);
        self.sampler.end();
        self.report()
    }

    fn turn(&mut self, first: Option<Message>, incoming: &Receiver<Message>) {
        // Samples before messages: the snapshot that they were judged by was sent earlier.
        self.fetch();
        let mut questions = Vec::new();
        for message in first.into_iter().chain(incoming.try_iter()) {
            match message {
                Message::Follow(snapshot) => self.sampler.auditor().follow(snapshot),
                Message::NextHop(number, mac) => {
                    self.sampler
                        .auditor()
                        .expect_next_hop(number, mac, monotonic());
                }
                Message::Workers(workers) => {
                    self.lost_by_workers += lost(&self.workers);
                    self.workers = workers;
                }
                question => questions.push(question),
            }
        }
        let now = monotonic();
        self.links.sample_until(now + PRESENCE);
        match self.samples.is_empty() {
            true => self.sampler.look_at_next_hops(now),
            false => self.sampler.look(now),
        }
        for sample in self.samples.drain(..) {
            self.sampler.add(&sample);
        }
        for worker in &self.workers {
            while let Some(time) = worker.next_latency() {
                self.sampler.record_latency(DecidedBy::Worker, time);
            }
        }
        let of_workers = self.lost_by_workers + lost(&self.workers);
        let of_kernel = self.kernel.lost().saturating_sub(self.lost_before);
        self.sampler.tick(now, of_kernel + of_workers);
        for question in questions {
            self.answer(question);
        }
    }

    fn fetch(&mut self) {
        self.samples.extend(self.kernel.take(BATCH));
        for worker in &self.workers {
            // Only those waiting now, because more may arrive during the loop.
            let waiting = worker.waiting();
            let next = std::iter::from_fn(|| worker.next());
            self.samples.extend(next.take(waiting));
        }
    }

    fn answer(&mut self, question: Message) {
        match question {
            Message::Report(answer) => {
                let _ = answer.send(self.report());
            }
            Message::Capture(request, part, knows_relays, answer) => {
                let moment = Moment {
                    monotonic: monotonic(),
                    wall: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(),
                };
                let sampler = &mut self.sampler;
                let _ = answer.send(sampler.capture_part(request, part, moment, knows_relays));
            }
            Message::Follow(_) | Message::NextHop(..) | Message::Workers(_) => {}
        }
    }

    fn report(&self) -> SamplerReport {
        SamplerReport {
            audit: self.sampler.audit(),
            latencies: self.sampler.latencies(),
            has_recursion: self.sampler.has_recursion(),
        }
    }
}

/// CLOCK_MONOTONIC, the clock of both engines.
fn monotonic() -> Duration {
    // This clock exists on every Linux; the call cannot fail.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}
