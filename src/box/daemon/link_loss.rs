//! Carries the loss of a link from one side of a wire to the other (`wire.link_loss`).
//!
//! Which side is set down and when it is set up again is decided by [`LinkCoupling`]. A
//! side that is set down is on record as a change to its NIC, so that a detachment, or the next
//! process, sets it up.

use super::wire::Wire;
use super::{DaemonError, Event, capabilities, detach};
use crate::settings::{LinkLoss, Settings};
use crossbeam::channel::{self, RecvTimeoutError, Sender};
use exitmark_datapath::Role;
use exitmark_nic::{
    LinkAction, LinkCoupling, LinkState, PerSide, SideState, WireSide, index_of, set_admin,
};
use exitmark_service::process;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The interval of reading the carrier. The kernel may hold a notification back for a second
/// (net/core/link_watch.c).
const INTERVAL: Duration = Duration::from_millis(40);
/// How often the sides are queried for one notification: each change is to be observed.
const ROUNDS: u32 = 4;

/// The loss of links on a wire that carries it forward.
pub(super) struct Carrying(LinkCoupling);

impl Carrying {
    /// For a wire whose programs have just been attached; `None` if it does not carry the loss of a
    /// link forward.
    pub(super) fn of(settings: &Settings) -> Option<Self> {
        let wire = settings.wires.first()?;
        if wire.link_loss == LinkLoss::Ignore {
            return None;
        }
        let mut decisions = LinkCoupling::new(PerSide::default());
        // Attaching a program resets the link with many drivers.
        decisions.expect_reset(Instant::now());
        Some(Self(decisions))
    }

    /// Lets both sides lack carrier for a while, because their links are about to be reset.
    pub(super) fn expect_reset(&mut self) {
        self.0.expect_reset(Instant::now());
    }

    /// Whether this side is set down because the other one has no link.
    pub(super) fn holds(&self, role: Role) -> bool {
        side_of(role).is_some_and(|side| self.0.is_set_down(side))
    }
}

const fn side_of(role: Role) -> Option<WireSide> {
    match role {
        Role::Host => Some(WireSide::Host),
        Role::Uplink => Some(WireSide::Uplink),
        Role::Incoming => None,
    }
}

const fn role_of(side: WireSide) -> Role {
    match side {
        WireSide::Host => Role::Host,
        WireSide::Uplink => Role::Uplink,
    }
}

impl Wire {
    /// Sets a side down whose other side has no link, and up again when that is back.
    pub(super) fn carry_link_loss(&mut self) {
        if self.carrying.is_none() {
            return;
        }
        for _ in 0..ROUNDS {
            let links = PerSide {
                host: self.side(Role::Host),
                uplink: self.side(Role::Uplink),
            };
            let Some(carrying) = &mut self.carrying else {
                return;
            };
            let before = WireSide::ALL.map(|side| carrying.0.is_set_down(side));
            let states = PerSide {
                host: links.host.as_ref().map(SideState::from),
                uplink: links.uplink.as_ref().map(SideState::from),
            };
            let actions = carrying.0.observe(states, Instant::now());
            for (side, was_held) in WireSide::ALL.into_iter().zip(before) {
                let is_held = carrying.0.is_set_down(side);
                if let Some(link) = links[side].as_ref().filter(|_| is_held != was_held) {
                    let kept = (&self.pins, &self.record);
                    if let Err(error) = detach::note_held(kept, role_of(side), link.index, is_held)
                    {
                        tracing::warn!("{}: {error}", link.name);
                    }
                }
            }
            if actions.is_empty() {
                return;
            }
            for action in actions {
                let (side, up) = match action {
                    LinkAction::SetDown(side) => (side, false),
                    LinkAction::SetUp(side) => (side, true),
                };
                if let Some(link) = &links[side] {
                    change(link, side, up);
                }
            }
        }
    }

    /// Sets up what is set down: a wire is set up again with both sides up.
    pub(super) fn stop_holding(&mut self) {
        let held = |role: &Role| {
            let carrying = self.carrying.as_ref();
            carrying.is_some_and(|carrying| carrying.holds(*role))
        };
        let roles: Vec<_> = Role::ALL.into_iter().filter(held).collect();
        for role in roles {
            if let (Some(link), Some(side)) = (self.side(role), side_of(role)) {
                change(&link, side, true);
            }
            if let Some(carrying) = &mut self.carrying {
                carrying.expect_reset();
            }
        }
    }

    /// The present state of a side, also of a NIC that was created anew.
    fn side(&self, role: Role) -> Option<LinkState> {
        let port = self.bound.of(role)?;
        let now = LinkState::of_index(port.nic.index).ok().flatten();
        now.or_else(|| LinkState::of_index(index_of(&port.configured).ok()??).ok()?)
    }

    /// Sets up what is set down: without this process, the side would stay down.
    pub(super) fn stop_carrying(&mut self) {
        let Some(carrying) = self.carrying.take() else {
            return;
        };
        for side in WireSide::ALL {
            let link = self.side(role_of(side));
            if let Some(link) = link.filter(|_| carrying.0.is_set_down(side)) {
                change(&link, side, true);
                let kept = (&self.pins, &self.record);
                if let Err(error) = detach::note_held(kept, role_of(side), link.index, false) {
                    tracing::warn!("{}: {error}", link.name);
                }
            }
        }
    }
}

fn change(link: &LinkState, side: WireSide, up: bool) {
    let (nic, role, other) = (&link.name, role_of(side), role_of(side.other()));
    match (set_admin(link.index, up), up) {
        (Ok(()), false) => tracing::warn!(
            "{nic} ({role}) is set down, because the link of {other} is lost: the machines behind \
             it notice"
        ),
        (Ok(()), true) => tracing::info!("{nic} ({role}) is set up again"),
        (Err(error), _) => tracing::error!("ALARM: {error}"),
    }
}

/// A thread that reports each change of a carrier, on the sides of all wires.
pub(super) struct CarrierWatch {
    names: Arc<Mutex<Vec<String>>>,
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl CarrierWatch {
    /// Watches no NIC yet.
    pub(super) fn start(events: Sender<Event>) -> Result<Self, DaemonError> {
        let (stop, stopped) = channel::bounded::<()>(0);
        let names = Arc::<Mutex<Vec<String>>>::default();
        let watched = Arc::clone(&names);
        let watch = move || {
            process::keep_or_say(capabilities::NONE);
            let mut known = Vec::new();
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(INTERVAL) {
                let names = watched.lock().unwrap_or_else(PoisonError::into_inner);
                let path = |name: &String| format!("/sys/class/net/{name}/carrier");
                let now: Vec<_> = names.iter().map(|name| fs::read(path(name)).ok()).collect();
                drop(names);
                let has_changed = known.len() == now.len() && known != now;
                known = now;
                if has_changed && events.send(Event::Links).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("exitmark-carrier".to_owned());
        let thread = thread
            .spawn(watch)
            .map_err(|error| DaemonError::System("watch the links", error))?;
        Ok(Self {
            names,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Watches the sides of these wires, by the present names of their NICs.
    pub(super) fn follow(&self, wires: &[Wire]) {
        let carrying = wires.iter().filter(|wire| wire.carrying.is_some());
        let sides = carrying.flat_map(|wire| {
            let sides = [Role::Host, Role::Uplink].map(|role| wire.bound.of(role));
            sides
                .into_iter()
                .flatten()
                .map(|port| port.nic.name.clone())
        });
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        *names = sides.collect();
    }
}

impl Drop for CarrierWatch {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
