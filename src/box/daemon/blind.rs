//! Detects blind ports: the NIC receives packets, but its XDP program sees none.
//!
//! Some drivers lose the program when the NIC is set down and up again (observed with vmxnet3 on
//! 6.12 and 7.3): the link reports it as attached, but no frame reaches it. The kernel does not
//! report that, so the NIC's counters are compared with the program's once a second. A blind port
//! raises an alarm, and its program is reattached once.

use super::wire::Wire;
use super::workers::Sums;
use super::zero_copy::CUT;
use exitmark_datapath::{KernelCounts, Role};
use exitmark_nic::LinkState;
use std::time::Duration;

/// The interval of the port checks.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// How many packets a NIC must receive within [`WINDOW`] checks, while its program sees none, for
/// the port to count as blind. Fewer may be control frames that the NIC consumes itself, such as
/// LLDP, one in 30 seconds.
const RECEIVING: u64 = 3;
const WINDOW: u32 = 10;
/// How many checks must find such packets: in one of them they may still be in flight.
const RECEIPTS: u32 = 2;
/// The minimum number of checks after a reattachment, which can take the link down for seconds.
const LOOKS_AFTER: u32 = 5;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Packets that the NIC received, or missed for lack of buffers.
    pub(super) received: u64,
    /// Frames that the port's XDP program counted, in any of its counters.
    pub(super) observed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Raise the alarm, and reattach the program.
    Reattach,
    StillBlind,
    Recovered,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Sees,
    Blind,
    StillBlind,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sight {
    last: Option<Look>,
    /// In the current window: packets that the NIC received and the program did not see, the checks
    /// that found some, and all checks.
    unobserved: u64,
    receipts: u32,
    looks: u32,
    state: State,
    /// The program could not be reattached.
    has_failed: bool,
}

impl Sight {
    pub(super) fn look(&mut self, now: Look) -> Option<Step> {
        let last = self.last.replace(now)?;
        // A counter that decreases was reset, by a driver or by another box.
        let received = now.received.saturating_sub(last.received);
        if now.observed != last.observed {
            let was = self.state;
            *self = Self {
                last: self.last,
                ..Self::default()
            };
            return (was != State::Sees).then_some(Step::Recovered);
        }
        self.unobserved += received;
        if self.unobserved == 0 {
            return None;
        }
        self.receipts += u32::from(received > 0);
        self.looks += 1;
        // A NIC may refresh its counters late, so one check is not enough.
        let is_blind = self.unobserved >= RECEIVING && self.receipts >= RECEIPTS;
        let is_due = is_blind && self.looks >= LOOKS_AFTER;
        let (step, state) = match self.state {
            State::Sees if is_blind => (Step::Reattach, State::Blind),
            State::Blind if is_due && self.has_failed => (Step::Reattach, State::Blind),
            State::Blind if is_due => (Step::StillBlind, State::StillBlind),
            _ => {
                if self.looks >= WINDOW {
                    self.begin_window();
                }
                return None;
            }
        };
        self.state = state;
        self.begin_window();
        Some(step)
    }

    fn begin_window(&mut self) {
        (self.unobserved, self.receipts, self.looks) = (0, 0, 0);
    }

    /// Records whether the program was reattached; if not, it is tried again.
    pub(super) fn attached(&mut self, done: bool) {
        self.has_failed = !done;
    }

    pub(super) fn is_blind(&self) -> bool {
        self.state != State::Sees
    }
}

