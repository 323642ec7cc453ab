//! Draws the connections of engine `connect`.

use super::Top;
use super::screen::{number, style_of};
use crate::observe::ConnectionsReport;
use crate::observe::human::count;
use crate::observe::metrics::socket_counts;
use crate::observe::text::clean;
use ratatui::style::Stylize;
use ratatui::text::{Line, Span};
use std::time::Duration;

impl Top {
    /// The classes of connections, and what was done with their sockets. A failure is red while its
    /// count grows.
    pub(super) fn connections(
        &self,
        lines: &mut Vec<Line<'static>>,
        connections: &ConnectionsReport,
        now: Duration,
        width: u32,
    ) {
        let rates = self.rates.as_ref();
        let title = format!(
            "{:9} {:>6} {:>8} {:>7}  last minute",
            "class", "conn/s", "total", "earlier"
        );
        lines.push(Line::from(title).bold());
        for (index, class) in connections.classes.iter().enumerate() {
            let rate = rates.and_then(|rates| rates.connections.get(index));
            let style = style_of(&class.class);
            lines.push(Line::from(vec![
                Span::styled(format!("{:9.9}", clean(&class.class)), style),
                Span::from(format!(
                    " {:>6} {:>8} {:>7}  ",
                    number(rate),
                    count(class.opened),
                    count(class.earlier)
                )),
                Span::styled(self.last_minute(index, now, width), style),
            ]));
        }
        lines.push(Line::default());
        let title = format!("{:16} {:>6} {:>8}", "socket", "conn/s", "total");
        lines.push(Line::from(title).bold());
        for (index, sockets) in socket_counts(connections).into_iter().enumerate() {
            let rate = rates.and_then(|rates| rates.sockets.get(index));
            let line = Line::from(format!(
                "{:16} {:>6} {:>8}",
                sockets.name.replace('_', " "),
                number(rate),
                count(sockets.connections)
            ));
            let is_failing = sockets.is_failure() && rate.is_some_and(|rate| *rate > 0.0);
            lines.push(if is_failing { line.red() } else { line });
        }
    }
}
