//! Reads a capture back: every frame has its comment and its headers, but no foreign address.

use crate::rig::{Ground, NOON, PLAIN, beginning, ground, ground_host, on, showing};
use exitmark_box::audit::{Moment, Sampler};
use exitmark_box::observe::CaptureRequest;
use exitmark_datapath::{Role, Sample};
use exitmark_lab::cases::{HOST4, HOST6, RELAY4, RELAY6, WEB4, WEB6, tables};
use exitmark_lab::frames::{FROM, TO, tcp, udp};
use exitmark_policy::packet::MacAddr;
use exitmark_policy::{Class, Rule};
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::blocks::interface_statistics::InterfaceStatisticsOption;
use pcap_file::pcapng::blocks::section_header::SectionHeaderOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use std::sync::Arc;
use std::time::Duration;

const OWN: MacAddr = MacAddr::new([2, 0, 0, 0, 3, 1]);
/// The foreign addresses that frames are to or from.
const OTHERS: [&str; 7] = [
    "198.51.100.7",
    "2001:db8:51::7",
    "198.18.0.1",
    "2001:db8:18::1",
    "9.9.9.9",
    "203.0.113.99",
    "192.0.2.11",
];
/// A year after 1970.
const WALL: Duration = Duration::from_secs(365 * 86_400);

const MOMENT: Moment = Moment {
    monotonic: NOON,
    wall: WALL,
};

/// Frames of every class and port, with the comment that a capture has for each.
#[rustfmt::skip]
fn stories() -> Vec<(Role, Vec<u8>, &'static str)> {
    let mut malformed = tcp(HOST4, WEB4).build();
    malformed[14] = 0x42;
    let mut arp = tcp(HOST4, WEB4).build();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let story = |frame: Vec<u8>, text| (Role::Host, frame, text);
    vec![
        story(tcp(HOST4, WEB4).payload(300).build(),
              "exit: from a clearnet address to no relay; uplink, marked af11 (10)"),
        story(tcp(HOST6, WEB6).tag(0x8100, 5).build(),
              "exit: from a clearnet address to no relay; uplink, marked af11 (10)"),
        story(tcp(HOST4, WEB4).tos(0x28).build(),
              "exit: from a clearnet address to no relay; uplink"),
        story(tcp(HOST4, RELAY4).build(), "relay: to a listed relay's address and port; incoming"),
        story(tcp(HOST6, RELAY6).tos(0x28).build(),
              "relay: to a listed relay's address and port; incoming, mark cleared"),
        story(udp(HOST4, "9.9.9.9:53").build(), "resolver: to a configured resolver; uplink"),
        story(tcp("192.0.2.10:22", WEB4).build(),
              "reply: from a port where the host itself listens; uplink"),
        story(tcp(HOST4, "203.0.113.99:80").build(), "exempt: to an exempt prefix; uplink"),
        story(udp(HOST6, WEB6).build(), "host: a protocol that is not marked; uplink"),
        story(tcp("192.0.2.11:40000", WEB4).build(),
              "foreign: the source is not an address of the host; uplink"),
        story(malformed, "malformed: an IP packet whose lengths contradict each other; uplink"),
        story(arp, "non_ip: not an IP packet; uplink"),
        (Role::Uplink, tcp(WEB4, HOST4).build(), "inbound: received on uplink; host"),
        (Role::Uplink, udp(WEB6, HOST6).build(), "inbound: received on uplink; host"),
        (Role::Incoming, tcp(RELAY4, HOST4).macs(OWN, TO).build(),
         "inbound: received on incoming; host"),
    ]
}

struct File {
    bytes: Vec<u8>,
    interfaces: Vec<String>,
    packets: Vec<EnhancedPacketBlock<'static>>,
    final_comment: String,
    dropped: u64,
}

fn read(bytes: Vec<u8>) -> File {
    let mut reader = PcapNgReader::new(&bytes[..]).unwrap();
    let application = reader.section().options.iter().any(|option| {
        matches!(option, SectionHeaderOption::UserApplication(name) if name.starts_with("exitmark "))
    });
    assert!(application);
    let mut file = File {
        bytes: bytes.clone(),
        interfaces: Vec::new(),
        packets: Vec::new(),
        final_comment: String::new(),
        dropped: u64::MAX,
    };
    while let Some(block) = reader.next_block() {
        match block.unwrap().into_owned() {
            Block::InterfaceDescription(interface) => {
                for option in interface.options {
                    match option {
                        InterfaceDescriptionOption::IfName(name) => {
                            file.interfaces.push(name.into_owned());
                        }
                        InterfaceDescriptionOption::IfTsResol(digits) => assert_eq!(digits, 9),
                        _ => {}
                    }
                }
            }
            Block::EnhancedPacket(packet) => {
                assert!(
                    file.final_comment.is_empty(),
                    "the final comment is the last block"
                );
                file.packets.push(packet);
            }
            Block::InterfaceStatistics(statistics) => {
                for option in statistics.options {
                    match option {
                        InterfaceStatisticsOption::Comment(text) => {
                            file.final_comment = text.into_owned();
                        }
                        InterfaceStatisticsOption::IsbOsDrop(number) => file.dropped = number,
                        _ => {}
                    }
                }
            }
            other => panic!("{other:?}"),
        }
    }
    file
}

