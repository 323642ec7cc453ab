//! Load, dead links and idleness: no frame is lost without a counted reason, and an idle box uses
//! no CPU time.

use crate::craft::{AF11, Packet, QINQ, UDP, VLAN, answer, ethernet, exit, families, noise, relay};
use crate::rig::{
    Config, Counters, PACE, Rig, Side, assert_moved, both_engines, count, moved, needs_root,
    wait_until,
};
use exitmark_lab::site::{FAR_END, HOST_MAC, Plan, Site};
use exitmark_lab::{Capture, CapturedFrame, FinalState, Netns, RawPort};
use nix::sys::signal::Signal;
use std::time::Duration;

/// The most frames in transit in one direction: a veth pair queues 256 and drops further ones.
const WINDOW: usize = 128;
/// `getconf CLK_TCK` on every Linux.
const TICKS_PER_SECOND: u64 = 100;

/// A kind of frame as sent, its receiver (an index of `eyes`), and the expected frame.
type Kind = (Vec<u8>, usize, Vec<u8>);

/// A stream of frames from one end that must arrive unchanged and in order at others.
struct Stream {
    port: RawPort,
    kinds: Vec<Kind>,
    sent: u32,
}

struct Eye {
    capture: Capture,
    expected: usize,
}

impl Eye {
    fn open(rig: &Rig, side: Side) -> Self {
        Self {
            capture: rig.watch(side),
            expected: 0,
        }
    }

    /// Waits until this number of frames has arrived in all.
    #[track_caller]
    fn catch_all(&mut self, number: usize) {
        self.expected = number;
        self.catch_up(0);
    }

    /// Waits until at most `missing` frames are outstanding.
    #[track_caller]
    fn catch_up(&mut self, missing: usize) {
        let wanted = self.expected.saturating_sub(missing);
        if !self.capture.counts(wanted) {
            let captured = self.capture.so_far().len();
            panic!("{captured} of {wanted} frames arrived");
        }
    }
}

impl Stream {
    fn new(port: RawPort, kinds: Vec<Kind>) -> Self {
        let sent = 0;
        Self { port, kinds, sent }
    }

    /// Sends the next frame, with its number in the last four bytes.
    fn send(&mut self, eyes: &mut [Eye]) {
        let kind = self.sent as usize % self.kinds.len();
        let (frame, eye, _) = &mut self.kinds[kind];
        let end = frame.len() - 4;
        frame[end..].copy_from_slice(&self.sent.to_be_bytes());
        self.port.send(frame).unwrap();
        eyes[*eye].expected += 1;
        self.sent += 1;
    }

    fn expected(&self, eye: usize) -> impl Iterator<Item = Vec<u8>> {
        (0..self.sent)
            .map(|number| (number, &self.kinds[number as usize % self.kinds.len()]))
            .filter(move |(_, kind)| kind.1 == eye)
            .map(|(number, (_, _, frame))| {
                let mut frame = frame.clone();
                let end = frame.len() - 4;
                frame[end..].copy_from_slice(&number.to_be_bytes());
                frame
            })
    }
}

/// Kinds that the host sends; the clearnet's eye is 0, the tornet's is 1.
fn outbound_kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    for (family, bytes, tags) in [
        (0, 20, &[][..]),
        (1, 400, &[VLAN]),
        (0, 1400, &[QINQ, VLAN]),
    ] {
        let packet = exit(family, bytes);
        let marked = packet.clone().tos(AF11);
        kinds.push((packet.outbound(tags), 0, marked.outbound(tags)));
        let packet = relay(family, bytes);
        kinds.push((packet.outbound(&[]), 1, packet.steered()));
    }
    let (host, server, _) = families()[0];
    let udp = Packet::new(host, server, UDP, noise(4, 64)).outbound(&[]);
    kinds.push((udp.clone(), 0, udp));
    let strange = ethernet("ff:ff:ff:ff:ff:ff", HOST_MAC, &[], 0x88b5, &noise(5, 64));
    kinds.push((strange.clone(), 0, strange));
    kinds
}

