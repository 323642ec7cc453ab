//! A port that only sends, over veth pairs.

use exitmark_datapath::memory::{HeapMemory, MemoryPort};
use exitmark_datapath::{
    AttachMode, Counter, DropReason, Forwarder, Frame, FrameMemory, FramePool, IncomingLink,
    Kernel, Links, PacketPort, PerRole, Pins, Port, Role, SpinLimits, TakeoverLimits, Umem, Worker,
    WorkerLimits, WorkerPort, XskSettings,
};
use exitmark_lab::cases::{HOST4, RELAY4, tables};
use exitmark_lab::frames::tcp;
use exitmark_lab::{Capture, Netns, RawPort, VethEnd, needs_root, timeout, veth, wait_until};
use exitmark_nic::Nic;
use exitmark_policy::packet::MacAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const ROOM: u32 = 256;
const CHUNK: u16 = 2048;
const NEAR: &str = "02:00:00:00:00:01";
const FAR: &str = "02:00:00:00:00:02";
type Sender = WorkerPort<MemoryPort>;

/// Two namespaces and a cable between them; the stacks send nothing.
fn cable(mtu: u32) -> (Netns, Netns) {
    let (near, far) = (Netns::new("near").unwrap(), Netns::new("far").unwrap());
    for netns in [&near, &far] {
        netns.disable_ipv6().unwrap();
    }
    join(&near, "in0", &far, "eth0", mtu);
    (near, far)
}

fn join(near: &Netns, near_name: &str, far: &Netns, far_name: &str, mtu: u32) {
    let near_end = VethEnd::new(near, near_name, NEAR);
    veth(&near_end, &VethEnd::new(far, far_name, FAR), mtu).unwrap();
}

fn capture(far: &Netns) -> Capture {
    Capture::start(far, "eth0", "in", &format!("ether src {NEAR}")).unwrap()
}

/// A frame of this length with these tags (TPID, VLAN), each byte after them another one.
fn frame(length: usize, tags: &[(u16, u16)], number: u8) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    for (tpid, vlan) in tags {
        bytes.extend(tpid.to_be_bytes());
        bytes.extend(vlan.to_be_bytes());
    }
    bytes.extend([0x08, 0x00, number]);
    while bytes.len() < length {
        bytes.push(u8::try_from(bytes.len() * 7 % 251).unwrap());
    }
    bytes
}

fn index(name: &str) -> u32 {
    Nic::look(name).unwrap().index
}

struct Bench {
    port: Sender,
    memory: HeapMemory,
    pool: FramePool,
}

impl Bench {
    fn new(room: u32) -> Self {
        let (memory, pool) = HeapMemory::new(1024, CHUNK);
        let port = PacketPort::open(index("in0"), room).unwrap();
        Self {
            port: WorkerPort::SendOnly(port),
            memory,
            pool,
        }
    }

    /// Sends these packets. Returns how many frames the kernel has taken, and how many are left.
    fn send(&mut self, packets: &[Vec<u8>]) -> (usize, usize) {
        let mut leaving: Vec<Frame> = Vec::new();
        for packet in packets {
            leaving.extend(self.memory.load(packet, &mut self.pool));
        }
        self.port.transmit(&mut self.memory, &mut leaving);
        let sent = self.port.held().sending;
        let left = leaving.len();
        self.port.complete(&mut self.memory, &mut self.pool);
        leaving.into_iter().for_each(|frame| self.pool.put(frame));
        assert_eq!(self.port.held().sending, 0);
        assert!(!self.port.has_unsent());
        // Each frame is in the pool again, once.
        assert_eq!(self.pool.len(), self.pool.total());
        assert!(self.pool.is_sound());
        (sent, left)
    }
}

#[track_caller]
fn assert_arrive(mut capture: Capture, expected: &[Vec<u8>]) {
    assert!(capture.counts(expected.len()), "{}", capture.so_far().len());
    let arrived = capture.finish().unwrap();
    let arrived: Vec<_> = arrived.into_iter().map(|frame| frame.bytes).collect();
    let lengths = |frames: &[Vec<u8>]| frames.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(lengths(&arrived), lengths(expected));
    assert!(arrived == expected, "the bytes differ");
}

