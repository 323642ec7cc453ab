//! Boxes in a row, with simulated cables: the state machines bring every link up again from any
//! state, carry every cut to both ends of the row, and change little on the way.
//!
//! Cable 0 leads from the outside to the host's side of the first box, each further one from a box
//! to the next one, and the last one to the outside.

use super::*;
use proptest::prelude::*;

/// The pause between two observations if nothing happens.
const TICK: Duration = Duration::from_secs(1);
/// How long a row of two boxes may take until nothing changes any more: hold and settling times of
/// the full length, several times.
const LONG: Duration = Duration::from_secs(600);

/// A cable between two ends. It has carrier once it is trained, from when both ends are set up.
#[derive(Clone, Debug)]
struct Cable {
    is_plugged: bool,
    training: Duration,
    trained_at: Option<Instant>,
}

/// A side's NIC.
#[derive(Clone, Copy, Debug)]
struct SimulatedNic {
    is_there: bool,
    is_up: bool,
    /// Set down by the operator, or never set up.
    is_the_operators: bool,
}

#[derive(Clone, Debug)]
struct SimulatedBox {
    link_loss: LinkCoupling,
    stored: PerSide<bool>,
    nics: PerSide<SimulatedNic>,
    /// How often a side was set down, and up.
    lowered: u32,
    raised: u32,
}

/// When a process is killed in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    BeforeStoring,
    BeforeActing,
    AfterActing,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Wait { milliseconds: u64 },
    Plug { cable: usize, is_plugged: bool },
    Operator { of: usize, side: WireSide, up: bool },
    Remove { of: usize, side: WireSide },
    Create { of: usize, side: WireSide },
    Kill { of: usize, death: Death },
    Reset { of: usize },
}

struct Row {
    now: Instant,
    cables: Vec<Cable>,
    boxes: Vec<SimulatedBox>,
}

impl Row {
    /// Boxes with these cables, one more than boxes, all up.
    fn new(training: &[u64]) -> Self {
        let now = Instant::now();
        let cables = training.iter().map(|milliseconds| Cable {
            is_plugged: true,
            training: Duration::from_millis(*milliseconds),
            trained_at: Some(now),
        });
        let nic = SimulatedNic {
            is_there: true,
            is_up: true,
            is_the_operators: false,
        };
        let one = SimulatedBox {
            link_loss: LinkCoupling::new(PerSide::default()),
            stored: PerSide::default(),
            nics: PerSide {
                host: nic,
                uplink: nic,
            },
            lowered: 0,
            raised: 0,
        };
        let mut row = Self {
            now,
            cables: cables.collect(),
            boxes: vec![one; training.len() - 1],
        };
        row.settle();
        row
    }

    fn has_carrier(&self, cable: usize) -> bool {
        self.cables[cable]
            .trained_at
            .is_some_and(|at| at <= self.now)
    }

    /// Begins and ends the training of cables after a change.
    fn train(&mut self) {
        for (at, cable) in self.cables.iter_mut().enumerate() {
            let ends = [
                at.checked_sub(1).map(|of| self.boxes[of].nics.uplink),
                self.boxes.get(at).map(|one| one.nics.host),
            ];
            // The outside is always up.
            let mut ends = ends.into_iter().flatten();
            let is_linked = cable.is_plugged && ends.all(|nic| nic.is_there && nic.is_up);
            cable.trained_at =
                is_linked.then(|| cable.trained_at.unwrap_or(self.now + cable.training));
        }
    }

    fn states(&self, of: usize) -> PerSide<Option<SideState>> {
        let state = |side: WireSide, cable: usize| {
            let nic = self.boxes[of].nics[side];
            nic.is_there.then(|| SideState {
                is_up: nic.is_up,
                has_carrier: nic.is_up && self.has_carrier(cable),
            })
        };
        PerSide {
            host: state(Host, of),
            uplink: state(Uplink, of + 1),
        }
    }

