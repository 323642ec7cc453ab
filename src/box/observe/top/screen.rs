//! Draws the state on a terminal.

use super::Top;
use super::rates::{Flow, Rates, SHOWN_OF_GROUP, SPAN};
use crate::observe::human::{count, scaled, span};
use crate::observe::text::clean;
use crate::observe::{Report, SteeringState};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};
use std::collections::VecDeque;
use std::time::Duration;

/// Bar characters by height in eighths.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Columns before the bars of a class.
const BEFORE_BARS: u32 = 35;
/// The most warnings shown; `exitmark status` shows all of them.
const WARNINGS: usize = 3;

impl Top {
    /// Draws the whole screen: the last report, or a line that says that the first is awaited.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let foot = if self.trouble.is_some() { 2 } else { 1 };
        let [body, foot] =
            Layout::vertical([Constraint::Fill(1), Constraint::Length(foot)]).areas(frame.area());
        let lines = match &self.last {
            Some((report, at)) => self.lines(report, *at, body.width),
            None => vec![Line::from("exitmark: waiting for the first answer")],
        };
        frame.render_widget(Paragraph::new(lines), body);
        let foot_text = match &self.trouble {
            Some(why) => Line::from(format!("{}; trying again, q quits", clean(why)))
                .red()
                .bold(),
            None => Line::from("q quits").dark_gray(),
        };
        frame.render_widget(Paragraph::new(foot_text).wrap(Wrap { trim: true }), foot);
    }

    fn lines(&self, report: &Report, now: Duration, width: u16) -> Vec<Line<'static>> {
        let mut lines = vec![head(report)];
        lines.extend(warnings(report));
        lines.push(Line::default());
        let bars = u32::from(width).saturating_sub(BEFORE_BARS);
        if let Some(connections) = &report.connections {
            self.connections(&mut lines, connections, now, bars);
            lines.push(relay_set(report));
            return lines;
        }
        self.classes(&mut lines, report, now, bars);
        lines.push(Line::default());
        self.ports(&mut lines, report);
        lines.push(engines(report, self.rates.as_ref()));
        lines.push(drops(report, self.rates.as_ref()));
        lines.push(relay_set(report));
        lines.push(steering(report));
        lines.push(faults(report));
        lines.extend(taps(report, self.rates.as_ref()));
        // Last: there may be more groups than a screen has lines.
        self.groups(&mut lines, report);
        lines
    }

    fn classes(&self, lines: &mut Vec<Line<'static>>, report: &Report, now: Duration, width: u32) {
        let title = format!(
            "{:9} {:>9} {:>13}  last minute",
            "class", "frames/s", "bits/s"
        );
        lines.push(Line::from(title).bold());
        for (index, class) in report.classes.iter().enumerate() {
            let flow = self
                .rates
                .as_ref()
                .and_then(|rates| rates.classes.get(index));
            let (frames, bits) = shown(flow);
            let style = style_of(&class.class);
            lines.push(Line::from(vec![
                Span::styled(format!("{:9.9}", clean(&class.class)), style),
                Span::from(format!(" {frames:>9} {bits:>13}  ")),
                Span::styled(self.last_minute(index, now, width), style),
            ]));
        }
    }

    /// The bars of a class. One scale for all classes, so that their bars can be compared.
    pub(super) fn last_minute(&self, class: usize, now: Duration, width: u32) -> String {
        let rates = self.minute.iter().flatten().map(|(_, rate)| *rate);
        let highest = rates.fold(0.0, f64::max);
        let minute = self.minute.get(class);
        let bars = minute.map(|minute| bars(minute, now, highest, width));
        bars.unwrap_or_default()
    }

    fn ports(&self, lines: &mut Vec<Line<'static>>, report: &Report) {
        let title = format!(
            "{:9} {:>11} {:>13} {:>9} {:>9}  NIC",
            "port", "rx frames/s", "rx bits/s", "forwarded", "spilled"
        );
        lines.push(Line::from(title).bold());
        for (index, port) in report.ports.iter().enumerate() {
            let rates = self.rates.as_ref();
            let rates = rates.and_then(|rates| rates.ports.get(index));
            let (frames, bits) = shown(rates.map(|rates| &rates.received));
            let forwarded = number(rates.map(|rates| &rates.forwarded));
            let spilled = number(rates.map(|rates| &rates.spilled));
            let mut spans = vec![Span::from(format!(
                "{:9.9} {frames:>11} {bits:>13} {forwarded:>9} {spilled:>9}  {:15.15} ",
                clean(&port.role),
                clean(&port.interface)
            ))];
            spans.push(if port.has_carrier {
                Span::from("up")
            } else {
                Span::from("no link").red().bold()
            });
            lines.push(Line::from(spans));
        }
    }

    /// A row for each group, if there are several.
    fn groups(&self, lines: &mut Vec<Line<'static>>, report: &Report) {
        if report.groups.is_empty() {
            return;
        }
        lines.push(Line::default());
        let [exit, relay] = SHOWN_OF_GROUP.map(|class| format!("{class}/s"));
        let title = format!(
            "{:20} {exit:>9} {:>13} {relay:>9} {:>13}",
            "group", "bits/s", "bits/s"
        );
        lines.push(Line::from(title).bold());
        for (index, group) in report.groups.iter().enumerate() {
            let rates = self.rates.as_ref();
            let rates = rates.and_then(|rates| rates.groups.get(index));
            let mut spans = vec![Span::from(format!("{:20.20}", clean(&group.name)))];
            for (at, class) in SHOWN_OF_GROUP.into_iter().enumerate() {
                let (frames, bits) = shown(rates.map(|rates| &rates[at]));
                let text = format!(" {frames:>9} {bits:>13}");
                spans.push(Span::styled(text, style_of(class)));
            }
            lines.push(Line::from(spans));
        }
    }
}

