//! The way out for relay traffic: followed, and told to both engines the moment it changes.

use super::nics::Nics;
use super::witness::Watch;
use super::{DaemonError, Event, capabilities};
use crate::datapath::{Links, Role};
use crate::nic::{NextHop, Way, WayWatch};
use crate::observe::{SteeringReport, SteeringState};
use crate::packet::MacAddr;
use crate::process;
use crate::settings::{Incoming, Settings};
use crossbeam::channel::Sender;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a start waits for the next hop to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Follows the way out, if there is one.
pub(super) struct Steering {
    links: Arc<Links>,
    out: Option<Out>,
    events: Sender<Event>,
    witness: Arc<dyn Fn(Option<MacAddr>) + Send + Sync>,
    changes: u64,
}

/// The way out that is followed.
struct Out {
    incoming: Incoming,
    nic: u32,
    own: MacAddr,
    watch: WayWatch,
    said: Way,
}

impl Steering {
    /// Follows the way that the settings name. Where it cannot be used yet, the box does without.
    pub(super) fn start(
        settings: &Settings,
        nics: &Nics,
        links: &Arc<Links>,
        witness: &Watch,
        events: &Sender<Event>,
    ) -> Result<Self, DaemonError> {
        let mut steering = Self {
            links: Arc::clone(links),
            out: None,
            events: events.clone(),
            witness: Arc::new(witness.of_next_hops()),
            changes: 0,
        };
        let nic = nics
            .incoming_role
            .and_then(|role| nics.ports[role].as_ref());
        if let (Some(incoming), Some(nic)) = (&settings.ports.incoming, nic) {
            steering.follow(incoming, nic.index, nic.mac)?;
        }
        Ok(steering)
    }

    /// Follows another next hop. Until it has answered, for as long as a start waits for it, the
    /// MAC address that is in use stays.
    fn follow(&mut self, incoming: &Incoming, nic: u32, own: MacAddr) -> Result<(), DaemonError> {
        if incoming.next_hop == NextHop::Mac(own) {
            return Err(DaemonError::NextHopIsSelf(incoming.interface.clone()));
        }
        self.links.drop_unsteered(incoming.drops_unsteered);
        // The one before ends first: two must not write to the same place.
        self.out = None;
        let (links, events) = (Arc::clone(&self.links), self.events.clone());
        let witness = Arc::clone(&self.witness);
        let waits = Arc::new(AtomicBool::new(true));
        let is_first = Arc::clone(&waits);
        let mut is_confined = false;
        let watch = WayWatch::start(nic, incoming.next_hop, move |way| {
            if !std::mem::replace(&mut is_confined, true) {
                process::keep_or_say(capabilities::OF_WAY);
            }
            let is_asked = way.has_carrier && way.next_hop.is_none();
            if !(is_asked && is_first.load(Ordering::Acquire)) {
                is_first.store(false, Ordering::Release);
                witness(usable(way));
                links.steer_to(usable(way));
            }
            let _ = events.send(Event::Way);
        })?;
        let said = watch.first(PATIENCE);
        if waits.swap(false, Ordering::AcqRel) {
            self.links.steer_to(None);
            // It may have answered just then: whoever follows it knows before the links do.
            if let answered @ Some(_) = usable(watch.now()) {
                self.links.steer_to(answered);
            }
        }
        self.out = Some(Out {
            incoming: incoming.clone(),
            nic,
            own,
            watch,
            said,
        });
        if usable(said).is_none() {
            self.say(said);
        }
        Ok(())
    }

    /// Follows the way of other settings, of which the NIC is the same.
    pub(super) fn change(&mut self, settings: &Settings) -> Result<(), DaemonError> {
        let Some(incoming) = &settings.ports.incoming else {
            return Ok(());
        };
        match &self.out {
            Some(out) if out.incoming == *incoming => Ok(()),
            Some(out) if out.incoming.next_hop == incoming.next_hop => {
                self.links.drop_unsteered(incoming.drops_unsteered);
                if let Some(out) = &mut self.out {
                    out.incoming = incoming.clone();
                }
                Ok(())
            }
            Some(out) => {
                let (before, nic, own) = (out.incoming.clone(), out.nic, out.own);
                let done = self.follow(incoming, nic, own);
                // Whoever refuses another way goes on with the one there was.
                if done.is_err() && self.out.as_ref().is_none_or(|out| out.incoming != before) {
                    self.follow(&before, nic, own)?;
                }
                done
            }
            None => Ok(()),
        }
    }

    /// Follows the way by the NIC that plays `incoming` now, where that is another one.
    pub(super) fn move_to(&mut self, settings: &Settings, nics: &Nics) -> Result<(), DaemonError> {
        let nic = nics
            .incoming_role
            .and_then(|role| nics.ports[role].as_ref());
        match (&settings.ports.incoming, nic, &self.out) {
            (Some(_), Some(nic), Some(out)) if (out.nic, out.own) == (nic.index, nic.mac) => Ok(()),
            (Some(incoming), Some(nic), _) => self.follow(incoming, nic.index, nic.mac),
            _ => Ok(()),
        }
    }

    /// The NIC has another MAC address.
    pub(super) fn set_own(&mut self, own: MacAddr) {
        if let Some(out) = &mut self.out {
            out.own = own;
        }
    }

    /// Says what has changed, if it has: the event may be older than what was said already.
    pub(super) fn tell(&mut self) {
        let Some(out) = &mut self.out else {
            return;
        };
        let now = out.watch.now();
        if now != out.said {
            out.said = now;
            self.changes += 1;
            self.say(now);
        }
    }

    fn say(&self, way: Way) {
        let Some(out) = &self.out else {
            return;
        };
        let Incoming {
            interface,
            next_hop,
            drops_unsteered,
        } = &out.incoming;
        let consequence = match drops_unsteered {
            true => "relay traffic is dropped",
            false => "relay traffic leaves by the uplink, unmarked",
        };
        match (way.has_carrier, way.next_hop) {
            (true, Some(mac)) => tracing::info!("relay traffic is steered to {mac}"),
            (false, _) => tracing::error!(
                "ALARM: {interface} ({}) has no link: {consequence} until it has one",
                Role::Incoming
            ),
            (true, None) => tracing::error!(
                "ALARM: the next hop {next_hop} does not answer on {interface}: {consequence} \
                 until it does; `ip neighbour show dev {interface}` shows who does"
            ),
        }
    }

    /// Follows nothing any more; frames are steered on as they were.
    pub(super) fn end(&mut self) {
        self.out = None;
        // The witness works for as long as there is somebody to tell it something.
        self.witness = Arc::new(|_| ());
    }

    pub(super) fn report(&self) -> SteeringReport {
        let Some(out) = &self.out else {
            return SteeringReport::default();
        };
        let way = out.watch.now();
        SteeringReport {
            state: match (way.has_carrier, way.next_hop) {
                (false, _) => SteeringState::NoCarrier,
                (true, None) => SteeringState::Unresolved,
                (true, Some(_)) => SteeringState::Steering,
            },
            on_unavailable: match out.incoming.drops_unsteered {
                true => "drop",
                false => "uplink",
            }
            .to_owned(),
            next_hop: Some(out.incoming.next_hop.to_string()),
            next_hop_mac: usable(way).map(|mac| mac.to_string()),
            changes: self.changes,
        }
    }
}

/// Where steered frames go.
fn usable(way: Way) -> Option<MacAddr> {
    way.next_hop.filter(|_| way.has_carrier)
}
