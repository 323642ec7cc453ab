//! Carries the loss of a link from one side of a wire to the other: bonds, routers and VRRP behind
//! the box act on carrier, and the box would hide the loss from them.
//!
//! [`LinkCoupling`] is a state machine that makes no system calls: the state of both sides and the
//! time are arguments, and the changes to be made are its result. The caller, in this order:
//!
//! 1. queries both sides ([`LinkState::of_index`]), and calls [`LinkCoupling::observe`];
//! 2. stores [`LinkCoupling::is_set_down`] of each side with the index of its NIC, if it has changed;
//! 3. carries out the actions with [`crate::set_admin`], and begins again at once if there were any.
//!
//! It does so on every notification of a link, and once a second. The stored flags are written
//! before a side is set down, and erased after it was observed up again. So a process that is
//! killed at any point leaves no side down without its flag; the next process passes the flags to
//! [`LinkCoupling::new`], and a detachment sets the marked sides up. A process that ends and leaves the
//! wire in place has to do that as well: otherwise the side stays down when the link is back.
//!
//! # Rules
//! - A side that has carrier is set down while the other side lacks it, at once.
//! - Only one side is set down at a time. The other one stays up, without carrier: it shows when the
//!   link is back.
//! - The side is set up when the other one has had carrier without interruption for a hold time: 1 s
//!   after the first loss, doubled with every further one, at most 60 s. It is 1 s again after both
//!   sides had carrier for five minutes.
//! - After a side was set up, its lack of carrier counts only after a settling time, in which the
//!   link is trained, or once carrier has lasted for the hold time. It is 10 s, and is doubled with
//!   each loss to 60 s, so that links which are trained slowly come up in the end.
//! - A side that another program sets down is treated like one without carrier, and is never set up
//!   here. One that another program sets up is set down again after the hold time. `ip link set
//!   down` on a side that is down already changes nothing, and cannot be noticed.
//!
//! # Limits
//! A NIC has to drop its link when it is set down, so that the other end notices. Some drivers keep
//! it, for Wake-on-LAN or for a management controller (NC-SI). Setting a NIC down removes its global
//! IPv6 addresses (keep_addr_on_down in the kernel's networking/ip-sysctl) and its routes, so a NIC
//! that the box itself communicates by is not a side.

use super::LinkState;
use std::ops::{Index, IndexMut};
use std::time::{Duration, Instant};

/// How long carrier has to last, after the first loss, before the other side is set up.
const HOLD: Duration = Duration::from_secs(1);
const MAX_HOLD: Duration = Duration::from_secs(60);
/// How long after it was set up a side may lack carrier, after the first loss. 10GBASE-T trains for
/// several seconds; a link with forward error correction, or through a media converter, for longer.
const SETTLE: Duration = Duration::from_secs(10);
const MAX_SETTLE: Duration = Duration::from_secs(60);
/// A loss is the first one again after both sides had carrier for this long.
const CALM: Duration = Duration::from_secs(300);
/// The pause before a side is set up again if that failed.
const RETRY: Duration = Duration::from_secs(1);

/// A side of a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireSide {
    /// The side of the Tor host.
    Host,
    /// The side of the network.
    Uplink,
}

impl WireSide {
    /// Both sides.
    pub const ALL: [Self; 2] = [Self::Host, Self::Uplink];

    /// The side at the other end of the wire.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Host => Self::Uplink,
            Self::Uplink => Self::Host,
        }
    }
}

/// A value for each side of a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerSide<T> {
    /// The value for [`WireSide::Host`].
    pub host: T,
    /// The value for [`WireSide::Uplink`].
    pub uplink: T,
}

impl<T> Index<WireSide> for PerSide<T> {
    type Output = T;

    fn index(&self, side: WireSide) -> &T {
        match side {
            WireSide::Host => &self.host,
            WireSide::Uplink => &self.uplink,
        }
    }
}

impl<T> IndexMut<WireSide> for PerSide<T> {
    fn index_mut(&mut self, side: WireSide) -> &mut T {
        match side {
            WireSide::Host => &mut self.host,
            WireSide::Uplink => &mut self.uplink,
        }
    }
}

