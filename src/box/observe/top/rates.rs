//! Turns counts into rates, and keeps the rates of the last minute.

use crate::observe::human::as_f64;
use crate::observe::metrics::socket_counts;
use crate::observe::{ClassCount, ConnectionClass, GroupReport, Report, TapReport};
use std::collections::VecDeque;
use std::time::Duration;

/// How long the rates of the classes are kept, for the bars.
pub(super) const SPAN: Duration = Duration::from_secs(60);
/// The most rates that are kept per class, independent of the interval.
const REMEMBERED: usize = 240;

/// The classes whose rates are shown for each group.
pub(super) const SHOWN_OF_GROUP: [&str; 2] = ["exit", "relay"];

/// The state computed from the reports received so far.
#[derive(Debug, Default)]
pub struct Top {
    pub(super) last: Option<(Report, Duration)>,
    pub(super) rates: Option<Rates>,
    /// Frames or connections per second of each class in the last minute, in the report's order.
    pub(super) minute: Vec<VecDeque<(Duration, f64)>>,
    /// Why the last request failed; `None` if the box answered.
    pub(super) trouble: Option<String>,
}

/// Rates per second between two reports.
#[derive(Debug, Default)]
pub(super) struct Rates {
    /// Outbound traffic of each class.
    pub(super) classes: Vec<Flow>,
    /// Exit and relay traffic of each group.
    pub(super) groups: Vec<[Flow; 2]>,
    pub(super) ports: Vec<PortRates>,
    pub(super) drops: Vec<f64>,
    /// Copies sent by each tap, and those lost.
    pub(super) taps: Vec<(f64, f64)>,
    /// Frames decided by the XDP program, and by workers.
    pub(super) engines: (f64, f64),
    /// Connections of each class, when they were opened.
    pub(super) connections: Vec<f64>,
    /// Connections by what was done with their sockets.
    pub(super) sockets: Vec<f64>,
}

/// Frames received, forwarded and spilled by a port.
#[derive(Debug, Default)]
pub(super) struct PortRates {
    pub(super) received: Flow,
    pub(super) forwarded: f64,
    pub(super) spilled: f64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flow {
    pub(super) frames: f64,
    pub(super) bits: f64,
}

impl Top {
    /// Records an answer received at this time on the caller's clock.
    pub fn answered(&mut self, report: Report, at: Duration) {
        self.trouble = None;
        self.rates = match &self.last {
            Some((before, then)) => Rates::between(before, &report, at.saturating_sub(*then)),
            None => None,
        };
        let classes = report.classes.len() + connections(&report).len();
        self.minute.resize_with(classes, VecDeque::new);
        if let Some(rates) = &self.rates {
            let frames = rates.classes.iter().map(|flow| flow.frames);
            let rates = frames.chain(rates.connections.iter().copied());
            for (minute, rate) in self.minute.iter_mut().zip(rates) {
                minute.push_back((at, rate));
                while minute.len() > REMEMBERED
                    || minute
                        .front()
                        .is_some_and(|(then, _)| at.saturating_sub(*then) > SPAN)
                {
                    minute.pop_front();
                }
            }
        }
        self.last = Some((report, at));
    }

    /// Records a failed request. The last report stays until the next answer.
    pub fn failed(&mut self, why: String) {
        self.trouble = Some(why);
        self.rates = None;
    }
}

impl Rates {
    /// `None` if the reports cannot be compared: no time has passed, or another box answers.
    fn between(before: &Report, now: &Report, time: Duration) -> Option<Self> {
        let seconds = time.as_secs_f64();
        let names = |report: &Report| -> Vec<String> {
            let classes = report.classes.iter().map(|of| of.class.clone());
            classes
                .chain(report.ports.iter().map(|of| of.role.clone()))
                .chain(report.drops.iter().map(|of| of.reason.clone()))
                .chain(report.taps.iter().map(|of| of.interface.clone()))
                .chain(report.groups.iter().map(|of| of.name.clone()))
                .collect()
        };
        if seconds <= 0.0 || names(before) != names(now) {
            return None;
        }
        // A counter that decreases has restarted from an unknown value: its rate is 0.
        let rate = |before: u64, now: u64| as_f64(now.saturating_sub(before)) / seconds;
        let flow = |frames: (u64, u64), bytes: (u64, u64)| Flow {
            frames: rate(frames.0, frames.1),
            bits: 8.0 * rate(bytes.0, bytes.1),
        };
        let of_class = |before: &ClassCount, now: &ClassCount| {
            flow((before.frames, now.frames), (before.bytes, now.bytes))
        };
        let classes = now.classes.iter().zip(&before.classes);
        let groups = now.groups.iter().zip(&before.groups);
        let ports = now.ports.iter().zip(&before.ports);
        let drops = now.drops.iter().zip(&before.drops);
        let taps = now.taps.iter().zip(&before.taps);
        let copied = |tap: &TapReport| tap.copied_out.saturating_add(tap.copied_in);
        let opened = connections(now).iter().zip(connections(before));
        let sockets = now.connections.iter().zip(&before.connections);
        let sockets = sockets
            .flat_map(|(now, before)| socket_counts(now).into_iter().zip(socket_counts(before)));
        Some(Self {
            classes: classes.map(|(now, before)| of_class(before, now)).collect(),
            groups: groups
                .map(|(now, before)| {
                    SHOWN_OF_GROUP.map(|class| of_class(&of(before, class), &of(now, class)))
                })
                .collect(),
            ports: ports
                .map(|(now, before)| PortRates {
                    received: flow(
                        (before.received_frames, now.received_frames),
                        (before.received_bytes, now.received_bytes),
                    ),
                    forwarded: rate(before.forwarded_frames, now.forwarded_frames),
                    spilled: rate(before.spilled_frames, now.spilled_frames),
                })
                .collect(),
            drops: drops
                .map(|(now, before)| rate(before.frames, now.frames))
                .collect(),
            taps: taps
                .map(|(now, before)| {
                    let lost = rate(before.all_lost(), now.all_lost());
                    (rate(copied(before), copied(now)), lost)
                })
                .collect(),
            engines: (
                rate(before.engine.xdp_frames, now.engine.xdp_frames),
                rate(before.engine.af_xdp_frames, now.engine.af_xdp_frames),
            ),
            connections: opened
                .map(|(now, before)| rate(before.opened, now.opened))
                .collect(),
            sockets: sockets
                .map(|(now, before)| rate(before.connections, now.connections))
                .collect(),
        })
    }
}

/// The frames of a class from a group.
fn of(group: &GroupReport, class: &str) -> ClassCount {
    let mut classes = group.classes.iter();
    let found = classes.find(|of| of.class == class);
    found.cloned().unwrap_or_default()
}

/// The classes of connections; a box has none.
fn connections(report: &Report) -> &[ConnectionClass] {
    match &report.connections {
        Some(connections) => &connections.classes,
        None => &[],
    }
}
