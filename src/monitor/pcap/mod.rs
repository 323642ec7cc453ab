//! Packets out of capture files, counted by the periods that they are of.
//!
//! A file that is broken somewhere is counted up to there. Packets of a link type that is not read
//! are passed over, if there are others, and told of. What was captured at several interfaces is
//! counted once (`copies`).

mod copies;

use super::filter::Arrived;
use super::tally::Counter;
use crate::pcap::{Link, Passed, ReadError, Reader, Record, Step, Stuck};
use copies::Copies;
use jiff::Timestamp;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Packets that are counted together.
const BATCH: usize = 64;
/// By how many nanoseconds a packet may come too late: a NIC with several queues, or a clock that
/// is put right, does not keep packets quite in order.
const GRACE: u64 = 60 * 1_000_000_000;

/// Why a capture cannot be counted, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Its packets have no time.
    #[error(
        "{0} begins with a packet that has no time (pcapng's Simple Packet Block), so nobody knows \
         which period it is of; capture with what writes times, as tcpdump and dumpcap do, or give \
         all of it one that you know: `editcap -F pcap {0} OLD.pcap && editcap -t $(date -d \
         2026-11-21T12:00Z +%s) OLD.pcap NEW.pcap`"
    )]
    Timeless(PathBuf),
}

/// How far a capture was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The next packet is of this time: it does not belong to the period, but behind it, or long
    /// before it.
    Next(Timestamp),
    /// There are no more packets.
    End,
}

/// What of a capture was not counted as it lies there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remarks {
    /// Packets that were older than the period that was running.
    pub late: u64,
    /// Packets of link types that are not read.
    pub other_links: u64,
    /// Copies of a packet from further interfaces, which were left out.
    pub copies: u64,
    /// Packets of which nobody knows at which interface they were captured (LINUX_SLL), so that
    /// copies count.
    pub anywhere: u64,
}

impl Remarks {
    /// Adds those of another file.
    pub const fn add(&mut self, more: Self) {
        self.late += more.late;
        self.other_links += more.other_links;
        self.copies += more.copies;
        self.anywhere += more.anywhere;
    }
}

impl fmt::Display for Remarks {
    /// A line for each that there is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (packets, what) in [
            (
                self.late,
                "are up to a minute older than the period that they are counted in",
            ),
            (
                self.other_links,
                "are of interfaces with a link type that cannot be read, and not counted",
            ),
            (
                self.copies,
                "were captured at one interface more, and are counted once",
            ),
            (
                self.anywhere,
                "may have been captured at several interfaces, and are counted at each: link type \
                 113 does not tell; capture at one interface, or with `tcpdump -y LINUX_SLL2`",
            ),
        ] {
            if packets > 0 {
                writeln!(f, "{packets} packets {what}")?;
            }
        }
        Ok(())
    }
}

/// An open capture.
pub struct Capture {
    reader: Reader,
    copies: Copies,
    remarks: Remarks,
    last: Option<Timestamp>,
}

/// Why a batch is not longer.
enum Pause {
    Full,
    Elsewhere(u64),
    Timeless,
    Stuck(Stuck),
}

