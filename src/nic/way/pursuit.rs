//! The state machine that keeps a neighbour's MAC address up to date.
//!
//! Steered frames bypass the box's own network stack, so the kernel itself does not notice that an
//! entry of the neighbour table went stale. This code makes no system calls: the kernel's messages
//! and the time are arguments.

use exitmark_policy::packet::MacAddr;
use std::time::{Duration, Instant};

/// The interval at which an address in use is confirmed.
const CONFIRM_EVERY: Duration = Duration::from_millis(300);
/// Timeout of a confirmation by unicast, before the address is resolved by broadcast.
const CONFIRM_PATIENCE: Duration = Duration::from_millis(200);
/// Timeout of a resolution by broadcast. The kernel itself reports NUD_FAILED earlier, after three
/// attempts of a second each.
const RESOLVE_PATIENCE: Duration = Duration::from_millis(3500);
/// How long to pause after a failed resolution.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The shortest time between two orders: limits the rate of requests if the neighbour table changes
/// quickly.
const REST: Duration = Duration::from_millis(50);

/// The state of a neighbour entry (NUD).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// PERMANENT or NOARP: configured, never resolved.
    Fixed,
    /// REACHABLE: the neighbour has answered.
    Confirmed,
    /// STALE or DELAY: known, but possibly outdated.
    Old,
    /// PROBE: known, and being confirmed by unicast.
    Probed,
    /// INCOMPLETE: being resolved by broadcast.
    Sought,
    /// FAILED: no neighbour answered.
    Failed,
}

/// An entry of the neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) state: State,
    /// `None` if the entry has no address, or one that a next hop cannot have.
    pub(super) mac: Option<MacAddr>,
}

/// A request to the kernel about the neighbour's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Query the entry (RTM_GETNEIGH).
    Look,
    /// Confirm the address by unicast.
    Confirm,
    /// Delete the entry, and resolve the address by broadcast.
    Renew,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The NIC has no carrier: nothing is requested.
    Resting,
    /// The entry is to be queried.
    Unknown,
    /// The entry is permanent, until it changes.
    Fixed,
    /// The address is known, and to be confirmed at `confirm`.
    Good { confirm: Instant },
    /// Being confirmed, until the timeout `until`. The next confirmation is due at `confirm`.
    Confirming { until: Instant, confirm: Instant },
    /// The address is to be resolved again.
    Lost,
    /// [`Order::Renew`] is being carried out: a deletion that is reported is the old entry's.
    Renewing,
    /// Being resolved, until the timeout `until`.
    Resolving { until: Instant },
    /// The resolution failed; the next attempt is at `retry`.
    GivenUp { retry: Instant },
}

/// Tracks one neighbour's MAC address.
#[derive(Debug)]
pub(super) struct Pursuit {
    mac: Option<MacAddr>,
    phase: Phase,
    rested: Instant,
}