/// Asserts that these frames arrived, and no others, in order if the worker forwarded all of them.
/// If other load delayed it, the kernel took over, and frames were reordered.
fn assert_arrived(
    what: &str,
    last: &FinalState,
    mut captured: Vec<CapturedFrame>,
    expected: impl Iterator<Item = Vec<u8>>,
) {
    let mut expected: Vec<_> = expected.collect();
    if last.counters.contains_key("host_spilled") {
        println!("not in order: the machine was too busy for the worker");
        captured.sort_by(|one, other| one.bytes.cmp(&other.bytes));
        expected.sort();
    }
    let mut count = 0;
    for (index, frame) in expected.into_iter().enumerate() {
        let captured = captured.get(index).map(|frame| &frame.bytes);
        let is_right = captured == Some(&frame);
        assert!(
            is_right,
            "{what}, frame {index}: {captured:02x?}\nexpected\n{frame:02x?}\n{:?}",
            last.counters
        );
        count += 1;
    }
    assert_eq!(captured.len(), count, "{what}");
}

#[test]
fn under_load_every_frame_arrives_once_and_in_order() {
    both_engines(|| {
        const FRAMES: usize = 200_000;
        let rig = Rig::silent(Plan::default(), &Config::default());
        let mut eyes = [Side::Clearnet, Side::Tornet, Side::Host].map(|side| Eye::open(&rig, side));
        let inbound = answer(0, 200).inbound(&[]);
        let inbound = vec![(inbound.clone(), 2, inbound)];
        let mut streams = [
            Stream::new(rig.port(Side::Host), outbound_kinds()),
            Stream::new(rig.port(Side::Clearnet), inbound),
        ];
        for _ in 0..FRAMES / 2 {
            for stream in &mut streams {
                stream.send(&mut eyes);
            }
            for eye in &mut eyes {
                eye.catch_up(WINDOW / 2);
            }
        }
        for eye in &mut eyes {
            eye.catch_up(0);
        }
        let last = rig.running.stop().unwrap();
        let moved = moved(&last);
        for (index, eye) in eyes.into_iter().enumerate() {
            let captured = eye.capture.finish().unwrap();
            let expected = streams[index / 2].expected(index);
            assert_arrived(&format!("eye {index}"), &last, captured, expected);
        }
        let half = FRAMES as u64 / 2;
        let eighth = half / 8;
        let (three, five) = (3 * eighth, 5 * eighth);
        let expected = format!(
            "host_received={half} exit={three} marked={three} relay={three} host={eighth} \
             non_ip={eighth} uplink_forwarded={five} incoming_forwarded={three} \
             uplink_received={half} host_forwarded={half}"
        );
        assert_moved(&moved, &expected);
    });
}

/// Sends at full speed. Every lost frame is counted: in the veth pair before the box, or at the
/// box's rx ring.
fn overload(sizes: &str, mtu: u32) {
    const FRAMES: u64 = 40_000;
    let rig = Rig::silent(Plan::of_mtu(mtu), &workers_alone(sizes));
    let port = rig.port(Side::Host);
    let transmitted = || rig.site.host.transmitted(FAR_END).unwrap().frames;
    let before = transmitted();
    let bytes = usize::try_from(mtu).unwrap();
    let frames = [
        exit(0, bytes - 40).outbound(&[]),
        relay(1, bytes - 60).outbound(&[]),
    ];
    // A stopped box is certainly overloaded.
    rig.running.signal(Signal::SIGSTOP).unwrap();
    for (number, frame) in (0..FRAMES).zip(frames.iter().cycle()) {
        if number == FRAMES / 2 {
            rig.running.signal(Signal::SIGCONT).unwrap();
        }
        port.send(frame).unwrap();
    }
    let sent = transmitted() - before;
    let taken =
        |counters: &Counters| count(counters, "host_received") + count(counters, "host_missed");
    let is_taken = |counters: &Counters| taken(counters) == sent;
    rig.wait_for("every frame taken or missed", is_taken);
    // The rings still work.
    let mut eye = Eye::open(&rig, Side::Clearnet);
    for number in 1..=200 {
        port.send(&frames[0]).unwrap();
        eye.catch_all(number);
    }
    let last = rig.stop();
    assert_eq!(taken(&last.counters), sent + 200);
    assert!(last.counters["host_missed"] > 0, "that was no overload");
}