    /// One turn of a box: it observes, stores and acts. Returns whether it acted.
    fn turn(&mut self, of: usize, death: Option<Death>) -> bool {
        let states = self.states(of);
        let one = &mut self.boxes[of];
        let actions = one.link_loss.observe(states, self.now);
        if death != Some(Death::BeforeStoring) {
            for side in WireSide::ALL {
                one.stored[side] = one.link_loss.is_set_down(side);
            }
            if death != Some(Death::BeforeActing) {
                actions.iter().for_each(|action| one.carry_out(*action));
            }
        }
        if death.is_some() {
            one.link_loss = LinkCoupling::new(one.stored);
        }
        self.train();
        !actions.is_empty() || death.is_some()
    }

    /// Lets all boxes have their turns until none acts.
    fn settle(&mut self) {
        self.train();
        for of in 0..self.boxes.len() {
            let mut turns = 0;
            while self.turn(of, None) {
                turns += 1;
                assert!(turns < 10, "box {of} does not end: {:?}", self.boxes[of]);
            }
        }
    }

    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.now = (self.now + TICK).min(end);
            self.settle();
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Wait { milliseconds } => {
                return self.pass(Duration::from_millis(milliseconds));
            }
            // Not observed by itself: it may be over before the next observation.
            Event::Plug { cable, is_plugged } => {
                let count = self.cables.len();
                self.cables[cable % count].is_plugged = is_plugged;
                return self.train();
            }
            Event::Kill { of, death } => {
                let of = of % self.boxes.len();
                self.turn(of, Some(death));
            }
            Event::Reset { of } => {
                let of = of % self.boxes.len();
                self.boxes[of].link_loss.expect_reset(self.now);
            }
            Event::Operator { of, side, up } => self.nic(of, side).operate(up),
            Event::Remove { of, side } => {
                let nic = self.nic(of, side);
                nic.is_there = false;
                nic.is_up = false;
                nic.is_the_operators = true;
            }
            Event::Create { of, side } => self.nic(of, side).is_there = true,
        }
        self.settle();
    }

    fn nic(&mut self, of: usize, side: WireSide) -> &mut SimulatedNic {
        let of = of % self.boxes.len();
        &mut self.boxes[of].nics[side]
    }

    /// Plugs all cables but one, and has the operator set up what he set down.
    fn mend(&mut self, but: Option<usize>) {
        for (at, cable) in self.cables.iter_mut().enumerate() {
            cable.is_plugged = Some(at) != but;
        }
        for one in &mut self.boxes {
            for side in WireSide::ALL {
                let nic = &mut one.nics[side];
                nic.is_there = true;
                if nic.is_the_operators {
                    nic.operate(true);
                }
            }
            (one.lowered, one.raised) = (0, 0);
        }
        self.settle();
    }

    fn live_cables(&self) -> usize {
        let cables = 0..self.cables.len();
        cables.filter(|cable| self.has_carrier(*cable)).count()
    }

    fn actions(&self) -> u32 {
        let boxes = self.boxes.iter();
        boxes.map(|one| one.lowered + one.raised).sum()
    }
}

impl SimulatedNic {
    fn operate(&mut self, up: bool) {
        // Setting down what is down already changes nothing.
        if self.is_there && self.is_up != up {
            self.is_up = up;
            self.is_the_operators = !up;
        }
    }
}

impl SimulatedBox {
    fn carry_out(&mut self, action: LinkAction) {
        match action {
            LinkAction::SetDown(side) => {
                self.lowered += 1;
                self.nics[side].is_up = false;
            }
            LinkAction::SetUp(side) => {
                self.raised += 1;
                let nic = &mut self.nics[side];
                assert!(nic.is_there && !nic.is_the_operators, "{side:?} is set up");
                nic.is_up = true;
            }
        }
        let both = WireSide::ALL.map(|side| self.nics[side]);
        let by_box = |nic: &SimulatedNic| !nic.is_up && !nic.is_the_operators;
        assert!(!both.iter().all(by_box), "both sides are set down");
    }
}

fn side() -> impl Strategy<Value = WireSide> {
    prop_oneof![Just(Host), Just(Uplink)]
}