fn comment_and_flags(packet: &EnhancedPacketBlock<'_>) -> (String, u32) {
    let (mut comment, mut flags) = (None, None);
    for option in &packet.options {
        match option {
            EnhancedPacketOption::Comment(text) => comment = Some(text.clone().into_owned()),
            EnhancedPacketOption::Flags(bits) => flags = Some(*bits),
            _ => {}
        }
    }
    (comment.unwrap(), flags.unwrap())
}

/// Whether an address is anywhere in these bytes: in network order, reversed, or as text.
fn holds(bytes: &[u8], address: &str) -> bool {
    let octets = match address.parse().unwrap() {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    };
    let reversed: Vec<u8> = octets.iter().rev().copied().collect();
    [&octets[..], &reversed, address.as_bytes()]
        .into_iter()
        .any(|needle| bytes.windows(needle.len()).any(|window| window == needle))
}

fn sampler(ground: &Ground) -> Sampler {
    let links = Arc::new(ground.links());
    // The engines have learned it from earlier frames.
    links.remember_hosts([ground_host()]);
    Sampler::new(links, Arc::clone(&ground.snapshot), 4096)
}

fn capture(ground: &Ground, request: CaptureRequest, samples: &[Sample]) -> File {
    let mut sampler = sampler(ground);
    let pieces = sampler.capture(request, MOMENT, true).unwrap();
    sampler.look(NOON);
    for sample in samples {
        // The kernel's samples have real times; the test uses its own.
        let arrived = NOON + Duration::from_millis(3);
        sampler.add(&Sample { arrived, ..*sample });
    }
    assert_eq!(sampler.audit().checked, samples.len() as u64);
    let faults = sampler.audit().mismatches;
    assert!(faults.iter().all(|count| count.frames == 0), "{faults:?}");
    sampler.end();
    read(pieces.iter().flatten().collect())
}

/// Runs a test with each engine that this machine supports.
fn by_each(test: impl Fn(&Ground, &str, &[Sample])) {
    let ground = ground();
    let stories = stories().into_iter();
    let frames: Vec<_> = stories.map(|(port, frame, _)| (port, frame)).collect();
    let links = Arc::new(ground.links());
    test(&ground, "af_xdp", &ground.by_worker(&links, &frames));
    if let Some(samples) = ground.by_kernel(&frames) {
        test(&ground, "xdp", &samples);
    }
}

#[test]
fn captures_headers_and_comment_but_no_foreign_address() {
    by_each(|ground, engine, samples| {
        let file = capture(ground, PLAIN, samples);
        assert_eq!(file.interfaces, ["host", "uplink", "incoming"]);
        let stories = stories();
        assert_eq!(file.packets.len(), stories.len());
        for ((port, frame, story), packet) in stories.iter().zip(&file.packets) {
            let (comment, flags) = comment_and_flags(packet);
            assert_eq!(comment, format!("{story}; engine {engine}"));
            assert_eq!(packet.original_len as usize, frame.len(), "{story}");
            assert_eq!(packet.timestamp, WALL + Duration::from_millis(3));
            assert_eq!(flags, 2, "{story}");
            let left_by = format!("; {}", file.interfaces[packet.interface_id as usize]);
            assert!(story.contains(&left_by), "{story}{left_by}");
            // At most a TCP header, after a tag and an IPv6 header.
            assert!(packet.data.len() <= 18 + 40 + 20, "{story}");
            let is_ip = !story.starts_with("non_ip") && !story.starts_with("malformed");
            assert_eq!(packet.data.len() > 14, is_ip, "{story}");
            let is_outbound = *port == Role::Host;
            assert_eq!(story.starts_with("inbound"), !is_outbound);
        }
        for address in OTHERS {
            assert!(!holds(&file.bytes, address), "{engine}: {address}");
        }
        assert!(holds(&file.bytes, "192.0.2.10"), "the host's own is shown");
        // The payload counts up from its thirteenth byte.
        let payload: Vec<u8> = (30..60).collect();
        assert!(!file.bytes.windows(30).any(|window| window == payload));
        let words = "15 frames, one in 1; 0 more are left out";
        assert!(file.final_comment.contains(words), "{}", file.final_comment);
        assert_eq!(file.dropped, 0);
    });
}

