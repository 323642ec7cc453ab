//! The load and its count: which flows there are, frames by BPF_PROG_RUN, tallies at the sinks.
//!
//! Knows nothing of forwarders but the next hop that the host shall address.

use crate::common::bpf::{self, TARGETS};
use crate::site::{
    BOX_HOST, BOX_UPLINK, FAR_END, HOST_ADDRESS, HOST_MAC, Site, pin_to_generator_cpu,
};
use etherparse::PacketBuilder;
use exitmark::lab::LabError;
use exitmark::lab::bpf::Programs;
use exitmark::packet::MacAddr;
use libbpf_rs::{MapCore, MapFlags, ProgramInput};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How many endpoints every forwarder's relay set holds.
const RELAYS: u32 = 10_000;

// Contract with traffic.bpf.c.
const FLOWS: u16 = 4096;
const HEADER_BYTES: usize = 54;
const HEADER_SLOT_BYTES: usize = 56;
const SEQUENCE_EXIT: u32 = 0x4558_4954;
const SEQUENCE_RELAY: u32 = 0x5245_4c41;
const TARGET_GENERATE: u32 = 0;
const SINK_UPLINK: u32 = 0;
const SINK_INCOMING: u32 = 1;

/// Frames are forwarded for real, 64 of them at a time; BPF_F_TEST_XDP_LIVE_FRAMES of linux/bpf.h.
const LIVE_FRAMES: u32 = 1 << 1;

/// What the host sends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// From the Ethernet header to the end of the payload, without the FCS.
    pub(crate) frame_bytes: usize,
    /// How many of 100 flows go to relays.
    pub(crate) relay_percent: u8,
}

/// What arrived at one sink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) exit_marked: u64,
    pub(crate) exit_unmarked: u64,
    pub(crate) relay_marked: u64,
    pub(crate) relay_unmarked: u64,
    /// Addressed to another NIC.
    pub(crate) astray: u64,
}

impl Tally {
    /// What a sink's NIC would have taken.
    pub(crate) fn arrived(&self) -> u64 {
        self.exit_marked + self.exit_unmarked + self.relay_marked + self.relay_unmarked
    }

    fn minus(&self, before: &Self) -> Self {
        Self {
            exit_marked: self.exit_marked - before.exit_marked,
            exit_unmarked: self.exit_unmarked - before.exit_unmarked,
            relay_marked: self.relay_marked - before.relay_marked,
            relay_unmarked: self.relay_unmarked - before.relay_unmarked,
            astray: self.astray - before.astray,
        }
    }
}

/// All counters at one time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) at: Instant,
    pub(crate) sent: u64,
    pub(crate) uplink: Tally,
    pub(crate) incoming: Tally,
}

impl Counts {
    pub(crate) fn arrived(&self) -> u64 {
        self.uplink.arrived() + self.incoming.arrived()
    }

    /// What happened since `before`, at the time of `self`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            at: self.at,
            sent: self.sent - before.sent,
            uplink: self.uplink.minus(&before.uplink),
            incoming: self.incoming.minus(&before.incoming),
        }
    }
}

/// The programs of one measurement, loaded and attached to the sinks of a site.
pub(crate) struct Traffic {
    programs: Programs,
    frame: Arc<[u8]>,
}

impl Traffic {
    pub(crate) fn new(
        compiled: &[u8],
        site: &Site,
        load: Load,
        next_hop: MacAddr,
    ) -> Result<Self, LabError> {
        let programs = bpf::load(compiled)?;
        let frames: Vec<_> = (0..FLOWS).map(|flow| frame(flow, load, next_hop)).collect();
        for (flow, frame) in (0_u32..).zip(&frames) {
            let mut slot = [0; HEADER_SLOT_BYTES];
            slot[..HEADER_BYTES].copy_from_slice(&frame[..HEADER_BYTES]);
            programs.store("flows", flow, &slot)?;
        }
        programs.aim(TARGETS, TARGET_GENERATE, &site.host, FAR_END)?;
        // Before any forwarder starts: it may ask whether its ports take redirected frames, and
        // these do because a program is attached to their other ends.
        programs.attach("count_uplink", &site.uplink, FAR_END)?;
        programs.attach("count_incoming", &site.incoming, FAR_END)?;
        Ok(Self {
            programs,
            frame: frames[0].as_slice().into(),
        })
    }

    /// Makes the box a wire between the host and the uplink.
    pub(crate) fn attach_wire(&self, site: &Site) -> Result<(), LabError> {
        bpf::attach_wire(&self.programs, &site.middle, BOX_HOST, BOX_UPLINK)
    }

    /// Makes the box's own stack receive what the host sends.
    pub(crate) fn attach_pass(&self, site: &Site) -> Result<(), LabError> {
        self.programs.attach("pass", &site.middle, BOX_HOST)
    }

