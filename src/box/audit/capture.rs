//! Writes samples as a pcapng file for the operator. Shows known header fields only, unless the
//! request includes payload or addresses.

use super::redact::{Site, redacted};
use super::wire::Wire;
use crate::observe::CaptureRequest;
use crossbeam::channel::{self, Receiver, Sender, TrySendError};
use exitmark_datapath::{Counter, Outcome, Role, SAMPLE_BYTES, Sample};
use exitmark_policy::packet::{self, Dscp};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::interface_statistics::{
    InterfaceStatisticsBlock, InterfaceStatisticsOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness, PcapError};
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The most unread pieces. The last place is reserved for the final piece.
const PIECES: usize = 4096;
/// The resolution of timestamps: 10^-9 s.
const RESOLUTION: u8 = 9;
/// The direction bits of an enhanced packet's flags: inbound or outbound at its interface.
const CAME: u32 = 1;
const LEFT: u32 = 2;

/// One moment on both clocks, to convert the times of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The time of CLOCK_MONOTONIC.
    pub monotonic: Duration,
    /// The time since the Unix epoch.
    pub wall: Duration,
}

/// What the captures of one request, one for each wire, have in common.
#[derive(Debug, Default)]
pub struct CaptureTotals {
    written: AtomicU64,
    missed: AtomicU64,
    is_over: AtomicBool,
}

impl CaptureTotals {
    /// Ends all of them.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// One of the captures of a request.
#[derive(Clone, Debug, Default)]
pub struct CapturePart {
    /// The name of the wire, which is written beside each frame; empty with one wire.
    pub wire: String,
    /// What the captures have in common: their limit of frames, and their end.
    pub totals: Arc<CaptureTotals>,
}

/// A running capture: its limits, its writer, and what it left out.
pub(super) struct Capture {
    request: CaptureRequest,
    part: CapturePart,
    begun: Moment,
    pieces: Sender<Vec<u8>>,
    writer: PcapNgWriter<Vec<u8>>,
    /// Frames without room, because the reader was too slow.
    missed: u64,
    lost_before: u64,
}

impl Capture {
    /// Starts a capture. `lost` is the number of samples lost so far.
    ///
    /// # Errors
    /// The request is invalid; the message says what is accepted.
    pub(super) fn begin(
        request: CaptureRequest,
        part: CapturePart,
        begun: Moment,
        lost: u64,
    ) -> Result<(Self, Receiver<Vec<u8>>), String> {
        request.check()?;
        let (pieces, read) = channel::bounded(PIECES);
        let writer = header().map_err(|error| format!("cannot begin a capture: {error}"))?;
        let mut capture = Self {
            request,
            part,
            begun,
            pieces,
            writer,
            missed: 0,
            lost_before: lost,
        };
        capture.send();
        Ok((capture, read))
    }

    /// Adds a sample, if there is room for it.
    pub(super) fn add(&mut self, sample: &Sample, site: &Site<'_>) {
        if self.is_full() {
            return;
        }
        // This is the only sender, so the last place stays free.
        if self.pieces.len() + 1 >= PIECES {
            self.missed += 1;
            return;
        }
        let (frame, port, direction) = match sample.outcome {
            Outcome::Forward(port) => (&sample.after, port, LEFT),
            Outcome::Stack | Outcome::Drop(_) => (&sample.before, sample.ingress, CAME),
        };
        let since = sample.arrived.saturating_sub(self.begun.monotonic);
        let block = EnhancedPacketBlock {
            interface_id: interface(port),
            timestamp: self.begun.wall + since,
            original_len: length(sample, frame),
            data: Cow::Owned(redacted(&self.request, frame, sample.rule, site)),
            options: vec![
                EnhancedPacketOption::Comment(self.comment(sample).into()),
                EnhancedPacketOption::Flags(direction),
            ],
        };
        if self.writer.write_pcapng_block(block).is_ok() {
            self.part.totals.written.fetch_add(1, Ordering::Relaxed);
            self.send();
        }
    }

    fn comment(&self, sample: &Sample) -> String {
        match self.part.wire.as_str() {
            "" => comment(sample),
            wire => format!("{}; wire {wire}", comment(sample)),
        }
    }

