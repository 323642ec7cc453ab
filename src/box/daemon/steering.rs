//! Monitors the next hops for relay traffic, and publishes their MAC addresses to both engines.

use super::audit::AuditHandle;
use super::nics::Nics;
use super::{DaemonError, Event, capabilities};
use crate::observe::SteeringReport;
use crate::settings::{Hop, Incoming, Settings};
use crossbeam::channel::Sender;
use exitmark_datapath::{Links, Role};
use exitmark_nic::{NextHop, NextHopMonitor, NextHopState, Nic};
use exitmark_policy::packet::MacAddr;
use exitmark_policy::{Group, MAX_NEXT_HOPS, Rules, SteeredPath};
use exitmark_service::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Timeout of a start for the next hops' first answers.
pub(super) const TIMEOUT: Duration = Duration::from_secs(3);

/// The function that announces the MAC address of a next hop before frames are sent to it.
type Announce = Arc<dyn Fn(usize, Option<MacAddr>) + Send + Sync>;

/// The monitors of the next hops, if steering is configured.
pub(super) struct Steering {
    links: Arc<Links>,
    out: Option<Out>,
    /// Next hops that are no longer configured. Frames may be judged by the earlier rules until
    /// [`Steering::forget`].
    gone: Vec<Followed>,
    /// The number of each next hop in the data path. The rules in force name these numbers: a next
    /// hop keeps its own as long as it is configured, also on another NIC.
    numbers: Vec<(Hop, usize)>,
    events: Sender<Event>,
    announce: Announce,
    changes: u64,
}

/// The monitored next hops, and the NIC by which steered frames leave.
struct Out {
    incoming: Incoming,
    nic: Nic,
    hops: Vec<Followed>,
}

/// A next hop with its number in the data path.
struct Followed {
    hop: Hop,
    number: usize,
    monitor: NextHopMonitor,
    /// Until this is cleared, a next hop that is being resolved leaves the links as they are.
    waits: Arc<AtomicBool>,
    logged: NextHopState,
}

impl Steering {
    /// Monitors the configured next hops. Nothing is steered to one that is unusable.
    pub(super) fn start(
        settings: &Settings,
        nics: &Nics,
        links: &Arc<Links>,
        audit: &AuditHandle,
        events: &Sender<Event>,
        due: Instant,
    ) -> Result<Self, DaemonError> {
        let mut steering = Self {
            links: Arc::clone(links),
            out: None,
            gone: Vec::new(),
            numbers: Vec::new(),
            events: events.clone(),
            announce: Arc::new(audit.of_next_hops()),
            changes: 0,
        };
        if let (Some(incoming), Some(nic)) = (settings.incoming(), nics.incoming()) {
            check(incoming, nic)?;
            steering.follow(incoming, nic)?;
        }
        steering.settle(due);
        Ok(steering)
    }

    /// Monitors these next hops. Until one answers, or [`Self::settle`] has waited for it, the MAC
    /// address that is in use under its number stays in use.
    fn follow(&mut self, incoming: &Incoming, nic: &Nic) -> Result<(), DaemonError> {
        self.links.drop_unsteered(incoming.drops_unsteered);
        let before = self.out.take();
        let is_same_nic = before
            .as_ref()
            .is_some_and(|out| (out.nic.index, out.nic.mac) == (nic.index, nic.mac));
        self.gone
            .extend(before.into_iter().flat_map(|out| out.hops));
        if !is_same_nic {
            // Two monitors must not write to the same cell: the earlier ones end first.
            self.end_gone();
        }
        let mut hops = Vec::with_capacity(incoming.next_hops.len());
        let mut new = Vec::new();
        for hop in &incoming.next_hops {
            match self.gone.iter().position(|followed| followed.hop == *hop) {
                Some(at) => hops.push(self.gone.swap_remove(at)),
                None => new.push(*hop),
            }
        }
        for hop in new {
            let number = self.number_of(&hop);
            match self.monitor(hop, number, nic) {
                Ok(followed) => hops.push(followed),
                Err(error) => {
                    self.gone.extend(hops);
                    return Err(error);
                }
            }
        }
        self.out = Some(Out {
            incoming: incoming.clone(),
            nic: nic.clone(),
            hops,
        });
        Ok(())
    }