    /// Starts sending `frames` frames as fast as the box's receive side takes them.
    pub(crate) fn send(&self, site: &Site, frames: u32) -> Result<Sending, LabError> {
        let (programs, frame) = (self.programs.clone(), Arc::clone(&self.frame));
        let thread = site.host.spawn("generator", move || {
            pin_to_generator_cpu()?;
            let input = ProgramInput {
                data_in: Some(&frame),
                flags: LIVE_FRAMES,
                repeat: frames,
                ..Default::default()
            };
            programs
                .program("generate")?
                .test_run(input)
                .map(|_| ())
                .map_err(|error| LabError(format!("the generator failed: {error}")))
        })?;
        Ok(Sending { thread })
    }

    /// Reads all counters.
    pub(crate) fn counts(&self) -> Result<Counts, LabError> {
        let [sent] = self.sum("sent", 0)?;
        Ok(Counts {
            at: Instant::now(),
            sent,
            uplink: self.tally(SINK_UPLINK)?,
            incoming: self.tally(SINK_INCOMING)?,
        })
    }

    /// Waits until nothing has arrived for a while, at most a second, and reads all counters.
    pub(crate) fn drained(&self) -> Result<Counts, LabError> {
        let mut counts = self.counts()?;
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(50));
            let before = std::mem::replace(&mut counts, self.counts()?);
            if counts.arrived() == before.arrived() {
                break;
            }
        }
        Ok(counts)
    }

    fn tally(&self, sink: u32) -> Result<Tally, LabError> {
        let [
            exit_marked,
            exit_unmarked,
            relay_marked,
            relay_unmarked,
            astray,
            _other,
        ] = self.sum("received", sink)?;
        Ok(Tally {
            exit_marked,
            exit_unmarked,
            relay_marked,
            relay_unmarked,
            astray,
        })
    }

    /// The numbers of a per-CPU map's value, each added up over all CPUs.
    fn sum<const N: usize>(&self, map: &str, key: u32) -> Result<[u64; N], LabError> {
        let mut sums = [0; N];
        let values = self
            .programs
            .map(map)?
            .lookup_percpu(&key.to_ne_bytes(), MapFlags::ANY)
            .map_err(|error| LabError(format!("cannot read the counters {map}: {error}")))?;
        for value in values.iter().flatten() {
            for (sum, number) in sums.iter_mut().zip(value.chunks_exact(8)) {
                *sum += number.try_into().map_or(0, u64::from_ne_bytes);
            }
        }
        Ok(sums)
    }
}

/// A load that is being sent.
pub(crate) struct Sending {
    thread: thread::JoinHandle<Result<(), LabError>>,
}

impl Sending {
    pub(crate) fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the last frame to be sent.
    pub(crate) fn finish(self) -> Result<(), LabError> {
        self.thread
            .join()
            .map_err(|_| LabError("the generator panicked".to_owned()))?
    }
}

/// The relay set: different addresses, scattered over 198.18.0.0/15, half of them on port 443.
pub(crate) fn relays() -> impl Iterator<Item = SocketAddrV4> {
    (0..RELAYS).map(relay)
}

fn relay(number: u32) -> SocketAddrV4 {
    // An odd factor permutes the numbers below a power of two.
    let address = 0xc612_0000 | (number.wrapping_mul(40_503) & 0x1_ffff);
    let port = if number.is_multiple_of(2) { 443 } else { 9001 };
    SocketAddrV4::new(Ipv4Addr::from(address), port)
}

/// The frame of one flow. Every sixteenth flow that is no relay's goes to another port of a
/// relay's address, which is exit traffic all the same.
fn frame(flow: u16, load: Load, next_hop: MacAddr) -> Vec<u8> {
    let dice = scatter(u32::from(flow));
    let anywhere = scatter(dice);
    let relay = relay(anywhere % RELAYS);
    let (to, sequence) = if dice % 100 < u32::from(load.relay_percent) {
        (relay, SEQUENCE_RELAY)
    } else if flow.is_multiple_of(16) {
        (SocketAddrV4::new(*relay.ip(), 8080), SEQUENCE_EXIT)
    } else {
        let address = Ipv4Addr::from(0x6440_0000 | (anywhere & 0x003f_ffff));
        (SocketAddrV4::new(address, 443), SEQUENCE_EXIT)
    };
    let payload = vec![0; load.frame_bytes.saturating_sub(HEADER_BYTES)];
    let builder = PacketBuilder::ethernet2(HOST_MAC.bytes(), next_hop.bytes())
        .ipv4(HOST_ADDRESS.octets(), to.ip().octets(), 64)
        .tcp(32_768 + flow, to.port(), sequence, 0xffff)
        .ack(1);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    // Into a vector, writing fails only for a payload beyond 64 KiB; arguments forbid that.
    let written = builder.write(&mut frame, &payload);
    debug_assert!(written.is_ok());
    frame
}

/// A well mixed number for each number (the finalizer of MurmurHash3, a public domain work).
fn scatter(number: u32) -> u32 {
    let mut mixed = number.wrapping_add(0x9e37_79b9);
    mixed = (mixed ^ (mixed >> 16)).wrapping_mul(0x85eb_ca6b);
    mixed = (mixed ^ (mixed >> 13)).wrapping_mul(0xc2b2_ae35);
    mixed ^ (mixed >> 16)
}
