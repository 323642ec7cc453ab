//! Reports what the data path would do to captured frames, using the forwarder that handles live
//! ones.
//!
//! Shows offsets and changed bytes, never an address.

use crate::settings::Settings;
use exitmark_datapath::{Forwarder, IncomingLink, Links, Outcome, Role};
use exitmark_nic::{NextHop, Nic};
use exitmark_pcap::{Link, ReadError, Reader};
use exitmark_policy::packet::{self, Dscp, MacAddr};
use exitmark_policy::{Egress, Snapshot, Verdict};
use exitmark_relays::LoadError;
use pcap_file::pcap::{PcapHeader, PcapWriter, RawPcapPacket};
use pcap_file::{DataLink, PcapError, TsResolution};
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The longest frame that a written capture may hold, in bytes.
const SNAPLEN: u32 = 262_144;
/// Stands in for the MAC address of a NIC that this machine does not have.
const UNKNOWN_MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 0]);

/// Why frames cannot be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// Neither a file nor hexadecimal digits. The input is not repeated: it may hold addresses.
    #[error(
        "the {0} characters given are neither the name of a file nor a frame: an even number of \
         hexadecimal digits, of which white space and colons may be part"
    )]
    Input(usize),
    /// The capture cannot be read, or not to its end.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The capture cannot be opened for writing.
    #[error("{path}: {source}")]
    File {
        /// Path of the capture file.
        path: PathBuf,
        /// The error that the operating system returned.
        source: std::io::Error,
    },
    /// The capture cannot be written.
    #[error("{path}, frame {frame}: {source}")]
    Capture {
        /// Path of the capture file.
        path: PathBuf,
        /// Number of the frame, from 1; 0 is the file header.
        frame: usize,
        /// The error of the pcap writer.
        source: PcapError,
    },
    /// Some packets of the capture are not Ethernet frames.
    #[error(
        "{path}: {frames} packets are of link type {link}, not Ethernet (1), and left out; capture \
         at the port itself"
    )]
    LinkType {
        /// Path of the capture file.
        path: PathBuf,
        /// How many packets were left out.
        frames: u64,
        /// Link type of the last one.
        link: u32,
    },
    /// The relay set cannot be loaded.
    #[error(transparent)]
    Relays(#[from] LoadError),
}

/// A captured frame; the capture may have truncated it.
struct Captured {
    time: Duration,
    frame_bytes: usize,
    bytes: Vec<u8>,
}

/// What would happen to one frame.
#[derive(Debug)]
pub struct Explanation {
    /// Number of the frame, from 1.
    pub number: usize,
    /// When it was captured, since the Unix epoch.
    pub time: Duration,
    /// Length on the wire, in bytes; a capture may have kept less.
    pub frame_bytes: usize,
    /// The frame as received: the captured bytes, from the Ethernet header on.
    pub before: Vec<u8>,
    /// The frame as it would leave.
    pub after: Vec<u8>,
    /// The port by which the frame would leave, or why it would be dropped.
    pub outcome: Outcome,
    /// The verdict on an outbound frame; `None` for inbound frames, which only have a direction.
    pub verdict: Option<Verdict>,
}

/// The explained frames of one input.
#[derive(Debug)]
pub struct Explained {
    /// The frames, in capture order.
    pub frames: Vec<Explanation>,
    /// Why the other frames of the capture are missing, if there are any.
    pub fault: Option<ExplainError>,
}

/// Explains a frame given in hexadecimal digits, or every frame of a capture file, as received on
/// `port`. Without `incoming_mac`, the MAC address is read from the NIC.
///
/// # Errors
/// The input is neither a frame nor a capture, or the relay set cannot be read.
pub fn explain(
    input: &str,
    settings: &Settings,
    port: Role,
    incoming_mac: Option<MacAddr>,
) -> Result<Explained, ExplainError> {
    let (frames, fault) = match hexadecimal(input) {
        Some(bytes) => {
            let frame = Captured {
                time: Duration::ZERO,
                frame_bytes: bytes.len(),
                bytes,
            };
            (vec![frame], None)
        }
        None if Path::new(input).exists() => read_capture(Path::new(input))?,
        None => return Err(ExplainError::Input(input.chars().count())),
    };
    let sources = &settings.relays.sources;
    let relays = exitmark_relays::load(sources)?.with(&sources.extra)?;
    let snapshot = Snapshot::new(1, Arc::clone(&settings.rules), relays);
    let mut forwarder = Forwarder::new(Arc::new(snapshot), Arc::new(links(settings, incoming_mac)));
    let frames = frames
        .into_iter()
        .enumerate()
        .map(|(index, captured)| {
            let Captured {
                time,
                frame_bytes,
                bytes: before,
            } = captured;
            let mut after = before.clone();
            let (outcome, verdict) = forwarder.forward(port, &mut after, frame_bytes, time);
            Explanation {
                number: index + 1,
                time,
                frame_bytes,
                before,
                after,
                outcome,
                verdict,
            }
        })
        .collect();
    Ok(Explained { frames, fault })
}