    /// The number of a next hop. A new one gets a free number; without a free number, it gets that of
    /// a next hop that is not configured any more.
    fn number_of(&mut self, hop: &Hop) -> usize {
        if let Some((_, number)) = self.numbers.iter().find(|(known, _)| known == hop) {
            return *number;
        }
        let is_free = |number: &usize| self.numbers.iter().all(|(_, taken)| taken != number);
        let number = (0..MAX_NEXT_HOPS).find(is_free).unwrap_or_else(|| {
            let gone = self.gone.pop().map_or(0, |gone| gone.number);
            self.numbers.retain(|(_, taken)| *taken != gone);
            gone
        });
        self.numbers.push((*hop, number));
        number
    }

    /// Ends the monitors of the next hops that are no longer configured. Call this after the rules
    /// that name them have been replaced.
    pub(super) fn forget(&mut self, configured: &[Hop]) {
        self.end_gone();
        self.numbers.retain(|(hop, _)| configured.contains(hop));
    }

    fn end_gone(&mut self) {
        for gone in self.gone.drain(..) {
            let number = gone.number;
            // It writes to the links until it ends.
            drop(gone.monitor);
            self.links.steer_to(number, None);
        }
    }

    /// Starts the monitor of a next hop.
    fn monitor(&self, hop: Hop, number: usize, nic: &Nic) -> Result<Followed, DaemonError> {
        let (links, events) = (Arc::clone(&self.links), self.events.clone());
        let announce = Arc::clone(&self.announce);
        let waits = Arc::new(AtomicBool::new(true));
        let is_first = Arc::clone(&waits);
        let mut is_confined = false;
        let tags: Vec<_> = hop.vlan.ids().collect();
        let monitor =
            NextHopMonitor::start_on_vlan(nic.index, &tags, hop.next_hop, move |state| {
                if !std::mem::replace(&mut is_confined, true) {
                    process::keep_or_say(capabilities::OF_NEXT_HOP_MONITOR);
                }
                let is_resolving = state.has_carrier && state.mac.is_none();
                if !(is_resolving && is_first.load(Ordering::Acquire)) {
                    is_first.store(false, Ordering::Release);
                    announce(number, usable(state));
                    links.steer_to(number, usable(state));
                }
                let _ = events.send(Event::NextHop);
            })?;
        Ok(Followed {
            hop,
            number,
            monitor,
            waits,
            logged: NextHopState::default(),
        })
    }

    /// Waits for the first answers of next hops, at most until `due`.
    pub(super) fn settle(&mut self, due: Instant) {
        let Some(out) = &mut self.out else {
            return;
        };
        for followed in &mut out.hops {
            let is_new = followed.waits.load(Ordering::Acquire);
            if !is_new && followed.logged != NextHopState::default() {
                continue;
            }
            let left = due.saturating_duration_since(Instant::now());
            followed.logged = followed.monitor.first(left);
            if followed.waits.swap(false, Ordering::AcqRel) {
                self.links.steer_to(followed.number, None);
                // It may have answered just then: the monitor is updated before the links are.
                if let answered @ Some(_) = usable(followed.monitor.now()) {
                    self.links.steer_to(followed.number, answered);
                }
            }
            if usable(followed.logged).is_none() {
                log_state(&out.incoming, &followed.hop, followed.logged);
            }
        }
    }

