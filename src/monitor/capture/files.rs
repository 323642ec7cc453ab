//! Counts captured files. Periods follow the packets' own times, and no state is kept for a
//! restart: the files can be read again. All files are opened and all privileges dropped before the
//! first byte is read, because a capture is untrusted input.

use super::{CaptureError, INBOUND, cannot, filter, log_notices, open_periods};
use crate::cell::Counts;
use crate::clock::{Now, Period};
use crate::filter::Refusals;
use crate::pcap::{Capture, CaptureError as PcapError, Progress, Remarks};
use crate::period::{Notice, Periods, SYSTEM_CALLS};
use crate::places::Places;
use crate::row::YEARS;
use crate::settings::Settings;
use crate::tally::Counter;
use exitmark_pcap::ReadError;
use exitmark_service::process;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{AccessFlags, access};
use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

/// How far a packet's time may be ahead of this machine's clock.
const AHEAD: SignedDuration = SignedDuration::from_hours(1);
/// Unit of the watched time, in seconds: it hides when the first and the last packet came.
const WATCH: i64 = 3600;

#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    files: usize,
    packets: u64,
    counted: Counts,
    refusals: Refusals,
    flagless: u64,
    remarks: Remarks,
    published: Vec<PathBuf>,
}

/// Counts all files, period by period.
///
/// # Errors
/// A file cannot be read or counted as it is, or a period cannot be written. Periods that were
/// published before stay.
pub(crate) fn run(settings: &Settings, files: &[PathBuf]) -> Result<Summary, CaptureError> {
    if let (Some(user), true) = (&settings.user, process::is_root()) {
        process::become_user(user)?;
    }
    process::forbid_dumps()?;
    let places = Arc::new(Places::load(&settings.places)?);
    let opened = open(files)?;
    let out = settings.directory.as_path();
    let closed_off = |reason: io::Error| -> CaptureError {
        format!(
            "{}: periods cannot be written there: {reason}; name a directory that this user may \
             write to (--out)",
            out.display()
        )
        .into()
    };
    fs::create_dir_all(out).map_err(closed_off)?;
    let held = File::open(out).map_err(closed_off)?;
    match held.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(format!(
                "{}: another exitmark-monitor counts files into this directory; wait until it \
                 ends, or name another directory (--out)",
                out.display()
            )
            .into());
        }
        Err(TryLockError::Error(reason)) => return Err(closed_off(reason)),
    }
    process::keep(&[]).map_err(cannot("give up capabilities"))?;
    access(out, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|error| closed_off(error.into()))?;
    process::forbid_system_calls(&SYSTEM_CALLS, &[])
        .map_err(cannot("forbid system calls to itself"))?;
    let captures = opened
        .into_iter()
        .map(|(path, file)| Capture::of(path, file))
        .collect::<Result<Vec<_>, _>>()?;
    let summary = Reader {
        counter: Counter::new(filter(settings), Arc::clone(&places), settings.cells),
        places,
        settings,
        periods: None,
        span: None,
        summary: Summary {
            files: files.len(),
            ..Summary::default()
        },
    }
    .read_all(captures)?;
    // The lock is held until everything is published.
    drop(held);
    Ok(summary)
}

/// Opens all files: later the process cannot open any.
fn open(files: &[PathBuf]) -> Result<Vec<(&PathBuf, File)>, CaptureError> {
    // There may be a file for each hour or minute of a month.
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
    let mut names = HashMap::new();
    let mut opened = Vec::new();
    for path in files {
        let unreadable = |source| PcapError::from(ReadError::file(path, source));
        let file = File::open(path).map_err(unreadable)?;
        let found = file.metadata().map_err(unreadable)?;
        let before = names.insert((found.dev(), found.ino()), path);
        if let Some(same) = before {
            return Err(format!(
                "{} is the same file as {}, which would be counted twice; name it once",
                path.display(),
                same.display()
            )
            .into());
        }
        opened.push((path, file));
    }
    Ok(opened)
}

