//! Tier: any machine. A worker with in-memory ports, some of which fail.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

use exitmark_datapath::contract::{exitmark_guard, exitmark_handed};
use exitmark_datapath::memory::{HeapMemory, MemoryPort, SimulatedFault};
use exitmark_datapath::{
    Cells, Counter, DropReason, Forwarder, GUARD_NUMBERS, Guard, IncomingLink, Links, PerRole,
    Role, Samples, SpinLimits, Tally, Wait, Worker, WorkerLimits,
};
use exitmark_lab::cases::tables;
use exitmark_lab::frames::{FROM, tcp};
use exitmark_policy::packet::MacAddr;
use exitmark_policy::{EndpointSet, Group, Rules, Snapshot};
use nix::time::{ClockId, clock_gettime};
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const RING: usize = 64;
const BATCH: usize = 16;
const OWN: MacAddr = MacAddr::new([2, 0, 0, 0, 3, 1]);
const NEXT_HOP: MacAddr = MacAddr::new([2, 0, 0, 0, 3, 2]);

/// The snapshot of the first table: it steers, and lists a relay at 198.18.0.1:9001.
fn snapshot() -> Snapshot {
    let table = &tables()[0];
    table.snapshot(&table.settings().unwrap())
}

fn worker_with(links: Links) -> Worker<MemoryPort> {
    let frames = 3 * 2 * RING + 6 * BATCH;
    let (memory, pool) = HeapMemory::new(u32::try_from(frames).unwrap(), 256);
    let ports = PerRole::from_fn(|_| Some(MemoryPort::new(RING)));
    let forwarder = Forwarder::new(Arc::new(snapshot()), Arc::new(links));
    let limits = WorkerLimits {
        batch: BATCH,
        spin: SpinLimits::fixed(Duration::ZERO),
    };
    Worker::new(ports, memory, pool, forwarder, limits)
}

fn links(port: Role) -> Links {
    let link = IncomingLink {
        port,
        own: OWN,
        next_hop: Some(NEXT_HOP),
    };
    Links::new(Some(link))
}

fn worker() -> Worker<MemoryPort> {
    worker_with(links(Role::Incoming))
}

fn port(worker: &mut Worker<MemoryPort>, role: Role) -> &mut MemoryPort {
    worker.port(role).unwrap()
}

fn arrives(worker: &mut Worker<MemoryPort>, role: Role, frame: Vec<u8>) {
    port(worker, role).incoming.push_back(frame);
}

/// Runs until nothing arrives any more, and checks after every turn that no buffer is lost.
fn settle(worker: &mut Worker<MemoryPort>) -> Tally {
    let mut turns = 0;
    while worker.turn(Duration::ZERO) {
        assert_eq!(worker.balance().unaccounted(), 0, "{:?}", worker.balance());
        turns += 1;
        assert!(turns < 100_000, "it never settles");
    }
    assert_eq!(worker.balance().unaccounted(), 0, "{:?}", worker.balance());
    let tally = worker.counters().read();
    assert!(tally.is_complete(), "{tally}");
    tally
}

fn exit_frame(number: usize) -> Vec<u8> {
    let source = format!("192.0.2.10:{}", 1024 + number % 60_000);
    tcp(&source, "198.51.100.7:443").build()
}

fn relay_frame(number: usize) -> Vec<u8> {
    let source = format!("192.0.2.10:{}", 1024 + number % 60_000);
    tcp(&source, "198.18.0.1:9001").build()
}

#[test]
fn a_stuck_egress_loses_only_its_own_frames() {
    for fault in [SimulatedFault::Stuck, SimulatedFault::NoCompletions] {
        let mut worker = worker();
        port(&mut worker, Role::Incoming).fault = fault;
        let rounds = 2_000;
        for number in 0..rounds {
            arrives(&mut worker, Role::Host, relay_frame(number));
            arrives(&mut worker, Role::Host, exit_frame(number));
        }
        let tally = settle(&mut worker);
        let sent = port(&mut worker, Role::Uplink).sent.len();
        assert_eq!(sent, rounds, "{fault:?}: every exit frame leaves");
        let dropped = tally.of(Counter::Dropped(DropReason::TxFull(Role::Incoming)));
        assert_eq!(dropped, (rounds - RING) as u64, "{fault:?}");
        // The port sends again as soon as the fault is over.
        port(&mut worker, Role::Incoming).fault = SimulatedFault::None;
        worker.turn(Duration::ZERO);
        let before = port(&mut worker, Role::Incoming).sent.len();
        arrives(&mut worker, Role::Host, relay_frame(1));
        settle(&mut worker);
        let after = port(&mut worker, Role::Incoming).sent.len();
        assert_eq!(after, before + 1, "{fault:?}");
    }
}