    /// Applies other steering settings on the same NIC; call [`Self::settle`] next.
    pub(super) fn change(&mut self, settings: &Settings) -> Result<(), DaemonError> {
        let Some(incoming) = settings.incoming() else {
            return Ok(());
        };
        let Some(out) = &mut self.out else {
            // The NIC is gone: they are monitored when it is back.
            for hop in &incoming.next_hops {
                self.number_of(hop);
            }
            return Ok(());
        };
        if out.incoming.next_hops == incoming.next_hops {
            self.links.drop_unsteered(incoming.drops_unsteered);
            out.incoming = incoming.clone();
            return Ok(());
        }
        let (before, nic) = (out.incoming.clone(), out.nic.clone());
        check(incoming, &nic)?;
        let done = self.follow(incoming, &nic);
        // If a new next hop is refused, the earlier ones stay in force.
        if done.is_err() && self.out.as_ref().is_none_or(|out| out.incoming != before) {
            self.follow(&before, &nic)?;
        }
        done
    }

    /// Monitors the next hops on the NIC that is `incoming` now, if that is another one; call
    /// [`Self::settle`] next.
    pub(super) fn move_to(&mut self, settings: &Settings, nics: &Nics) -> Result<(), DaemonError> {
        match (settings.incoming(), nics.incoming(), &self.out) {
            (Some(_), Some(nic), Some(out))
                if (out.nic.index, out.nic.mac) == (nic.index, nic.mac) =>
            {
                Ok(())
            }
            (Some(incoming), Some(nic), _) => self.follow(incoming, nic),
            _ => Ok(()),
        }
    }

    pub(super) fn set_own(&mut self, own: MacAddr) {
        if let Some(out) = &mut self.out {
            out.nic.mac = own;
        }
    }

    /// The rules with the numbers that the next hops have in the data path, in place of their
    /// positions in the configuration.
    pub(super) fn numbered(&self, settings: &Settings) -> Arc<Rules> {
        let rules = &settings.rules;
        let Some(incoming) = settings.incoming() else {
            return Arc::clone(rules);
        };
        let number_of = |position: u8| {
            let hop = incoming.next_hops.get(usize::from(position))?;
            let (_, number) = self.numbers.iter().find(|(known, _)| known == hop)?;
            u8::try_from(*number).ok()
        };
        let renumber = |position: u8| number_of(position).unwrap_or(position);
        let is_same = |group: &Group| group.path.next_hops.map(renumber) == group.path.next_hops;
        if rules.groups().iter().all(is_same) {
            return Arc::clone(rules);
        }
        let groups = rules.groups().iter().map(|group| Group {
            path: SteeredPath {
                next_hops: group.path.next_hops.map(renumber),
                ..group.path
            },
            ..group.clone()
        });
        let sockets = rules.sockets;
        Arc::new(Rules::new(rules.classify_by, groups.collect(), sockets))
    }

    /// Logs the changes of the next hops; the event may be older than the state last logged.
    pub(super) fn log_change(&mut self) {
        let Some(out) = &mut self.out else {
            return;
        };
        for followed in &mut out.hops {
            let now = followed.monitor.now();
            if now != followed.logged {
                followed.logged = now;
                self.changes += 1;
                log_state(&out.incoming, &followed.hop, now);
            }
        }
    }

    /// Stops the monitors; frames are steered on as they were.
    pub(super) fn end(&mut self) {
        self.out = None;
        self.gone.clear();
        // The closure holds a sender: the audit thread runs until the last one is dropped.
        self.announce = Arc::new(|_, _| ());
    }

    /// The state of the next hops, and the groups whose relay traffic they take.
    pub(super) fn report(&self, settings: &Settings) -> SteeringReport {
        let Some(out) = &self.out else {
            return SteeringReport::default();
        };
        let states = out.incoming.next_hops.iter().map(|hop| {
            let followed = out.hops.iter().find(|followed| followed.hop == *hop);
            let state = followed.map(|followed| followed.monitor.now());
            (hop, state.unwrap_or_default())
        });
        SteeringReport::of(&out.incoming, &settings.rules, states, self.changes)
    }
}

