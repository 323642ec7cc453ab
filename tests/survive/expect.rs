//! What must hold, as data: every event, the loads under which it happens, and how many frames
//! each engine may lose then. What no row may have at all is in [`Row::complaint`].

use crate::load::Rhythm::{self, Bursts, Saturation, Steady};
use crate::report::Row;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Nothing,
    Kill,
    Stop,
    /// After a SIGSTOP and a while.
    StopAndContinue,
    OutOfMemory,
    Terminate,
    Restart,
    RestartAfterKill,
    /// Before each step of a start that takes over, one after the other, with a plain start behind
    /// each.
    KillAtEveryStep,
    Upgrade,
    Swap,
    ManySwaps,
    /// Of the configuration.
    Reloads,
    LinkDown(Link),
    /// The box's NIC of this name is removed from its network namespace, and is back after a while.
    PortBack(&'static str),
    /// The uplink.
    Renamed,
    FullRings,
}

/// Which link goes down, and at which of its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    IncomingAtBox,
    IncomingAtFarEnd,
    UplinkAtBox,
    UplinkAtFarEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    AtMost(u64),
    /// What is sent in less than 10 ms: at most 200 frames, or more where the load was late and
    /// caught up just then.
    TenMs,
    /// At most this many each time that something happens.
    AtMostEach(u64),
    /// At most this many beside those that found a cable full: at saturation the load and the far
    /// ends are no better than their queues.
    Beside(u64),
    /// Reported, not bounded.
    Any,
    /// Not bounded while the link is down, but none of those that are sent when every flow has
    /// arrived again.
    NoneAfter,
}

pub(crate) struct Expected {
    pub(crate) event: Event,
    pub(crate) name: &'static str,
    pub(crate) rhythm: Rhythm,
    pub(crate) xdp: Lost,
    pub(crate) af_xdp: Lost,
}

impl Expected {
    pub(crate) fn lost(&self, engine: &str) -> Lost {
        match engine {
            "xdp" => self.xdp,
            _ => self.af_xdp,
        }
    }
}

pub(crate) const ENGINES: [&str; 2] = ["xdp", "af_xdp"];

const NONE: Lost = Lost::AtMost(0);
const TEN_MS: Lost = Lost::TenMs;
/// What 20,000 frames a second are in 10 ms.
pub(crate) const IN_TEN_MS: u64 = 200;

/// Where a worker is killed that its tracer holds up at every system call: what waits with it, half
/// a ring at most before the program decides by itself, and what is sent until it is found dead.
const KILLED: Lost = Lost::AtMostEach(1024 + IN_TEN_MS);
const CABLES: Lost = Lost::Beside(0);
/// What the rings of three ports hold: all that can be under way to a worker.
const RINGS: Lost = Lost::Beside(3 * 2048);

const fn line(
    event: Event,
    name: &'static str,
    rhythm: Rhythm,
    xdp: Lost,
    af_xdp: Lost,
) -> Expected {
    Expected {
        event,
        name,
        rhythm,
        xdp,
        af_xdp,
    }
}

