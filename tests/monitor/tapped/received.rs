//! What arrives and with which bytes, and what is visible from outside.

use super::{HOST_V4, HOST_V6, MARK, Rig, SECOND_V4, TIMEOUT, receive, settings, wait_for};
use crate::mirrored::{self, Outer};
use exitmark_lab::frames::{Frame, extension, of_protocol, tcp, udp};
use exitmark_lab::tap::{SPAN, TAP};
use exitmark_lab::{RawPort, VethEnd, eventually, needs_root, veth};
use exitmark_monitor::cell::Directions;
use exitmark_monitor::tap::{Sorted, TapCounters, TapError, TapSettings, Taps};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use std::fs::{self, File};
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const ETHERNET: usize = 14;
const TAG: usize = 4;
const V4: usize = 20;
const V6: usize = 40;
const TCP: usize = 20;
const UDP: usize = 8;

enum Fate {
    /// Arrives, truncated to these bytes.
    Cut(usize),
    /// Is dropped, and counted here.
    Dropped(fn(&Sorted) -> u64),
}
use Fate::{Cut, Dropped};

const NOT_IP: Fate = Dropped(|sorted| sorted.not_ip);
const MALFORMED: Fate = Dropped(|sorted| sorted.malformed);
const UNMARKED: Fate = Dropped(|sorted| sorted.unmarked);
const OTHER_SOURCE: Fate = Dropped(|sorted| sorted.other_source);
const INBOUND: Fate = Dropped(|sorted| sorted.inbound);

fn v4(destination: &str) -> Frame {
    tcp(&format!("{HOST_V4}:40000"), destination).tos(MARK)
}

fn v6(destination: &str) -> Frame {
    tcp(&format!("[{HOST_V6}]:40000"), destination).tos(MARK)
}

/// A request for the monitor's own address.
fn arp() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 9, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([2, 0, 0, 0, 9, 2, 203, 0, 113, 1]);
    frame.extend([0, 0, 0, 0, 0, 0, 203, 0, 113, 9]);
    frame
}

fn damaged(frame: &Frame, damage: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = frame.build();
    damage(&mut frame);
    frame
}