/// The state of a side's NIC at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SideState {
    /// Whether the NIC is set up (IFF_UP).
    pub is_up: bool,
    /// Whether the NIC has carrier (IFF_LOWER_UP); never while it is set down.
    pub has_carrier: bool,
}

impl From<&LinkState> for SideState {
    fn from(state: &LinkState) -> Self {
        Self {
            is_up: state.is_up,
            has_carrier: state.has_carrier,
        }
    }
}

/// A change to be made with [`crate::set_admin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkAction {
    /// Set the NIC of this side down.
    SetDown(WireSide),
    /// Set the NIC of this side up.
    SetUp(WireSide),
}

/// Decides when a side of one wire is set down and up.
#[derive(Clone, Debug)]
pub struct LinkCoupling {
    sides: PerSide<Side>,
    /// How often a side was set down since the last calm period, including set-downs that failed or
    /// were undone by another program.
    losses: u32,
    /// Since when both sides have had carrier.
    whole_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Side {
    control: Control,
    is_observed: bool,
    is_up: bool,
    /// Since when carrier has been observed.
    carrier_since: Option<Instant>,
    settling: Option<Settling>,
    /// Not set down earlier, because another program set it up.
    keep_up_until: Option<Instant>,
}

/// Whether a side is down on behalf of this state machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Control {
    /// It is up, or another program has set it down.
    #[default]
    Free,
    /// An earlier process stored that it had set it down; it is not observed yet.
    Stored,
    /// To be set down; not observed down yet. Requested again at `retry`.
    Lowering { retry: Instant },
    /// Set down.
    Down,
    /// To be set up; not observed up yet. Requested again at `retry`.
    Raising { retry: Instant },
}

/// The time in which a side that was set up may lack carrier.
#[derive(Clone, Copy, Debug)]
struct Settling {
    until: Instant,
    /// The carrier from before a reset, which does not end the time early.
    stale: Option<Instant>,
}

/// What a side shows about its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    Present {
        since: Instant,
    },
    Absent,
    /// The side is set down, or its link is being trained.
    Unknown,
}

impl LinkCoupling {
    /// `set_down` has the flags that the caller has stored for the present NICs; without a flag, a
    /// side that is down was set down by another program. The back-off begins anew.
    pub fn new(set_down: PerSide<bool>) -> Self {
        let side = |is_set_down: bool| Side {
            control: match is_set_down {
                true => Control::Stored,
                false => Control::Free,
            },
            ..Side::default()
        };
        Self {
            sides: PerSide {
                host: side(set_down.host),
                uplink: side(set_down.uplink),
            },
            losses: 0,
            whole_since: None,
        }
    }

    /// Whether this side is to be stored as set down by the box.
    pub fn is_set_down(&self, side: WireSide) -> bool {
        self.sides[side].control != Control::Free
    }

    /// Processes the present state of both sides, queried after the earlier actions were carried
    /// out, and returns the changes to be made. `None` is a NIC that does not exist. One that was
    /// created anew, with another index, must have been passed as `None` before.
    ///
    /// A change that fails, or that another program undoes, is requested again.
    #[must_use = "the actions must be carried out"]
    pub fn observe(&mut self, states: PerSide<Option<SideState>>, now: Instant) -> Vec<LinkAction> {
        for side in WireSide::ALL {
            self.update(side, states[side], now);
        }
        let is_present = |side| matches!(self.carrier(side), Carrier::Present { .. });
        let is_whole = WireSide::ALL.into_iter().all(is_present);
        self.whole_since = is_whole.then(|| self.whole_since.unwrap_or(now));
        if self.whole_since.is_some_and(|since| since + CALM <= now) {
            self.losses = 0;
        }
        let actions = WireSide::ALL.into_iter();
        actions.filter_map(|side| self.decide(side, now)).collect()
    }

    /// Lets both sides lack carrier for the settling time, because the caller is about to reset
    /// their links: with many drivers, attaching an XDP program and changing the number of queues do.
    pub fn expect_reset(&mut self, now: Instant) {
        let until = now + self.settle();
        for side in WireSide::ALL {
            let stale = self.sides[side].carrier_since;
            self.sides[side].settling = Some(Settling { until, stale });
        }
    }

