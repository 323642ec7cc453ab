//! When the kernel is asked what, so that a neighbour's MAC address is the right one.
//!
//! Steered frames bypass the box's own network stack, so nothing else would notice that an entry
//! of the neighbour table went stale. Nothing here asks the system: what the kernel says and the
//! time arrive as arguments.

use crate::packet::MacAddr;
use std::time::{Duration, Instant};

/// How often an address in use is confirmed.
const CONFIRM_EVERY: Duration = Duration::from_millis(300);
/// For how long the one who has it is waited for, before everybody is asked.
const CONFIRM_PATIENCE: Duration = Duration::from_millis(200);
/// For how long everybody is waited for. The kernel says itself that nobody answered, after
/// three times a second.
const RESOLVE_PATIENCE: Duration = Duration::from_millis(3500);
/// How long to rest when nobody answered.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The least time between two orders: whoever makes the table change quickly cannot make the box
/// ask as quickly.
const REST: Duration = Duration::from_millis(50);

/// What the kernel makes of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Somebody wrote it there; it is never asked for.
    Fixed,
    /// It has answered.
    Confirmed,
    /// It is known and may be old.
    Old,
    /// It is known, and the one who has it is being asked.
    Probed,
    /// Everybody is being asked.
    Sought,
    /// Nobody answered.
    Failed,
}

/// An entry of the neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) state: State,
    /// None where it has none that a next hop can have.
    pub(super) mac: Option<MacAddr>,
}

/// What the kernel is to be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Say what the entry is.
    Look,
    /// Ask the one who has the address whether it still does.
    Confirm,
    /// Forget the entry, and ask everybody.
    Renew,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is no carrier.
    Resting,
    /// The entry is to be looked at.
    Unknown,
    /// The entry is somebody's word, until it changes.
    Fixed,
    /// It is to be confirmed then.
    Good { confirm: Instant },
    /// It is being confirmed, until then; the next time would be `confirm`.
    Confirming { until: Instant, confirm: Instant },
    /// It is to be resolved anew.
    Lost,
    /// The order to do so is being carried out: what is heard of an end is the old entry's.
    Renewing,
    /// Everybody is being asked, until then.
    Resolving { until: Instant },
    /// Nobody answered; once more then.
    GivenUp { retry: Instant },
}