#[rustfmt::skip]
fn cases() -> Vec<(&'static str, Vec<u8>, Fate)> {
    let web = "198.51.100.7:443";
    let web6 = "[2001:db8:9::7]:443";
    let from = |source: &str| tcp(source, web).tos(MARK);
    let udp4 = || udp(&format!("{HOST_V4}:5000"), "198.51.100.7:53").tos(MARK);
    let icmp6 = of_protocol(58, &format!("[{HOST_V6}]:1"), web6).tos(MARK);
    let any = &[
        extension::HOP_BY_HOP,
        extension::ROUTING,
        extension::DESTINATION,
    ];
    let eight = [extension::DESTINATION; 8];
    let long = v6(web6).extensions(&eight[..1]).payload(1400);
    let nine = [extension::DESTINATION; 9];
    vec![
        ("TCP", v4(web).build(), Cut(ETHERNET + V4 + TCP)),
        ("TCP from another clearnet address", from(&format!("{SECOND_V4}:40000")).build(),
         Cut(ETHERNET + V4 + TCP)),
        ("TCP6", v6(web6).build(), Cut(ETHERNET + V6 + TCP)),
        ("UDP", udp4().build(), Cut(ETHERNET + V4 + UDP)),
        ("ICMPv6", icmp6.build(), Cut(ETHERNET + V6)),
        ("ECN", v4(web).tos(MARK | 0b11).build(), Cut(ETHERNET + V4 + TCP)),
        ("ECN of IPv6", v6(web6).tos(MARK | 0b01).build(), Cut(ETHERNET + V6 + TCP)),
        ("a tag", v4(web).tag(0x8100, 100).build(), Cut(ETHERNET + TAG + V4 + TCP)),
        ("two tags", v6(web6).tag(0x88a8, 7).tag(0x8100, 100).build(),
         Cut(ETHERNET + 2 * TAG + V6 + TCP)),
        ("options", v4(web).options(40).build(), Cut(ETHERNET + V4 + 40 + TCP)),
        ("extension headers", v6(web6).extensions(any).build(), Cut(ETHERNET + V6 + 24 + TCP)),
        ("eight extension headers", v6(web6).extensions(&eight).build(),
         Cut(ETHERNET + V6 + 64 + TCP)),
        ("a long extension header", damaged(&long, |frame| frame[ETHERNET + V6 + 1] = 100),
         Cut(ETHERNET + V6 + 808 + TCP)),
        ("headers that are too long", damaged(&long, |frame| frame[ETHERNET + V6 + 1] = 160),
         MALFORMED),
        ("nine", v6(web6).extensions(&nine).build(), MALFORMED),
        ("a first fragment", v4(web).fragment(7, 0, true).build(), Cut(ETHERNET + V4 + TCP)),
        ("a later fragment", v4(web).fragment(7, 5, true).build(), Cut(ETHERNET + V4)),
        ("a first fragment of IPv6", v6(web6).fragment(7, 0, true).build(),
         Cut(ETHERNET + V6 + 8 + TCP)),
        ("a later fragment of IPv6", v6(web6).fragment(7, 5, false).build(),
         Cut(ETHERNET + V6 + 8)),
        ("little TCP", v4(web).payload(16).build(), Cut(ETHERNET + V4 + 16)),
        ("padding", udp4().payload(4).padding(18).build(), Cut(ETHERNET + V4 + 4)),
        ("a jumbo frame", v4(web).payload(8_900).build(), Cut(ETHERNET + V4 + TCP)),
        ("a jumbo frame of IPv6", v6(web6).extensions(any).payload(8_900).build(),
         Cut(ETHERNET + V6 + 24 + TCP)),
        ("no mark", v4(web).tos(0).build(), UNMARKED),
        ("another mark", v6(web6).tos(0x2c).build(), UNMARKED),
        ("an unmarked jumbo frame", v4(web).tos(0).payload(8_900).build(), UNMARKED),
        ("another source", from("192.0.2.12:40000").build(), OTHER_SOURCE),
        ("the way back", tcp(web, &format!("{HOST_V4}:40000")).tos(MARK).build(), INBOUND),
        ("the way back of IPv6", tcp(web6, &format!("[{HOST_V6}]:40000")).tos(MARK).build(),
         INBOUND),
        ("the way back, unmarked", tcp(web, &format!("{HOST_V4}:40000")).build(), UNMARKED),
        ("another host's", from(web).build(), OTHER_SOURCE),
        ("another source of IPv6", tcp("[2001:db8:1::11]:40000", web6).tos(MARK).build(),
         OTHER_SOURCE),
        ("ARP", arp(), NOT_IP),
        ("a runt", v4(web).build()[..14].to_vec(), MALFORMED),
        ("a header cut off", v4(web).build()[..33].to_vec(), MALFORMED),
        ("cut behind its transport header", v4(web).payload(900).build()[..54].to_vec(),
         Cut(ETHERNET + V4 + TCP)),
        ("cut behind its transport header, of IPv6", v6(web6).payload(900).build()[..74].to_vec(),
         Cut(ETHERNET + V6 + TCP)),
        ("cut in its transport header", v4(web).payload(900).build()[..53].to_vec(), MALFORMED),
        ("another version", damaged(&v4(web), |frame| frame[14] = 0x65), MALFORMED),
        ("no ports", v4(web).payload(3).build(), MALFORMED),
        ("five tags", (0..5).fold(v4(web), |frame, _| frame.tag(0x8100, 1)).build(), NOT_IP),
    ]
}

#[test]
fn receives_exactly_the_wanted_packets_and_sends_nothing() {
    needs_root!();
    let rig = Rig::new(1, 9000);
    // An address that the stack would answer for, if it were queried.
    rig.monitor.ip("addr add 203.0.113.9/32 dev lo").unwrap();
    let mut tap = rig.open().unwrap();
    let mut watch = rig.watch();
    let port = rig.port();
    let cases = cases();
    let mut before = tap.counters().unwrap();
    assert_eq!(before.sorted, Sorted::default());
    let mut wanted = 0;
    for (number, (what, frame, fate)) in (1..).zip(&cases) {
        port.send(frame).unwrap();
        let after = wait_for(&tap, what, |counters| counters.sorted.received == number);
        match fate {
            Cut(bytes) => {
                wanted += 1;
                assert_eq!(after.sorted.passed, wanted, "{what}: {after:?}");
                let packets = receive(&mut tap, 1);
                assert_eq!(packets, [&frame[..*bytes]], "{what}");
            }
            Dropped(reason) => {
                let moved = reason(&after.sorted) - reason(&before.sorted);
                assert_eq!(moved, 1, "{what}: {after:?}");
                assert_eq!(after.sorted.passed, wanted, "{what}: {after:?}");
            }
        }
        before = after;
    }
    assert_eq!(tap.receive(Duration::ZERO, |_| ()).unwrap(), 0);
    assert_eq!(before.lost(), 0, "{before:?}");
    rig.close(tap);

    // The capture worked all the time: it sees what is sent now, and saw nothing before.
    let last = v4("198.51.100.9:1").build();
    let sent = RawPort::open(&rig.monitor, "tap0").unwrap().send(&last);
    sent.unwrap();
    assert!(watch.wait_until(TIMEOUT, |captured| !captured.is_empty()));
    let captured = watch.finish().unwrap();
    let captured: Vec<_> = captured.iter().map(|frame| &frame.bytes).collect();
    assert_eq!(captured, [&last]);
}