#[test]
fn counts_every_frame_of_an_overload() {
    needs_root!();
    overload("ring = 64\nbatch = 16", 1500);
}

#[test]
fn counts_every_frame_of_an_overload_of_jumbo_frames() {
    needs_root!();
    // Batches end in the middle of most packets.
    overload("ring = 64\nbatch = 1", 9000);
    overload("ring = 128\nbatch = 64", 9000);
}

/// A configuration in which the kernel does not take over frames, with more lines of `[datapath]`.
fn workers_alone(more: &str) -> Config {
    let datapath = format!("spill = false\n{more}");
    Config::default().engine("af_xdp").datapath(datapath)
}

/// Tests a link of which this end is down.
fn dead_egress(netns: fn(&Site) -> &Netns, interface: &str) -> FinalState {
    let config = workers_alone("").steer("on_unavailable = \"drop\"");
    let rig = Rig::silent(Plan::default(), &config);
    let mut eyes = [Side::Clearnet, Side::Tornet].map(|side| Eye::open(&rig, side));
    let mut kinds = outbound_kinds();
    kinds.retain(|kind| kind.1 == 0);
    let mut exits = Stream::new(rig.port(Side::Host), kinds);
    let relays = rig.port(Side::Host);
    let dead = relay(0, 100).outbound(&[]);
    let set = |state| format!("link set {interface} {state}");
    netns(&rig.site).ip(&set("down")).unwrap();
    // Several times the size of incoming's ring, then only exit frames for a while.
    for number in 0..12_000 {
        if number < 8_000 {
            relays.send(&dead).unwrap();
        }
        exits.send(&mut eyes);
        eyes[0].catch_up(WINDOW / 2);
    }
    eyes[0].catch_up(0);
    netns(&rig.site).ip(&set("up")).unwrap();
    // A new kind of relay frame, which was never sent to the dead link.
    let late = relay(1, 200);
    let (late, arrives) = (late.outbound(&[]), late.steered());
    let is_back = || {
        relays.send(&late).unwrap();
        let back = |captured: &[CapturedFrame]| captured.iter().any(|frame| frame.bytes == arrives);
        eyes[1].capture.wait_until(PACE, back)
    };
    wait_until("steering after the link came back", is_back, || "no frame");
    for _ in 0..1000 {
        exits.send(&mut eyes);
        eyes[0].catch_up(WINDOW / 2);
    }
    eyes[0].catch_up(0);
    let last = rig.stop();
    let [uplink, _] = eyes;
    let uplink = uplink.capture.finish().unwrap();
    assert_arrived("exit frames", &last, uplink, exits.expected(0));
    last
}

#[test]
fn a_dead_peer_of_incoming_stalls_no_other_port() {
    needs_root!();
    let last = dead_egress(|site| &site.tornet, "eth0");
    assert!(last.counters["relay"] > 8000);
    assert_dropped_by_name(&last);
}

#[test]
fn a_dead_nic_of_incoming_stalls_no_other_port() {
    needs_root!();
    let last = dead_egress(|site| &site.middle, "incoming0");
    assert_dropped_by_name(&last);
}

/// Until the box detects the dead link, its ring fills and further frames are dropped.
fn assert_dropped_by_name(last: &FinalState) {
    let counters = &last.counters;
    let count = |name: &str| count(counters, name);
    let dropped = count("dropped_incoming_tx_full") + count("dropped_steer_unavailable");
    assert!(dropped > 5000, "{counters:?}");
    assert!(count("dropped_steer_unavailable") > 0, "{counters:?}");
    assert_eq!(count("unsteered"), 0, "{counters:?}");
    assert_eq!(count("dropped_uplink_tx_full"), 0, "{counters:?}");
}

