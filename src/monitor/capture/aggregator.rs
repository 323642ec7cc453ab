//! The aggregation thread: adds up batches, saves the running period for a restart, closes it in
//! time, and updates the metrics. It may block on a disk; the counting thread never waits for it.

use super::metrics::Shared;
use super::{INBOUND, log_notices, now};
use crate::cell::Counts;
use crate::period::{Opened, Periods};
use crate::tally::Tally;
use crate::tap::{self, TapCounters};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use exitmark_service::process;
use std::time::{Duration, Instant};

/// Time without a batch after which the counting thread is reported.
const SILENCE: Duration = Duration::from_secs(5);

/// How often the NIC is checked.
const LOOK: Duration = Duration::from_secs(60);

/// A batch: what was counted since the previous one.
pub(super) struct TallyBatch {
    pub(super) counted: Tally,
    /// Time that the batch covers.
    pub(super) watched: Duration,
    /// The taps' counters since they were opened.
    pub(super) taps: Vec<TapCounters>,
    /// Print the counters: SIGUSR1 was received.
    pub(super) say: bool,
    /// No batch follows: the running period is saved or closed.
    pub(super) is_last: bool,
}

pub(super) struct Aggregator {
    periods: Periods,
    /// Counts of the running period.
    tally: Tally,
    shared: Shared,
    started: Instant,
    /// Counts of closed periods,
    earlier: Counts,
    /// and counts that the running period had before this process started, which an earlier process
    /// has reported.
    restored: Counts,
    taps: Vec<ObservedTap>,
    /// When the NICs are checked next.
    look_at: Instant,
    /// The fraction of a second that was watched and is not in the tally yet.
    watched: Duration,
    state_failures: u64,
}

/// A tap, as the last batch reported it.
struct ObservedTap {
    interface: String,
    counters: TapCounters,
    /// Whether the last check of its NIC failed.
    is_warned: bool,
    /// Whether the log has that packets to the host arrive and are not counted.
    is_inbound_noticed: bool,
}

impl Aggregator {
    pub(super) fn new(
        (periods, before, notices): Opened,
        mut tally: Tally,
        shared: Shared,
        started: Instant,
        interfaces: &[String],
    ) -> Self {
        log_notices(&notices);
        let mut restored = Counts::default();
        if let Some(ledger) = &before {
            tally.restore(ledger);
            restored = all(&tally);
        }
        Self {
            periods,
            tally,
            shared,
            started,
            earlier: Counts::default(),
            restored,
            taps: interfaces
                .iter()
                .map(|interface| ObservedTap {
                    interface: interface.clone(),
                    counters: TapCounters::default(),
                    is_warned: false,
                    is_inbound_noticed: false,
                })
                .collect(),
            look_at: started,
            watched: Duration::ZERO,
            state_failures: 0,
        }
    }

    /// Runs until the counting thread is gone.
    pub(super) fn run(mut self, batches: &Receiver<TallyBatch>, give_back: &Sender<Tally>) {
        loop {
            let batch = match batches.recv_timeout(SILENCE) {
                Ok(batch) => batch,
                Err(RecvTimeoutError::Timeout) => {
                    tracing::warn!("no batch from the counting thread for {SILENCE:?}");
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let (say, is_last) = (batch.say, batch.is_last);
            let emptied = self.add_batch(batch);
            // The counting thread may have exited.
            let _ = give_back.try_send(emptied);
            self.look_at_the_clock(is_last);
            self.look_at_the_nics();
            self.show();
            if say {
                let _ = process::print(&format!("counters {}\n", self.counters_line()));
            }
            if is_last {
                return;
            }
        }
    }

    /// Adds up a batch; returns its table, emptied.
    fn add_batch(&mut self, mut batch: TallyBatch) -> Tally {
        self.tally.absorb(&mut batch.counted);
        for (tap, counters) in self.taps.iter_mut().zip(batch.taps) {
            let lost = counters.lost().saturating_sub(tap.counters.lost());
            self.tally.note_lost(lost);
            tap.counters = counters;
            if counters.sorted.inbound > 0 && !tap.is_inbound_noticed {
                tracing::warn!("{}: {INBOUND}", tap.interface);
                tap.is_inbound_noticed = true;
            }
        }
        self.watched += batch.watched;
        self.tally.note_watched(self.watched.as_secs());
        self.watched -= Duration::from_secs(self.watched.as_secs());
        batch.counted
    }

    /// Warns if a NIC has got an address, or another interface that sends through it.
    fn look_at_the_nics(&mut self) {
        if Instant::now() < self.look_at {
            return;
        }
        self.look_at = Instant::now() + LOOK;
        for tap in &mut self.taps {
            let looked = tap::look(&tap.interface);
            if let (Err(error), false) = (&looked, tap.is_warned) {
                tracing::warn!("{error}");
            }
            tap.is_warned = looked.is_err();
        }
    }

    fn look_at_the_clock(&mut self, is_last: bool) {
        let now = now(self.started);
        let mut notices = Vec::new();
        if self.periods.is_over(now) {
            self.earlier = self.counted();
            self.restored = Counts::default();
            notices = self.periods.close(self.tally.take(), now);
        }
        if self.periods.is_retry_due(now) {
            notices.extend(self.periods.retry(now));
        }
        if is_last || self.periods.is_save_due(now) {
            notices.extend(self.periods.save(&self.tally.ledger(), now));
            let failed = !self.periods.status().is_saved;
            self.state_failures += u64::from(failed);
        }
        log_notices(&notices);
    }

    /// Everything counted since the start of the process.
    fn counted(&self) -> Counts {
        let mut counted = self.earlier;
        counted += all(&self.tally);
        counted.saturating_sub(self.restored)
    }

    fn show(&self) {
        let status = self.periods.status();
        let occupancy = self.tally.occupancy();
        self.shared.change(|totals| {
            totals.counted = self.counted();
            for (shown, tap) in totals.taps.iter_mut().zip(&self.taps) {
                shown.1 = tap.counters;
            }
            totals.cells = (occupancy.used, occupancy.capacity);
            totals.spilled = occupancy.spilled > 0;
            totals.period_start = status.running.start;
            totals.published = status.last_published;
            totals.unpublished = status.waiting;
            totals.given_up = status.given_up;
            totals.state_failures = self.state_failures;
        });
    }

    fn counters_line(&self) -> String {
        let Counts {
            flows,
            bytes,
            packets,
            down_bytes,
            down_packets,
        } = self.counted();
        let lost: u64 = self.taps.iter().map(|tap| tap.counters.lost()).sum();
        format!(
            "packets={packets} bytes={bytes} flows={flows} lost={lost} \
             down_packets={down_packets} down_bytes={down_bytes}"
        )
    }
}

fn all(tally: &Tally) -> Counts {
    tally.totals().iter().map(|(_, counts)| *counts).sum()
}