#[test]
fn receives_both_directions_and_mirrored_frames() {
    needs_root!();
    let rig = Rig::new(1, 1600);
    let mut filter = settings().filter;
    filter.directions = Directions::Both;
    filter.unwrap = mirrored::ALL;
    let mut tap = rig
        .open_with(TapSettings {
            filter,
            ..settings()
        })
        .unwrap();
    let port = rig.port();
    let web = "198.51.100.7:443";
    let up = v4(web).payload(800).build();
    let down = tcp(web, &format!("{HOST_V4}:40000"))
        .tos(MARK)
        .payload(1400)
        .build();
    let foreign = tcp(web, "192.0.2.99:40000").tos(MARK).build();
    let headers = ETHERNET + V4 + TCP;
    let mut expected = Vec::new();
    for frame in [&up, &down] {
        port.send(frame).unwrap();
        expected.push(frame[..headers].to_vec());
        for kind in mirrored::KINDS {
            for is_v6 in [false, true] {
                let outer = Outer {
                    is_v6,
                    tags: 1,
                    ..Outer::default()
                };
                let packet = mirrored::wrapped(kind, outer, frame);
                port.send(&packet).unwrap();
                expected.push(packet[..packet.len() - frame.len() + headers].to_vec());
                port.send(&mirrored::wrapped(kind, outer, &foreign))
                    .unwrap();
            }
        }
    }
    assert_eq!(receive(&mut tap, expected.len()), expected);
    let sorted = tap.counters().unwrap().sorted;
    assert_eq!((sorted.passed, sorted.other_source), (18, 16));
}

#[test]
fn receives_from_several_nics() {
    needs_root!();
    let rig = Rig::new(1, 1500);
    let end = |netns, name, mac| VethEnd::new(netns, name, mac);
    veth(
        &end(&rig.monitor, "tap1", "02:00:00:00:09:11"),
        &end(&rig.network, "span1", "02:00:00:00:09:12"),
        1500,
    )
    .unwrap();
    let all = [TAP, "tap1"].map(|interface| TapSettings {
        interface: interface.to_owned(),
        ..settings()
    });
    let mut taps = rig.monitor.run(move || Taps::open(&all)).unwrap();
    let ports = [SPAN, "span1"].map(|name| RawPort::open(&rig.network, name).unwrap());
    let frame = v4("198.51.100.7:443").build();
    for (port, times) in ports.iter().zip([3, 5]) {
        for _ in 0..times {
            port.send(&frame).unwrap();
        }
    }
    let mut received = 0;
    let deadline = Instant::now() + TIMEOUT;
    while received < 8 && Instant::now() < deadline {
        let taken = taps.receive(Duration::from_millis(20), |_| ());
        received += taken.unwrap();
    }
    let passed = |taps: &Taps| -> Vec<u64> {
        let counters = taps.counters(&[]);
        counters.iter().map(|each| each.sorted.passed).collect()
    };
    assert_eq!((received, passed(&taps)), (8, vec![3, 5]));
    // Losses are those of one NIC.
    let [first, second] = ports;
    for _ in 0..300 {
        second.send(&frame).unwrap();
    }
    eventually("300 frames", || match &passed(&taps)[..] {
        [3, 305] => Ok(()),
        passed => Err(format!("{passed:?}")),
    });
    let lost: Vec<_> = taps.counters(&[]).iter().map(TapCounters::lost).collect();
    assert_eq!(lost, [0, 44]);
    // The one that disappears is named, and its last counters stay.
    let last = taps.counters(&[]);
    drop((first, second));
    rig.network.ip("link del span1").unwrap();
    let gone = loop {
        if let Err(error) = taps.receive(Duration::from_millis(20), |_| ()) {
            break error;
        }
        assert!(Instant::now() < deadline, "it is not noticed");
    };
    assert!(
        matches!(&gone, TapError::Gone(name, _) if name == "tap1"),
        "{gone}"
    );
    assert_eq!(taps.counters(&last), last);
    rig.monitor.run(move || taps.close()).unwrap();
    crate::says(&rig.link(), "promiscuity 0");
}