fn death() -> impl Strategy<Value = Death> {
    prop_oneof![
        Just(Death::BeforeStoring),
        Just(Death::BeforeActing),
        Just(Death::AfterActing)
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let of = || 0..2_usize;
    prop_oneof![
        6 => (0..20_000_u64).prop_map(|milliseconds| Event::Wait { milliseconds }),
        6 => (0..3_usize, any::<bool>())
            .prop_map(|(cable, is_plugged)| Event::Plug { cable, is_plugged }),
        2 => (of(), side(), any::<bool>())
            .prop_map(|(of, side, up)| Event::Operator { of, side, up }),
        1 => (of(), side()).prop_map(|(of, side)| Event::Remove { of, side }),
        1 => (of(), side()).prop_map(|(of, side)| Event::Create { of, side }),
        2 => (of(), death()).prop_map(|(of, death)| Event::Kill { of, death }),
        1 => of().prop_map(|of| Event::Reset { of }),
    ]
}

/// The training times of the cables, in milliseconds, of one or two boxes, and a history.
fn history(most_training: u64) -> impl Strategy<Value = (Vec<u64>, Vec<Event>)> {
    let training = prop::collection::vec(0..most_training, 2..=3);
    (training, prop::collection::vec(event(), 0..40))
}

proptest! {
    #[test]
    fn with_all_cables_plugged_every_link_comes_up((training, events) in history(9_000)) {
        let mut row = Row::new(&training);
        events.into_iter().for_each(|event| row.happen(event));
        row.mend(None);
        row.pass(LONG);
        prop_assert_eq!(row.live_cables(), row.cables.len());
        prop_assert!(row.boxes.iter().all(|one| one.stored == PerSide::default()));
        let actions = row.actions();
        prop_assert!(actions <= 8, "{} changes", actions);
        row.pass(LONG);
        prop_assert_eq!(row.actions(), actions, "it does not come to rest");
    }

    #[test]
    fn a_cut_cable_is_noticed_at_both_ends(
        (training, events) in history(9_000),
        cut in 0..3_usize,
    ) {
        let mut row = Row::new(&training);
        events.into_iter().for_each(|event| row.happen(event));
        row.mend(Some(cut % training.len()));
        row.pass(LONG);
        prop_assert_eq!(row.live_cables(), 0);
        let actions = row.actions();
        prop_assert!(actions <= 8, "{} changes", actions);
        row.pass(LONG);
        prop_assert_eq!(row.actions(), actions, "it does not come to rest");
        // And back, with the cable.
        row.mend(None);
        row.pass(LONG);
        prop_assert_eq!(row.live_cables(), row.cables.len());
    }

    #[test]
    fn slowly_trained_links_come_up_too((training, events) in history(50_000)) {
        let mut row = Row::new(&training);
        events.into_iter().for_each(|event| row.happen(event));
        row.mend(None);
        row.pass(3 * LONG);
        prop_assert_eq!(row.live_cables(), row.cables.len());
    }

    /// Cables are cut and joined, and an operator sets a side up, many times.
    #[test]
    fn a_flapping_link_changes_little(
        training in prop::collection::vec(0..2_000_u64, 2),
        pauses in prop::collection::vec((0..4_000_u64, 0..3_usize, side()), 600),
    ) {
        let mut row = Row::new(&training);
        let begun = row.now;
        for (at, (milliseconds, kind, side)) in pauses.into_iter().enumerate() {
            let is_plugged = at % 2 == 1;
            row.happen(match kind {
                2 => Event::Operator { of: 0, side, up: true },
                cable => Event::Plug { cable, is_plugged },
            });
            row.settle();
            row.pass(Duration::from_millis(milliseconds));
        }
        // The hold time is 60 s after six losses, and short again after 300 s without one.
        let seconds = (row.now - begun).as_secs();
        let most = 7 * (1 + seconds / 300) + seconds / 60;
        let lowered = row.boxes[0].lowered;
        prop_assert!(u64::from(lowered) <= most, "{} in {} s", lowered, seconds);
    }
}

#[test]
fn a_side_stays_down_while_the_other_flaps() {
    let mut row = Row::new(&[0, 0]);
    for second in 0..600 {
        row.happen(Event::Plug {
            cable: 1,
            is_plugged: second % 3 != 0,
        });
        row.settle();
        row.pass(SECOND);
    }
    // Carrier lasts for 2 s, and has to for 4 s after the third loss.
    assert_eq!(row.boxes[0].lowered, 3);
}
