use super::WireSide::{Host, Uplink};
use super::*;

mod simulation;

const UP: Option<SideState> = Some(SideState {
    is_up: true,
    has_carrier: true,
});
const CUT: Option<SideState> = Some(SideState {
    is_up: true,
    has_carrier: false,
});
const DOWN: Option<SideState> = Some(SideState {
    is_up: false,
    has_carrier: false,
});
const MISSING: Option<SideState> = None;

const SECOND: Duration = Duration::from_secs(1);
const NOTHING: [LinkAction; 0] = [];

/// A state machine on a clock of its own.
struct Observed {
    link_loss: LinkCoupling,
    now: Instant,
}

impl Observed {
    fn with_flags(host: bool, uplink: bool) -> Self {
        Self {
            link_loss: LinkCoupling::new(PerSide { host, uplink }),
            now: Instant::now(),
        }
    }

    /// Both sides have been up for a long time.
    fn whole() -> Self {
        let mut observed = Self::with_flags(false, false);
        assert_eq!(observed.see(UP, UP), NOTHING);
        observed
    }

    fn see(&mut self, host: Option<SideState>, uplink: Option<SideState>) -> Vec<LinkAction> {
        self.link_loss.observe(PerSide { host, uplink }, self.now)
    }

    /// As [`Observed::see`], after a pause.
    fn see_after(
        &mut self,
        pause: Duration,
        host: Option<SideState>,
        uplink: Option<SideState>,
    ) -> Vec<LinkAction> {
        self.now += pause;
        self.see(host, uplink)
    }

    fn flags(&self) -> [bool; 2] {
        WireSide::ALL.map(|side| self.link_loss.is_set_down(side))
    }

    /// The uplink is lost, the host is set down, the uplink comes back, and the host is set up
    /// again after the hold time, which is returned.
    #[track_caller]
    fn lose_and_find(&mut self) -> Duration {
        assert_eq!(self.see(UP, CUT), [LinkAction::SetDown(Host)]);
        assert_eq!(self.see(DOWN, UP), NOTHING);
        let back = self.now;
        while self.see(DOWN, UP).is_empty() {
            self.now += SECOND / 2;
            assert!(self.now - back <= MAX_HOLD, "the host is not set up");
        }
        assert_eq!(self.see(UP, UP), NOTHING);
        self.now - back
    }
}

#[test]
fn a_lost_link_is_carried_to_the_other_side_at_once_and_back_after_the_hold_time() {
    for side in WireSide::ALL {
        let states = |this, other| match side {
            Host => (this, other),
            Uplink => (other, this),
        };
        let mut observed = Observed::whole();
        let mut see = |pause: Duration, this, other| {
            let (host, uplink) = states(this, other);
            observed.see_after(pause, host, uplink)
        };
        assert_eq!(
            see(SECOND, CUT, UP),
            [LinkAction::SetDown(side.other())],
            "{side:?}"
        );
        assert_eq!(see(SECOND, CUT, DOWN), NOTHING);
        assert_eq!(see(100 * SECOND, CUT, DOWN), NOTHING);
        // Carrier that does not last is not enough.
        assert_eq!(see(SECOND, UP, DOWN), NOTHING);
        assert_eq!(see(HOLD / 2, CUT, DOWN), NOTHING);
        assert_eq!(see(HOLD / 2, UP, DOWN), NOTHING);
        assert_eq!(see(HOLD / 2, UP, DOWN), NOTHING);
        assert_eq!(
            see(HOLD / 2, UP, DOWN),
            [LinkAction::SetUp(side.other())],
            "{side:?}"
        );
        assert_eq!(see(Duration::ZERO, UP, CUT), NOTHING);
        assert_eq!(see(SETTLE / 2, UP, UP), NOTHING);
    }
}

#[test]
fn a_flag_is_stored_from_before_the_side_is_down_until_it_was_observed_up() {
    let mut observed = Observed::whole();
    assert_eq!(observed.flags(), [false, false]);
    assert_eq!(observed.see(UP, CUT), [LinkAction::SetDown(Host)]);
    assert_eq!(observed.flags(), [true, false]);
    assert_eq!(observed.see(DOWN, UP), NOTHING);
    let raised = observed.see_after(HOLD, DOWN, UP);
    assert_eq!(raised, [LinkAction::SetUp(Host)]);
    assert_eq!(observed.flags(), [true, false]);
    assert_eq!(observed.see(CUT, UP), NOTHING);
    assert_eq!(observed.flags(), [false, false]);
}

