//! Monitors the next hop for relay traffic, and publishes its MAC address to both engines at once.

use super::audit::AuditHandle;
use super::nics::Nics;
use super::{DaemonError, Event, capabilities};
use crate::observe::{SteeringReport, SteeringState};
use crate::settings::{Incoming, Settings};
use crossbeam::channel::Sender;
use exitmark_datapath::{Links, Role};
use exitmark_nic::{NextHop, NextHopMonitor, NextHopState};
use exitmark_policy::packet::MacAddr;
use exitmark_service::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Timeout of a start for the next hop's first answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The next hop's monitor, if steering is configured.
pub(super) struct Steering {
    links: Arc<Links>,
    out: Option<Out>,
    events: Sender<Event>,
    announce: Arc<dyn Fn(Option<MacAddr>) + Send + Sync>,
    changes: u64,
}

/// The monitored next hop, and the NIC by which steered frames leave.
struct Out {
    incoming: Incoming,
    nic: u32,
    own: MacAddr,
    monitor: NextHopMonitor,
    logged: NextHopState,
}

impl Steering {
    /// Monitors the configured next hop. While it is unusable, nothing is steered.
    pub(super) fn start(
        settings: &Settings,
        nics: &Nics,
        links: &Arc<Links>,
        audit: &AuditHandle,
        events: &Sender<Event>,
    ) -> Result<Self, DaemonError> {
        let mut steering = Self {
            links: Arc::clone(links),
            out: None,
            events: events.clone(),
            announce: Arc::new(audit.of_next_hops()),
            changes: 0,
        };
        if let (Some(incoming), Some(nic)) = (settings.incoming(), nics.incoming()) {
            steering.follow(incoming, nic.index, nic.mac)?;
        }
        Ok(steering)
    }

    /// Monitors another next hop. Until it answers, at most for [`TIMEOUT`], the earlier MAC
    /// address stays in use.
    fn follow(&mut self, incoming: &Incoming, nic: u32, own: MacAddr) -> Result<(), DaemonError> {
        if incoming.next_hop == NextHop::Mac(own) {
            return Err(DaemonError::NextHopIsSelf(incoming.interface.clone()));
        }
        self.links.drop_unsteered(incoming.drops_unsteered);
        // The earlier monitor ends first: two must not write to the same cell.
        self.out = None;
        let (links, events) = (Arc::clone(&self.links), self.events.clone());
        let announce = Arc::clone(&self.announce);
        let waits = Arc::new(AtomicBool::new(true));
        let is_first = Arc::clone(&waits);
        let mut is_confined = false;
        let monitor = NextHopMonitor::start(nic, incoming.next_hop, move |state| {
            if !std::mem::replace(&mut is_confined, true) {
                process::keep_or_say(capabilities::OF_NEXT_HOP_MONITOR);
            }
            let is_resolving = state.has_carrier && state.mac.is_none();
            if !(is_resolving && is_first.load(Ordering::Acquire)) {
                is_first.store(false, Ordering::Release);
                announce(usable(state));
                links.steer_to(usable(state));
            }
            let _ = events.send(Event::NextHop);
        })?;
        let logged = monitor.first(TIMEOUT);
        if waits.swap(false, Ordering::AcqRel) {
            self.links.steer_to(None);
            // It may have answered just then: the monitor is updated before the links are.
            if let answered @ Some(_) = usable(monitor.now()) {
                self.links.steer_to(answered);
            }
        }
        self.out = Some(Out {
            incoming: incoming.clone(),
            nic,
            own,
            monitor,
            logged,
        });
        if usable(logged).is_none() {
            self.log_state(logged);
        }
        Ok(())
    }

    /// Applies other steering settings on the same NIC.
    pub(super) fn change(&mut self, settings: &Settings) -> Result<(), DaemonError> {
        let Some(incoming) = settings.incoming() else {
            return Ok(());
        };
        let Some(out) = &mut self.out else {
            return Ok(());
        };
        if out.incoming.next_hop == incoming.next_hop {
            self.links.drop_unsteered(incoming.drops_unsteered);
            out.incoming = incoming.clone();
            return Ok(());
        }
        let (before, nic, own) = (out.incoming.clone(), out.nic, out.own);
        let done = self.follow(incoming, nic, own);
        // If the new next hop is refused, the earlier one stays in force.
        if done.is_err() && self.out.as_ref().is_none_or(|out| out.incoming != before) {
            self.follow(&before, nic, own)?;
        }
        done
    }

    /// Monitors the next hop on the NIC that is `incoming` now, if that is another one.
    pub(super) fn move_to(&mut self, settings: &Settings, nics: &Nics) -> Result<(), DaemonError> {
        match (settings.incoming(), nics.incoming(), &self.out) {
            (Some(_), Some(nic), Some(out)) if (out.nic, out.own) == (nic.index, nic.mac) => Ok(()),
            (Some(incoming), Some(nic), _) => self.follow(incoming, nic.index, nic.mac),
            _ => Ok(()),
        }
    }

    pub(super) fn set_own(&mut self, own: MacAddr) {
        if let Some(out) = &mut self.out {
            out.own = own;
        }
    }

    /// Logs a change of the next hop; the event may be older than the state last logged.
    pub(super) fn log_change(&mut self) {
        let Some(out) = &mut self.out else {
            return;
        };
        let now = out.monitor.now();
        if now != out.logged {
            out.logged = now;
            self.changes += 1;
            self.log_state(now);
        }
    }

    fn log_state(&self, state: NextHopState) {
        let Some(out) = &self.out else {
            return;
        };
        let (interface, next_hop) = (&out.incoming.interface, out.incoming.next_hop);
        let consequence = out.incoming.consequence();
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

    /// Stops the monitor; frames are steered on as they were.
    pub(super) fn end(&mut self) {
        self.out = None;
        // The closure holds a sender: the audit thread runs until the last one is dropped.
        self.announce = Arc::new(|_| ());
    }

    pub(super) fn report(&self) -> SteeringReport {
        let Some(out) = &self.out else {
            return SteeringReport::default();
        };
        let state = out.monitor.now();
        SteeringReport {
            state: match (state.has_carrier, state.mac) {
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
            next_hop_mac: usable(state).map(|mac| mac.to_string()),
            changes: self.changes,
        }
    }
}

/// The MAC address that steered frames are sent to, if the link has carrier.
fn usable(state: NextHopState) -> Option<MacAddr> {
    state.mac.filter(|_| state.has_carrier)
}
