//! Captured files: their packets' time is all the time there is, and nothing is kept for a
//! restart, because they can be read again.

use super::{CaptureError, filter, open_periods, tell};
use crate::monitor::cell::Counts;
use crate::monitor::clock::Now;
use crate::monitor::filter::Refusals;
use crate::monitor::pcap::{Capture, Progress};
use crate::monitor::period::{Notice, Periods};
use crate::monitor::places::Places;
use crate::monitor::settings::Settings;
use crate::monitor::tally::Counter;
use crate::process;
use jiff::Timestamp;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// What was in files.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    files: usize,
    packets: u64,
    counted: Counts,
    refusals: Refusals,
    flagless: u64,
    late: u64,
    published: Vec<PathBuf>,
}

/// Counts all of them.
pub(super) fn run(settings: &Settings, files: &[PathBuf]) -> Result<Summary, CaptureError> {
    if let (Some(user), true) = (&settings.user, process::is_root()) {
        process::become_user(user)?;
    }
    process::forbid_dumps()?;
    let places = Arc::new(Places::load(&settings.places)?);
    // A fault in the last file shall be told before the first one is counted for an hour.
    let mut captures = files
        .iter()
        .map(|path| Capture::open(path))
        .collect::<Result<Vec<_>, _>>()?;
    let mut reader = Reader {
        counter: Counter::new(filter(settings), Arc::clone(&places), settings.cells),
        places,
        settings,
        periods: None,
        seen: None,
        summary: Summary {
            files: files.len(),
            ..Summary::default()
        },
    };
    let mut outcome = Ok(());
    for capture in &mut captures {
        outcome = reader.read(capture);
        reader.summary.packets += capture.packets();
        reader.summary.late += capture.late();
        if outcome.is_err() {
            break;
        }
    }
    // What was read before a fault is counted.
    let closed = reader.close();
    outcome.and(closed)?;
    let mut summary = reader.summary;
    summary.refusals = *reader.counter.refusals();
    summary.flagless = reader.counter.flagless();
    Ok(summary)
}

/// Counts one file after the other.
struct Reader<'a> {
    settings: &'a Settings,
    places: Arc<Places>,
    counter: Counter,
    /// From the first packet on.
    periods: Option<Periods>,
    /// The running period's first packet, and the last one so far.
    seen: Option<(Timestamp, Timestamp)>,
    summary: Summary,
}

impl Reader<'_> {
    fn read(&mut self, capture: &mut Capture) -> Result<(), CaptureError> {
        loop {
            let range = match &self.periods {
                Some(periods) => {
                    let period = periods.status().running;
                    period.start..period.end()
                }
                // Over before anything was captured: tells when the first packet was.
                None => Timestamp::UNIX_EPOCH..Timestamp::UNIX_EPOCH,
            };
            let progress = capture.count_until(range, &mut self.counter);
            if let Some(last) = capture.last() {
                let first = self.seen.map_or(last, |(first, _)| first);
                self.seen = Some((first, last));
            }
            match progress? {
                Progress::End => return Ok(()),
                Progress::Next(time) => self.turn_to(time)?,
            }
        }
    }

    /// A packet of another period comes next.
    fn turn_to(&mut self, time: Timestamp) -> Result<(), CaptureError> {
        if self.periods.is_some() {
            self.close_at(time)?;
        } else {
            let now = Now::of_packet(time);
            let opened = open_periods(self.settings, &self.places, None, now)?;
            tell(&opened.notices);
            self.periods = Some(opened.periods);
        }
        self.seen = Some((time, time));
        Ok(())
    }

    /// Nothing comes any more.
    fn close(&mut self) -> Result<(), CaptureError> {
        self.close_at(self.seen.map_or(Timestamp::UNIX_EPOCH, |(_, last)| last))
    }

    fn close_at(&mut self, next: Timestamp) -> Result<(), CaptureError> {
        let (Some(periods), Some((first, last))) = (&mut self.periods, self.seen) else {
            return Ok(());
        };
        let seconds = last.duration_since(first).as_secs().max(0);
        let tally = self.counter.tally_mut();
        tally.note_watched(u64::try_from(seconds).unwrap_or_default());
        for (_, counts) in tally.totals() {
            self.summary.counted += counts;
        }
        let notices = periods.close(tally.take(), Now::of_packet(next));
        tell(&notices);
        for notice in notices {
            match notice {
                Notice::Published { path, .. } => self.summary.published.push(path),
                Notice::Unpublished { .. } => return Err(CaptureError::Unpublished(notice)),
                _ => {}
            }
        }
        Ok(())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts {
            flows,
            bytes,
            packets,
        } = self.counted;
        writeln!(
            f,
            "{} packets in {} files; counted: {packets} packets, {bytes} bytes, {flows} connections",
            self.packets, self.files
        )?;
        for (reason, packets) in self.refusals.named().filter(|(_, packets)| *packets > 0) {
            writeln!(f, "not counted, {reason}: {packets}")?;
        }
        if self.flagless > 0 {
            writeln!(
                f,
                "{} packets were cut off before TCP's flags: connections are too few; capture at \
                 least 96 bytes of each packet",
                self.flagless
            )?;
        }
        if self.late > 0 {
            writeln!(
                f,
                "{} packets are older than the period they are counted in: name the files in the \
                 order of their time",
                self.late
            )?;
        }
        self.published
            .iter()
            .try_for_each(|path| writeln!(f, "{}", path.display()))
    }
}
