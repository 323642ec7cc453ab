//! The thread that keeps the books: adds up what was counted, keeps the running period for a
//! restart, closes it in time, and tells everybody. It may wait for a disk; nobody waits for it.

use super::metrics::Shared;
use super::{Opened, now, tell};
use crate::monitor::cell::Counts;
use crate::monitor::period::Periods;
use crate::monitor::tally::Tally;
use crate::monitor::tap::{self, TapCounters};
use crate::process;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// After so long without a delivery the thread that counts is not believed to be alive.
const SILENCE: Duration = Duration::from_secs(5);

/// How often the NIC is looked at.
const LOOK: Duration = Duration::from_secs(60);

/// What was counted since the last delivery.
pub(super) struct Delivery {
    pub(super) counted: Tally,
    /// For how long.
    pub(super) watched: Duration,
    /// What the tap counts, since it was opened.
    pub(super) tap: TapCounters,
    /// Somebody wants to see the counters.
    pub(super) say: bool,
    /// Nothing comes any more.
    pub(super) is_last: bool,
}

/// The books.
pub(super) struct Books {
    periods: Periods,
    /// The running period.
    tally: Tally,
    shared: Shared,
    started: Instant,
    /// What periods that are closed had,
    earlier: Counts,
    /// and what the running one had before this process. That is not told: it was told before.
    restored: Counts,
    tap: TapCounters,
    interface: String,
    /// When the NIC is to be looked at next, and whether something was wrong with it.
    look_at: Instant,
    is_warned: bool,
    /// Part of a second that was watched and is not counted yet.
    watched: Duration,
    state_failures: u64,
}

impl Books {
    pub(super) fn new(
        opened: Opened,
        mut tally: Tally,
        shared: Shared,
        started: Instant,
        interface: &str,
    ) -> Self {
        tell(&opened.notices);
        let mut restored = Counts::default();
        if let Some(ledger) = &opened.before {
            tally.restore(ledger);
            restored = all(&tally);
        }
        Self {
            periods: opened.periods,
            tally,
            shared,
            started,
            earlier: Counts::default(),
            restored,
            interface: interface.to_owned(),
            look_at: started,
            is_warned: false,
            tap: TapCounters::default(),
            watched: Duration::ZERO,
            state_failures: 0,
        }
    }

    /// Until nobody can deliver any more.
    pub(super) fn keep(mut self, deliveries: &Receiver<Delivery>, give_back: &Sender<Tally>) {
        loop {
            let delivery = match deliveries.recv_timeout(SILENCE) {
                Ok(delivery) => delivery,
                Err(RecvTimeoutError::Timeout) => {
                    tracing::warn!("nothing was counted for {SILENCE:?}, not even nothing");
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let (say, is_last) = (delivery.say, delivery.is_last);
            let emptied = self.enter(delivery);
            // Whoever counts may be gone already.
            let _ = give_back.try_send(emptied);
            self.look_at_the_clock(is_last);
            self.look_at_the_nic();
            self.show();
            if say {
                let _ = process::print(&format!("counters {}\n", self.words()));
            }
            if is_last {
                return;
            }
        }
    }

    /// Adds it up; returns the table, empty.
    fn enter(&mut self, delivery: Delivery) -> Tally {
        let Delivery {
            mut counted,
            watched,
            tap,
            ..
        } = delivery;
        self.tally.absorb(&mut counted);
        self.tally
            .note_lost(tap.lost().saturating_sub(self.tap.lost()));
        self.tap = tap;
        self.watched += watched;
        self.tally.note_watched(self.watched.as_secs());
        self.watched -= Duration::from_secs(self.watched.as_secs());
        counted
    }

    /// What speaks by the NIC is not ours; still somebody should know.
    fn look_at_the_nic(&mut self) {
        if Instant::now() < self.look_at {
            return;
        }
        self.look_at = Instant::now() + LOOK;
        let looked = tap::look(&self.interface);
        if let (Err(error), false) = (&looked, self.is_warned) {
            tracing::warn!("{error}");
        }
        self.is_warned = looked.is_err();
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
        tell(&notices);
    }

    /// All that was counted since the start.
    fn counted(&self) -> Counts {
        let mut counted = self.earlier;
        counted += all(&self.tally);
        Counts {
            flows: counted.flows.saturating_sub(self.restored.flows),
            bytes: counted.bytes.saturating_sub(self.restored.bytes),
            packets: counted.packets.saturating_sub(self.restored.packets),
        }
    }

    fn show(&self) {
        let status = self.periods.status();
        let occupancy = self.tally.occupancy();
        self.shared.change(|totals| {
            totals.counted = self.counted();
            totals.tap = self.tap;
            totals.cells = (occupancy.used, occupancy.capacity);
            totals.spilled = occupancy.spilled > 0;
            totals.period_start = status.running.start;
            totals.published = status.last_published;
            totals.unpublished = status.waiting;
            totals.given_up = status.given_up;
            totals.state_failures = self.state_failures;
        });
    }

    fn words(&self) -> String {
        let Counts {
            flows,
            bytes,
            packets,
        } = self.counted();
        let lost = self.tap.lost();
        format!("packets={packets} bytes={bytes} flows={flows} lost={lost}")
    }
}

fn all(tally: &Tally) -> Counts {
    let mut all = Counts::default();
    for (_, counts) in tally.totals() {
        all += counts;
    }
    all
}