/// Counts the files one after another.
struct Reader<'a> {
    settings: &'a Settings,
    places: Arc<Places>,
    counter: Counter,
    /// `None` until the first packet is known.
    periods: Option<Periods>,
    /// Times of the running period's first and latest packet.
    span: Option<(Timestamp, Timestamp)>,
    summary: Summary,
}

impl Reader<'_> {
    fn read_all(mut self, captures: Vec<Capture>) -> Result<Summary, CaptureError> {
        let captures = self.in_order(captures)?;
        let mut outcome = Ok(());
        for mut capture in captures {
            outcome = self.read(&mut capture);
            // Nothing of the last packet may remain in memory.
            self.counter.rinse();
            let (path, packets) = (capture.path().display(), capture.packets());
            tracing::info!("{path} is counted: {packets} packets");
            self.summary.packets += packets;
            self.summary.remarks.add(capture.remarks());
            if outcome.is_err() {
                break;
            }
        }
        // Packets before a fault are counted.
        let closed = self.close(Timestamp::UNIX_EPOCH);
        if let (Err(_), Err(also)) = (&outcome, &closed) {
            // The first error says that everything before it was counted.
            tracing::error!("{also}");
        }
        outcome.and(closed)?;
        self.summary.refusals = *self.counter.refusals();
        self.summary.flagless = self.counter.flagless();
        Ok(self.summary)
    }

    /// Sorts the files by their first packet. Looking at each first packet also reports a bad file
    /// before the others are counted, which may take an hour.
    fn in_order(&mut self, captures: Vec<Capture>) -> Result<Vec<Capture>, CaptureError> {
        let long_ago = Timestamp::UNIX_EPOCH..Timestamp::UNIX_EPOCH;
        let mut begun = Vec::new();
        for mut capture in captures {
            let first = match capture.count_until(long_ago.clone(), &mut self.counter)? {
                Progress::Next(time) => Some(time),
                Progress::End => None,
            };
            if let Some(time) = first {
                self.refuse_clock(&capture, time)?;
            }
            begun.push((first, capture));
        }
        begun.sort_by_key(|(first, _)| *first);
        let earliest = begun.iter().find_map(|(first, _)| *first);
        if let Some(earliest) = earliest {
            let now = Now::of_packet(earliest);
            let opened = open_periods(self.settings, &self.places, None, now)?;
            let (periods, _, notices) = opened;
            log_notices(&notices);
            for (first, capture) in &begun {
                first.map_or(Ok(()), |first| again(&periods, capture, first))?;
            }
            self.periods = Some(periods);
            self.span = Some((earliest, earliest));
        }
        Ok(begun.into_iter().map(|(_, capture)| capture).collect())
    }

    fn read(&mut self, capture: &mut Capture) -> Result<(), CaptureError> {
        // Without periods no file has a packet.
        while let Some(periods) = &self.periods {
            let Period { start, .. } = periods.status().running;
            let end = periods.status().running.end();
            let progress = capture.count_until(start..end, &mut self.counter);
            if let Some(last) = capture.last() {
                let (first, before) = self.span.unwrap_or((last, last));
                self.span = Some((first, before.max(last)));
            }
            match progress? {
                Progress::End => break,
                Progress::Next(time) => {
                    self.refuse_clock(capture, time)?;
                    if time < start {
                        let began = Period::at(time, self.settings.length).start;
                        let path = capture.path().display();
                        let what = format_args!(
                            "it belongs to the period that began {began}, which was closed when \
                             that of {start} began; sort the packets (`reordercap {path} \
                             NEW.pcapng`; captures of the same time: `mergecap -w NEW.pcapng \
                             FILES`), and count them again into a directory without their periods"
                        );
                        return Err(refused(capture, what));
                    }
                    // The period of the capture's next packet.
                    again(periods, capture, time)?;
                    self.close(time)?;
                    self.span = Some((time, time));
                }
            }
        }
        Ok(())
    }

    /// Closes the running period and begins that of `next`.
    fn close(&mut self, next: Timestamp) -> Result<(), CaptureError> {
        let (Some(periods), Some((first, last))) = (&mut self.periods, self.span.take()) else {
            return Ok(());
        };
        let seconds = last.duration_since(first).as_secs().max(1);
        let hours = (seconds.saturating_add(WATCH - 1)) / WATCH;
        let watched = (hours * WATCH).min(periods.status().running.length.seconds());
        let tally = self.counter.tally_mut();
        tally.note_watched(watched.unsigned_abs());
        for (_, counts) in tally.totals() {
            self.summary.counted += counts;
        }
        for notice in periods.close(tally.take(), Now::of_packet(next)) {
            if let Notice::Unpublished(_, path, reason, _) = notice {
                return Err(format!(
                    "{}: the period cannot be written: {reason}; make room, or name another \
                     directory (--out), and count the files again into a directory without their \
                     periods",
                    path.display()
                )
                .into());
            }
            log_notices(std::slice::from_ref(&notice));
            if let Notice::Published(_, path) = notice {
                self.summary.published.push(path);
            }
        }
        Ok(())
    }

    /// Refuses a capture's next packet if its time is before 2000 or in the future.
    fn refuse_clock(&self, capture: &Capture, time: Timestamp) -> Result<(), CaptureError> {
        let began = Period::at(time, self.settings.length).start;
        let year = |time: Timestamp| time.to_zoned(TimeZone::UTC).year();
        let latest = Timestamp::now().saturating_add(AHEAD);
        if YEARS.contains(&year(began)) && latest.is_ok_and(|latest| time <= latest) {
            return Ok(());
        }
        let what = format_args!(
            "its date is {}, before the year {} or in the future, so a clock was wrong: leave the \
             packet out (`editcap {path} NEW.pcapng {}`), or shift the times of all packets \
             (`editcap -t SECONDS {path} NEW.pcapng`)",
            time.strftime("%Y-%m-%d"),
            YEARS.start,
            capture.packets() + 1,
            path = capture.path().display()
        );
        Err(refused(capture, what))
    }
}

