//! Carries the loss of a link from one side of a wire to the other (`wire.link_loss`).
//!
//! Which side is set down and when it is set up again is decided by [`exitmark_nic::LinkCoupling`]. A
//! side that is set down is on record as a change to its NIC, so that a detachment, or the next
//! process, sets it up.

use super::wire::Wire;
use super::{DaemonError, Event, capabilities, detach};
use crate::settings::{LinkLoss, Settings};
use crossbeam::channel::{self, RecvTimeoutError, Sender};
use exitmark_datapath::Role;
use exitmark_nic::{LinkAction, LinkState, PerSide, SideState, WireSide, index_of, set_admin};
use exitmark_service::process;
use std::fs;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The interval of reading the carrier. The kernel may hold a notification back for a second
/// (net/core/link_watch.c).
const INTERVAL: Duration = Duration::from_millis(20);
/// How often the sides are queried for one notification: each change is to be observed.
const ROUNDS: u32 = 4;

/// The loss of links on a wire that carries it forward.
pub(super) struct Carrying {
    decisions: exitmark_nic::LinkCoupling,
    watch: CarrierWatch,
}

impl Carrying {
    /// Watches the sides of a wire; `None` if it does not carry the loss of a link forward. A NIC
    /// that is also `incoming` is never set down, because the box itself communicates by it.
    pub(super) fn start(
        settings: &Settings,
        events: &Sender<Event>,
    ) -> Result<Option<Self>, DaemonError> {
        let Some(wire) = settings.wires.first() else {
            return Ok(None);
        };
        let ports = &wire.ports;
        let incoming = ports.incoming.as_ref();
        let is_uplink = incoming.is_some_and(|incoming| incoming.interface == ports.uplink);
        if wire.link_loss == LinkLoss::Ignore || is_uplink {
            return Ok(None);
        }
        let mut decisions = exitmark_nic::LinkCoupling::new(PerSide::default());
        // Attaching a program resets the link with many drivers.
        decisions.expect_reset(Instant::now());
        let names = [ports.host.clone(), ports.uplink.clone()];
        let watch = CarrierWatch::start(names, events.clone())?;
        Ok(Some(Self { decisions, watch }))
    }

    /// Lets both sides lack carrier for a while, because their links are about to be reset.
    pub(super) fn expect_reset(&mut self) {
        self.decisions.expect_reset(Instant::now());
    }

    /// Whether this side is set down because the other one has no link.
    pub(super) fn holds(&self, role: Role) -> bool {
        side_of(role).is_some_and(|side| self.decisions.is_set_down(side))
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
        for _ in 0..ROUNDS {
            let links = PerSide {
                host: self.side(Role::Host),
                uplink: self.side(Role::Uplink),
            };
            let Some(carrying) = &mut self.carrying else {
                return;
            };
            let before = WireSide::ALL.map(|side| carrying.decisions.is_set_down(side));
            let states = PerSide {
                host: links.host.as_ref().map(SideState::from),
                uplink: links.uplink.as_ref().map(SideState::from),
            };
            let actions = carrying.decisions.observe(states, Instant::now());
            for (side, was_held) in WireSide::ALL.into_iter().zip(before) {
                let is_held = carrying.decisions.is_set_down(side);
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
            if let Some(link) = link.filter(|_| carrying.decisions.is_set_down(side)) {
                change(&link, side, true);
                let kept = (&self.pins, &self.record);
                if let Err(error) = detach::note_held(kept, role_of(side), link.index, false) {
                    tracing::warn!("{}: {error}", link.name);
                }
            }
        }
        carrying.watch.end();
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

/// A thread that reports each change of a carrier.
struct CarrierWatch {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl CarrierWatch {
    fn start(names: [String; 2], events: Sender<Event>) -> Result<Self, DaemonError> {
        let (stop, stopped) = channel::bounded::<()>(0);
        let paths = names.map(|name| format!("/sys/class/net/{name}/carrier"));
        let read = move || paths.each_ref().map(|path| fs::read(path).ok());
        let watch = move || {
            process::keep_or_say(capabilities::NONE);
            let mut known = read();
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(INTERVAL) {
                let now = read();
                if std::mem::replace(&mut known, now.clone()) != now
                    && events.send(Event::Links).is_err()
                {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("exitmark-carrier".to_owned());
        let thread = thread
            .spawn(watch)
            .map_err(|error| DaemonError::System("watch the links", error))?;
        Ok(Self { stop, thread })
    }

    fn end(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}