#[test]
fn receives_bursts_completely_on_every_queue() {
    needs_root!();
    let (_rig, mut tap, port) = Rig::opened(2);
    assert_eq!(tap.queues(), 2);
    let mut received = Vec::new();
    let mut sent = Vec::new();
    // Several times as many packets as the memory holds.
    for burst in 0..20_u16 {
        for flow in 0..200 {
            let source = format!("{HOST_V4}:{}", 1000 + flow * 7 + burst);
            let frame = tcp(&source, "198.51.100.7:443").tos(MARK).build();
            port.send(&frame).unwrap();
            sent.push(frame[..ETHERNET + V4 + TCP].to_vec());
        }
        received.extend(receive(&mut tap, 200));
    }
    received.sort();
    sent.sort();
    assert!(received == sent);
    let counters = tap.counters().unwrap();
    assert_eq!((counters.sorted.passed, counters.lost()), (4000, 0));
}

#[test]
fn counts_packets_that_found_no_room() {
    needs_root!();
    let (_rig, mut tap, port) = Rig::opened(1);
    let frame = v4("198.51.100.7:443").build();
    for _ in 0..300 {
        port.send(&frame).unwrap();
    }
    let counters = wait_for(&tap, "300 frames", |counters| counters.sorted.passed == 300);
    let lost = [counters.overrun, counters.no_chunk, counters.lost()];
    assert_eq!(lost, [44; 3]);
    assert_eq!(receive(&mut tap, 256).len(), 256);
    // There is room again.
    port.send(&frame).unwrap();
    receive(&mut tap, 1);
    assert_eq!(tap.counters().unwrap().lost(), 44);
}

/// The size of a page, in bytes.
const PAGE: usize = 4096;

/// How often these bytes are in this process's packet memory, which is the memory excluded from core
/// dumps.
fn found_in_packet_memory(needle: &[u8]) -> usize {
    let memory = File::open("/proc/self/mem").unwrap();
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut range = (0, 0);
    let mut found = 0;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("VmFlags:") if words.any(|flag| flag == "dd") => {
                // Page by page: the range may include such memory of another test, and rings, which
                // may be unmapped by now. No packet crosses pages.
                let mut page = [0; PAGE];
                for at in (range.0..range.1).step_by(PAGE) {
                    if memory.read_exact_at(&mut page, at).is_ok() {
                        let places = page.windows(needle.len());
                        found += places.filter(|at| *at == needle).count();
                    }
                }
            }
            Some(word) if !word.ends_with(':') => {
                let number = |text| u64::from_str_radix(text, 16).ok();
                if let Some((first, last)) = word.split_once('-') {
                    range = number(first).zip(number(last)).unwrap_or(range);
                }
            }
            _ => {}
        }
    }
    found
}

#[test]
fn packet_memory_holds_no_address_afterwards() {
    needs_root!();
    let (_rig, mut tap, port) = Rig::opened(1);
    let destination: Ipv6Addr = "2001:db8:feed:face:102:304:506:708".parse().unwrap();
    let needle = destination.octets();
    let frame = v6(&format!("[{destination}]:443")).build();
    for _ in 0..100 {
        port.send(&frame).unwrap();
    }
    wait_for(&tap, "100 frames", |counters| counters.sorted.passed == 100);
    // The search covers packet memory.
    assert_eq!(found_in_packet_memory(&needle), 100);
    let mut captured = 0;
    while captured < 100 {
        let received = tap.receive(TIMEOUT, |batch| {
            assert!(found_in_packet_memory(&needle) >= batch.len());
        });
        captured += received.unwrap();
    }
    assert_eq!(found_in_packet_memory(&needle), 0);
    drop(tap);
}