impl Wire {
    /// Compares the NICs' counters with their programs', and reattaches a blind port's program.
    /// `by_incoming` is what the programs of all wires with this wire's `incoming` have seen there.
    pub(super) fn look_at_ports(&mut self, counts: &KernelCounts, by_incoming: u64, sums: &Sums) {
        for port in self.bound.ports.iter_mut().filter(|port| !port.is_shared) {
            let (role, nic) = (port.role, &port.nic);
            if sums.cut[role] > 0 && !std::mem::replace(&mut self.cut_logged[role], true) {
                tracing::warn!("{port}: {CUT}");
            }
            let Ok(Some(now)) = LinkState::of_index(nic.index) else {
                continue;
            };
            let look = Look {
                received: now.received,
                observed: match role {
                    Role::Incoming => by_incoming,
                    Role::Host | Role::Uplink => counts.seen(role),
                },
            };
            match self.sights[role].look(look) {
                Some(Step::Reattach) => {
                    tracing::error!(
                        "ALARM: {port} receives packets and its XDP program sees none: frames \
                         received there are not forwarded; the program is attached again"
                    );
                    let mode = port.mode;
                    let kernel = &self.kernel;
                    match kernel.reattach(&self.pins, role, &nic.name, nic.index, mode) {
                        Ok(attachment) => {
                            port.mode = attachment.mode;
                            self.attachments.retain(|before| before.role != role);
                            self.attachments.push(attachment);
                            self.sights[role].attached(true);
                        }
                        Err(error) => {
                            self.sights[role].attached(false);
                            tracing::error!(
                                "ALARM: cannot reattach the XDP program to {port}, will retry: \
                                 {error}"
                            );
                        }
                    }
                }
                Some(Step::StillBlind) => tracing::error!(
                    "ALARM: {port} still receives packets that its XDP program does not see; stop \
                     exitmark, `exitmark detach`, set the NIC down and up, start"
                ),
                Some(Step::Recovered) => {
                    tracing::info!("the XDP program on {port} sees frames again");
                }
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The step after each check, given pairs of packets received and frames seen since the last.
    fn steps(seconds: &[(u64, u64)]) -> Vec<Option<Step>> {
        let (mut sight, mut now) = (Sight::default(), Look::default());
        assert_eq!(sight.look(now), None, "nothing to compare with");
        let mut step = |&(received, observed): &(u64, u64)| {
            now.received += received;
            now.observed += observed;
            sight.look(now)
        };
        seconds.iter().map(&mut step).collect()
    }

    #[test]
    fn a_port_that_sees_or_is_idle_is_left_alone() {
        for second in [(0, 0), (1000, 1), (3, 3), (0, 5)] {
            let all = steps(&[second; 20]);
            assert!(all.iter().all(Option::is_none), "{second:?}: {all:?}");
        }
        // Now and then a second in which frames were in flight.
        let all = steps(&[(3, 0), (5, 5), (3, 0), (0, 3), (2, 0), (0, 0), (3, 1)]);
        assert!(all.iter().all(Option::is_none), "{all:?}");
        // A NIC whose counters are refreshed after the program has counted.
        let all = steps(&[(0, 9), (9, 0), (0, 0), (0, 0), (0, 9), (9, 0), (0, 0)]);
        assert!(all.iter().all(Option::is_none), "{all:?}");
        // Control frames that the NIC consumes itself.
        let mut seconds = [(0, 0); 60];
        for second in [0, 5, 30, 59] {
            seconds[second] = (1, 0);
        }
        assert!(steps(&seconds).iter().all(Option::is_none));
    }

    #[test]
    fn a_port_with_little_traffic_is_found_blind_too() {
        let mut seconds = [(0, 0); 12];
        for second in [1, 4, 7] {
            seconds[second] = (1, 0);
        }
        let mut expected = vec![None; 12];
        expected[7] = Some(Step::Reattach);
        assert_eq!(steps(&seconds), expected);
    }

    #[test]
    fn a_blind_port_is_attached_anew_once_and_stays_an_alarm() {
        let all = steps(&[(3, 0); 20]);
        let mut expected = vec![None; 20];
        expected[1] = Some(Step::Reattach);
        expected[6] = Some(Step::StillBlind);
        assert_eq!(all, expected);
    }

    #[test]
    fn a_program_that_could_not_be_attached_is_attached_again_later() {
        let (mut sight, mut now) = (Sight::default(), Look::default());
        let mut steps = Vec::new();
        for _ in 0..20 {
            let step = sight.look(now);
            if step == Some(Step::Reattach) {
                sight.attached(steps.iter().flatten().count() == 2);
            }
            steps.push(step);
            now.received += 3;
        }
        let mut expected = vec![None; 20];
        for look in [2, 7, 12] {
            expected[look] = Some(Step::Reattach);
        }
        expected[17] = Some(Step::StillBlind);
        assert_eq!(steps, expected);
    }

    #[test]
    fn the_alarm_ends_with_the_first_frame_and_not_with_silence() {
        let all = steps(&[
            (9, 0),
            (9, 0),
            (0, 0),
            (0, 0),
            (9, 2),
            (9, 9),
            (9, 0),
            (9, 0),
        ]);
        let mut expected = vec![None; 8];
        expected[1] = Some(Step::Reattach);
        expected[4] = Some(Step::Recovered);
        // The next time it is reattached once more.
        expected[7] = Some(Step::Reattach);
        assert_eq!(all, expected);
    }

    #[test]
    fn counters_that_are_reset_do_not_count_as_traffic() {
        let mut sight = Sight::default();
        for received in [1000, 0, 1000, 0] {
            assert_eq!(
                sight.look(Look {
                    received,
                    observed: 7
                }),
                None
            );
        }
        assert!(!sight.is_blind());
    }
}