/// A frame redirected to a NIC that is down, or whose driver rejects it, is dropped after the
/// program has counted it; the drop is counted by its reason too.
#[test]
fn frames_that_a_nic_rejects_are_counted_in_the_kernel() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default().engine("xdp"));
    let port = rig.port(Side::Host);
    let lost = |reason: &str, more: u64| {
        let name = format!("dropped_uplink_{reason}");
        let before = rig.count(&name);
        for _ in 0..more {
            port.send(&exit(0, 60).outbound(&[])).unwrap();
        }
        rig.counts(&name, before + more);
    };
    rig.ip("link set uplink0 down");
    lost("tx_down", 100);
    rig.ip("link set uplink0 up");
    rig.site.clearnet.ip("link set eth0 down").unwrap();
    // veth returns ENXIO if its peer does not poll.
    lost("tx_refused", 100);
    rig.site.clearnet.ip("link set eth0 up").unwrap();
    let mut eye = Eye::open(&rig, Side::Clearnet);
    let is_back = || {
        port.send(&exit(0, 60).outbound(&[])).unwrap();
        eye.capture
            .wait_until(PACE, |captured| !captured.is_empty())
    };
    wait_until("the wire after the link came back", is_back, || "no frame");
    rig.stop();
}

#[test]
fn a_dead_uplink_does_not_stall_steering() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &workers_alone(""));
    let mut eyes = [Side::Clearnet, Side::Tornet].map(|side| Eye::open(&rig, side));
    let port = rig.port(Side::Host);
    let mut kinds = outbound_kinds();
    kinds.retain(|kind| kind.1 == 1);
    let mut relays = Stream::new(rig.port(Side::Host), kinds);
    rig.site.clearnet.ip("link set eth0 down").unwrap();
    let dead = exit(0, 100).outbound(&[]);
    for _ in 0..5_000 {
        port.send(&dead).unwrap();
        relays.send(&mut eyes);
        eyes[1].catch_up(WINDOW / 2);
    }
    eyes[1].catch_up(0);
    let last = rig.stop();
    assert_eq!(last.counters["exit"], 5_000);
    let [_, incoming] = eyes;
    let incoming = incoming.capture.finish().unwrap();
    assert_arrived("relay frames", &last, incoming, relays.expected(1));
}

/// The CPU time of a process and all its threads, in ticks of 10 ms.
fn ticks_used(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Skip the name, which may contain anything; utime and stime are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let times = fields.split(' ').skip(11).take(2);
    times.map(|field| field.parse::<u64>().unwrap()).sum()
}

fn ticks_while_idle(rig: &mut Rig, idle: Duration) -> u64 {
    let pid = rig.running.pid();
    let before = ticks_used(pid);
    // The idle time itself, not a wait for an event.
    std::thread::sleep(idle);
    ticks_used(pid) - before
}

#[test]
fn an_idle_box_uses_no_processor() {
    needs_root!();
    let mut rig = Rig::silent(Plan::default(), &Config::default());
    // A little traffic first: its remains in the rings must not keep the box awake.
    let mut eye = Eye::open(&rig, Side::Clearnet);
    let port = rig.port(Side::Host);
    for number in 1..=100 {
        port.send(&exit(0, 100).outbound(&[])).unwrap();
        eye.catch_all(number);
    }
    let idle = Duration::from_secs(2);
    let used = ticks_while_idle(&mut rig, idle);
    let ticks = idle.as_secs() * TICKS_PER_SECOND;
    assert!(used * 100 <= ticks, "{used} of {ticks} ticks");
    rig.stop();
}

/// A NIC is removed while the box runs: the wire continues, and no worker busy-loops.
#[test]
fn a_vanished_nic_affects_no_other_port() {
    needs_root!();
    let mut rig = Rig::silent(Plan::default(), &Config::default());
    let mut eye = Eye::open(&rig, Side::Clearnet);
    let port = rig.port(Side::Host);
    let mut forward_one = |number| {
        port.send(&relay(0, 50).outbound(&[])).unwrap();
        port.send(&exit(0, 50).outbound(&[])).unwrap();
        eye.catch_all(number);
    };
    forward_one(1);
    rig.ip("link del incoming0");
    (2..100).for_each(&mut forward_one);
    let used = ticks_while_idle(&mut rig, Duration::from_secs(1));
    assert!(used <= 5, "{used} of 100 ticks with no traffic");
    forward_one(100);
    rig.stop();
}