/// Refuses next hops that cannot work on this NIC. Only for a start and a reload: on a NIC that has
/// been created anew, the VLAN interfaces come later.
fn check(incoming: &Incoming, nic: &Nic) -> Result<(), DaemonError> {
    for hop in &incoming.next_hops {
        if hop.next_hop == NextHop::Mac(nic.mac) {
            return Err(DaemonError::NextHopIsSelf(nic.name.clone()));
        }
        let tags: Vec<_> = hop.vlan.ids().collect();
        if let (NextHop::Address(_), [_, ..]) = (hop.next_hop, &tags[..]) {
            let vlan = nic.vlan_interface(&tags)?;
            vlan.refuse_other_protocol(nic, &tags)?;
            vlan.refuse_down()?;
            vlan.refuse_other_mac(nic)?;
        }
    }
    Ok(())
}

fn log_state(incoming: &Incoming, hop: &Hop, state: NextHopState) {
    let (interface, next_hop) = (&incoming.interface, hop);
    let consequence = incoming.consequence();
    match (state.has_carrier, state.mac) {
        (true, Some(mac)) => tracing::info!("relay traffic is steered to {mac}"),
        (false, _) => tracing::error!(
            "ALARM: {interface} ({}) has no link: relay traffic {consequence} until it has one",
            Role::Incoming
        ),
        (true, None) => tracing::error!(
            "ALARM: the next hop {next_hop} does not answer on {interface}: relay traffic \
             {consequence} until it does; `ip neighbour show dev {interface}` shows the state \
             of its entry"
        ),
    }
}

/// The MAC address that steered frames are sent to, if the link has carrier.
fn usable(state: NextHopState) -> Option<MacAddr> {
    state.mac.filter(|_| state.has_carrier)
}

#[cfg(test)]
mod tests {
    use super::*;
    use exitmark_policy::packet::VlanTags;

    fn incoming(macs: &[MacAddr]) -> Incoming {
        let hop = |&mac: &MacAddr| Hop {
            next_hop: NextHop::Mac(mac),
            vlan: VlanTags::UNTAGGED,
        };
        Incoming {
            interface: "lo".to_owned(),
            next_hops: macs.iter().map(hop).collect(),
            drops_unsteered: false,
        }
    }

    /// The rules in force name the numbers: a NIC that is created anew must not change them.
    #[test]
    fn a_next_hop_keeps_its_number_on_another_nic() {
        let (events, _received) = crossbeam::channel::unbounded();
        let links = Arc::new(Links::new(None));
        let mut steering = Steering {
            links: Arc::clone(&links),
            out: None,
            gone: Vec::new(),
            numbers: Vec::new(),
            events,
            announce: Arc::new(|_, _| ()),
            changes: 0,
        };
        let [a, b, c] = [10, 11, 12].map(|last| MacAddr::new([2, 0, 0, 0, 0, last]));
        let numbers = |steering: &Steering| {
            let all = steering.numbers.iter();
            let named = all.map(|(hop, number)| (hop.next_hop.to_string(), *number));
            named.collect::<Vec<_>>()
        };
        // With the index of the loopback interface, which every network namespace has.
        let mut nic = Nic::example("lo", None);
        let follow = |steering: &mut Steering, macs: &[MacAddr], nic: &Nic| {
            steering.follow(&incoming(macs), nic).unwrap();
            steering.settle(Instant::now() + TIMEOUT);
        };
        follow(&mut steering, &[a, b], &nic);
        follow(&mut steering, &[b, c], &nic);
        // Until the rules are replaced, frames may be for the earlier ones.
        assert_eq!(
            [0, 1, 2].map(|number| links.next_hop(number)),
            [a, b, c].map(Some)
        );
        steering.forget(&incoming(&[b, c]).next_hops);
        let expected = [None, Some(b), Some(c)];
        assert_eq!([0, 1, 2].map(|number| links.next_hop(number)), expected);
        let before = numbers(&steering);
        nic.mac = MacAddr::new([2, 0, 0, 0, 9, 9]);
        follow(&mut steering, &[b, c], &nic);
        assert_eq!(numbers(&steering), before);
        assert_eq!([0, 1, 2].map(|number| links.next_hop(number)), expected);
        // The number of one that is gone is free again.
        follow(&mut steering, &[b, c, a], &nic);
        assert_eq!(links.next_hop(0), Some(a));
    }
}