#[rustfmt::skip]
pub(crate) const TABLE: &[Expected] = &[
    //   event                              name                       load        xdp              af_xdp
    line(Event::Nothing,                    "none",                    Steady,     NONE,            NONE),
    line(Event::Kill,                       "kill -9",                 Steady,     NONE,            TEN_MS),
    line(Event::Stop,                       "SIGSTOP",                 Steady,     NONE,            TEN_MS),
    line(Event::StopAndContinue,            "SIGCONT",                 Steady,     NONE,            TEN_MS),
    line(Event::OutOfMemory,                "OOM kill",                Steady,     NONE,            TEN_MS),
    line(Event::Terminate,                  "SIGTERM",                 Steady,     NONE,            NONE),
    line(Event::Restart,                    "restart",                 Steady,     NONE,            NONE),
    line(Event::RestartAfterKill,           "restart after kill -9",   Steady,     NONE,            TEN_MS),
    #[cfg(target_arch = "x86_64")]
    line(Event::KillAtEveryStep,            "kill at every step",      Steady,     NONE,            KILLED),
    line(Event::Upgrade,                    "upgrade",                 Steady,     NONE,            NONE),
    line(Event::Swap,                       "relay set swap",          Steady,     NONE,            NONE),
    line(Event::ManySwaps,                  "250 relay set swaps",     Steady,     NONE,            NONE),
    line(Event::Reloads,                    "100 reloads",             Steady,     NONE,            NONE),
    line(Event::LinkDown(Link::IncomingAtBox),    "incoming down",     Steady,     Lost::NoneAfter, Lost::NoneAfter),
    line(Event::LinkDown(Link::IncomingAtFarEnd), "incoming peer down", Steady,    Lost::NoneAfter, Lost::NoneAfter),
    line(Event::LinkDown(Link::UplinkAtBox),      "uplink down",       Steady,     Lost::NoneAfter, Lost::NoneAfter),
    line(Event::LinkDown(Link::UplinkAtFarEnd),   "uplink peer down",  Steady,     Lost::NoneAfter, Lost::NoneAfter),
    line(Event::PortBack("uplink0"),        "port removed and back",   Steady,     Lost::NoneAfter, Lost::NoneAfter),
    line(Event::PortBack("incoming0"),      "incoming removed and back", Steady,   Lost::NoneAfter, Lost::NoneAfter),
    line(Event::Renamed,                    "port renamed",            Steady,     NONE,            NONE),
    line(Event::FullRings,                  "full rings",              Bursts,     NONE,            NONE),

    line(Event::Nothing,                    "none",                    Saturation, CABLES,          CABLES),
    line(Event::Kill,                       "kill -9",                 Saturation, CABLES,          RINGS),
    line(Event::Stop,                       "SIGSTOP",                 Saturation, CABLES,          RINGS),
    line(Event::StopAndContinue,            "SIGCONT",                 Saturation, CABLES,          RINGS),
    line(Event::OutOfMemory,                "OOM kill",                Saturation, CABLES,          RINGS),
    line(Event::Terminate,                  "SIGTERM",                 Saturation, CABLES,          CABLES),
    line(Event::Restart,                    "restart",                 Saturation, CABLES,          CABLES),
    line(Event::RestartAfterKill,           "restart after kill -9",   Saturation, CABLES,          RINGS),
    line(Event::Upgrade,                    "upgrade",                 Saturation, CABLES,          CABLES),
    line(Event::Swap,                       "relay set swap",          Saturation, CABLES,          CABLES),
    line(Event::ManySwaps,                  "250 relay set swaps",     Saturation, CABLES,          CABLES),
    line(Event::Reloads,                    "100 reloads",             Saturation, CABLES,          CABLES),
    line(Event::LinkDown(Link::IncomingAtBox),    "incoming down",     Saturation, Lost::Any,       Lost::Any),
    line(Event::LinkDown(Link::IncomingAtFarEnd), "incoming peer down", Saturation, Lost::Any,      Lost::Any),
    line(Event::LinkDown(Link::UplinkAtBox),      "uplink down",       Saturation, Lost::Any,       Lost::Any),
    line(Event::LinkDown(Link::UplinkAtFarEnd),   "uplink peer down",  Saturation, Lost::Any,       Lost::Any),
    line(Event::PortBack("uplink0"),        "port removed and back",   Saturation, Lost::Any,       Lost::Any),
    line(Event::Renamed,                    "port renamed",            Saturation, CABLES,          CABLES),
    line(Event::FullRings,                  "full rings",              Saturation, CABLES,          CABLES),
];

