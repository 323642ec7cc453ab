//! Link loss that is carried from one side of a wire to the other, with real interfaces. The state
//! machine's clock is simulated.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

use exitmark_lab::{Netns, VethEnd, needs_root, veth};
use exitmark_nic::{
    LinkAction, LinkCoupling, LinkState, Nic, PerSide, SideState, WireSide, set_admin,
};
use std::time::{Duration, Instant};

/// A box between a host and a network, each with the other end of a cable.
struct Wire {
    host: Netns,
    middle: Netns,
    clearnet: Netns,
    indexes: PerSide<u32>,
    link_loss: LinkCoupling,
    stored: PerSide<bool>,
    now: Instant,
}

impl Wire {
    fn build() -> Self {
        let [host, middle, clearnet] =
            ["host", "box", "clearnet"].map(|label| Netns::new(label).unwrap());
        for (near, far, nic) in [
            ("host0", &host, "02:00:00:00:01:01"),
            ("uplink0", &clearnet, "02:00:00:00:02:01"),
        ] {
            let near = VethEnd::new(&middle, near, nic);
            let far = VethEnd::new(far, "eth0", "02:00:00:00:0f:01");
            veth(&near, &far, 1500).unwrap();
        }
        let index = |nic: &'static str| middle.run(move || Nic::look(nic).unwrap().index);
        let indexes = PerSide {
            host: index("host0"),
            uplink: index("uplink0"),
        };
        Self {
            host,
            middle,
            clearnet,
            indexes,
            link_loss: LinkCoupling::new(PerSide::default()),
            stored: PerSide::default(),
            now: Instant::now(),
        }
    }

    /// Observes, stores and acts until nothing is to be done.
    fn turn(&mut self) {
        for _ in 0..10 {
            let indexes = self.indexes;
            let states = self.middle.run(move || {
                let state = |index| LinkState::of_index(index).unwrap();
                PerSide {
                    host: state(indexes.host).as_ref().map(SideState::from),
                    uplink: state(indexes.uplink).as_ref().map(SideState::from),
                }
            });
            let actions = self.link_loss.observe(states, self.now);
            for side in WireSide::ALL {
                self.stored[side] = self.link_loss.is_set_down(side);
            }
            if actions.is_empty() {
                return;
            }
            for action in actions {
                let (side, up) = match action {
                    LinkAction::SetDown(side) => (side, false),
                    LinkAction::SetUp(side) => (side, true),
                };
                let index = indexes[side];
                self.middle.run(move || set_admin(index, up)).unwrap();
            }
        }
        panic!("it does not come to rest");
    }

    /// Turns for two minutes of the simulated clock, one a second.
    fn pass(&mut self) {
        for _ in 0..120 {
            self.now += Duration::from_secs(1);
            self.turn();
        }
    }

    /// Whether the NIC of the host, and that of the network, has carrier.
    fn carriers(&self) -> [bool; 2] {
        [&self.host, &self.clearnet].map(|netns| {
            let nic = netns.run(|| Nic::look("eth0").unwrap());
            nic.has_carrier
        })
    }

    /// The process is killed and started again.
    fn start_anew(&mut self) {
        self.link_loss = LinkCoupling::new(self.stored);
    }
}

#[test]
fn a_cut_on_one_side_is_a_cut_on_the_other_until_it_is_mended() {
    needs_root!();
    let mut wire = Wire::build();
    wire.turn();
    assert_eq!(wire.carriers(), [true, true]);
    for is_killed in [false, true] {
        for cut in 0..2 {
            let set = |wire: &Wire, state: &str| {
                let far = [&wire.host, &wire.clearnet][cut];
                far.ip(&format!("link set eth0 {state}")).unwrap();
            };
            set(&wire, "down");
            // At once.
            wire.turn();
            assert_eq!(wire.carriers(), [false, false], "{cut}");
            if is_killed {
                wire.start_anew();
            }
            wire.pass();
            assert_eq!(wire.carriers(), [false, false], "{cut}");
            set(&wire, "up");
            wire.pass();
            assert_eq!(wire.carriers(), [true, true], "{cut}");
            assert_eq!(wire.stored, PerSide::default());
        }
    }
}

#[test]
fn both_cables_cut_at_once_come_back_in_any_order() {
    needs_root!();
    let mut wire = Wire::build();
    wire.turn();
    for first in 0..2 {
        for netns in [&wire.host, &wire.clearnet] {
            netns.ip("link set eth0 down").unwrap();
        }
        wire.pass();
        for back in [first, 1 - first] {
            let far = [&wire.host, &wire.clearnet][back];
            far.ip("link set eth0 up").unwrap();
            wire.pass();
            assert_eq!(wire.carriers(), [back != first; 2], "{first}");
        }
    }
}

#[test]
fn a_side_that_the_operator_set_down_stays_down() {
    needs_root!();
    let mut wire = Wire::build();
    wire.turn();
    wire.middle.ip("link set uplink0 down").unwrap();
    wire.turn();
    assert_eq!(wire.carriers(), [false, false]);
    wire.start_anew();
    wire.pass();
    assert_eq!(wire.carriers(), [false, false]);
    assert_eq!((wire.stored.host, wire.stored.uplink), (true, false));
    wire.middle.ip("link set uplink0 up").unwrap();
    wire.pass();
    assert_eq!(wire.carriers(), [true, true]);
}
