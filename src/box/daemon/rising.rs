//! Warns of frames that are lost for seconds on end for the same reason, and names the remedy.

use super::bound::BoundState;
use super::workers::Sums;
use exitmark_datapath::{AttachMode, Counter, DropReason, Role, Tally};
use std::collections::BTreeMap;

/// A warning begins when a count has risen in this many of the recent checks, one a second.
const RISES: u32 = 3;
/// Masks over the last checks, one bit each: the recent five for a warning to begin, and the
/// sixteen without a loss for it to end.
const RECENT: (u64, u64) = (0x1f, 0xffff);
/// The same for alarms: where a whole direction of the wire may be down, a quiet host sends few
/// frames.
const RECENT_OF_ALARM: (u64, u64) = (u64::MAX, u64::MAX);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    Dropped(DropReason),
    /// The RX ring of a socket of this port was full.
    Missed(Role),
    /// The kernel refused TX descriptors of a worker for this port.
    Invalid(Role),
}

impl Loss {
    fn all() -> impl Iterator<Item = Self> {
        let dropped = Counter::all().filter_map(|counter| match counter {
            Counter::Dropped(reason) => Some(Self::Dropped(reason)),
            _ => None,
        });
        let sockets = Role::ALL.into_iter();
        dropped.chain(sockets.flat_map(|role| [Self::Missed(role), Self::Invalid(role)]))
    }

    fn count(self, tally: &Tally, sums: &Sums) -> u64 {
        match self {
            Self::Dropped(reason) => tally.of(Counter::Dropped(reason)),
            Self::Missed(role) => sums.missed[role],
            Self::Invalid(role) => sums.invalid[role],
        }
    }

    /// Its name in `status` and the metrics.
    fn name(self) -> String {
        let (name, port) = match self {
            Self::Dropped(reason) => (reason.name(), reason.port()),
            Self::Missed(role) => ("missed", Some(role)),
            Self::Invalid(role) => ("tx_invalid", Some(role)),
        };
        match port {
            Some(role) => format!("{name} at {role}"),
            None => name.to_owned(),
        }
    }

    /// Whether a whole direction of the wire may be down.
    pub(super) const fn is_alarm(self) -> bool {
        matches!(
            self,
            Self::Dropped(DropReason::NoEgress | DropReason::TxDown(_))
        )
    }

    /// Whether the frames were for a NIC that the box has set down itself.
    fn is_expected(self, is_held: impl Fn(Role) -> bool) -> bool {
        matches!(self, Self::Dropped(DropReason::TxDown(role)) if is_held(role))
    }

    fn remedy(self, bound: &BoundState) -> String {
        let nic = |role: Role| bound.nic_name(role);
        match self {
            Self::Dropped(DropReason::TxFull(role)) => format!(
                "{} does not send as fast as frames arrive: compare its link speed (`ethtool {0}`) \
                 with the other ports', and give it a longer ring (`ethtool -G {0} tx N`)",
                nic(role)
            ),
            Self::Dropped(DropReason::TxDown(role)) => {
                format!("{0} is down: `ip link set dev {0} up`", nic(role))
            }
            Self::Dropped(DropReason::TxRefused(role)) => format!(
                "the driver of {0} refuses the frames: either packets are longer than its MTU (`ip \
                 link show dev {0}`; turn TSO and GSO off at the sender), or {0} has fewer queues \
                 than the machine has CPUs (`exitmark doctor`)",
                nic(role)
            ),
            Self::Dropped(DropReason::HostMacUnknown) => {
                "the MAC address for the destination is not known: the host has sent no frame yet \
                 from an address in host.addresses, or several hosts are behind the box; set \
                 host.mac for a single host, and give each host a box of its own"
                    .to_owned()
            }
            Self::Dropped(DropReason::NotForHost) => {
                "frames for this machine's own network stack, received on incoming, reached user \
                 space: with steer.source, fragments of TCP that no relay has sent to a host are \
                 expected to; otherwise set datapath.inbound to \"auto\", restart exitmark, and \
                 report this"
                    .to_owned()
            }
            Self::Dropped(DropReason::NoEgress) => {
                "the egress NIC is gone, or takes no redirected frames: see `ip link` and \
                 `exitmark doctor`; restart exitmark if neither shows a reason"
                    .to_owned()
            }
            Self::Dropped(DropReason::SteerUnavailable) => {
                "relay traffic cannot be steered, and steer.on_unavailable is \"drop\": `exitmark \
                 status` shows why, and \"uplink\" drops none"
                    .to_owned()
            }
            Self::Missed(role) if is_generic(role, bound) => format!(
                "{} has XDP in generic mode, in which the kernel drops frames longer than a receive \
                 buffer: turn TSO and GSO off at the sender (`ethtool -K NIC tso off gso off`); if \
                 no frame is longer than the MTU, the worker is too slow: use a larger \
                 datapath.ring",
                nic(role)
            ),
            Self::Missed(role) => format!(
                "the worker of {} is slower than frames arrive: use a larger datapath.ring, more \
                 queues, or engine = \"xdp\"",
                nic(role)
            ),
            Self::Invalid(role) => format!(
                "the kernel refuses to transmit a worker's frames on {}: the packets take too many \
                 buffers; turn TSO and GSO off at the sender",
                nic(role)
            ),
        }
    }
}

fn is_generic(role: Role, bound: &BoundState) -> bool {
    let port = bound.of(role);
    port.is_some_and(|port| port.mode == AttachMode::Generic)
}

/// One reason's last count, and a bit for each of the last checks in which it had risen.
#[derive(Clone, Copy, Debug)]
struct History {
    loss: Loss,
    last: Option<u64>,
    looks: u64,
    is_rising: bool,
}