    fn update(&mut self, side: WireSide, state: Option<SideState>, now: Instant) {
        let (hold, settle) = (self.hold(), self.settle());
        let one = &mut self.sides[side];
        let is_first = !std::mem::replace(&mut one.is_observed, true);
        let Some(SideState { is_up, has_carrier }) = state else {
            *one = Side {
                is_observed: true,
                ..Side::default()
            };
            return;
        };
        let has_carrier = is_up && has_carrier;
        one.carrier_since = has_carrier.then(|| one.carrier_since.unwrap_or(now));
        let was_up = std::mem::replace(&mut one.is_up, is_up);
        // A side that was up before this process, with carrier, is settled.
        if is_up && !was_up && !(is_first && has_carrier) {
            let until = now + settle;
            one.settling = Some(Settling { until, stale: None });
        }
        one.settling = one.settling.filter(|settling| {
            let carrier = one.carrier_since.filter(|at| Some(*at) != settling.stale);
            now < settling.until && carrier.is_none_or(|at| now < at + hold)
        });
        match (one.control, is_up) {
            (Control::Stored | Control::Lowering { .. }, false) => one.control = Control::Down,
            (Control::Stored | Control::Raising { .. }, true) => one.control = Control::Free,
            (Control::Down, true) => {
                one.control = Control::Free;
                self.losses = self.losses.saturating_add(1);
                self.sides[side].keep_up_until = Some(now + self.hold());
            }
            // Not set down yet, not set up yet, or under another program's control.
            (Control::Lowering { .. }, true)
            | (Control::Down | Control::Raising { .. }, false)
            | (Control::Free, _) => {}
        }
    }

    fn carrier(&self, side: WireSide) -> Carrier {
        let one = &self.sides[side];
        match (one.control, one.carrier_since) {
            (Control::Free, Some(since)) => Carrier::Present { since },
            (Control::Free, None) if one.is_up && one.settling.is_some() => Carrier::Unknown,
            (Control::Free, None) => Carrier::Absent,
            _ => Carrier::Unknown,
        }
    }

    fn decide(&mut self, side: WireSide, now: Instant) -> Option<LinkAction> {
        let one = &self.sides[side];
        let other = self.carrier(side.other());
        let is_lost = other == Carrier::Absent;
        let is_back = matches!(other, Carrier::Present { since } if since + self.hold() <= now);
        match one.control {
            Control::Free => {
                let may = one.keep_up_until.is_none_or(|until| until <= now);
                let is_due = is_lost && one.carrier_since.is_some() && may;
                is_due.then(|| self.set_down(side, now))
            }
            Control::Lowering { retry } if is_lost && retry <= now => {
                Some(self.set_down(side, now))
            }
            Control::Lowering { .. } if is_back => Some(self.set_up(side, now)),
            // If both sides are down, neither can have carrier.
            Control::Down if is_back || self.sides[side.other()].control == Control::Down => {
                Some(self.set_up(side, now))
            }
            Control::Raising { retry } if retry <= now => Some(self.set_up(side, now)),
            _ => None,
        }
    }

    fn set_down(&mut self, side: WireSide, now: Instant) -> LinkAction {
        self.losses = self.losses.saturating_add(1);
        let retry = now + self.hold();
        self.sides[side].control = Control::Lowering { retry };
        LinkAction::SetDown(side)
    }

    fn set_up(&mut self, side: WireSide, now: Instant) -> LinkAction {
        let retry = now + RETRY;
        self.sides[side].control = Control::Raising { retry };
        LinkAction::SetUp(side)
    }

    fn hold(&self) -> Duration {
        doubled(HOLD, self.losses, MAX_HOLD)
    }

    fn settle(&self) -> Duration {
        doubled(SETTLE, self.losses, MAX_SETTLE)
    }
}

/// The duration, doubled with each loss after the first.
fn doubled(first: Duration, losses: u32, most: Duration) -> Duration {
    let factor = 2_u32.saturating_pow(losses.saturating_sub(1));
    first.saturating_mul(factor).min(most)
}

#[cfg(test)]
mod tests;