#[test]
fn frames_arrive_as_they_were_sent() {
    needs_root!();
    let (near, far) = cable(9000);
    let capture = capture(&far);
    let (vlan, pair) = ([(0x8100, 30)], [(0x88a8, 0x6014), (0x8100, 0xa01e)]);
    let tags: [&[(u16, u16)]; 3] = [&[], &vlan, &pair];
    let mut packets = Vec::new();
    // More than one system call takes.
    for number in 0..40 {
        for tags in tags {
            let length = [60, 1514, 2048, 2049, 4000, 9000][usize::from(number) % 6];
            packets.push(frame(length, tags, number));
        }
    }
    let expected = packets.clone();
    near.run(move || {
        let mut bench = Bench::new(1000);
        let frames = packets.iter().map(|packet| packet.len().div_ceil(2048));
        let frames = frames.sum();
        assert_eq!(bench.send(&packets), (frames, 0));
    });
    assert_arrive(capture, &expected);
}

#[test]
fn a_frame_that_the_nic_does_not_take_does_not_hold_up_others() {
    needs_root!();
    let (near, far) = cable(1500);
    let capture = capture(&far);
    let (long, short) = (frame(4000, &[], 9), vec![2; 13]);
    let good: Vec<_> = (0..4).map(|number| frame(1514, &[], number)).collect();
    let expected = good.clone();
    near.run(move || {
        let mut bench = Bench::new(ROOM);
        let [a, b, c, d] = <[_; 4]>::try_from(good).unwrap();
        assert_eq!(bench.send(&[a, long, b, c, short, d]), (4, 3));
    });
    assert_arrive(capture, &expected);
}

#[test]
fn a_port_takes_whole_packets_as_long_as_it_has_room() {
    needs_root!();
    let (near, far) = cable(9000);
    let capture = capture(&far);
    let packets: Vec<_> = (0..4).map(|number| frame(4000, &[], number)).collect();
    let expected = packets[..2].to_vec();
    near.run(move || {
        let mut bench = Bench::new(5);
        assert_eq!(bench.send(&packets), (4, 4));
    });
    assert_arrive(capture, &expected);
}

#[test]
fn a_nic_that_is_down_or_gone_drops_frames() {
    needs_root!();
    let (near, far) = cable(1500);
    let ip = |what: &str| near.ip(what).map(drop).unwrap();
    let expected = [frame(60, &[], 1)];
    let packets = expected.to_vec();
    let bench = near.run(|| Bench::new(ROOM));
    let send = |mut bench: Bench| {
        let packets = packets.clone();
        near.run(move || {
            let sent = bench.send(&packets);
            (bench, sent)
        })
    };
    ip("link set dev in0 down");
    let (bench, sent) = send(bench);
    assert_eq!(sent, (0, 1));
    ip("link set dev in0 up");
    wait_until(
        "the link is up",
        || near.run(|| Nic::look("in0").unwrap().has_carrier),
        || "it is not",
    );
    let capture = capture(&far);
    let (bench, sent) = send(bench);
    assert_eq!(sent, (1, 0));
    assert_arrive(capture, &expected);
    ip("link del dev in0");
    let (_, sent) = send(bench);
    assert_eq!(sent, (0, 1));
    assert!(near.run(|| PacketPort::open(4711, ROOM).is_err()));
}

/// A worker steers relay frames to a port that only sends; those that are not sent are counted.
#[test]
fn a_worker_counts_what_is_not_sent() {
    needs_root!();
    let (near, far) = cable(1500);
    let capture = capture(&far);
    let near = &near;
    let own: MacAddr = NEAR.parse().unwrap();
    let next_hop: MacAddr = FAR.parse().unwrap();
    let relay = tcp(HOST4, RELAY4);
    let steered = relay.clone().macs(next_hop, own).build();
    let relay = relay.build();
    let dropped = Counter::Dropped(DropReason::TxFull(Role::Incoming));
    let sent = Counter::Forwarded(Role::Incoming);
    let mut worker = near.run(move || {
        let table = &tables()[0];
        let snapshot = table.snapshot(&table.settings().unwrap());
        let link = IncomingLink {
            port: Role::Incoming,
            own,
            next_hop: Some(next_hop),
        };
        let forwarder = Forwarder::new(Arc::new(snapshot), Arc::new(Links::new(Some(link))));
        let (memory, pool) = HeapMemory::new(512, CHUNK);
        let port = PacketPort::open(index("in0"), ROOM).unwrap();
        let mut ports = PerRole::from_fn(|_| Some(MemoryPort::new(64).into()));
        ports[Role::Incoming] = Some(WorkerPort::SendOnly(port));
        let limits = WorkerLimits::new(16, SpinLimits::fixed(Duration::ZERO));
        Worker::new(ports, memory, pool, forwarder, limits)
    });
    for (is_up, numbers) in [(true, [1, 0]), (false, [1, 1])] {
        if !is_up {
            near.ip("link set dev in0 down").unwrap();
        }
        let Some(WorkerPort::Rings(host)) = worker.port(Role::Host) else {
            panic!("the host has a port");
        };
        host.incoming.push_back(relay.clone());
        assert!(worker.turn(Duration::ZERO));
        assert!(!worker.turn(Duration::ZERO));
        let tally = worker.counters().read();
        assert_eq!([sent, dropped].map(|counter| tally.of(counter)), numbers);
        assert_eq!(worker.balance().sending, 0);
        assert_eq!(worker.balance().unaccounted(), 0);
    }
    assert_arrive(capture, &[steered]);
}