impl Row {
    /// What is wrong with it, if anything.
    pub(crate) fn complaint(&self, lost: Lost) -> Option<String> {
        let mut wrong = Vec::new();
        if let Some(error) = &self.error {
            wrong.push(error.clone());
        }
        let reordered = self.reordered.saturating_sub(self.may_be_reordered());
        for (what, number) in [
            ("mismarked", self.mismarked),
            ("missteered", self.missteered),
            ("duplicated", self.duplicated),
            ("garbled", self.garbled),
            ("flows silent", self.silent_flows),
            // Of a flow that changes over to the kernel, frames that wait with the worker are
            // overtaken. Nothing waits in the kernel.
            ("reordered", reordered),
        ] {
            if number > 0 {
                wrong.push(format!("{number} {what}"));
            }
        }
        let cables = self.dropped_before_box + self.dropped_behind_box;
        let is_long = self.outage_ms.is_none_or(|length| length >= 10);
        let (count, at_once, after) = (self.lost, self.most_lost_at_once, self.lost_after);
        wrong.extend(match lost {
            Lost::AtMost(limit) if count > limit => {
                Some(format!("{count} lost, at most {limit} may be"))
            }
            Lost::TenMs if count > IN_TEN_MS && is_long => {
                Some(format!("{count} lost, at most 10 ms may be"))
            }
            Lost::AtMostEach(limit) if at_once > Some(limit) => {
                Some(format!("{at_once:?} lost at once, at most {limit} may be"))
            }
            Lost::Beside(limit) if count > limit + cables => Some(format!(
                "{count} lost, at most {limit} may be beside what found a cable full"
            )),
            Lost::NoneAfter if after != Some(0) => {
                Some(format!("lost after the link was back: {after:?}"))
            }
            _ => None,
        });
        (!wrong.is_empty()).then(|| wrong.join("; "))
    }

    /// Whether a pause of the machine, as a virtual one makes, explains all that is wrong: limits in
    /// milliseconds are exceeded then, up to ten times, as is the number of frames that wait with a
    /// worker and are overtaken; and a paced load overruns the cable before the box.
    pub(crate) fn may_be_of_machine(&self, lost: Lost) -> bool {
        let is_timed = match lost {
            Lost::TenMs => self.lost <= 10 * IN_TEN_MS,
            Lost::AtMostEach(limit) => self.most_lost_at_once <= Some(10 * limit),
            Lost::Beside(limit) => {
                let cables = self.dropped_before_box + self.dropped_behind_box;
                self.lost <= cables + limit + self.sent / 100
            }
            Lost::AtMost(limit) => self.lost <= limit + self.dropped_before_box,
            Lost::Any | Lost::NoneAfter => false,
        };
        let in_order = Self {
            reordered: 0,
            ..self.clone()
        };
        is_timed
            && self.reordered <= 10 * self.may_be_reordered()
            && self.complaint(lost).is_some()
            && in_order.complaint(Lost::Any).is_none()
    }

    /// One in a hundred, where there are two ways.
    fn may_be_reordered(&self) -> u64 {
        match self.engine {
            "xdp" => 0,
            _ => self.sent / 100,
        }
    }
}

#[test]
fn only_rows_that_a_pause_explains_are_played_again() {
    let row = |change: fn(&mut Row)| {
        let mut row = Row {
            sent: 10_000,
            ..Row::default()
        };
        change(&mut row);
        row
    };
    let late = row(|row| (row.lost, row.outage_ms) = (201, Some(10)));
    let overrun = row(|row| (row.lost, row.dropped_before_box) = (300, 300));
    assert!(late.may_be_of_machine(TEN_MS));
    assert!(overrun.may_be_of_machine(NONE));
    assert!(row(|row| row.reordered = 101).may_be_of_machine(TEN_MS));
    #[rustfmt::skip]
    let table = [
        (row(|_| {}), NONE),
        (row(|row| (row.lost, row.outage_ms) = (201, Some(9))), TEN_MS),
        (late, NONE),
        (row(|row| (row.lost, row.outage_ms) = (2001, Some(100))), TEN_MS),
        (row(|row| (row.lost, row.dropped_before_box) = (301, 300)), NONE),
        (row(|row| (row.lost, row.outage_ms, row.mismarked) = (201, Some(10), 1)), TEN_MS),
        (row(|row| row.lost_after = Some(1)), Lost::NoneAfter),
        (row(|row| row.reordered = 1001), TEN_MS),
        (row(|row| (row.engine, row.reordered) = ("xdp", 1)), TEN_MS),
    ];
    for (row, lost) in table {
        assert!(!row.may_be_of_machine(lost), "{}", row.line());
    }
}
