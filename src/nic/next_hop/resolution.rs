//! The state machine that keeps a neighbour's MAC address up to date.
//!
//! Steered frames bypass the box's own network stack, so the kernel itself does not notice that an
//! entry of the neighbour table went stale. This code makes no system calls: the kernel's messages
//! and the time are arguments.

use exitmark_policy::packet::MacAddr;
use std::time::{Duration, Instant};

/// The interval at which an address in use is confirmed.
const CONFIRM_EVERY: Duration = Duration::from_millis(300);
/// Timeout of a confirmation by unicast, before the address is resolved by broadcast or multicast.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(200);
/// Timeout of a resolution by broadcast or multicast. The kernel itself reports NUD_FAILED earlier,
/// after three attempts of a second each.
const RESOLVE_TIMEOUT: Duration = Duration::from_millis(3500);
/// How long to pause after a failed resolution.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The shortest time between two requests: limits the rate of requests if the neighbour table
/// changes quickly.
const MIN_INTERVAL: Duration = Duration::from_millis(50);

/// The state of a neighbour entry (NUD).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// PERMANENT or NOARP: configured, never resolved.
    Permanent,
    /// REACHABLE: the neighbour has answered.
    Reachable,
    /// STALE or DELAY: known, but possibly outdated.
    Stale,
    /// PROBE: known, and being confirmed by unicast.
    Probe,
    /// INCOMPLETE: being resolved by broadcast or multicast.
    Incomplete,
    /// FAILED: no neighbour answered.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NeighbourEntry {
    pub(super) state: State,
    /// `None` if the entry has no address, or one that a next hop cannot have.
    pub(super) mac: Option<MacAddr>,
}

/// A request to the kernel about the neighbour's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NeighbourRequest {
    /// Query the entry (RTM_GETNEIGH).
    Look,
    /// Confirm the address by unicast.
    Confirm,
    /// Delete the entry, and resolve the address by broadcast or multicast.
    Renew,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The NIC has no carrier: nothing is requested.
    NoCarrier,
    /// The entry is to be queried.
    Unknown,
    /// The entry is permanent, until it changes.
    Permanent,
    /// The address is known, and to be confirmed at `confirm`.
    Known { confirm: Instant },
    /// Being confirmed, until the timeout `until`. The next confirmation is due at `confirm`.
    Confirming { until: Instant, confirm: Instant },
    /// The address is to be resolved again.
    Lost,
    /// [`NeighbourRequest::Renew`] is being carried out: a deletion that is reported is the old
    /// entry's.
    Renewing,
    /// Being resolved, until the timeout `until`.
    Resolving { until: Instant },
    /// The resolution failed; the next attempt is at `retry`.
    GivenUp { retry: Instant },
}

/// Tracks one neighbour's MAC address.
#[derive(Debug)]
pub(super) struct Resolution {
    mac: Option<MacAddr>,
    phase: Phase,
    /// The next request is not sent earlier.
    next_request_at: Instant,
}