/// Offsets of the bytes that are hidden, of frames with at most one tag.
fn hidden(frame: &[u8], rule: Option<Rule>) -> Vec<usize> {
    let is_outbound = rule.is_some();
    // The router's MAC address is not one of the site's.
    let is_router = |at: &usize| frame[at / 6 * 6..][..6] == TO.bytes();
    let mut hidden: Vec<usize> = (0..12).filter(is_router).collect();
    let l3 = if frame[12..14] == [0x81, 0] { 18 } else { 14 };
    let l4 = if frame[l3 - 2..l3] == [0x86, 0xdd] {
        // The flow label; the hop count of the other side's packets; its address.
        hidden.extend(l3 + 2..l3 + 4);
        if !is_outbound {
            hidden.push(l3 + 7);
        }
        let other = if is_outbound { l3 + 24 } else { l3 + 8 };
        hidden.extend(other..other + 16);
        l3 + 40
    } else {
        // Identification, hop count, checksum, address.
        hidden.extend([l3 + 4, l3 + 5, l3 + 10, l3 + 11]);
        if !is_outbound {
            hidden.push(l3 + 8);
        }
        let other = if is_outbound { l3 + 16 } else { l3 + 12 };
        hidden.extend(other..other + 4);
        l3 + 20
    };
    match frame[if l4 - l3 == 40 { l3 + 6 } else { l3 + 9 }] {
        // Sequence numbers; window, checksum, urgent pointer.
        6 => hidden.extend((l4 + 4..l4 + 12).chain(l4 + 14..l4 + 20)),
        _ => hidden.extend(l4 + 6..l4 + 8),
    }
    // The other side's port; foreign frames have no side that is the site's.
    use Class::{Exempt, Exit, Foreign, Reply, Resolver};
    match rule.map(Rule::class) {
        Some(Exit | Resolver | Exempt | Reply) => {}
        Some(Foreign) => hidden.extend(l4..l4 + 4),
        Some(_) => hidden.extend(l4 + 2..l4 + 4),
        None => hidden.extend(l4..l4 + 2),
    }
    hidden
}

/// A capture shows the frame on departure, without fields that can be computed from an address.
#[test]
fn captures_the_headers_on_departure() {
    by_each(|ground, engine, samples| {
        let file = capture(ground, PLAIN, samples);
        for (sample, packet) in samples.iter().zip(&file.packets) {
            let class = sample.rule.map(|rule| rule.class().name());
            let mut expected = sample.after[..packet.data.len()].to_vec();
            for at in hidden(&sample.after, sample.rule) {
                if let Some(byte) = expected.get_mut(at) {
                    *byte = 0;
                }
            }
            for at in [12, 16] {
                if let Some(byte) = expected.get_mut(at + 3)
                    && sample.after[at..at + 2] == [0x86, 0xdd]
                {
                    *byte &= 0xf0;
                }
            }
            if class == Some("foreign") {
                expected[22] = 0;
                expected[26..30].fill(0);
            }
            assert_eq!(packet.data, expected, "{engine} {sample:?}");
        }
    });
}

#[test]
fn shows_payload_and_addresses_on_request() {
    by_each(|ground, engine, samples| {
        let file = capture(ground, showing(true, true), samples);
        for (sample, packet) in samples.iter().zip(&file.packets) {
            assert!(*packet.data == *sample.after, "{engine}");
        }
        assert!(file.packets.iter().any(|packet| packet.data.len() == 192));
        assert!(OTHERS.iter().all(|address| holds(&file.bytes, address)));

        let file = capture(ground, showing(false, true), samples);
        for address in OTHERS {
            assert!(holds(&file.bytes, address), "{engine}: {address}");
        }
        let longest = file.packets.iter().map(|packet| packet.data.len()).max();
        assert_eq!(longest, Some(18 + 40 + 20));

        let file = capture(ground, showing(true, false), samples);
        for address in OTHERS {
            assert!(!holds(&file.bytes, address), "{engine}: {address}");
        }
        assert!(file.packets.iter().any(|packet| packet.data.len() == 192));
    });
}