#[test]
fn no_buffer_is_lost_when_every_port_is_stuck() {
    let mut worker = worker();
    for role in Role::ALL {
        port(&mut worker, role).fault = SimulatedFault::Stuck;
    }
    for number in 0..1_000 {
        arrives(&mut worker, Role::Host, exit_frame(number));
        arrives(&mut worker, Role::Uplink, exit_frame(number));
    }
    settle(&mut worker);
    for role in Role::ALL {
        port(&mut worker, role).fault = SimulatedFault::None;
    }
    for _ in 0..4 {
        worker.turn(Duration::ZERO);
    }
    let balance = worker.balance();
    assert_eq!((balance.sending, balance.in_hand), (0, 0));
    assert!(worker.report().pool_is_sound);
    assert_eq!(balance.pool + balance.receiving, balance.total);
}

#[test]
fn a_packet_of_many_frames_leaves_whole_or_not_at_all() {
    let mut worker = worker();
    let jumbo = tcp("192.0.2.10:5000", "198.51.100.7:443").payload(2_000);
    // Eight buffers each: single frames in between shift them across the batches of 16.
    for number in 0..200 {
        arrives(&mut worker, Role::Host, jumbo.build());
        arrives(&mut worker, Role::Host, exit_frame(number));
    }
    settle(&mut worker);
    let marked = jumbo.clone().tos(0x28).build();
    let sent = &port(&mut worker, Role::Uplink).sent;
    assert_eq!(sent.len(), 400);
    assert!(sent.iter().step_by(2).all(|packet| *packet == marked));

    // With space for four buffers, a packet of eight is not sent in part.
    port(&mut worker, Role::Uplink).fault = SimulatedFault::Stuck;
    port(&mut worker, Role::Uplink).sent.clear();
    for number in 0..RING - 4 {
        arrives(&mut worker, Role::Host, exit_frame(number));
    }
    arrives(&mut worker, Role::Host, jumbo.build());
    let tally = settle(&mut worker);
    let dropped = tally.of(Counter::Dropped(DropReason::TxFull(Role::Uplink)));
    assert_eq!(dropped, 1);
    port(&mut worker, Role::Uplink).fault = SimulatedFault::None;
    worker.turn(Duration::ZERO);
    assert_eq!(port(&mut worker, Role::Uplink).sent.len(), RING - 4);
}

#[test]
fn frames_from_the_uplink_are_forwarded_unchanged() {
    let mut worker = worker();
    let frames: Vec<_> = tables()
        .iter()
        .flat_map(|table| table.cases.iter().map(|case| case.after.clone()))
        .collect();
    port(&mut worker, Role::Uplink)
        .incoming
        .extend(frames.clone());
    settle(&mut worker);
    assert!(port(&mut worker, Role::Host).sent == frames);
    assert!(port(&mut worker, Role::Incoming).sent.is_empty());
}

#[test]
fn incoming_delivers_only_frames_for_the_host() {
    let mut worker = worker();
    let to_host = tcp("198.18.0.1:9001", "192.0.2.10:5000");
    let routed = to_host.clone().macs(OWN, NEXT_HOP).build();
    arrives(&mut worker, Role::Incoming, routed.clone());
    let tally = settle(&mut worker);
    assert_eq!(tally.of(Counter::Dropped(DropReason::HostMacUnknown)), 1);

    // The host's MAC address is learned from its first frame, not from one of a foreign source.
    let foreign = tcp("192.0.2.99:1", "198.51.100.7:443")
        .macs(OWN, NEXT_HOP)
        .build();
    arrives(&mut worker, Role::Host, exit_frame(0));
    arrives(&mut worker, Role::Host, foreign);
    settle(&mut worker);
    arrives(&mut worker, Role::Incoming, routed);
    settle(&mut worker);
    let delivered = to_host.clone().macs(FROM, NEXT_HOP).build();
    assert_eq!(port(&mut worker, Role::Host).sent, [delivered]);

    let broadcast = MacAddr::new([0xff; 6]);
    let elsewhere = tcp("198.18.0.1:9001", "192.0.2.11:5000");
    for stray in [
        to_host.clone().macs(broadcast, NEXT_HOP).build(),
        to_host.macs(NEXT_HOP, OWN).build(),
        elsewhere.macs(OWN, NEXT_HOP).build(),
        vec![0xff; 20],
    ] {
        arrives(&mut worker, Role::Incoming, stray);
    }
    let tally = settle(&mut worker);
    assert_eq!(tally.of(Counter::Dropped(DropReason::NotForHost)), 4);
    assert_eq!(port(&mut worker, Role::Host).sent.len(), 1);
    assert_eq!(port(&mut worker, Role::Uplink).sent.len(), 2);
}

#[test]
fn one_nic_may_be_uplink_and_incoming() {
    let mut worker = worker_with(links(Role::Uplink));
    arrives(&mut worker, Role::Host, relay_frame(0));
    settle(&mut worker);
    let steered = tcp("192.0.2.10:1024", "198.18.0.1:9001")
        .macs(NEXT_HOP, OWN)
        .build();
    assert_eq!(port(&mut worker, Role::Uplink).sent, [steered]);

    let answer = tcp("198.18.0.1:9001", "192.0.2.10:1024");
    let routed = answer.clone().macs(OWN, NEXT_HOP).build();
    let bridged = answer.clone().macs(FROM, NEXT_HOP).build();
    port(&mut worker, Role::Uplink)
        .incoming
        .extend([routed, bridged.clone()]);
    settle(&mut worker);
    let sent = &port(&mut worker, Role::Host).sent;
    assert_eq!(*sent, [bridged.clone(), bridged]);
}