#[test]
fn a_side_that_was_set_up_may_lack_carrier_for_the_settling_time() {
    let mut observed = Observed::whole();
    observed.lose_and_find();
    // Its carrier comes, and goes before it has lasted for the hold time.
    assert_eq!(observed.see_after(HOLD / 2, CUT, UP), NOTHING);
    let late = SETTLE - HOLD / 2;
    let before = Duration::from_millis(1);
    assert_eq!(observed.see_after(late - before, CUT, UP), NOTHING);
    let lost = observed.see_after(before, CUT, UP);
    assert_eq!(lost, [LinkAction::SetDown(Uplink)]);
    // The side without carrier stays up, and shows when the link is back.
    assert_eq!(observed.see(CUT, DOWN), NOTHING);
    assert_eq!(observed.flags(), [false, true]);
    assert_eq!(observed.see(UP, DOWN), NOTHING);
    let raised = observed.see_after(2 * HOLD, UP, DOWN);
    assert_eq!(raised, [LinkAction::SetUp(Uplink)]);
}

#[test]
fn carrier_that_lasts_ends_the_settling_time() {
    let mut observed = Observed::whole();
    observed.lose_and_find();
    assert_eq!(observed.see_after(HOLD, UP, UP), NOTHING);
    assert_eq!(observed.see(CUT, UP), [LinkAction::SetDown(Uplink)]);
}

#[test]
fn links_that_train_slowly_get_a_longer_settling_time() {
    for (losses, expected) in [(0, 10), (1, 10), (2, 20), (3, 40), (4, 60), (u32::MAX, 60)] {
        let mut observed = Observed::whole();
        observed.link_loss.losses = losses;
        assert_eq!(observed.link_loss.settle(), expected * SECOND, "{losses}");
    }
}

#[test]
fn both_links_lost_at_once_recover_in_any_order() {
    for first in WireSide::ALL {
        let states = |first_state, second_state| match first {
            Host => (first_state, second_state),
            Uplink => (second_state, first_state),
        };
        let mut observed = Observed::whole();
        let mut see = |pause: Duration, one, other| {
            let (host, uplink) = states(one, other);
            observed.see_after(pause, host, uplink)
        };
        // Neither other end has a link: nothing is to be done.
        assert_eq!(see(SECOND, CUT, CUT), NOTHING);
        assert_eq!(see(SECOND, UP, CUT), [LinkAction::SetDown(first)]);
        assert_eq!(see(SECOND, DOWN, UP), NOTHING);
        assert_eq!(see(HOLD, DOWN, UP), [LinkAction::SetUp(first)]);
        assert_eq!(see(SECOND, UP, UP), NOTHING);
    }
}

#[test]
fn a_side_that_another_program_set_down_is_never_set_up() {
    let mut observed = Observed::whole();
    assert_eq!(observed.see(DOWN, UP), [LinkAction::SetDown(Uplink)]);
    for _ in 0..1000 {
        assert_eq!(observed.see_after(SECOND, DOWN, DOWN), NOTHING);
    }
    assert_eq!(observed.flags(), [false, true]);
    // Its operator sets it up again, and it is trained.
    assert_eq!(observed.see(CUT, DOWN), NOTHING);
    assert_eq!(observed.see_after(SETTLE / 2, UP, DOWN), NOTHING);
    let raised = observed.see_after(HOLD, UP, DOWN);
    assert_eq!(raised, [LinkAction::SetUp(Uplink)]);
    // The settling time is for links: set down within it, the side is lost at once.
    let mut observed = Observed::whole();
    observed.lose_and_find();
    assert_eq!(observed.see(DOWN, UP), [LinkAction::SetDown(Uplink)]);
    // Both sides set down by another program.
    let mut observed = Observed::whole();
    for _ in 0..1000 {
        assert_eq!(observed.see_after(SECOND, DOWN, DOWN), NOTHING);
    }
}