fn head(report: &Report) -> Line<'static> {
    Line::from(vec![
        Span::from(format!("exitmark {}", clean(&report.version))).bold(),
        Span::from(format!(
            "  {}, engine {}, up {}, generation {}",
            clean(&report.mode),
            clean(&report.engine.chosen),
            span(report.uptime()),
            report.generation
        )),
    ])
}

fn warnings(report: &Report) -> impl Iterator<Item = Line<'static>> {
    report.warnings.iter().take(WARNINGS).map(|warning| {
        let text = format!("{}: {}", clean(&warning.kind), clean(&warning.text));
        if warning.is_alarm {
            Line::from(format!("ALARM {text}")).red().bold()
        } else {
            Line::from(format!("warning {text}")).yellow()
        }
    })
}

pub(super) fn style_of(class: &str) -> Style {
    let colour = match class {
        "exit" => Color::Green,
        "relay" => Color::Cyan,
        "malformed" | "foreign" => Color::Yellow,
        _ => Color::Reset,
    };
    Style::new().fg(colour)
}

/// Formats a rate; `-` if it is not known.
fn shown(flow: Option<&Flow>) -> (String, String) {
    let bits = flow.map(|flow| scaled(flow.bits, "bit/s"));
    (
        number(flow.map(|flow| &flow.frames)),
        bits.unwrap_or_else(|| "-".to_owned()),
    )
}

pub(super) fn number(rate: Option<&f64>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| scaled(*rate, ""))
}

/// The bars of the last minute, the present at the right end. A column shows the highest of its
/// rates; a column without a rate shows the next rate, whose interval covers it.
fn bars(minute: &VecDeque<(Duration, f64)>, now: Duration, highest: f64, width: u32) -> String {
    let Some((first, _)) = minute.front() else {
        return String::new();
    };
    let column = SPAN / width.max(1);
    (0..width)
        .rev()
        .map(|back| {
            let end = now.checked_sub(column * back)?;
            let within = minute
                .iter()
                .filter(|(at, _)| *at <= end && *at + column > end)
                .map(|(_, rate)| *rate)
                .reduce(f64::max);
            let next = || {
                let next = minute.iter().find(|(at, _)| *at > end && *first <= end);
                next.map(|(_, rate)| *rate)
            };
            within.or_else(next)
        })
        .map(|rate| rate.map_or(BARS[0], |rate| bar(rate, highest)))
        .collect()
}

/// The bar of a rate: any rate above 0 has at least the lowest bar.
fn bar(rate: f64, highest: f64) -> char {
    if rate <= 0.0 || highest <= 0.0 {
        return BARS[0];
    }
    let eighths = (1..8).take_while(|eighth| rate / highest > f64::from(*eighth) / 8.0);
    BARS[eighths.count() + 1]
}