/// Refuses a capture's next packet if its period is published already.
fn again(periods: &Periods, capture: &Capture, time: Timestamp) -> Result<(), CaptureError> {
    let Some(there) = periods.published_at(time) else {
        return Ok(());
    };
    let what = format_args!(
        "its period is published already, in {}; remove that file or name another directory \
         (--out), and give all captures of a period together: published files are never extended",
        there.display()
    );
    Err(refused(capture, what))
}

/// The error for a capture's next packet.
fn refused(capture: &Capture, what: impl fmt::Display) -> CaptureError {
    let (path, number) = (capture.path().display(), capture.packets() + 1);
    format!("{path}, packet {number}: {what}").into()
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts {
            flows,
            bytes,
            packets,
            down_bytes,
            down_packets,
        } = self.counted;
        writeln!(
            f,
            "{} packets in {} files; counted: {packets} packets, {bytes} bytes, {flows} connections",
            self.packets, self.files
        )?;
        if down_packets > 0 {
            writeln!(
                f,
                "counted down: {down_packets} packets, {down_bytes} bytes"
            )?;
        }
        for (reason, packets) in self.refusals.named().filter(|(_, packets)| *packets > 0) {
            writeln!(f, "not counted, {reason}: {packets}")?;
        }
        if self.refusals.inbound() > 0 {
            writeln!(f, "{INBOUND}")?;
        }
        if self.flagless > 0 {
            writeln!(
                f,
                "{} packets were truncated before the TCP flags, so connections are missing; capture \
                 at least 96 bytes of each packet",
                self.flagless
            )?;
        }
        write!(f, "{}", self.remarks)?;
        self.published
            .iter()
            .try_for_each(|path| writeln!(f, "{}", path.display()))
    }
}