#[test]
fn repeated_losses_hold_longer_up_to_a_minute() {
    let mut observed = Observed::whole();
    let holds: Vec<_> = (0..9).map(|_| observed.lose_and_find().as_secs()).collect();
    assert_eq!(holds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    // Shorter than a calm period.
    let almost = CALM - Duration::from_millis(1);
    assert_eq!(observed.see_after(almost, UP, UP), NOTHING);
    assert_eq!(observed.lose_and_find(), MAX_HOLD);
    assert_eq!(observed.see_after(CALM, UP, UP), NOTHING);
    assert_eq!(observed.lose_and_find(), HOLD);
}

#[test]
fn a_calm_period_begins_when_both_sides_have_carrier() {
    let mut observed = Observed::whole();
    observed.lose_and_find();
    // One side is trained for long.
    assert_eq!(observed.see(CUT, UP), NOTHING);
    for _ in 0..5 {
        assert_eq!(observed.see_after(SECOND, CUT, UP), NOTHING);
    }
    assert_eq!(observed.see(UP, UP), NOTHING);
    let almost = CALM - SECOND;
    assert_eq!(observed.see_after(almost, UP, UP), NOTHING);
    assert_eq!(observed.lose_and_find(), 2 * HOLD);
}

#[test]
fn the_next_process_continues_from_the_stored_flags() {
    // The host was set down, and the link of the uplink is still lost.
    let mut observed = Observed::with_flags(true, false);
    assert_eq!(observed.see(DOWN, CUT), NOTHING);
    assert_eq!(observed.see_after(MAX_SETTLE, DOWN, CUT), NOTHING);
    assert_eq!(observed.flags(), [true, false]);
    assert_eq!(observed.see(DOWN, UP), NOTHING);
    let raised = observed.see_after(HOLD, DOWN, UP);
    assert_eq!(raised, [LinkAction::SetUp(Host)]);
    // The process was killed before it set the host down, or after it set it up.
    let mut observed = Observed::with_flags(true, false);
    assert_eq!(observed.see(UP, UP), NOTHING);
    assert_eq!(observed.flags(), [false, false]);
    // Without a flag, another program has set it down.
    let mut observed = Observed::with_flags(false, false);
    assert_eq!(observed.see(DOWN, UP), [LinkAction::SetDown(Uplink)]);
    assert_eq!(observed.see_after(MAX_SETTLE, DOWN, DOWN), NOTHING);
}

#[test]
fn of_two_sides_that_are_stored_as_set_down_one_is_set_up() {
    let mut observed = Observed::with_flags(true, true);
    assert_eq!(observed.see(DOWN, DOWN), [LinkAction::SetUp(Host)]);
    assert_eq!(observed.see(CUT, DOWN), NOTHING);
    assert_eq!(observed.see_after(SECOND, UP, DOWN), NOTHING);
    let raised = observed.see_after(HOLD, UP, DOWN);
    assert_eq!(raised, [LinkAction::SetUp(Uplink)]);
}

#[test]
fn links_without_carrier_at_the_start_get_the_settling_time() {
    let mut observed = Observed::with_flags(false, false);
    assert_eq!(observed.see(UP, CUT), NOTHING);
    let before = Duration::from_millis(1);
    assert_eq!(observed.see_after(SETTLE - before, UP, CUT), NOTHING);
    let lost = observed.see_after(before, UP, CUT);
    assert_eq!(lost, [LinkAction::SetDown(Host)]);
    // One with carrier is settled.
    let mut observed = Observed::with_flags(false, false);
    assert_eq!(observed.see(UP, UP), NOTHING);
    assert_eq!(observed.see(UP, CUT), [LinkAction::SetDown(Host)]);
}

#[test]
fn a_change_that_failed_is_requested_again() {
    let mut observed = Observed::whole();
    assert_eq!(observed.see(UP, CUT), [LinkAction::SetDown(Host)]);
    // The host is still up: the intervals are those of the back-off.
    let mut intervals = Vec::new();
    let mut last = observed.now;
    for _ in 0..20 {
        if observed.see_after(SECOND, UP, CUT) == [LinkAction::SetDown(Host)] {
            intervals.push((observed.now - last).as_secs());
            last = observed.now;
        }
    }
    assert_eq!(intervals, [1, 2, 4, 8]);
    // The link is back before that succeeded, and setting up fails too.
    let mut observed = Observed::whole();
    assert_eq!(observed.see(UP, CUT), [LinkAction::SetDown(Host)]);
    assert_eq!(observed.see(DOWN, UP), NOTHING);
    for _ in 0..3 {
        let raised = observed.see_after(RETRY.max(HOLD), DOWN, UP);
        assert_eq!(raised, [LinkAction::SetUp(Host)]);
        assert_eq!(observed.see(DOWN, UP), NOTHING);
        assert_eq!(observed.flags(), [true, false]);
    }
}

#[test]
fn a_side_that_could_not_be_set_down_is_released_when_the_link_is_back() {
    let mut observed = Observed::whole();
    assert_eq!(observed.see(UP, CUT), [LinkAction::SetDown(Host)]);
    assert_eq!(observed.see(UP, UP), NOTHING);
    let raised = observed.see_after(HOLD, UP, UP);
    assert_eq!(raised, [LinkAction::SetUp(Host)]);
    assert_eq!(observed.see(UP, UP), NOTHING);
    assert_eq!(observed.flags(), [false, false]);
}

#[test]
fn a_side_that_another_program_set_up_is_set_down_again_after_the_hold_time() {
    let mut observed = Observed::whole();
    assert_eq!(observed.see(UP, CUT), [LinkAction::SetDown(Host)]);
    assert_eq!(observed.see_after(SECOND, DOWN, CUT), NOTHING);
    assert_eq!(observed.see_after(SECOND, UP, CUT), NOTHING);
    assert_eq!(observed.flags(), [false, false]);
    // It is the second loss.
    let before = Duration::from_millis(1);
    assert_eq!(observed.see_after(2 * HOLD - before, UP, CUT), NOTHING);
    let again = observed.see_after(before, UP, CUT);
    assert_eq!(again, [LinkAction::SetDown(Host)]);
}

#[test]
fn an_expected_reset_is_not_a_loss() {
    let mut observed = Observed::whole();
    let now = observed.now;
    observed.link_loss.expect_reset(now);
    // The links are still there, for longer than the hold time.
    assert_eq!(observed.see_after(2 * HOLD, UP, UP), NOTHING);
    assert_eq!(observed.see_after(SECOND, UP, CUT), NOTHING);
    assert_eq!(observed.see_after(SECOND, CUT, CUT), NOTHING);
    assert_eq!(observed.see_after(SECOND, CUT, UP), NOTHING);
    assert_eq!(observed.see_after(SECOND, UP, UP), NOTHING);
    // One that stays away is.
    let mut observed = Observed::whole();
    let now = observed.now;
    observed.link_loss.expect_reset(now);
    assert_eq!(observed.see(UP, CUT), NOTHING);
    let lost = observed.see_after(SETTLE, UP, CUT);
    assert_eq!(lost, [LinkAction::SetDown(Host)]);
}

#[test]
fn a_nic_that_is_created_anew_is_not_one_that_was_set_down() {
    let mut observed = Observed::whole();
    assert_eq!(observed.see(UP, MISSING), [LinkAction::SetDown(Host)]);
    assert_eq!(observed.see(DOWN, MISSING), NOTHING);
    // The host's NIC is removed as well.
    assert_eq!(observed.see(MISSING, MISSING), NOTHING);
    assert_eq!(observed.flags(), [false, false]);
    assert_eq!(observed.see(DOWN, UP), [LinkAction::SetDown(Uplink)]);
    assert_eq!(observed.see_after(MAX_HOLD, DOWN, DOWN), NOTHING);
    // Set up by another program, both links come up.
    assert_eq!(observed.see(CUT, DOWN), NOTHING);
    assert_eq!(observed.see_after(SECOND, UP, DOWN), NOTHING);
    let raised = observed.see_after(MAX_HOLD, UP, DOWN);
    assert_eq!(raised, [LinkAction::SetUp(Uplink)]);
}
