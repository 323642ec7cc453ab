//! Counts captured files. Periods follow the packets' own times, and no state is kept for a
//! restart: the files can be read again. All files are opened and all privileges dropped before the
//! first byte is read, because a capture is untrusted input.

use super::{CaptureError, filter, open_periods, tell};
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

/// Why files are not counted, or not to the end.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// Periods cannot be written to the directory.
    #[error(
        "{}: periods cannot be written there: {reason}; name a directory that this user may write \
         to (--out)",
        path.display()
    )]
    Out {
        /// Path of the period directory.
        path: PathBuf,
        /// The error that the operating system returned.
        reason: io::Error,
    },
    /// A period cannot be written; it is not tried again.
    #[error(
        "{}: the period cannot be written: {reason}; make room, or name another directory (--out), \
         and count the files again into a directory without their periods",
        path.display()
    )]
    Unpublished {
        /// Path of the period file that cannot be written.
        path: PathBuf,
        /// The error that the operating system returned.
        reason: io::Error,
    },
    /// Another process publishes into the directory.
    #[error(
        "{}: another exitmark-monitor counts files into this directory; wait until it ends, or name \
         another directory (--out)",
        .0.display()
    )]
    InUse(PathBuf),
    /// The same file is given twice.
    #[error(
        "{} is the same file as {}, which would be counted twice; name it once",
        path.display(), same.display()
    )]
    Twice {
        /// Path of the captured file.
        path: PathBuf,
        /// The name under which it was given before; may be the same.
        same: PathBuf,
    },
    /// The packet's period is published already and would be counted twice.
    #[error(
        "{}, packet {number}: its period is published already, in {}; remove that file or name \
         another directory (--out), and give all captures of a period together: published files \
         are never extended",
        path.display(), there.display()
    )]
    Again {
        /// Path of the captured file.
        path: PathBuf,
        /// The packet's number in the file, from 1.
        number: u64,
        /// The published period file.
        there: PathBuf,
    },
    /// The packet's time is before 2000 or in the future.
    #[error(
        "{0}, packet {number}: its date is {day}, before the year {first} or in the future, so a \
         clock was wrong: leave the packet out (`editcap {0} NEW.pcapng {number}`), or shift the \
         times of all packets (`editcap -t SECONDS {0} NEW.pcapng`)",
        path.display(), first = YEARS.start
    )]
    Clock {
        /// Path of the captured file.
        path: PathBuf,
        /// The packet's number in the file, from 1.
        number: u64,
        /// The packet's date, in UTC.
        day: String,
    },
    /// The packet's period was closed already.
    #[error(
        "{0}, packet {number}: it belongs to the period that began {began}, which was closed when \
         that of {running} began; sort the packets (`reordercap {0} NEW.pcapng`; captures of the \
         same time: `mergecap -w NEW.pcapng FILES`), and count them again into a directory without their \
         periods",
        path.display()
    )]
    Order {
        /// Path of the captured file.
        path: PathBuf,
        /// The packet's number in the file, from 1.
        number: u64,
        /// When the packet's period began.
        began: Timestamp,
        /// When the running period began.
        running: Timestamp,
    },
}

/// Result of counting files.
#[derive(Clone, Debug, Default)]
pub struct Summary {
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
pub(super) fn run(settings: &Settings, files: &[PathBuf]) -> Result<Summary, CaptureError> {
    if let (Some(user), true) = (&settings.user, process::is_root()) {
        process::become_user(user)?;
    }
    process::forbid_dumps()?;
    let places = Arc::new(Places::load(&settings.places)?);
    let opened = open(files)?;
    let out = settings.directory.as_path();
    let closed_off = |reason| FilesError::Out {
        path: out.to_owned(),
        reason,
    };
    fs::create_dir_all(out).map_err(closed_off)?;
    let held = File::open(out).map_err(closed_off)?;
    match held.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(FilesError::InUse(out.to_owned()).into()),
        Err(TryLockError::Error(reason)) => return Err(closed_off(reason).into()),
    }
    process::keep(&[]).map_err(|error| CaptureError::System("give up capabilities", error))?;
    access(out, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|error| closed_off(error.into()))?;
    process::forbid_system_calls(&SYSTEM_CALLS, &[])
        .map_err(|error| CaptureError::System("forbid system calls to itself", error))?;
    let captures = opened
        .into_iter()
        .map(|(path, file)| Capture::of(path, file))
        .collect::<Result<Vec<_>, _>>()?;
    let summary = Reader {
        counter: Counter::new(filter(settings), Arc::clone(&places), settings.cells),
        places,
        settings,
        periods: None,
        seen: None,
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
            return Err(FilesError::Twice {
                path: path.clone(),
                same: same.clone(),
            }
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
    seen: Option<(Timestamp, Timestamp)>,
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
            tell(&opened.notices);
            for (first, capture) in &begun {
                first.map_or(Ok(()), |first| again(&opened.periods, capture, first))?;
            }
            self.periods = Some(opened.periods);
            self.seen = Some((earliest, earliest));
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
                let (first, before) = self.seen.unwrap_or((last, last));
                self.seen = Some((first, before.max(last)));
            }
            match progress? {
                Progress::End => break,
                Progress::Next(time) => {
                    self.refuse_clock(capture, time)?;
                    if time < start {
                        let began = Period::at(time, self.settings.length).start;
                        return Err(FilesError::Order {
                            path: capture.path().to_owned(),
                            number: capture.packets() + 1,
                            began,
                            running: start,
                        }
                        .into());
                    }
                    self.turn_to(capture, time)?;
                }
            }
        }
        Ok(())
    }

    /// Switches to the period of a capture's next packet.
    fn turn_to(&mut self, capture: &Capture, time: Timestamp) -> Result<(), CaptureError> {
        if let Some(periods) = &self.periods {
            again(periods, capture, time)?;
        }
        self.close(time)?;
        self.seen = Some((time, time));
        Ok(())
    }

    /// Closes the running period and begins that of `next`.
    fn close(&mut self, next: Timestamp) -> Result<(), CaptureError> {
        let (Some(periods), Some((first, last))) = (&mut self.periods, self.seen.take()) else {
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
            if let Notice::Unpublished { path, reason, .. } = notice {
                return Err(FilesError::Unpublished { path, reason }.into());
            }
            tell(std::slice::from_ref(&notice));
            if let Notice::Published { path, .. } = notice {
                self.summary.published.push(path);
            }
        }
        Ok(())
    }

    /// Refuses a capture's next packet if its time is before 2000 or in the future.
    fn refuse_clock(&self, capture: &Capture, time: Timestamp) -> Result<(), FilesError> {
        let began = Period::at(time, self.settings.length).start;
        let year = |time: Timestamp| time.to_zoned(TimeZone::UTC).year();
        let latest = Timestamp::now().saturating_add(AHEAD);
        if YEARS.contains(&year(began)) && latest.is_ok_and(|latest| time <= latest) {
            return Ok(());
        }
        Err(FilesError::Clock {
            path: capture.path().to_owned(),
            number: capture.packets() + 1,
            day: time.strftime("%Y-%m-%d").to_string(),
        })
    }
}

/// Refuses a capture's next packet if its period is published already.
fn again(periods: &Periods, capture: &Capture, time: Timestamp) -> Result<(), FilesError> {
    match periods.published_at(time) {
        None => Ok(()),
        Some(there) => Err(FilesError::Again {
            path: capture.path().to_owned(),
            number: capture.packets() + 1,
            there,
        }),
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