impl Capture {
    /// Opens a capture and reads its header.
    ///
    /// # Errors
    /// It cannot be read, or is no capture of a network that is known here.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        Ok(Self::from(Reader::open(path)?))
    }

    /// The same of a file that is open: all that is done here is to read it.
    ///
    /// # Errors
    /// As [`Capture::open`].
    pub fn of(path: &Path, file: File) -> Result<Self, CaptureError> {
        Ok(Self::from(Reader::of(path, file)?))
    }

    /// Counts up to the first packet whose time is at or after the period's end, or more than a
    /// minute before its start, which is left. One that is less late counts all the same; one that
    /// has no time is of the same period as what was before it. To learn the first packet's time,
    /// give an empty period that is over long ago.
    ///
    /// # Errors
    /// The file cannot be read any further, all before that being counted; or it begins without a
    /// time.
    pub fn count_until(
        &mut self,
        period: Range<Timestamp>,
        counter: &mut Counter,
    ) -> Result<Progress, CaptureError> {
        let period = nanos(period.start)..nanos(period.end);
        if !period.is_empty() {
            self.reader.read_ahead();
        }
        loop {
            match self.count_batch(&period, counter) {
                Pause::Full => {}
                Pause::Elsewhere(time) => return Ok(Progress::Next(timestamp(time))),
                Pause::Timeless => return Err(CaptureError::Timeless(self.path().to_owned())),
                Pause::Stuck(stuck) => {
                    if !self.reader.read_on(stuck)? {
                        return Ok(Progress::End);
                    }
                }
            }
        }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.reader.path()
    }

    /// How many packets were read, whether they counted or not.
    pub const fn packets(&self) -> u64 {
        self.reader.packets()
    }

    /// When the last of them that has a time was captured.
    pub const fn last(&self) -> Option<Timestamp> {
        self.last
    }

    /// What was not counted as it lies there, so far.
    pub fn remarks(&self) -> Remarks {
        Remarks {
            other_links: self.reader.passed().packets,
            ..self.remarks
        }
    }

    #[inline]
    fn count_batch(&mut self, period: &Range<u64>, counter: &mut Counter) -> Pause {
        let accepted = period.start.saturating_sub(GRACE)..period.end;
        let mut records = [Record::default(); BATCH];
        let (mut len, mut read, mut taken) = (0, 0, 0);
        let mut passed = Passed::default();
        let (format, buffer, unread) = self.reader.parts();
        let mut last = None;
        let pause = loop {
            if read == BATCH {
                break Pause::Full;
            }
            let at = unread + taken;
            let step = match format.step(&buffer[at..]) {
                Ok(step) => step,
                Err(stuck) => break Pause::Stuck(stuck),
            };
            let Step {
                packet,
                taken: bytes,
            } = step;
            if let Some(packet) = packet {
                if let Some(time) = packet.time {
                    if !accepted.contains(&time) {
                        break Pause::Elsewhere(time);
                    }
                    self.remarks.late += u64::from(time < period.start);
                    last = Some(time);
                } else if last.is_none() && self.last.is_none() {
                    break Pause::Timeless;
                }
                read += 1;
                let record = Record {
                    start: at + packet.record.start,
                    ..packet.record
                };
                match packet.link {
                    Link::Other(link) => passed = passed.and(link),
                    link => {
                        let interface = copies::interface(&packet, record.bytes(buffer));
                        let record = link.dress(buffer, record);
                        records[len] = record;
                        let is_copy = interface.is_some_and(|interface| {
                            let arrived = arrived(record, buffer);
                            counter.counts(&arrived)
                                && self.copies.has(&arrived, interface, packet.time)
                        });
                        len += usize::from(!is_copy);
                        self.remarks.copies += u64::from(is_copy);
                        if link == Link::Cooked && counter.counts(&arrived(record, buffer)) {
                            self.remarks.anywhere += 1;
                        }
                    }
                }
            }
            taken += bytes;
        };
        let batch: [Arrived<'_>; BATCH] =
            std::array::from_fn(|index| arrived(records[index], buffer));
        counter.count(&batch[..len]);
        self.last = last.map(timestamp).or(self.last);
        self.reader.take(taken, read as u64, passed);
        pause
    }
}

impl From<Reader> for Capture {
    fn from(reader: Reader) -> Self {
        Self {
            reader,
            copies: Copies::default(),
            remarks: Remarks::default(),
            last: None,
        }
    }
}

fn arrived(record: Record, buffer: &[u8]) -> Arrived<'_> {
    Arrived {
        bytes: record.bytes(buffer),
        whole: record.whole,
    }
}

/// Since 1970; what is before that is as if it were then.
fn nanos(time: Timestamp) -> u64 {
    let nanos = time.as_nanosecond().max(0);
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

fn timestamp(nanos: u64) -> Timestamp {
    Timestamp::from_nanosecond(nanos.into()).unwrap_or(Timestamp::MAX)
}