#[test]
fn a_configured_host_mac_is_never_replaced() {
    let configured = MacAddr::new([2, 9, 9, 9, 9, 9]);
    let mut worker = worker();
    let rules = &snapshot().rules;
    let host = Group {
        mac: Some(configured),
        ..rules.groups()[0].clone()
    };
    let rules = Rules::new(rules.classify_by, vec![host], rules.sockets);
    let configured_one = Snapshot::new(2, Arc::new(rules), snapshot().relays);
    worker.forwarder().follow(Arc::new(configured_one));
    arrives(&mut worker, Role::Host, exit_frame(0));
    settle(&mut worker);
    let answer = tcp("198.18.0.1:9001", "192.0.2.10:1024");
    let routed = answer.clone().macs(OWN, NEXT_HOP).build();
    arrives(&mut worker, Role::Incoming, routed);
    settle(&mut worker);
    let delivered = answer.macs(configured, NEXT_HOP).build();
    assert_eq!(port(&mut worker, Role::Host).sent, [delivered]);
}

#[test]
fn a_new_snapshot_applies_from_the_next_frame_on_and_the_old_one_is_returned() {
    let mut worker = worker();
    let new = Arc::new(Snapshot::new(2, snapshot().rules, EndpointSet::empty()));
    arrives(&mut worker, Role::Host, relay_frame(0));
    settle(&mut worker);
    let retired = worker.forwarder().follow(Arc::clone(&new));
    assert_eq!(retired.generation, 1);
    let holders = Arc::strong_count(&retired);
    assert_eq!(holders, 1, "the old snapshot has another holder");
    arrives(&mut worker, Role::Host, relay_frame(0));
    settle(&mut worker);
    assert_eq!(port(&mut worker, Role::Incoming).sent.len(), 1);
    assert_eq!(port(&mut worker, Role::Uplink).sent.len(), 1);
}

/// The XDP program stamps one frame that it hands over. The worker measures that frame's latency
/// once, when it has been sent, and reads the clock for no other frame.
#[test]
fn the_latency_of_a_stamped_frame_is_measured_when_it_has_been_sent() {
    // Of the host's port.
    const HANDED: usize = offset_of!(exitmark_guard, handed);
    const SENT: usize = (HANDED + offset_of!(exitmark_handed, sent)) / 8;
    const STAMPED: usize = (HANDED + offset_of!(exitmark_handed, stamped)) / 8;
    const STAMPED_AT: usize = (HANDED + offset_of!(exitmark_handed, stamped_at)) / 8;
    let cells = Arc::new(Cells::own(GUARD_NUMBERS));
    let samples = Arc::<Samples>::default();
    let mut worker = worker().guarded(Guard::new(Arc::clone(&cells), 0));
    let links = Arc::new(links(Role::Incoming));
    *worker.forwarder() =
        Forwarder::new(Arc::new(snapshot()), links).sampled_into(Arc::clone(&samples));
    let ago = Duration::from_secs(2);
    let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    let handed_at = Duration::from(monotonic) - ago;
    cells[SENT].store(3, Ordering::Relaxed);
    cells[STAMPED].store(1, Ordering::Relaxed);
    let nanos = u64::try_from(handed_at.as_nanos()).unwrap();
    cells[STAMPED_AT].store(nanos, Ordering::Relaxed);
    for number in 0..3 {
        arrives(&mut worker, Role::Host, exit_frame(number));
        worker.turn(Duration::ZERO);
        let time = samples.next_latency();
        // The second frame is the stamped one.
        assert_eq!(time.is_some(), number == 1);
        assert!(time.is_none_or(|time| time >= ago));
    }
}

#[test]
fn a_worker_sleeps_unless_frames_come_fast() {
    let at = Duration::from_micros;
    let mut wait = Wait::new(SpinLimits::DEFAULT);
    let mut goes_on = |at, was_active| wait.goes_on(at, was_active, false);
    assert!(!goes_on(at(100), false), "no frame has come yet");
    assert!(goes_on(at(200), true));
    assert!(!goes_on(at(210), false), "one frame alone");
    assert!(goes_on(at(259), true));
    assert!(goes_on(at(300), false), "it had waited for 49 us");
    assert!(goes_on(at(349), false));
    assert!(!goes_on(at(350), false), "nothing came in time");
    assert!(goes_on(at(351), true));
    assert!(!goes_on(at(352), false), "it had waited for 51 us");
    // Only the time spent waiting counts, not the length of a turn.
    for turn in [500, 600, 700] {
        assert!(goes_on(at(turn), true));
    }
    assert!(goes_on(at(800), false));
    let mut wait = Wait::new(SpinLimits::fixed(Duration::ZERO));
    let mut goes_on = |at, was_active| wait.goes_on(at, was_active, false);
    assert!(goes_on(at(900), true) && goes_on(at(900), true));
    assert!(!goes_on(at(900), false));
}