fn links(settings: &Settings, incoming_mac: Option<MacAddr>) -> Links {
    let Some(incoming) = &settings.ports.incoming else {
        return Links::new(settings.host_mac, None);
    };
    let own = incoming_mac
        .or_else(|| Nic::look(&incoming.interface).ok().map(|nic| nic.mac))
        .unwrap_or(UNKNOWN_MAC);
    let port = if incoming.interface == settings.ports.uplink {
        Role::Uplink
    } else {
        Role::Incoming
    };
    let link = IncomingLink {
        port,
        own,
        // The address is not resolved: its MAC shows as unknown.
        next_hop: Some(match incoming.next_hop {
            NextHop::Mac(mac) => mac,
            NextHop::Address(_) => UNKNOWN_MAC,
        }),
    };
    Links::new(settings.host_mac, Some(link))
}

/// Parses hexadecimal digits; skips white space, colons and a leading `0x`.
fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    let text = text.strip_prefix("0x").unwrap_or(text);
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace() && *c != ':')
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    let pairs = digits.chunks_exact(2);
    if digits.is_empty() || !pairs.remainder().is_empty() {
        return None;
    }
    Some(pairs.map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Reads the frames of a capture up to its end or its first error, and returns that error.
fn read_capture(path: &Path) -> Result<(Vec<Captured>, Option<ExplainError>), ReadError> {
    let mut capture = Reader::open(path)?;
    let mut frames = Vec::new();
    let mut others = None;
    loop {
        let packet = match capture.read_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => break,
            Err(error) => return Ok((frames, Some(error.into()))),
        };
        if packet.link != Link::Ethernet {
            let (packets, _) = others.unwrap_or((0_u64, packet.link));
            others = Some((packets + 1, packet.link));
            continue;
        }
        frames.push(Captured {
            time: Duration::from_nanos(packet.time.unwrap_or(0)),
            frame_bytes: packet.whole,
            bytes: packet.bytes.to_vec(),
        });
    }
    let fault = others.map(|(frames, link)| ExplainError::LinkType {
        path: path.to_owned(),
        frames,
        link: link.number(),
    });
    Ok((frames, fault))
}

impl Explanation {
    /// The port by which the frame would leave, or `None`.
    pub const fn egress(&self) -> Option<Role> {
        match self.outcome {
            Outcome::Forward(role) => Some(role),
            Outcome::Stack | Outcome::Drop(_) => None,
        }
    }

    /// Writes the frames that would leave, in order, to a pcap file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(explanations: &[Self], path: &Path) -> Result<(), ExplainError> {
        let in_file = |source| ExplainError::File {
            path: path.to_owned(),
            source,
        };
        let file = File::create(path).map_err(in_file)?;
        let at_frame = |frame| {
            move |source| ExplainError::Capture {
                path: path.to_owned(),
                frame,
                source,
            }
        };
        let header = PcapHeader {
            snaplen: SNAPLEN,
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            ..PcapHeader::default()
        };
        let mut writer =
            PcapWriter::with_header(BufWriter::new(file), header).map_err(at_frame(0))?;
        for explanation in explanations.iter().filter(|one| one.egress().is_some()) {
            let length = u32::try_from(explanation.frame_bytes).unwrap_or(u32::MAX);
            let kept = explanation.after.len().min(SNAPLEN as usize);
            let packet = RawPcapPacket {
                ts_sec: u32::try_from(explanation.time.as_secs()).unwrap_or(u32::MAX),
                ts_frac: explanation.time.subsec_nanos(),
                incl_len: u32::try_from(kept).unwrap_or(SNAPLEN),
                orig_len: length,
                data: explanation.after[..kept].into(),
            };
            writer
                .write_raw_packet(&packet)
                .map_err(at_frame(explanation.number))?;
        }
        // Dropping the writer would hide a write error.
        writer.into_writer().flush().map_err(in_file)
    }

    /// Each byte that changes: its offset, what it was, what it becomes.
    fn changes(&self) -> impl Iterator<Item = (usize, u8, u8)> + '_ {
        let pairs = self.before.iter().zip(&self.after).enumerate();
        pairs
            .filter(|(_, (before, after))| before != after)
            .map(|(offset, (&before, &after))| (offset, before, after))
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>5}  {:>5} B  ", self.number, self.frame_bytes)?;
        match &self.verdict {
            Some(verdict) => {
                write!(
                    f,
                    "{:<9}  {}",
                    verdict.class().name(),
                    verdict.rule.describe()
                )?;
            }
            None => f.write_str("inbound    toward the host")?,
        }
        match self.outcome {
            Outcome::Forward(role) => write!(f, " → {role}")?,
            Outcome::Stack => f.write_str(" → the box's own network stack")?,
            Outcome::Drop(reason) => write!(f, " → dropped: {reason:?}")?,
        }
        if self
            .verdict
            .is_some_and(|verdict| verdict.egress == Egress::Unrouted)
        {
            f.write_str(match packet::tag_bytes(&self.before) {
                0 => ", not steered: the next hop is of the other IP version",
                _ => ", not steered: it has a VLAN tag",
            })?;
        }
        match self.verdict.and_then(|verdict| verdict.remark) {
            Some(remark) if remark.dscp == Dscp::DEFAULT => f.write_str(", mark cleared")?,
            Some(remark) => write!(f, ", marked {}", remark.dscp)?,
            None => {}
        }
        let mut separator = "; bytes ";
        for (offset, before, after) in self.changes() {
            write!(f, "{separator}{offset}: {before:02x}→{after:02x}")?;
            separator = ", ";
        }
        Ok(())
    }
}