impl Resolution {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            mac: None,
            phase: Phase::NoCarrier,
            next_request_at: now,
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
        if self.phase != Phase::NoCarrier {
            self.phase = Phase::Unknown;
        }
    }

    /// Sets whether the NIC has carrier. Without carrier nothing is requested, and the kernel's
    /// messages are ignored.
    pub(super) fn set_carrier(&mut self, has_carrier: bool) {
        match (has_carrier, self.phase) {
            (true, Phase::NoCarrier) => self.phase = Phase::Unknown,
            (false, _) => self.phase = Phase::NoCarrier,
            (true, _) => {}
        }
    }

    /// Forgets the address, because the NIC was removed.
    pub(super) fn forget(&mut self) {
        self.mac = None;
    }

    /// When [`Resolution::request`] has to be called next.
    pub(super) fn due(&self) -> Option<Instant> {
        let due = match self.phase {
            Phase::NoCarrier | Phase::Permanent | Phase::Renewing => return None,
            Phase::Unknown | Phase::Lost => self.next_request_at,
            Phase::Known { confirm } => confirm,
            Phase::Confirming { until, .. } | Phase::Resolving { until } => until,
            Phase::GivenUp { retry } => retry,
        };
        Some(due.max(self.next_request_at))
    }

    /// The request that is due now, if any.
    pub(super) fn request(&mut self, now: Instant) -> Option<NeighbourRequest> {
        if self.due().is_none_or(|due| due > now) {
            return None;
        }
        let request = match self.phase {
            Phase::NoCarrier | Phase::Permanent | Phase::Renewing => return None,
            Phase::Resolving { .. } => {
                self.give_up(now);
                return None;
            }
            Phase::Unknown => NeighbourRequest::Look,
            Phase::Known { .. } => {
                self.phase = Phase::Confirming {
                    until: now + CONFIRM_TIMEOUT,
                    confirm: now + CONFIRM_EVERY,
                };
                NeighbourRequest::Confirm
            }
            Phase::Confirming { .. } | Phase::Lost | Phase::GivenUp { .. } => {
                self.phase = Phase::Renewing;
                NeighbourRequest::Renew
            }
        };
        self.next_request_at = now + MIN_INTERVAL;
        Some(request)
    }

    /// The kernel has carried out [`NeighbourRequest::Renew`] and is resolving the address.
    pub(super) fn renewed(&mut self, now: Instant) {
        if self.phase == Phase::Renewing {
            self.resolve(now);
        }
    }

    /// Processes the current entry; `None` means that the table has no entry.
    pub(super) fn observe(&mut self, entry: Option<NeighbourEntry>, now: Instant) {
        if self.phase == Phase::NoCarrier {
            return;
        }
        let Some(NeighbourEntry { state, mac }) = entry else {
            return self.observe_none();
        };
        match (state, mac) {
            (State::Permanent, Some(mac)) => {
                self.mac = Some(mac);
                self.phase = Phase::Permanent;
            }
            // It may have been confirmed long ago, not by our request.
            (State::Reachable, Some(_)) if self.phase == Phase::Unknown => self.confirm_at(now),
            (State::Reachable, Some(mac)) => {
                self.mac = Some(mac);
                self.phase = Phase::Known {
                    confirm: match self.phase {
                        Phase::Known { confirm } | Phase::Confirming { confirm, .. } => confirm,
                        _ => now + CONFIRM_EVERY,
                    },
                };
            }
            (State::Stale, Some(_)) => {
                let is_news = mac != self.mac;
                let is_settled =
                    matches!(self.phase, Phase::Known { .. } | Phase::Confirming { .. });
                if is_news || !is_settled {
                    self.confirm_at(now);
                }
            }
            (State::Probe, Some(_)) => match self.phase {
                Phase::Unknown | Phase::Permanent => self.confirm_at(now),
                _ => {}
            },
            (State::Incomplete, _) => match self.phase {
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
                Phase::Unknown | Phase::Permanent => self.phase = Phase::Lost,
                _ => {}
            },
        }
    }

    fn observe_none(&mut self) {
        match self.phase {
            Phase::GivenUp { .. } | Phase::Renewing => {}
            _ => self.phase = Phase::Lost,
        }
    }

    fn confirm_at(&mut self, now: Instant) {
        self.phase = Phase::Known { confirm: now };
    }

    fn resolve(&mut self, now: Instant) {
        let until = now + RESOLVE_TIMEOUT;
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

    fn entry(state: State, mac: MacAddr) -> Option<NeighbourEntry> {
        let mac = Some(mac);
        Some(NeighbourEntry { state, mac })
    }

    /// A resolution on a simulated clock.
    struct Simulation {
        resolution: Resolution,
        now: Instant,
    }

    impl Simulation {
        fn new() -> Self {
            let now = Instant::now();
            let mut resolution = Resolution::new(now);
            resolution.set_carrier(true);
            Self { resolution, now }
        }

        /// A resolution with a resolved address, to be confirmed next.
        fn settled() -> Self {
            let mut simulation = Self::new();
            assert_eq!(simulation.next(), NeighbourRequest::Look);
            simulation.observe(None);
            assert_eq!(simulation.next(), NeighbourRequest::Renew);
            simulation.resolution.renewed(simulation.now);
            simulation.observe(entry(State::Reachable, OLD));
            assert_eq!(simulation.resolution.mac(), Some(OLD));
            simulation
        }

        fn observe(&mut self, entry: Option<NeighbourEntry>) {
            self.resolution.observe(entry, self.now);
        }

        /// Advances the clock until a request is due.
        #[track_caller]
        fn next(&mut self) -> NeighbourRequest {
            for _ in 0..4 {
                self.now = self.now.max(self.resolution.due().unwrap());
                if let Some(request) = self.resolution.request(self.now) {
                    return request;
                }
            }
            panic!("no request: {:?}", self.resolution);
        }
    }

    #[test]
    fn an_address_in_use_is_confirmed_periodically() {
        let mut simulation = Simulation::settled();
        let begun = simulation.now;
        for _ in 0..10 {
            assert_eq!(simulation.next(), NeighbourRequest::Confirm);
            simulation.observe(entry(State::Probe, OLD));
            simulation.observe(entry(State::Reachable, OLD));
            assert_eq!(simulation.resolution.mac(), Some(OLD));
        }
        assert_eq!(simulation.now - begun, 10 * CONFIRM_EVERY);
    }

    #[test]
    fn an_address_that_moved_is_found_within_600_ms() {
        let mut simulation = Simulation::settled();
        // The address moves right after it was confirmed.
        let moved = simulation.now;
        assert_eq!(simulation.next(), NeighbourRequest::Confirm);
        simulation.observe(entry(State::Probe, OLD));
        assert_eq!(simulation.next(), NeighbourRequest::Renew);
        // The old entry is deleted.
        simulation.observe(entry(State::Failed, OLD));
        simulation.observe(None);
        simulation.resolution.renewed(simulation.now);
        assert_eq!(simulation.resolution.mac(), Some(OLD));
        simulation.observe(entry(State::Reachable, NEW));
        assert_eq!(simulation.resolution.mac(), Some(NEW));
        assert!(simulation.now - moved < Duration::from_millis(600));
        assert_eq!(simulation.next(), NeighbourRequest::Confirm);
    }

    #[test]
    fn an_announced_address_is_used_once_it_answers() {
        let mut simulation = Simulation::settled();
        let announced = simulation.now;
        simulation.observe(entry(State::Stale, NEW));
        assert_eq!(simulation.resolution.mac(), Some(OLD));
        assert_eq!(simulation.next(), NeighbourRequest::Confirm);
        assert!(simulation.now - announced <= MIN_INTERVAL);
        simulation.observe(entry(State::Probe, NEW));
        simulation.observe(entry(State::Reachable, NEW));
        assert_eq!(simulation.resolution.mac(), Some(NEW));
    }

    #[test]
    fn repeated_announcements_do_not_raise_the_request_rate() {
        let mut simulation = Simulation::settled();
        let begun = simulation.now;
        let mut requests = 0;
        for step in 0..1000 {
            simulation.now = begun + Duration::from_millis(step);
            simulation.observe(entry(State::Stale, NEW));
            requests += u32::from(simulation.resolution.request(simulation.now).is_some());
        }
        assert!((10..=20).contains(&requests), "{requests} in a second");
    }

    #[test]
    fn an_unanswered_resolution_is_given_up_and_retried() {
        let mut simulation = Simulation::settled();
        assert_eq!(simulation.next(), NeighbourRequest::Confirm);
        assert_eq!(simulation.next(), NeighbourRequest::Renew);
        simulation.resolution.renewed(simulation.now);
        assert_eq!(simulation.resolution.mac(), Some(OLD), "it may come back");
        let (state, mac) = (State::Failed, None);
        simulation.observe(Some(NeighbourEntry { state, mac }));
        assert_eq!(simulation.resolution.mac(), None);
        assert!(simulation.resolution.is_given_up());
        // The kernel clears its table.
        simulation.observe(None);
        let given_up = simulation.now;
        assert_eq!(simulation.next(), NeighbourRequest::Renew);
        assert_eq!(simulation.now - given_up, RETRY_AFTER);
        // The same if the kernel sends no message:
        simulation.resolution.renewed(simulation.now);
        let requested_at = simulation.now;
        assert_eq!(simulation.next(), NeighbourRequest::Renew);
        assert_eq!(simulation.now - requested_at, RESOLVE_TIMEOUT + RETRY_AFTER);
        simulation.resolution.renewed(simulation.now);
        simulation.observe(entry(State::Reachable, NEW));
        assert_eq!(simulation.resolution.mac(), Some(NEW));
    }

    #[test]
    fn an_existing_entry_is_confirmed_before_it_is_used() {
        for state in [State::Stale, State::Probe, State::Reachable] {
            let mut simulation = Simulation::new();
            assert_eq!(simulation.next(), NeighbourRequest::Look);
            simulation.observe(entry(state, OLD));
            assert_eq!(simulation.resolution.mac(), None, "{state:?}");
            assert_eq!(simulation.next(), NeighbourRequest::Confirm);
            simulation.observe(entry(State::Reachable, OLD));
            assert_eq!(simulation.resolution.mac(), Some(OLD));
        }
    }

    #[test]
    fn a_permanent_entry_is_used_without_confirmation() {
        let mut simulation = Simulation::new();
        assert_eq!(simulation.next(), NeighbourRequest::Look);
        simulation.observe(entry(State::Permanent, OLD));
        assert_eq!(simulation.resolution.mac(), Some(OLD));
        assert_eq!(simulation.resolution.due(), None);
        simulation.observe(entry(State::Permanent, NEW));
        assert_eq!(simulation.resolution.mac(), Some(NEW));
        // If the entry is deleted, its address stays in use until the resolution fails.
        simulation.observe(None);
        assert_eq!(simulation.resolution.mac(), Some(NEW));
        assert_eq!(simulation.next(), NeighbourRequest::Renew);
        // A permanent entry may be made during the resolution.
        simulation.resolution.renewed(simulation.now);
        simulation.observe(entry(State::Permanent, OLD));
        assert_eq!(simulation.resolution.due(), None);
    }

    #[test]
    fn an_invalid_address_is_never_used() {
        for state in [
            State::Permanent,
            State::Reachable,
            State::Stale,
            State::Probe,
        ] {
            let bad = Some(NeighbourEntry { state, mac: None });
            let mut simulation = Simulation::new();
            assert_eq!(simulation.next(), NeighbourRequest::Look);
            simulation.observe(bad);
            assert_eq!(simulation.next(), NeighbourRequest::Renew);
            simulation.resolution.renewed(simulation.now);
            simulation.observe(bad);
            assert_eq!(simulation.resolution.mac(), None);
            // No other answer arrived.
            assert_eq!(simulation.next(), NeighbourRequest::Renew);
        }
    }

    #[test]
    fn requests_stop_without_carrier_and_resume_at_once_with_it() {
        let mut simulation = Simulation::settled();
        simulation.resolution.set_carrier(false);
        simulation.observe(None);
        simulation.observe(entry(State::Reachable, NEW));
        assert_eq!(simulation.resolution.due(), None);
        assert_eq!(simulation.resolution.mac(), Some(OLD));
        simulation.now += Duration::from_secs(60);
        simulation.resolution.set_carrier(true);
        assert_eq!(
            simulation.resolution.due().unwrap().max(simulation.now),
            simulation.now
        );
        assert_eq!(simulation.next(), NeighbourRequest::Look);
        simulation.observe(None);
        assert_eq!(simulation.next(), NeighbourRequest::Renew);
    }

    #[test]
    fn a_deleted_entry_is_resolved_again() {
        let mut simulation = Simulation::settled();
        let cleared = simulation.now;
        simulation.observe(entry(State::Failed, OLD));
        simulation.observe(None);
        assert_eq!(simulation.next(), NeighbourRequest::Renew);
        assert!(simulation.now - cleared <= MIN_INTERVAL);
        simulation.resolution.renewed(simulation.now);
        simulation.observe(entry(State::Reachable, OLD));
        assert_eq!(simulation.resolution.mac(), Some(OLD));
    }
}