fn item(name: &str, text: Span<'static>) -> Line<'static> {
    Line::from(vec![Span::from(format!("{name:10}")).bold(), text])
}

fn engines(report: &Report, rates: Option<&Rates>) -> Line<'static> {
    let text = match rates.map(|rates| rates.engines) {
        Some((xdp, af_xdp)) if xdp + af_xdp > 0.0 => {
            let share = |part: f64| format!("{:.0} %", 100.0 * part / (xdp + af_xdp));
            format!("xdp {}, af_xdp {}", share(xdp), share(af_xdp))
        }
        Some(_) => "no frames".to_owned(),
        None => "-".to_owned(),
    };
    let asked = clean(&report.engine.asked);
    item(
        "engines",
        Span::from(format!("{text} (configured: {asked})")),
    )
}

fn drops(report: &Report, rates: Option<&Rates>) -> Line<'static> {
    let Some(rates) = rates else {
        return item("drops/s", Span::from("-"));
    };
    let dropped: Vec<_> = report
        .drops
        .iter()
        .zip(&rates.drops)
        .filter(|(_, rate)| **rate > 0.0)
        .map(|(drop, rate)| {
            let port = drop.port.as_deref().unwrap_or_default();
            let name = format!("{} {port}", drop.reason);
            format!("{} {}", clean(name.trim_end()), scaled(*rate, ""))
        })
        .collect();
    if dropped.is_empty() {
        item("drops/s", Span::from("none"))
    } else {
        item("drops/s", Span::from(dropped.join(", ")).red())
    }
}

/// The copies of each tap, and those lost.
fn taps(report: &Report, rates: Option<&Rates>) -> Vec<Line<'static>> {
    let taps = report.taps.iter().enumerate();
    let lines = taps.map(|(index, tap)| {
        let name = clean(&tap.interface);
        let rates = rates.and_then(|rates| rates.taps.get(index));
        let text = match rates {
            None => format!("{name} -"),
            Some((copied, lost)) => {
                format!("{name} {}, lost {}", scaled(*copied, ""), scaled(*lost, ""))
            }
        };
        let is_losing = !tap.is_up || rates.is_some_and(|(_, lost)| *lost > 0.0);
        let text = Span::from(text);
        item("copies/s", if is_losing { text.red() } else { text })
    });
    lines.collect()
}

fn relay_set(report: &Report) -> Line<'static> {
    let set = &report.relay_set;
    let age = match set.age.as_deref() {
        None if set.is_missing => "no document in force yet",
        age => age.unwrap_or("no documents configured"),
    };
    let mut text = format!("{} endpoints, {}", count(set.endpoints), clean(age));
    if let Some(at) = set.accepted_at {
        text.push_str(&format!(", in force for {}", span(report.since(at))));
    }
    let text = match age {
        _ if set.is_passing => Span::from(format!("{text}, all unmarked")).red().bold(),
        "stale" | "expired" => Span::from(text).red(),
        "old" => Span::from(text).yellow(),
        _ => Span::from(text),
    };
    item("relay set", text)
}

fn steering(report: &Report) -> Line<'static> {
    let steering = &report.steering;
    let state = steering.state.name();
    let unusable = steering.next_hops.iter().filter(|hop| !hop.is_usable());
    let to = match steering.next_hops.len() {
        0 | 1 => {
            let next_hop = steering.next_hop.as_deref().unwrap_or("-");
            let mac = steering.next_hop_mac.as_deref().unwrap_or("not known");
            format!("{next_hop} at {mac}")
        }
        hops => match unusable.count() {
            0 => format!("{hops} next hops"),
            unusable => format!("{unusable} of {hops} next hops"),
        },
    };
    let text = match steering.state {
        SteeringState::Off => Span::from("off"),
        SteeringState::Steering => Span::from(clean(&format!("to {to}"))).green(),
        _ => Span::from(clean(&format!(
            "{state}: {to}; on_unavailable: {}",
            steering.on_unavailable
        )))
        .red()
        .bold(),
    };
    item("steering", text)
}

fn faults(report: &Report) -> Line<'static> {
    let mismatches = report.audit.mismatches.iter();
    let mismatches = mismatches.fold(0u64, |sum, of| sum.saturating_add(of.frames));
    let text = format!(
        "{} frames unaccounted, {} mismatches of {} audited",
        report.unaccounted_frames,
        mismatches,
        count(report.audit.checked)
    );
    let text = Span::from(text);
    let is_fault = report.unaccounted_frames > 0 || mismatches > 0;
    item("faults", if is_fault { text.red().bold() } else { text })
}