impl Pursuit {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            mac: None,
            phase: Phase::Resting,
            rested: now,
        }
    }

    /// The last confirmed address, unless it was given up.
    pub(super) const fn mac(&self) -> Option<MacAddr> {
        self.mac
    }

    /// Whether the last resolution failed.
    pub(super) const fn is_given_up(&self) -> bool {
        matches!(self.phase, Phase::GivenUp { .. })
    }

    /// Queries the entry again, because a message may have been lost.
    pub(super) fn look_again(&mut self) {
        if self.phase != Phase::Resting {
            self.phase = Phase::Unknown;
        }
    }

    /// Sets whether the NIC has carrier. Without carrier nothing is requested, and the kernel's
    /// messages are ignored.
    pub(super) fn set_carrier(&mut self, has_carrier: bool) {
        match (has_carrier, self.phase) {
            (true, Phase::Resting) => self.phase = Phase::Unknown,
            (false, _) => self.phase = Phase::Resting,
            (true, _) => {}
        }
    }

    /// Forgets the address, because the NIC was removed.
    pub(super) fn forget(&mut self) {
        self.mac = None;
    }

    /// When [`Pursuit::order`] has to be called next.
    pub(super) fn due(&self) -> Option<Instant> {
        let due = match self.phase {
            Phase::Resting | Phase::Fixed | Phase::Renewing => return None,
            Phase::Unknown | Phase::Lost => self.rested,
            Phase::Good { confirm } => confirm,
            Phase::Confirming { until, .. } | Phase::Resolving { until } => until,
            Phase::GivenUp { retry } => retry,
        };
        Some(due.max(self.rested))
    }

    /// The request that is due now, if any.
    pub(super) fn order(&mut self, now: Instant) -> Option<Order> {
        if self.due().is_none_or(|due| due > now) {
            return None;
        }
        let order = match self.phase {
            Phase::Resting | Phase::Fixed | Phase::Renewing => return None,
            Phase::Resolving { .. } => {
                self.give_up(now);
                return None;
            }
            Phase::Unknown => Order::Look,
            Phase::Good { .. } => {
                self.phase = Phase::Confirming {
                    until: now + CONFIRM_PATIENCE,
                    confirm: now + CONFIRM_EVERY,
                };
                Order::Confirm
            }
            Phase::Confirming { .. } | Phase::Lost | Phase::GivenUp { .. } => {
                self.phase = Phase::Renewing;
                Order::Renew
            }
        };
        self.rested = now + REST;
        Some(order)
    }

    /// The kernel has carried out [`Order::Renew`] and is resolving the address.
    pub(super) fn renewed(&mut self, now: Instant) {
        if self.phase == Phase::Renewing {
            self.resolve(now);
        }
    }

    /// Processes the current entry; `None` means that the table has no entry.
    pub(super) fn see(&mut self, entry: Option<Entry>, now: Instant) {
        if self.phase == Phase::Resting {
            return;
        }
        let Some(Entry { state, mac }) = entry else {
            return self.see_none();
        };
        match (state, mac) {
            (State::Fixed, Some(mac)) => {
                self.mac = Some(mac);
                self.phase = Phase::Fixed;
            }
            // It may have been confirmed long ago, not by our request.
            (State::Confirmed, Some(_)) if self.phase == Phase::Unknown => self.confirm_at(now),
            (State::Confirmed, Some(mac)) => {
                self.mac = Some(mac);
                self.phase = Phase::Good {
                    confirm: match self.phase {
                        Phase::Good { confirm } | Phase::Confirming { confirm, .. } => confirm,
                        _ => now + CONFIRM_EVERY,
                    },
                };
            }
            (State::Old, Some(_)) => {
                let is_news = mac != self.mac;
                let is_settled =
                    matches!(self.phase, Phase::Good { .. } | Phase::Confirming { .. });
                if is_news || !is_settled {
                    self.confirm_at(now);
                }
            }
            (State::Probed, Some(_)) => match self.phase {
                Phase::Unknown | Phase::Fixed => self.confirm_at(now),
                _ => {}
            },
            (State::Sought, _) => match self.phase {
                Phase::Resolving { .. } | Phase::Renewing => {}
                _ => self.resolve(now),
            },
            (State::Failed, _) => match self.phase {
                Phase::Resolving { .. } => self.give_up(now),
                Phase::GivenUp { .. } | Phase::Renewing => {}
                _ => self.phase = Phase::Lost,
            },
            // An address that a next hop cannot have is ignored.
            (_, None) => match self.phase {
                Phase::Unknown | Phase::Fixed => self.phase = Phase::Lost,
                _ => {}
            },
        }
    }

    fn see_none(&mut self) {
        match self.phase {
            Phase::GivenUp { .. } | Phase::Renewing => {}
            _ => self.phase = Phase::Lost,
        }
    }

    fn confirm_at(&mut self, now: Instant) {
        self.phase = Phase::Good { confirm: now };
    }

    fn resolve(&mut self, now: Instant) {
        let until = now + RESOLVE_PATIENCE;
        self.phase = Phase::Resolving { until };
    }

    fn give_up(&mut self, now: Instant) {
        self.mac = None;
        self.phase = Phase::GivenUp {
            retry: now + RETRY_AFTER,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);
    const NEW: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 2]);

    fn entry(state: State, mac: MacAddr) -> Option<Entry> {
        let mac = Some(mac);
        Some(Entry { state, mac })
    }

    /// A pursuit on a simulated clock.
    struct Chase {
        pursuit: Pursuit,
        now: Instant,
    }

    impl Chase {
        fn new() -> Self {
            let now = Instant::now();
            let mut pursuit = Pursuit::new(now);
            pursuit.set_carrier(true);
            Self { pursuit, now }
        }

        /// A pursuit with a resolved address, to be confirmed next.
        fn settled() -> Self {
            let mut chase = Self::new();
            assert_eq!(chase.next(), Order::Look);
            chase.see(None);
            assert_eq!(chase.next(), Order::Renew);
            chase.pursuit.renewed(chase.now);
            chase.see(entry(State::Confirmed, OLD));
            assert_eq!(chase.pursuit.mac(), Some(OLD));
            chase
        }

        fn see(&mut self, entry: Option<Entry>) {
            self.pursuit.see(entry, self.now);
        }

        /// Advances the clock until there is an order.
        #[track_caller]
        fn next(&mut self) -> Order {
            for _ in 0..4 {
                self.now = self.now.max(self.pursuit.due().unwrap());
                if let Some(order) = self.pursuit.order(self.now) {
                    return order;
                }
            }
            panic!("no order: {:?}", self.pursuit);
        }
    }

    #[test]
    fn an_address_in_use_is_confirmed_periodically() {
        let mut chase = Chase::settled();
        let begun = chase.now;
        for _ in 0..10 {
            assert_eq!(chase.next(), Order::Confirm);
            chase.see(entry(State::Probed, OLD));
            chase.see(entry(State::Confirmed, OLD));
            assert_eq!(chase.pursuit.mac(), Some(OLD));
        }
        assert_eq!(chase.now - begun, 10 * CONFIRM_EVERY);
    }

    #[test]
    fn an_address_that_moved_is_found_within_600_ms() {
        let mut chase = Chase::settled();
        // The address moves right after it was confirmed.
        let moved = chase.now;
        assert_eq!(chase.next(), Order::Confirm);
        chase.see(entry(State::Probed, OLD));
        assert_eq!(chase.next(), Order::Renew);
        // The old entry is deleted.
        chase.see(entry(State::Failed, OLD));
        chase.see(None);
        chase.pursuit.renewed(chase.now);
        assert_eq!(chase.pursuit.mac(), Some(OLD));
        chase.see(entry(State::Confirmed, NEW));
        assert_eq!(chase.pursuit.mac(), Some(NEW));
        assert!(chase.now - moved < Duration::from_millis(600));
        assert_eq!(chase.next(), Order::Confirm);
    }

    #[test]
    fn an_announced_address_is_used_once_it_answers() {
        let mut chase = Chase::settled();
        let announced = chase.now;
        chase.see(entry(State::Old, NEW));
        assert_eq!(chase.pursuit.mac(), Some(OLD));
        assert_eq!(chase.next(), Order::Confirm);
        assert!(chase.now - announced <= REST);
        chase.see(entry(State::Probed, NEW));
        chase.see(entry(State::Confirmed, NEW));
        assert_eq!(chase.pursuit.mac(), Some(NEW));
    }

    #[test]
    fn repeated_announcements_do_not_raise_the_request_rate() {
        let mut chase = Chase::settled();
        let begun = chase.now;
        let mut orders = 0;
        for step in 0..1000 {
            chase.now = begun + Duration::from_millis(step);
            chase.see(entry(State::Old, NEW));
            orders += u32::from(chase.pursuit.order(chase.now).is_some());
        }
        assert!((10..=20).contains(&orders), "{orders} in a second");
    }

    #[test]
    fn an_unanswered_resolution_is_given_up_and_retried() {
        let mut chase = Chase::settled();
        assert_eq!(chase.next(), Order::Confirm);
        assert_eq!(chase.next(), Order::Renew);
        chase.pursuit.renewed(chase.now);
        assert_eq!(chase.pursuit.mac(), Some(OLD), "it may come back");
        let (state, mac) = (State::Failed, None);
        chase.see(Some(Entry { state, mac }));
        assert_eq!(chase.pursuit.mac(), None);
        assert!(chase.pursuit.is_given_up());
        // The kernel clears its table.
        chase.see(None);
        let given_up = chase.now;
        assert_eq!(chase.next(), Order::Renew);
        assert_eq!(chase.now - given_up, RETRY_AFTER);
        // The same if the kernel sends no message:
        chase.pursuit.renewed(chase.now);
        let asked = chase.now;
        assert_eq!(chase.next(), Order::Renew);
        assert_eq!(chase.now - asked, RESOLVE_PATIENCE + RETRY_AFTER);
        chase.pursuit.renewed(chase.now);
        chase.see(entry(State::Confirmed, NEW));
        assert_eq!(chase.pursuit.mac(), Some(NEW));
    }

    #[test]
    fn an_existing_entry_is_confirmed_before_it_is_used() {
        for state in [State::Old, State::Probed, State::Confirmed] {
            let mut chase = Chase::new();
            assert_eq!(chase.next(), Order::Look);
            chase.see(entry(state, OLD));
            assert_eq!(chase.pursuit.mac(), None, "{state:?}");
            assert_eq!(chase.next(), Order::Confirm);
            chase.see(entry(State::Confirmed, OLD));
            assert_eq!(chase.pursuit.mac(), Some(OLD));
        }
    }

    #[test]
    fn a_permanent_entry_is_used_without_confirmation() {
        let mut chase = Chase::new();
        assert_eq!(chase.next(), Order::Look);
        chase.see(entry(State::Fixed, OLD));
        assert_eq!(chase.pursuit.mac(), Some(OLD));
        assert_eq!(chase.pursuit.due(), None);
        chase.see(entry(State::Fixed, NEW));
        assert_eq!(chase.pursuit.mac(), Some(NEW));
        // If the entry is deleted, its address stays in use until the resolution fails.
        chase.see(None);
        assert_eq!(chase.pursuit.mac(), Some(NEW));
        assert_eq!(chase.next(), Order::Renew);
        // A permanent entry may be made during the resolution.
        chase.pursuit.renewed(chase.now);
        chase.see(entry(State::Fixed, OLD));
        assert_eq!(chase.pursuit.due(), None);
    }

    #[test]
    fn an_invalid_address_is_never_used() {
        for state in [State::Fixed, State::Confirmed, State::Old, State::Probed] {
            let bad = Some(Entry { state, mac: None });
            let mut chase = Chase::new();
            assert_eq!(chase.next(), Order::Look);
            chase.see(bad);
            assert_eq!(chase.next(), Order::Renew);
            chase.pursuit.renewed(chase.now);
            chase.see(bad);
            assert_eq!(chase.pursuit.mac(), None);
            // No other answer arrived.
            assert_eq!(chase.next(), Order::Renew);
        }
    }

    #[test]
    fn requests_stop_without_carrier_and_resume_at_once_with_it() {
        let mut chase = Chase::settled();
        chase.pursuit.set_carrier(false);
        chase.see(None);
        chase.see(entry(State::Confirmed, NEW));
        assert_eq!(chase.pursuit.due(), None);
        assert_eq!(chase.pursuit.mac(), Some(OLD));
        chase.now += Duration::from_secs(60);
        chase.pursuit.set_carrier(true);
        assert_eq!(chase.pursuit.due().unwrap().max(chase.now), chase.now);
        assert_eq!(chase.next(), Order::Look);
        chase.see(None);
        assert_eq!(chase.next(), Order::Renew);
    }

    #[test]
    fn a_deleted_entry_is_resolved_again() {
        let mut chase = Chase::settled();
        let cleared = chase.now;
        chase.see(entry(State::Failed, OLD));
        chase.see(None);
        assert_eq!(chase.next(), Order::Renew);
        assert!(chase.now - cleared <= REST);
        chase.pursuit.renewed(chase.now);
        chase.see(entry(State::Confirmed, OLD));
        assert_eq!(chase.pursuit.mac(), Some(OLD));
    }
}