fn one() -> (Ground, Sample) {
    let ground = ground();
    let frame = tcp(HOST4, WEB4).macs(TO, FROM).build();
    let links = Arc::new(ground.links());
    let sample = ground.by_worker(&links, &[(Role::Host, frame.clone())])[0];
    assert!(*sample.before == *beginning(&frame));
    (ground, sample)
}

#[test]
fn ends_with_its_frames_its_time_or_its_reader() {
    let (ground, sample) = one();
    let links = Arc::new(ground.links());
    let mut sampler = Sampler::new(Arc::clone(&links), Arc::clone(&ground.snapshot), 4096);
    let few = CaptureRequest {
        frames: 3,
        one_in: 2,
        ..PLAIN
    };

    let pieces = sampler.capture(few, MOMENT, true).unwrap();
    assert_eq!((links.one_in(), sampler.is_capturing()), (2, true));
    let refusal = sampler.capture(few, MOMENT, true).unwrap_err();
    assert!(refusal.contains("one at a time"), "{refusal}");
    for _ in 0..5 {
        sampler.add(&sample);
    }
    sampler.tick(NOON, 0);
    assert_eq!((links.one_in(), sampler.is_capturing()), (4096, false));
    assert_eq!(read(pieces.iter().flatten().collect()).packets.len(), 3);

    let pieces = sampler.capture(few, MOMENT, true).unwrap();
    sampler.tick(NOON + Duration::from_secs(59), 0);
    assert!(sampler.is_capturing());
    // Samples that the engines lost are reported as missing in the file.
    sampler.tick(NOON + Duration::from_secs(60), 17);
    assert!(!sampler.is_capturing());
    let file = read(pieces.iter().flatten().collect());
    assert_eq!((file.packets.len(), file.dropped), (0, 17));

    drop(sampler.capture(few, MOMENT, true).unwrap());
    sampler.add(&sample);
    sampler.tick(NOON, 17);
    assert_eq!((links.one_in(), sampler.is_capturing()), (4096, false));
}

#[test]
fn reports_frames_that_a_slow_reader_missed() {
    let (ground, sample) = one();
    let mut sampler = sampler(&ground);
    let many = CaptureRequest {
        frames: 100_000,
        ..PLAIN
    };
    let pieces = sampler.capture(many, MOMENT, true).unwrap();
    for _ in 0..10_000 {
        sampler.add(&sample);
    }
    sampler.end();
    let file = read(pieces.iter().flatten().collect());
    assert_eq!(file.packets.len() as u64 + file.dropped, 10_000);
    assert!(
        file.dropped > 0
            && file
                .final_comment
                .contains(&format!("{} more", file.dropped))
    );
}

#[test]
fn refuses_invalid_requests_and_names_what_is_accepted() {
    let (ground, _) = one();
    let mut sampler = sampler(&ground);
    type Change = fn(&mut CaptureRequest);
    let table: [(Change, &str); 5] = [
        (|it| it.frames = 0, "frames is 0"),
        (|it| it.seconds = 0, "seconds is 0"),
        (|it| it.seconds = 1 << 40, "seconds is 1099511627776"),
        (|it| it.frames = u64::MAX, "1 to 1000000"),
        (|it| it.one_in = 0, "one_in is 0"),
    ];
    for (change, name) in table {
        let mut request = PLAIN;
        change(&mut request);
        let refusal = sampler.capture(request, MOMENT, true).unwrap_err();
        assert!(refusal.contains(name), "{refusal}");
        assert!(!sampler.is_capturing());
    }
}

/// Frames that get other VLAN tags leave longer or shorter than they arrived.
#[test]
fn the_length_of_a_frame_is_that_at_the_port_where_it_is_shown() {
    let mut changed = 0;
    for table in tables() {
        let ground = on(table);
        let cases = &ground.table.cases;
        let frames = cases.iter().map(|case| (Role::Host, case.before.clone()));
        let links = Arc::new(ground.links());
        let samples = ground.by_worker(&links, &frames.collect::<Vec<_>>());
        let (mut sampler, pieces) = ground.capturing(links, PLAIN, true);
        sampler.look(NOON);
        samples.iter().for_each(|sample| sampler.add(sample));
        sampler.end();
        let file = read(pieces.iter().flatten().collect());
        assert_eq!(file.packets.len(), cases.len());
        for (case, packet) in cases.iter().zip(&file.packets) {
            let name = (ground.table.name, case.name);
            let length = case.after.len();
            assert_eq!(packet.original_len as usize, length, "{name:?}");
            changed += usize::from(case.before.len() != length);
        }
    }
    assert!(changed > 0);
}
