//! Packets out of capture files: pcap and pcapng, of Ethernet, of IP alone, and of Linux's
//! interface "any".
//!
//! A file is read through one buffer, in which the packets stay: nothing of them is copied, and
//! the buffer is wiped when it is not needed any more. A file that is broken somewhere is counted
//! up to there.

mod error;
mod format;
mod input;
mod link;

pub use error::CaptureError;

use super::filter::Arrived;
use super::tally::Counter;
use format::{Format, Stuck};
use input::Input;
use jiff::Timestamp;
use link::Record;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Packets that are counted together.
const BATCH: usize = 64;
/// By how many nanoseconds a packet may come too late: a NIC with several queues, or a clock that
/// is put right, does not keep packets quite in order.
const GRACE: u64 = 60 * 1_000_000_000;

/// How far a capture was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The next packet is of this time: it does not belong to the period, but behind it, or long
    /// before it.
    Next(Timestamp),
    /// There are no more packets.
    End,
}

/// An open capture.
pub struct Capture {
    path: PathBuf,
    input: Input,
    format: Format,
    packets: u64,
    late: u64,
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
        let file = File::open(path).map_err(|source| CaptureError::file(path, source))?;
        Self::of(path, file)
    }

    /// The same of a file that is open: all that is done here is to read it.
    ///
    /// # Errors
    /// As [`Capture::open`].
    pub fn of(path: &Path, file: File) -> Result<Self, CaptureError> {
        let in_file = |source| CaptureError::file(path, source);
        let mut input = Input::new(file);
        let format = loop {
            match Format::read(input.unread()) {
                Ok((format, taken)) => {
                    input.take(taken);
                    break format;
                }
                Err(Stuck::Link(link)) => return Err(CaptureError::link(path, link)),
                Err(Stuck::Incomplete) if input.fill().map_err(in_file)? => {}
                Err(_) if input.unread().is_empty() => {
                    return Err(CaptureError::Empty(path.to_owned()));
                }
                Err(_) => return Err(CaptureError::Format(path.to_owned())),
            }
        };
        Ok(Self {
            path: path.to_owned(),
            input,
            format,
            packets: 0,
            late: 0,
            last: None,
        })
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
            self.input.read_ahead();
        }
        loop {
            match self.count_batch(&period, counter) {
                Pause::Full => {}
                Pause::Elsewhere(time) => return Ok(Progress::Next(timestamp(time))),
                Pause::Timeless => return Err(CaptureError::Timeless(self.path.clone())),
                Pause::Stuck(Stuck::Incomplete) => {
                    let filled = self.input.fill();
                    if !filled.map_err(|error| CaptureError::file(&self.path, error))? {
                        return self.end();
                    }
                }
                Pause::Stuck(Stuck::Link(link)) => {
                    return Err(CaptureError::link(&self.path, link));
                }
                Pause::Stuck(Stuck::Broken(what)) => {
                    return Err(CaptureError::Broken {
                        path: self.path.clone(),
                        packets: self.packets,
                        offset: self.input.offset(),
                        what,
                    });
                }
            }
        }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many packets were read, whether they counted or not.
    pub const fn packets(&self) -> u64 {
        self.packets
    }

    /// When the last of them that has a time was captured.
    pub const fn last(&self) -> Option<Timestamp> {
        self.last
    }

    /// How many of them were older than the period that was running.
    pub const fn late(&self) -> u64 {
        self.late
    }

    fn end(&mut self) -> Result<Progress, CaptureError> {
        self.input.wipe();
        if self.input.unread().is_empty() {
            return Ok(Progress::End);
        }
        Err(CaptureError::Truncated {
            path: self.path.clone(),
            packets: self.packets,
            offset: self.input.offset(),
        })
    }

    #[inline]
    fn count_batch(&mut self, period: &Range<u64>, counter: &mut Counter) -> Pause {
        let accepted = period.start.saturating_sub(GRACE)..period.end;
        let mut records = [Record::default(); BATCH];
        let mut len = 0;
        let mut taken = 0;
        let (buffer, unread) = self.input.buffer();
        let mut last = None;
        let pause = loop {
            if len == BATCH {
                break Pause::Full;
            }
            let at = unread + taken;
            let step = match self.format.step(&buffer[at..]) {
                Ok(step) => step,
                Err(stuck) => break Pause::Stuck(stuck),
            };
            if let Some(packet) = step.packet {
                if let Some(time) = packet.time {
                    if !accepted.contains(&time) {
                        break Pause::Elsewhere(time);
                    }
                    self.late += u64::from(time < period.start);
                    last = Some(time);
                } else if last.is_none() && self.last.is_none() {
                    break Pause::Timeless;
                }
                let record = Record {
                    start: at + packet.record.start,
                    ..packet.record
                };
                records[len] = packet.link.dress(buffer, record);
                len += 1;
            }
            taken += step.taken;
        };
        let batch: [Arrived<'_>; BATCH] =
            std::array::from_fn(|index| records[index].arrived(buffer));
        counter.count(&batch[..len]);
        self.packets += len as u64;
        self.last = last.map(timestamp).or(self.last);
        self.input.take(taken);
        pause
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