    fn is_full(&self) -> bool {
        let totals = &self.part.totals;
        let written = totals.written.load(Ordering::Relaxed);
        totals.is_over.load(Ordering::Relaxed) || written >= self.request.frames
    }

    fn send(&mut self) {
        let piece = std::mem::take(self.writer.get_mut());
        if let Err(TrySendError::Disconnected(_)) = self.pieces.try_send(piece) {
            self.part.totals.end();
        }
    }

    /// Whether the capture has ended: time or number of frames is reached, or the reader is gone.
    pub(super) fn is_over(&self, now: Duration) -> bool {
        let end = self.begun.monotonic + Duration::from_secs(self.request.seconds);
        self.is_full() || now >= end
    }

    /// Writes the statistics and ends. `lost` is the number of samples lost so far.
    pub(super) fn end(mut self, lost: u64) {
        let missed = self.missed + lost.saturating_sub(self.lost_before);
        let totals = &self.part.totals;
        let missed = totals.missed.fetch_add(missed, Ordering::Relaxed) + missed;
        let comment = format!(
            "{} frames, one in {}; {missed} more are left out, because a capture takes a bounded \
             number of frames a second, or because its reader is too slow",
            totals.written.load(Ordering::Relaxed),
            self.request.one_in
        );
        let statistics = InterfaceStatisticsBlock {
            interface_id: interface(Role::Host),
            timestamp: stamp(self.begun.wall),
            options: vec![
                InterfaceStatisticsOption::Comment(comment.into()),
                InterfaceStatisticsOption::IsbOsDrop(missed),
            ],
        };
        if self.writer.write_pcapng_block(statistics).is_ok() {
            self.send();
        }
    }
}

/// Writes the section header and the interfaces, which are the box's ports by role.
fn header() -> Result<PcapNgWriter<Vec<u8>>, PcapError> {
    let application = format!("exitmark {}", exitmark_service::VERSION);
    let section = SectionHeaderBlock {
        endianness: Endianness::native(),
        options: vec![SectionHeaderOption::UserApplication(application.into())],
        ..SectionHeaderBlock::default()
    };
    let mut writer = PcapNgWriter::with_section_header(Vec::new(), section)?;
    for role in Role::ALL {
        writer.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: u32::try_from(SAMPLE_BYTES).unwrap_or(0),
            options: vec![
                InterfaceDescriptionOption::IfName(role.name().into()),
                InterfaceDescriptionOption::IfTsResol(RESOLUTION),
            ],
        })?;
    }
    Ok(writer)
}

fn interface(role: Role) -> u32 {
    u32::try_from(role.index()).unwrap_or(0)
}

/// A timestamp in pcapng's format, the upper 32 bits first. The writer takes one number, and writes
/// it in native byte order.
fn stamp(time: Duration) -> u64 {
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    if cfg!(target_endian = "little") {
        nanos.rotate_left(32)
    } else {
        nanos
    }
}

/// The length in bytes of a sampled frame, of which this is the beginning as it arrived or left: its
/// VLAN tags may have been replaced by more or fewer.
fn length(sample: &Sample, excerpt: &[u8]) -> u32 {
    let tags = |frame: &[u8]| packet::tags(frame).bytes();
    let length = sample.frame_bytes + tags(excerpt);
    let length = length.saturating_sub(tags(&sample.before));
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn comment(sample: &Sample) -> String {
    let what = match sample.rule {
        Some(rule) => format!("{}: {}", rule.class().name(), rule.describe()),
        None => format!("inbound: received on {}", sample.ingress),
    };
    let outcome = match sample.outcome {
        Outcome::Forward(port) => port.name().to_owned(),
        Outcome::Stack => "left to the box's own network stack".to_owned(),
        Outcome::Drop(reason) => Counter::Dropped(reason).to_string(),
    };
    let dscp = |frame| Wire::of(frame).and_then(|wire| wire.dscp(frame));
    let mark = match (dscp(&sample.before), dscp(&sample.after)) {
        (before, after) if before == after => String::new(),
        (_, Some(Dscp::DEFAULT)) => ", mark cleared".to_owned(),
        (_, Some(mark)) => format!(", marked {mark}"),
        (_, None) => String::new(),
    };
    format!("{what}; {outcome}{mark}; engine {}", sample.by.engine())
}