/// Sockets with rings in this process's memory, and the ring's page offset as in linux/if_xdp.h.
fn rings() -> Vec<(String, u64)> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let rings = maps.lines().filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let name = words.last()?.strip_prefix("socket:")?;
        Some((name.to_owned(), u64::from_str_radix(words[2], 16).ok()?))
    });
    rings.collect()
}

fn descriptor_of(socket: &str) -> Option<RawFd> {
    let entries = fs::read_dir("/proc/self/fd").unwrap();
    entries.flatten().find_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        let is_it = target.to_str()?.strip_prefix("socket:")? == socket;
        is_it.then(|| entry.file_name().to_str()?.parse().ok())?
    })
}

#[test]
fn the_tap_has_no_transmit_ring() {
    const FILL: u64 = 0x1_0000_0000;
    const TRANSMIT: u64 = 0x8000_0000;
    needs_root!();
    let (_rig, tap, _port) = Rig::opened(2);
    let rings = rings();
    // Includes rings of tests that run at the same time.
    assert!(rings.iter().filter(|(_, at)| *at == FILL).count() >= tap.queues());
    assert!(rings.iter().all(|(_, at)| *at != TRANSMIT), "{rings:x?}");
    let mut tried = 0;
    for (socket, _) in rings.iter().filter(|(_, at)| *at == FILL) {
        if let Some(descriptor) = descriptor_of(socket) {
            // The error of AF_XDP without a transmit ring; with one, send returns 0.
            let sent = send(descriptor.as_raw_fd(), &[], MsgFlags::MSG_DONTWAIT);
            tried += usize::from(sent == Err(Errno::ENOBUFS));
            assert_ne!(sent, Ok(0));
        }
    }
    assert!(tried >= tap.queues(), "{tried}");
    drop(tap);
}

#[test]
fn receives_again_when_the_link_comes_back() {
    needs_root!();
    let (rig, mut tap, port) = Rig::opened(1);
    let frame = v4("198.51.100.7:443").build();
    for (netns, name) in [(&rig.network, "span0"), (&rig.monitor, "tap0")] {
        port.send(&frame).unwrap();
        receive(&mut tap, 1);
        netns.ip(&format!("link set {name} down")).unwrap();
        assert_eq!(tap.receive(Duration::from_millis(1), |_| ()).unwrap(), 0);
        netns.ip(&format!("link set {name} up")).unwrap();
    }
    port.send(&frame).unwrap();
    receive(&mut tap, 1);
    assert_eq!(tap.counters().unwrap().lost(), 0);
}

#[test]
fn an_interface_that_disappears_is_an_error() {
    needs_root!();
    let (rig, mut tap, port) = Rig::opened(1);
    port.send(&v4("198.51.100.7:443").build()).unwrap();
    receive(&mut tap, 1);
    rig.monitor.ip("link del tap0").unwrap();
    // Detected when a wait returns nothing.
    let error = loop {
        if let Err(error) = tap.receive(Duration::from_millis(1), |_| ()) {
            break error;
        }
    };
    assert_eq!(
        error.to_string(),
        "tap0 is gone (Network is down (os error 100)): once it is back (`ip link show dev tap0`), \
         start the monitor again"
    );
    // The error is returned again, counters stay readable, and there is nothing to restore.
    let again = tap.receive(Duration::ZERO, |_| ()).unwrap_err();
    assert!(matches!(again, TapError::Gone { .. }), "{again}");
    assert_eq!(tap.counters().unwrap().sorted.passed, 1);
    rig.close(tap);
}

#[test]
fn an_open_tap_needs_no_capability() {
    needs_root!();
    let (rig, mut tap, port) = Rig::opened(1);
    port.send(&v4("198.51.100.7:443").build()).unwrap();
    let powerless = rig.monitor.spawn("capture", move || {
        for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
            caps::clear(None, set).unwrap();
        }
        let permitted = caps::read(None, caps::CapSet::Permitted);
        assert!(permitted.unwrap().is_empty());
        receive(&mut tap, 1);
        let counters = tap.counters().unwrap();
        assert_eq!(counters.sorted.passed, 1);
        tap.close().map_err(|error| error.to_string())
    });
    let error = powerless.unwrap().join().unwrap().unwrap_err();
    assert!(error.starts_with("cannot turn promiscuous mode off on tap0"));
}