/// The pursuit of one neighbour's MAC address.
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

    /// The last address that was confirmed, unless it was given up.
    pub(super) const fn mac(&self) -> Option<MacAddr> {
        self.mac
    }

    /// Nobody has answered.
    pub(super) const fn is_given_up(&self) -> bool {
        matches!(self.phase, Phase::GivenUp { .. })
    }

    /// What is known of the entry cannot be relied on.
    pub(super) fn look_again(&mut self) {
        if self.phase != Phase::Resting {
            self.phase = Phase::Unknown;
        }
    }

    /// Whether the NIC has carrier. Without one nobody can be asked, and nothing was learnt.
    pub(super) fn set_carrier(&mut self, has_carrier: bool) {
        match (has_carrier, self.phase) {
            (true, Phase::Resting) => self.phase = Phase::Unknown,
            (false, _) => self.phase = Phase::Resting,
            (true, _) => {}
        }
    }

    /// There is nobody any more.
    pub(super) fn forget(&mut self) {
        self.mac = None;
    }

    /// When [`Pursuit::order`] has something to say.
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

    /// What is to be asked now, if anything.
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

    /// The kernel has done what [`Order::Renew`] says: it asks everybody.
    pub(super) fn renewed(&mut self, now: Instant) {
        if self.phase == Phase::Renewing {
            self.phase = Phase::Resolving {
                until: now + RESOLVE_PATIENCE,
            };
        }
    }

    /// What the kernel says of the entry; None: there is none.
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
            // It may have been confirmed before we came: not by our question.
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
                _ => {
                    self.phase = Phase::Resolving {
                        until: now + RESOLVE_PATIENCE,
                    };
                }
            },
            (State::Failed, _) => match self.phase {
                Phase::Resolving { .. } => self.give_up(now),
                Phase::GivenUp { .. } | Phase::Renewing => {}
                _ => self.phase = Phase::Lost,
            },
            // An address that no next hop has: as if nothing had been said.
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
        Some(Entry {
            state,
            mac: Some(mac),
        })
    }

    /// A pursuit on a clock that the test sets, and the orders that it gave.
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

        /// Resolved and told, to be confirmed next.
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

        /// Lets time pass until there is an order.
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
    fn a_good_address_is_confirmed_again_and_again_and_stays() {
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
        // It moved right after it was confirmed.
        let moved = chase.now;
        assert_eq!(chase.next(), Order::Confirm);
        chase.see(entry(State::Probed, OLD));
        assert_eq!(chase.next(), Order::Renew);
        // The end of the old entry.
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
    fn who_announces_again_and_again_does_not_make_us_ask_as_often() {
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
    fn one_who_never_answers_is_given_up_and_sought_again() {
        let mut chase = Chase::settled();
        assert_eq!(chase.next(), Order::Confirm);
        assert_eq!(chase.next(), Order::Renew);
        chase.pursuit.renewed(chase.now);
        assert_eq!(chase.pursuit.mac(), Some(OLD), "it may come back");
        chase.see(Some(Entry {
            state: State::Failed,
            mac: None,
        }));
        assert_eq!(chase.pursuit.mac(), None);
        assert!(chase.pursuit.is_given_up());
        // The kernel clears its table.
        chase.see(None);
        let given_up = chase.now;
        assert_eq!(chase.next(), Order::Renew);
        assert_eq!(chase.now - given_up, RETRY_AFTER);
        // And where it says nothing at all:
        chase.pursuit.renewed(chase.now);
        let asked = chase.now;
        assert_eq!(chase.next(), Order::Renew);
        assert_eq!(chase.now - asked, RESOLVE_PATIENCE + RETRY_AFTER);
        chase.pursuit.renewed(chase.now);
        chase.see(entry(State::Confirmed, NEW));
        assert_eq!(chase.pursuit.mac(), Some(NEW));
    }

    #[test]
    fn an_entry_that_was_there_before_is_confirmed_before_it_is_used() {
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
    fn a_fixed_entry_is_used_as_it_is_and_not_asked_for() {
        let mut chase = Chase::new();
        assert_eq!(chase.next(), Order::Look);
        chase.see(entry(State::Fixed, OLD));
        assert_eq!(chase.pursuit.mac(), Some(OLD));
        assert_eq!(chase.pursuit.due(), None);
        chase.see(entry(State::Fixed, NEW));
        assert_eq!(chase.pursuit.mac(), Some(NEW));
        // Until somebody takes it away, and it is still used until nobody answers.
        chase.see(None);
        assert_eq!(chase.pursuit.mac(), Some(NEW));
        assert_eq!(chase.next(), Order::Renew);
        // Or puts one there while we look for it.
        chase.pursuit.renewed(chase.now);
        chase.see(entry(State::Fixed, OLD));
        assert_eq!(chase.pursuit.due(), None);
    }

    #[test]
    fn an_address_that_no_next_hop_has_is_never_used() {
        for state in [State::Fixed, State::Confirmed, State::Old, State::Probed] {
            let bad = Some(Entry { state, mac: None });
            let mut chase = Chase::new();
            assert_eq!(chase.next(), Order::Look);
            chase.see(bad);
            assert_eq!(chase.next(), Order::Renew);
            chase.pursuit.renewed(chase.now);
            chase.see(bad);
            assert_eq!(chase.pursuit.mac(), None);
            // Nobody else has answered.
            assert_eq!(chase.next(), Order::Renew);
        }
    }

    #[test]
    fn without_carrier_nobody_is_asked_and_then_at_once() {
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
    fn a_table_that_somebody_clears_is_filled_again() {
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
