//! What would happen to frames that lie in a file, by the very code that forwards live ones.
//!
//! Shows offsets and changed bytes, never an address.

use crate::datapath::{Forwarder, Links, Outcome, Role};
use crate::nic::Nic;
use crate::packet::{Dscp, MacAddr};
use crate::policy::{Snapshot, Verdict};
use crate::relays::{self, LoadError};
use crate::settings::Settings;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError};
use std::fmt;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The first bytes of a pcapng file, in any byte order.
const PCAPNG_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
/// What stands in for a NIC that is not in this machine.
const UNKNOWN_MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 0]);

/// Why frames cannot be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// Neither a file nor hexadecimal digits.
    #[error("`{0}` is neither a file nor a frame in hexadecimal digits")]
    Input(String),
    /// The capture cannot be opened or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The capture cannot be read or written.
    #[error("{path}, frame {frame}: {source}")]
    Capture {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        frame: usize,
        /// Why not.
        source: PcapError,
    },
    /// The capture is of another kind of network.
    #[error("{0}: its frames are {1:?}, not Ethernet")]
    LinkType(PathBuf, DataLink),
    /// The relay set cannot be loaded.
    #[error(transparent)]
    Relays(#[from] LoadError),
}

/// One frame's story.
#[derive(Debug)]
pub struct Explanation {
    /// Counted from 1.
    pub number: usize,
    /// When it was captured, since the Unix epoch.
    pub time: Duration,
    /// The frame as it came.
    pub before: Vec<u8>,
    /// The frame as it would leave.
    pub after: Vec<u8>,
    /// Where it would go.
    pub outcome: Outcome,
    /// Why; outbound frames have a verdict, inbound ones only a direction.
    pub verdict: Option<Verdict>,
}

/// Explains a frame in hexadecimal digits, or every frame of a capture file, as received on
/// `port`. `incoming_mac` is asked of the NIC where it is not given.
///
/// # Errors
/// The input or the relay set cannot be read.
pub fn explain(
    input: &str,
    settings: &Settings,
    port: Role,
    incoming_mac: Option<MacAddr>,
) -> Result<Vec<Explanation>, ExplainError> {
    let frames = match hexadecimal(input) {
        Some(frame) => vec![(Duration::ZERO, frame)],
        None if Path::new(input).exists() => read_capture(Path::new(input))?,
        None => return Err(ExplainError::Input(input.to_owned())),
    };
    let loaded = relays::load(&settings.relays.consensus, &settings.relays.extra)?;
    let snapshot = Arc::new(Snapshot {
        generation: 1,
        rules: Arc::clone(&settings.rules),
        relays: Arc::new(loaded.endpoints),
    });
    let mut forwarder = Forwarder::new(snapshot, Arc::new(links(settings, incoming_mac)));
    Ok(frames
        .into_iter()
        .enumerate()
        .map(|(index, (time, before))| {
            let mut after = before.clone();
            let length = after.len();
            let (outcome, verdict) = forwarder.forward(port, &mut after, length, time);
            Explanation {
                number: index + 1,
                time,
                before,
                after,
                outcome,
                verdict,
            }
        })
        .collect())
}

fn links(settings: &Settings, incoming_mac: Option<MacAddr>) -> Links {
    let links = Links::new(settings.host_mac);
    let Some(incoming) = &settings.ports.incoming else {
        return links;
    };
    let own = incoming_mac
        .or_else(|| Nic::look(&incoming.interface).ok().map(|nic| nic.mac))
        .unwrap_or(UNKNOWN_MAC);
    let role = if incoming.interface == settings.ports.uplink {
        Role::Uplink
    } else {
        Role::Incoming
    };
    links.with_incoming(role, own, incoming.next_hop)
}

/// Hexadecimal digits, with white space, colons or a leading 0x as people paste them.
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

fn read_capture(path: &Path) -> Result<Vec<(Duration, Vec<u8>)>, ExplainError> {
    let in_file = |source| ExplainError::File {
        path: path.to_owned(),
        source,
    };
    let at_frame = |frame| {
        move |source| ExplainError::Capture {
            path: path.to_owned(),
            frame,
            source,
        }
    };
    let mut file = File::open(path).map_err(in_file)?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic).map_err(in_file)?;
    file.rewind().map_err(in_file)?;
    let file = BufReader::new(file);
    let mut frames = Vec::new();
    if magic == PCAPNG_MAGIC {
        let mut reader = PcapNgReader::new(file).map_err(at_frame(0))?;
        while let Some(block) = reader.next_block() {
            match block.map_err(at_frame(frames.len() + 1))?.into_owned() {
                Block::InterfaceDescription(interface)
                    if interface.linktype != DataLink::ETHERNET =>
                {
                    return Err(ExplainError::LinkType(path.to_owned(), interface.linktype));
                }
                Block::EnhancedPacket(packet) => {
                    frames.push((packet.timestamp, packet.data.into_owned()));
                }
                Block::SimplePacket(packet) => {
                    frames.push((Duration::ZERO, packet.data.into_owned()));
                }
                _ => {}
            }
        }
    } else {
        let mut reader = PcapReader::new(file).map_err(at_frame(0))?;
        let link_type = reader.header().datalink;
        if link_type != DataLink::ETHERNET {
            return Err(ExplainError::LinkType(path.to_owned(), link_type));
        }
        while let Some(packet) = reader.next_packet() {
            let packet = packet.map_err(at_frame(frames.len() + 1))?;
            frames.push((packet.timestamp, packet.data.into_owned()));
        }
    }
    Ok(frames)
}

impl Explanation {
    /// The port by which the frame would leave, if by any.
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
        let file = File::create(path).map_err(|source| ExplainError::File {
            path: path.to_owned(),
            source,
        })?;
        let at_frame = |frame| {
            move |source| ExplainError::Capture {
                path: path.to_owned(),
                frame,
                source,
            }
        };
        let header = PcapHeader {
            snaplen: u32::from(u16::MAX) + 1,
            datalink: DataLink::ETHERNET,
            ..PcapHeader::default()
        };
        let mut writer =
            PcapWriter::with_header(BufWriter::new(file), header).map_err(at_frame(0))?;
        for explanation in explanations.iter().filter(|one| one.egress().is_some()) {
            let length = u32::try_from(explanation.after.len()).unwrap_or(u32::MAX);
            let packet = PcapPacket::new(explanation.time, length, &explanation.after);
            writer
                .write_packet(&packet)
                .map_err(at_frame(explanation.number))?;
        }
        Ok(())
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
        write!(f, "{:>5}  {:>5} B  ", self.number, self.before.len())?;
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