impl From<Loss> for History {
    fn from(loss: Loss) -> Self {
        Self {
            loss,
            last: None,
            looks: 0,
            is_rising: false,
        }
    }
}

pub(super) struct Rising(Vec<History>);

impl Default for Rising {
    fn default() -> Self {
        Self(Loss::all().map(History::from).collect())
    }
}

impl History {
    /// Records a count; returns whether the warning begins (true) or ends (false) with it. A loss
    /// that is expected does not count.
    fn look(&mut self, count: u64, is_expected: bool) -> Option<bool> {
        let last = self.last.replace(count)?;
        self.looks = self.looks << 1 | u64::from(count > last && !is_expected);
        let (recent, memory) = match self.loss.is_alarm() {
            true => RECENT_OF_ALARM,
            false => RECENT,
        };
        let rises = (self.looks & recent).count_ones() >= RISES;
        let is_rising = rises || self.is_rising && self.looks & memory != 0;
        (std::mem::replace(&mut self.is_rising, is_rising) != is_rising).then_some(is_rising)
    }
}

impl Rising {
    /// Compares with the last check, and logs each warning that begins or ends. `is_held`: whether
    /// the box has set the NIC of a role down itself, which has a warning of its own.
    pub(super) fn look(
        &mut self,
        tally: &Tally,
        sums: &Sums,
        bound: &BoundState,
        is_held: impl Fn(Role) -> bool,
    ) {
        for history in &mut self.0 {
            let loss = history.loss;
            match history.look(loss.count(tally, sums), loss.is_expected(&is_held)) {
                Some(true) => tracing::warn!("{}", text(loss, bound)),
                Some(false) => {
                    tracing::info!("{}: no frame has been lost for a while", loss.name());
                }
                None => {}
            }
        }
    }

    /// The current warnings: name, whether an alarm, and text.
    pub(super) fn now(&self, bound: &BoundState) -> BTreeMap<String, (bool, String)> {
        let rising = self.0.iter().filter(|history| history.is_rising);
        rising
            .map(|history| {
                let loss = history.loss;
                (loss.name(), (loss.is_alarm(), text(loss, bound)))
            })
            .collect()
    }
}

fn text(loss: Loss, bound: &BoundState) -> String {
    format!(
        "frames are dropped continuously ({}): {}",
        loss.name(),
        loss.remedy(bound)
    )
}

#[cfg(test)]
mod tests {
    use super::super::bound::BoundPort;
    use super::*;

    fn changes(seconds: &[u64]) -> Vec<Option<bool>> {
        changes_of(Loss::Missed(Role::Host), seconds)
    }

    fn changes_of(loss: Loss, seconds: &[u64]) -> Vec<Option<bool>> {
        let mut history = History::from(loss);
        let mut count = 7;
        assert_eq!(history.look(count, false), None, "nothing to compare with");
        let mut look = |&more: &u64| {
            count += more;
            history.look(count, false)
        };
        seconds.iter().map(&mut look).collect()
    }

    #[test]
    fn a_burst_raises_no_warning() {
        for seconds in [
            &[0; 40][..],
            &[900, 900, 0, 0, 0, 0],
            &[5, 0, 0, 0, 5, 0, 0, 0, 5],
        ] {
            assert!(changes(seconds).iter().all(Option::is_none), "{seconds:?}");
        }
    }

    #[test]
    fn losses_for_seconds_are_a_warning_until_sixteen_seconds_without_one() {
        let mut seconds = vec![1, 0, 1, 1];
        seconds.extend([0; 20]);
        let mut expected = vec![None; 24];
        expected[3] = Some(true);
        expected[3 + 16] = Some(false);
        assert_eq!(changes(&seconds), expected);
    }

    #[test]
    fn a_frame_every_eight_seconds_without_an_egress_is_an_alarm() {
        // Every eight seconds.
        let seconds = [1, 0, 0, 0, 0, 0, 0, 0].repeat(4);
        let begins = |loss| changes_of(loss, &seconds).contains(&Some(true));
        for reason in [DropReason::NoEgress, DropReason::TxDown(Role::Uplink)] {
            assert!(begins(Loss::Dropped(reason)), "{reason:?}");
        }
        assert!(!begins(Loss::Dropped(DropReason::HostMacUnknown)));
    }

    #[test]
    fn frames_to_a_side_that_the_box_has_set_down_are_no_alarm() {
        let of_host = Loss::Dropped(DropReason::TxDown(Role::Host));
        let is_expected = |loss: Loss| loss.is_expected(|role| role == Role::Host);
        assert!(is_expected(of_host));
        for other in Loss::all().filter(|loss| *loss != of_host) {
            assert!(!is_expected(other), "{other:?}");
        }
        let mut history = History::from(of_host);
        assert!((0..70).all(|count| history.look(count, true).is_none()));
    }

    /// A veth's peer sends frames of 64 KiB with TSO.
    #[test]
    fn missed_frames_in_generic_mode_name_the_senders_offload() {
        let mut port = BoundPort::example(Role::Host, "host0");
        for (mode, is_named) in [(AttachMode::Native, false), (AttachMode::Generic, true)] {
            port.mode = mode;
            let text = text(
                Loss::Missed(Role::Host),
                &BoundState::example(vec![port.clone()]),
            );
            assert_eq!(text.contains("tso off gso off"), is_named, "{text}");
        }
    }

    #[test]
    fn every_reason_has_a_remedy() {
        let bound = BoundState::example(Vec::new());
        for loss in Loss::all() {
            let text = text(loss, &bound);
            assert!(text.contains(&loss.name()) && text.len() > 60, "{text}");
        }
        assert_eq!(Loss::all().count(), Rising::default().0.len());
    }
}
