//! Reports what the data path would do to captured frames, using the forwarder that handles live
//! ones, and what engine connect would do to connections, using the reference of its programs.
//!
//! Of frames it shows offsets and changed bytes, never an address.

mod connections;

use crate::settings::{Engine, Ports, Settings};
use exitmark_datapath::{Counter, Forwarder, IncomingLink, Links, Outcome, Role, Tally, TapRing};
use exitmark_nic::{NextHop, Nic, NicError};
use exitmark_pcap::{Link, ReadError, Reader};
use exitmark_policy::packet::{Dscp, MacAddr};
use exitmark_policy::{Snapshot, Verdict};
use exitmark_relays::{LoadError, Loaded};
use pcap_file::pcap::{PcapHeader, PcapWriter, RawPcapPacket};
use pcap_file::{DataLink, PcapError, TsResolution};
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use connections::{MAX_CONNECTIONS, explain_connections};

/// The longest frame that a written capture may hold, in bytes.
const SNAPLEN: u32 = 262_144;
/// Stands in for the MAC address of a NIC that this machine does not have.
const UNKNOWN_MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 0]);

/// Why frames or connections cannot be explained.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExplainError {
    /// Neither a file nor hexadecimal digits. The input is not repeated: it may hold addresses.
    #[error(
        "the {0} characters given are neither the name of a file nor a frame: an even number of \
         hexadecimal digits, of which white space and colons may be part"
    )]
    Input(usize),
    /// The configuration is of a Tor host.
    #[error(
        "engine = \"connect\" judges connections and no frames; name the configuration of a box, or \
         give a destination with --connect"
    )]
    Engine,
    /// The configuration is of a box with this engine.
    #[error(
        "engine = \"{0}\" judges frames and no connections; name the configuration of a Tor host, \
         with engine = \"connect\", or give a frame or a capture"
    )]
    Frames(&'static str),
    /// The addresses and NICs of this machine cannot be read.
    #[error(transparent)]
    Machine(#[from] NicError),
    /// The capture cannot be read, or not to its end.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The capture cannot be written, or has packets that are not Ethernet frames.
    #[error("{0}")]
    Capture(String),
    #[error(transparent)]
    Relays(#[from] LoadError),
}

/// A captured frame; the capture may have truncated it.
#[derive(Debug)]
struct Captured {
    /// Since the Unix epoch.
    time: Duration,
    /// Length on the wire in bytes, without the FCS.
    frame_bytes: usize,
    bytes: Vec<u8>,
}

/// What would happen to one frame.
#[derive(Debug)]
pub(crate) struct Explanation {
    /// Its position in the capture, from 1.
    number: usize,
    captured: Captured,
    /// The frame as it would leave.
    after: Vec<u8>,
    outcome: Outcome,
    /// `None` for inbound frames, which only have a direction.
    verdict: Option<Verdict>,
    /// What the data path counts of it, beside its class.
    remarks: Vec<&'static str>,
    /// Whether the tap gets a copy.
    is_copied: bool,
}

/// What is said of a frame for which the data path counts this.
const REMARKS: [(Counter, &str); 5] = [
    (Counter::UnroutedVlan, "not steered: it has a VLAN tag"),
    (
        Counter::UnroutedFamily,
        "not steered: the next hop is of the other IP version",
    ),
    (
        Counter::UnroutedSource,
        "not steered: only a listed endpoint's answers are translated back",
    ),
    (Counter::Translated, "source translated"),
    (Counter::TranslatedBack, "destination translated back"),
];

fn remarks(before: &Tally, after: &Tally) -> Vec<&'static str> {
    let has_grown = |(counter, _): &&(Counter, _)| after.of(*counter) > before.of(*counter);
    let grown = REMARKS.iter().filter(has_grown);
    grown.map(|(_, remark)| *remark).collect()
}

#[derive(Debug)]
pub(crate) struct Explained {
    pub(crate) frames: Vec<Explanation>,
    /// Why the other frames of the capture are missing, if there are any.
    pub(crate) fault: Option<ExplainError>,
}

/// Explains a frame given in hexadecimal digits, or every frame of a capture file, as received on
/// `port`. Without `incoming_mac`, the MAC address is read from the NIC.
///
/// # Errors
/// The configuration is not a box's, the input is neither a frame nor a capture, or the relay set
/// cannot be read.
pub(crate) fn explain(
    input: &str,
    settings: &Settings,
    port: Role,
    incoming_mac: Option<MacAddr>,
) -> Result<Explained, ExplainError> {
    if settings.engine == Engine::Connect {
        return Err(ExplainError::Engine);
    }
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
    let relays = load(settings)?.with(&settings.relays.sources.extra)?;
    let snapshot = Snapshot::new(1, Arc::clone(&settings.rules), relays);
    let tap = TapRing::own();
    let mut forwarder = Forwarder::new(Arc::new(snapshot), Arc::new(links(settings, incoming_mac)))
        .tapped_into(tap.clone());
    let frames = frames
        .into_iter()
        .enumerate()
        .map(|(index, captured)| {
            let mut after = captured.bytes.clone();
            let before = forwarder.tally().clone();
            let (outcome, verdict) =
                forwarder.forward(port, &mut after, captured.frame_bytes, captured.time);
            Explanation {
                number: index + 1,
                captured,
                after,
                outcome,
                verdict,
                remarks: remarks(&before, forwarder.tally()),
                is_copied: tap.take().is_some(),
            }
        })
        .collect();
    Ok(Explained { frames, fault })
}

/// Loads the documents of the configuration, without those that a running box remembers.
fn load(settings: &Settings) -> Result<Loaded, LoadError> {
    exitmark_relays::load_newest(&settings.relays.sources)
}

fn links(settings: &Settings, incoming_mac: Option<MacAddr>) -> Links {
    let Some(incoming) = settings.incoming() else {
        return Links::new(None);
    };
    let own = incoming_mac
        .or_else(|| Nic::look(&incoming.interface).ok().map(|nic| nic.mac))
        .unwrap_or(UNKNOWN_MAC);
    let is_uplink = |ports: &Ports| incoming.interface == ports.uplink;
    let port = match settings.ports.as_ref().is_some_and(is_uplink) {
        true => Role::Uplink,
        false => Role::Incoming,
    };
    let links = Links::new(Some(IncomingLink {
        port,
        own,
        next_hop: None,
    }));
    for (number, hop) in incoming.next_hops.iter().enumerate() {
        // An address is not resolved: its MAC address shows as unknown.
        let mac = match hop.next_hop {
            NextHop::Mac(mac) => mac,
            NextHop::Address(_) => UNKNOWN_MAC,
        };
        links.steer_to(number, Some(mac));
    }
    links
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
    let fault = others.map(|(packets, link)| {
        ExplainError::Capture(format!(
            "{}: {packets} packets are of link type {}, not Ethernet (1), and left out; capture at \
             the port itself",
            path.display(),
            link.number()
        ))
    });
    Ok((frames, fault))
}

impl Explanation {
    /// Writes the frames that would leave, in order, to a pcap file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(explanations: &[Self], path: &Path) -> Result<(), ExplainError> {
        let shown = path.display();
        let in_file = |error: std::io::Error| ExplainError::Capture(format!("{shown}: {error}"));
        // Frame 0 is the file header.
        let at_frame = |frame, error: PcapError| {
            ExplainError::Capture(format!("{shown}, frame {frame}: {error}"))
        };
        let file = File::create(path).map_err(in_file)?;
        let header = PcapHeader {
            snaplen: SNAPLEN,
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            ..PcapHeader::default()
        };
        let mut writer = PcapWriter::with_header(BufWriter::new(file), header)
            .map_err(|error| at_frame(0, error))?;
        let leaves = |one: &&Self| matches!(one.outcome, Outcome::Forward(_));
        for explanation in explanations.iter().filter(leaves) {
            let captured = &explanation.captured;
            let kept = explanation.after.len().min(SNAPLEN as usize);
            let packet = RawPcapPacket {
                ts_sec: u32::try_from(captured.time.as_secs()).unwrap_or(u32::MAX),
                ts_frac: captured.time.subsec_nanos(),
                incl_len: u32::try_from(kept).unwrap_or(SNAPLEN),
                orig_len: u32::try_from(captured.frame_bytes).unwrap_or(u32::MAX),
                data: explanation.after[..kept].into(),
            };
            writer
                .write_raw_packet(&packet)
                .map_err(|error| at_frame(explanation.number, error))?;
        }
        // Dropping the writer would hide a write error.
        writer.into_writer().flush().map_err(in_file)
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, length) = (&self.captured.bytes, self.captured.frame_bytes);
        write!(f, "{:>5}  {length:>5} B  ", self.number)?;
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
        for remark in &self.remarks {
            write!(f, ", {remark}")?;
        }
        match self.verdict.and_then(|verdict| verdict.remark) {
            Some(remark) if remark.dscp == Dscp::DEFAULT => f.write_str(", mark cleared")?,
            Some(remark) => write!(f, ", marked {}", remark.dscp)?,
            None => {}
        }
        if self.is_copied {
            f.write_str(", copied to the tap")?;
        }
        let mut separator = "; bytes ";
        let pairs = bytes.iter().zip(&self.after).enumerate();
        for (offset, (before, after)) in pairs.filter(|(_, (before, after))| before != after) {
            write!(f, "{separator}{offset}: {before:02x}→{after:02x}")?;
            separator = ", ";
        }
        Ok(())
    }
}
