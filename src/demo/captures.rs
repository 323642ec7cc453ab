//! Independent captures on each of the three hosts, delimited by markers.
//!
//! A marker is a frame with a payload of its own. Two pass the box each way before the traffic and
//! two after it. The box keeps order, so every frame sent between two markers has arrived when the
//! second marker has; no timeout has to be guessed.

use super::plan::EXPERIMENT;
use super::{DemoError, Interrupt};
use etherparse::PacketBuilder;
use exitmark_lab::site::{
    CLEARNET_MAC, HOST_MAC, HOST_V4, HOST_V6, INCOMING_MAC, OR_PORT, RELAY_V4, SERVER_V4,
    SERVER_V6, Site, TORNET_MAC, mac,
};
use exitmark_lab::{Capture, CapturedFrame, LabError, RawPort};
use std::cell::Cell;
use std::time::{Duration, Instant};

const MARKER_LIMIT: Duration = Duration::from_secs(10);
/// How often a wait for a marker checks for Ctrl-C.
const SLICE: Duration = Duration::from_millis(100);
/// The port of the discard service, which has no connection.
const DISCARD: u16 = 9;
const PINGS: u16 = 20;
const QUESTION: &[u8] = b"exitmark demo: are you there?";

pub(super) struct ObservedFrame {
    pub(super) bytes: Vec<u8>,
    /// Whether the frame lies between the markers. If not, it can only match another capture's.
    pub(super) counts: bool,
}

/// The frames captured at one host, in order.
pub(super) struct Sighting {
    pub(super) sent: Vec<ObservedFrame>,
    pub(super) received: Vec<ObservedFrame>,
}

/// The frames captured at all three hosts.
pub(super) struct Sightings {
    pub(super) host: Sighting,
    pub(super) clearnet: Sighting,
    pub(super) tornet: Sighting,
    /// Markers that a capture missed: what counts is then not delimited there.
    pub(super) missed_markers: u64,
}

/// The three running captures, and raw ports that send the markers.
pub(super) struct MarkedCaptures {
    captures: [Capture; 3],
    ports: [RawPort; 3],
    missed_markers: u64,
}

const HOST: usize = 0;
const CLEARNET: usize = 1;
const TORNET: usize = 2;

impl MarkedCaptures {
    /// Starts the captures and sends the first markers.
    pub(super) fn start(site: &Site, interrupt: &Interrupt) -> Result<Self, DemoError> {
        let hosts = [&site.host, &site.clearnet, &site.tornet];
        let capture = |netns| Capture::start(netns, "eth0", "inout", "");
        let [host, clearnet, tornet] = hosts.map(capture);
        let captures = [host?, clearnet?, tornet?];
        let [host, clearnet, tornet] = hosts.map(|netns| RawPort::open(netns, "eth0"));
        let ports = [host?, clearnet?, tornet?];
        let mut captures = Self {
            captures,
            ports,
            missed_markers: 0,
        };
        captures.mark(Moment::Begin, interrupt)?;
        Ok(captures)
    }

    /// Sends frames that sockets would not: pings, refusals, and an ethertype unknown to the box.
    pub(super) fn send_raw_frames(&self) -> Result<(), LabError> {
        let link = || PacketBuilder::ethernet2(mac(HOST_MAC), mac(CLEARNET_MAC));
        for number in 0..PINGS {
            let v4 = link().ipv4(HOST_V4.octets(), SERVER_V4.octets(), 64);
            let v4 = v4.icmpv4_echo_request(DISCARD, number);
            let v6 = link().ipv6(HOST_V6.octets(), SERVER_V6.octets(), 64);
            let v6 = v6.icmpv6_echo_request(DISCARD, number);
            let mut pings = [Vec::new(), Vec::new()];
            v4.write(&mut pings[0], QUESTION).map_err(unwritten)?;
            v6.write(&mut pings[1], QUESTION).map_err(unwritten)?;
            for ping in &pings {
                self.ports[HOST].send(ping)?;
            }
            let mut refusal = Vec::new();
            let relay = link().ipv4(HOST_V4.octets(), RELAY_V4.octets(), 64);
            let relay = relay.tcp(DISCARD, OR_PORT, u32::from(number), 0).rst();
            relay.write(&mut refusal, &[]).map_err(unwritten)?;
            self.ports[HOST].send(&refusal)?;
            let text = format!("exitmark demo: no IP, number {number}");
            self.ports[HOST].send(&plain(HOST_MAC, CLEARNET_MAC, &text))?;
        }
        Ok(())
    }

    /// Sends the last markers, ends the captures and returns their frames.
    pub(super) fn finish(mut self, interrupt: &Interrupt) -> Result<Sightings, DemoError> {
        self.mark(Moment::End, interrupt)?;
        let [host, clearnet, tornet] = self.captures;
        Ok(Sightings {
            host: Sighting::new(host.finish()?, HOST_MAC),
            clearnet: Sighting::new(clearnet.finish()?, CLEARNET_MAC),
            tornet: Sighting::new(tornet.finish()?, TORNET_MAC),
            missed_markers: self.missed_markers,
        })
    }