/// Receives a frame by the rings of a queue, and sends it by another NIC.
fn receives_and_sends<P: Port>(
    peer: &RawPort,
    port: &mut WorkerPort<P>,
    memory: &mut P::Memory,
    pool: &mut FramePool,
    sent: &[u8],
) {
    let before = pool.len();
    let out = PacketPort::open(index("in0"), ROOM).unwrap();
    let mut out: WorkerPort<P> = WorkerPort::SendOnly(out);
    peer.send(sent).unwrap();
    let mut arrived: Vec<Frame> = Vec::new();
    wait_until(
        "the frame arrives",
        || {
            port.receive(memory, &mut arrived, 64);
            arrived.iter().any(|frame| memory.bytes(frame) == sent)
        },
        || "not in time",
    );
    let count = arrived.len();
    out.transmit(memory, &mut arrived);
    assert!(arrived.is_empty());
    assert_eq!(out.held().sending, count);
    out.complete(memory, pool);
    assert_eq!(pool.len(), before + count);
}

#[test]
fn frames_of_both_kinds_of_rings_are_sent() {
    needs_root!();
    let (near, far) = cable(1500);
    join(&near, "host0", &far, "eth1", 1500);
    let peer = RawPort::open(&far, "eth1").unwrap();
    let capture = capture(&far);
    let expected: Vec<_> = [0, 1].map(|number| frame(1514, &[], number)).into();
    let frames = expected.clone();
    near.run(move || {
        let pins = Pins::open(Path::new("/sys/fs/bpf/send_only")).unwrap();
        let kernel = Kernel::load().unwrap();
        let links = Links::over(kernel.links().unwrap(), None);
        let limits = TakeoverLimits {
            heartbeat_timeout: timeout(),
            soft_watermark: 64,
            hard_watermark: 64,
        };
        links.hand_over(PerRole::from_fn(|_| true), limits);
        let nic = index("host0");
        kernel.attach(&pins, Role::Host, "host0", nic).unwrap();
        kernel
            .reattach(&pins, Role::Host, "host0", nic, AttachMode::Native)
            .unwrap();
        let settings = XskSettings {
            ring: 64,
            in_hand: 8,
            chunk_bytes: 4096,
            multi_buffer: false,
            zero_copy: false,
        };
        let mut names = PerRole::from_fn(|_| None);
        names[Role::Host] = Some("host0".to_owned());
        macro_rules! with {
            ($bind:ident, $frame:expr) => {{
                let umem = Umem::new(settings, 1, 1).unwrap();
                let mut share = umem.$bind(0, &names).unwrap();
                let port = share.ports[Role::Host].take().unwrap();
                kernel.admit(Role::Host, 0, port.as_fd()).unwrap();
                let mut port = WorkerPort::from(port);
                let (memory, pool) = (&mut share.memory, &mut share.pool);
                port.fill(memory, pool);
                port.kick();
                receives_and_sends(&peer, &mut port, memory, pool, $frame);
                kernel.dismiss(Role::Host, 0).unwrap();
            }};
        }
        with!(bind, &frames[0]);
        with!(bind_filled, &frames[1]);
        pins.remove_links().unwrap();
        pins.remove().unwrap();
    });
    assert_arrive(capture, &expected);
}
