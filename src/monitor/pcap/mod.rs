//! Counts the packets of capture files by period.
//!
//! A broken file is counted up to the fault. Packets of an unsupported link type are skipped and
//! reported, if the file has others. A packet that was captured at several interfaces counts once
//! (`copies`).

mod copies;

use super::filter::Arrived;
use super::tally::Counter;
use copies::Copies;
use exitmark_pcap::{Link, Passed, ReadError, Reader, Record, Stuck};
use jiff::Timestamp;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Packets that are counted together.
const BATCH: usize = 64;
/// How late a packet may be, in nanoseconds: several queues or a clock adjustment can reorder
/// packets.
const GRACE: u64 = 60 * 1_000_000_000;

/// Why a capture cannot be counted, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file cannot be read, is not a capture, or is broken.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The first packet has no time.
    #[error(
        "{0} begins with a packet that has no time (pcapng's Simple Packet Block), so its \
         period is unknown; capture with what writes times, as tcpdump and dumpcap do, or give \
         all of it one that you know: `editcap -F pcap {0} OLD.pcap && editcap -t $(date -d \
         2026-11-21T12:00Z +%s) OLD.pcap NEW.pcap`"
    )]
    Timeless(PathBuf),
}

/// How far a capture was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The next packet has this time: after the period, or long before it.
    Next(Timestamp),
    /// The file was read to its end.
    End,
}

/// Irregularities in counting a capture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remarks {
    /// Packets that were older than the running period and counted in it.
    pub late: u64,
    /// Packets of unsupported link types; not counted.
    pub other_links: u64,
    /// Copies of a packet from further interfaces; not counted.
    pub copies: u64,
    /// Packets without an interface (LINUX_SLL), whose copies cannot be detected and count.
    pub anywhere: u64,
}

impl Remarks {
    /// Adds the remarks of another file.
    pub const fn add(&mut self, more: Self) {
        self.late += more.late;
        self.other_links += more.other_links;
        self.copies += more.copies;
        self.anywhere += more.anywhere;
    }
}

impl fmt::Display for Remarks {
    /// One line for each nonzero number.
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
                "were also captured at another interface, and are counted once",
            ),
            (
                self.anywhere,
                "may have been captured at several interfaces, and are counted at each: link type \
                 113 does not record it; capture at one interface, or with `tcpdump -y LINUX_SLL2`",
            ),
        ] {
            if packets > 0 {
                writeln!(f, "{packets} packets {what}")?;
            }
        }
        Ok(())
    }
}

/// An open capture, which is counted period by period.
pub struct Capture {
    reader: Reader,
    copies: Copies,
    remarks: Remarks,
    last: Option<Timestamp>,
}

/// Why a batch has fewer packets than it has room for, or is full.
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
    /// The file cannot be read, or is not a capture of a supported link type.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        Ok(Self::from(Reader::open(path)?))
    }

    /// Like [`Capture::open`] for an open file, which is only read.
    ///
    /// # Errors
    /// As [`Capture::open`].
    pub fn of(path: &Path, file: File) -> Result<Self, CaptureError> {
        Ok(Self::from(Reader::of(path, file)?))
    }

    /// Counts up to the first packet whose time is at or after the period's end, or more than a
    /// minute before its start; that packet is not consumed. A packet that is late by less counts,
    /// and one without a time belongs to the period of the packet before it. An empty period in the
    /// far past returns the first packet's time.
    ///
    /// # Errors
    /// The rest of the file cannot be read (everything before was counted), or the first packet has
    /// no time.
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

    /// The path of the capture, as it was given.
    pub fn path(&self) -> &Path {
        self.reader.path()
    }

    /// How many packets were read, whether they counted or not.
    pub const fn packets(&self) -> u64 {
        self.reader.packets()
    }

    /// Capture time of the last packet that has one.
    pub const fn last(&self) -> Option<Timestamp> {
        self.last
    }

    /// The irregularities in what was read so far.
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
            if let Some(packet) = step.packet {
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
                let mut record = packet.record;
                record.start += at;
                match packet.link {
                    Link::Other(link) => passed = passed.and(link),
                    link => {
                        let interface = copies::interface(&packet, record.bytes(buffer));
                        let record = link.dress(buffer, record);
                        records[len] = record;
                        let is_copy = interface.is_some_and(|interface| {
                            let counted = counter.unwrapped(&arrived(record, buffer));
                            counted.is_some_and(|counted| {
                                self.copies.has(&counted, interface, packet.time)
                            })
                        });
                        len += usize::from(!is_copy);
                        self.remarks.copies += u64::from(is_copy);
                        if link == Link::Cooked && counter.counts(&arrived(record, buffer)) {
                            self.remarks.anywhere += 1;
                        }
                    }
                }
            }
            taken += step.taken;
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
    }
}

/// Nanoseconds since the Unix epoch; 0 for earlier times.
fn nanos(time: Timestamp) -> u64 {
    let nanos = time.as_nanosecond().max(0);
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

fn timestamp(nanos: u64) -> Timestamp {
    Timestamp::from_nanosecond(nanos.into()).unwrap_or(Timestamp::MAX)
}