    /// Sends markers over every path through the box, one after the other. A marker that does not
    /// arrive is not an error here: the evaluation reports it.
    fn mark(&mut self, moment: Moment, interrupt: &Interrupt) -> Result<(), DemoError> {
        // The host always sends to the clearnet: of its markers, that path's is first and last.
        let mut paths = [
            (HOST, CLEARNET),
            (HOST, TORNET),
            (CLEARNET, HOST),
            (TORNET, HOST),
        ];
        if matches!(moment, Moment::End) {
            paths.swap(0, 1);
        }
        for (from, to) in paths {
            let (text, frame) = marker(moment, from, to)?;
            self.ports[from].send(&frame)?;
            for place in [from, to] {
                let seen = wait_for(&mut self.captures[place], text.as_bytes(), interrupt)?;
                self.missed_markers += u64::from(!seen);
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
enum Moment {
    Begin,
    End,
}

const BEGIN: &[u8] = b"exitmark demo: Begin";
const END: &[u8] = b"exitmark demo: End";

fn marker(moment: Moment, from: usize, to: usize) -> Result<(String, Vec<u8>), LabError> {
    let text = format!("exitmark demo: {moment:?} of {from} to {to}");
    let (host, relay) = (HOST_V4.octets(), RELAY_V4.octets());
    let frame = match (from, to) {
        (HOST, TORNET) => {
            let relay = (CLEARNET_MAC, relay, OR_PORT);
            reset((HOST_MAC, host, DISCARD), relay, &text)?
        }
        (TORNET, _) => {
            let host = (INCOMING_MAC, host, DISCARD);
            reset((TORNET_MAC, relay, OR_PORT), host, &text)?
        }
        (CLEARNET, _) => plain(CLEARNET_MAC, HOST_MAC, &text),
        _ => plain(HOST_MAC, CLEARNET_MAC, &text),
    };
    Ok((text, frame))
}

/// A frame with the experimental ethertype.
fn plain(source: &str, destination: &str, text: &str) -> Vec<u8> {
    let (source, destination) = (mac(source), mac(destination));
    [&destination[..], &source, &EXPERIMENT, text.as_bytes()].concat()
}

/// A TCP segment with RST, which no stack answers. It acknowledges something, so it is of a
/// connection, and of that connection's class.
fn reset(
    source: (&str, [u8; 4], u16),
    destination: (&str, [u8; 4], u16),
    text: &str,
) -> Result<Vec<u8>, LabError> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(source.0), mac(destination.0))
        .ipv4(source.1, destination.1, 64)
        .tcp(source.2, destination.2, 1, 0)
        .ack(1)
        .rst()
        .write(&mut frame, text.as_bytes())
        .map_err(unwritten)?;
    Ok(frame)
}

fn unwritten(error: impl std::fmt::Display) -> LabError {
    LabError(format!("cannot build a frame: {error}"))
}

/// Whether a frame that ends with `text` arrives in time.
fn wait_for(capture: &mut Capture, text: &[u8], interrupt: &Interrupt) -> Result<bool, DemoError> {
    let deadline = Instant::now() + MARKER_LIMIT;
    let looked_at = Cell::new(0);
    let has_it = |frames: &[CapturedFrame]| {
        let new = &frames[looked_at.replace(frames.len())..];
        new.iter().any(|frame| frame.bytes.ends_with(text))
    };
    while !capture.wait_until(SLICE, has_it) {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        interrupt.check()?;
    }
    Ok(true)
}

impl Sighting {
    fn new(frames: Vec<CapturedFrame>, own: &str) -> Self {
        let own = mac(own);
        let (sent, received): (Vec<_>, Vec<_>) = frames
            .into_iter()
            .map(|frame| frame.bytes)
            .partition(|frame| frame.get(6..12) == Some(&own));
        let (begin, end) = (marked(&sent, BEGIN), marked(&sent, END));
        let sent = between(sent, begin.first(), end.last());
        // With two senders, the later begin marker and the earlier end marker apply.
        let (begin, end) = (marked(&received, BEGIN), marked(&received, END));
        let received = between(received, begin.last(), end.first());
        Self { sent, received }
    }
}

/// The positions of the frames that contain `text`.
fn marked(frames: &[Vec<u8>], text: &[u8]) -> Vec<usize> {
    let says = |frame: &Vec<u8>| frame.windows(text.len()).any(|window| window == text);
    let positions = frames.iter().enumerate().filter(|(_, frame)| says(frame));
    positions.map(|(position, _)| position).collect()
}

fn between(frames: Vec<Vec<u8>>, begin: Option<&usize>, end: Option<&usize>) -> Vec<ObservedFrame> {
    let begin = begin.copied().unwrap_or(0);
    let end = end.copied().unwrap_or(usize::MAX);
    let observed = |(position, bytes)| ObservedFrame {
        bytes,
        counts: (begin..=end).contains(&position),
    };
    (0..).zip(frames).map(observed).collect()
}
