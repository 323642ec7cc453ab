//! Steered traffic with a source address of its own: `steer.source`. Both routers drop what has a
//! source address of the other network.

use crate::craft::{Packet, TCP, UDP, families, noise, relay, relay_answer, segment};
use crate::rack::{Conversation, has_vlan_interfaces, inspect, inspected, serve};
use crate::reload::{REPLACED, Tor, listing, relay as relay_at};
use crate::rig::{
    Case, Config, Rig, Side, assert_says, both_engines, count, eventually, exitmark, needs_root,
    refused, silent,
};
use crate::stacks::{TCP_FILTER, all_of, converse, counters, tcp_at, tos};
use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, TcpHeaderSlice, icmpv4};
use exitmark_lab::consensus::ConsensusBuilder;
use exitmark_lab::site::{BOX_V4, HOST_V4, OR_PORT, Plan, RELAY_V4, RELAY_V6, SERVER_V4, Site};
use exitmark_lab::{Capture, Netns, VethEnd, contained, timeout};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::socket::Backlog;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

const SOURCE_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 0x10);
const SOURCES: &str = "source = [\"203.0.113.10\", \"2001:db8:3::10\"]";
const ROUTERS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 1)),
];
const SYN: u8 = 0x02;
const ICMP: [u8; 2] = [1, 58];

fn sources() -> [IpAddr; 2] {
    [SOURCE_V4.into(), SOURCE_V6.into()]
}

fn translating() -> Config {
    Config::default().steer(SOURCES)
}

fn listing_all(relays: [IpAddr; 2]) -> ConsensusBuilder {
    let [first, second] = relays.map(relay_at);
    let mut builder = listing(first);
    builder.listed.push(second);
    builder
}

/// The packet with the checksum of its segment, computed from scratch.
fn sealed(mut packet: Packet) -> Packet {
    let header = TcpHeaderSlice::from_slice(&packet.payload)
        .unwrap()
        .to_header();
    let data = &packet.payload[header.header_len()..];
    let sum = match (packet.source, packet.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            header.calc_checksum_ipv4_raw(source.octets(), destination.octets(), data)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            header.calc_checksum_ipv6_raw(source.octets(), destination.octets(), data)
        }
        _ => unreachable!("a packet has one family"),
    };
    packet.payload[16..18].copy_from_slice(&sum.unwrap().to_be_bytes());
    packet
}

fn from(packet: &Packet, source: IpAddr) -> Packet {
    sealed(Packet {
        source,
        ..packet.clone()
    })
}

fn to(packet: &Packet, destination: IpAddr) -> Packet {
    sealed(Packet {
        destination,
        ..packet.clone()
    })
}

/// The router's message that a packet is too long, with so many bytes of it.
fn too_big(router: IpAddr, quoted: &Packet, bytes: usize) -> Packet {
    let quote = quoted.bytes();
    let quote = &quote[..bytes.min(quote.len())];
    let (header, protocol) = match (router, quoted.source) {
        (IpAddr::V4(_), _) => {
            let kind = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1300 };
            let kind = Icmpv4Type::DestinationUnreachable(kind);
            (
                Icmpv4Header::with_checksum(kind, quote).to_bytes().to_vec(),
                ICMP[0],
            )
        }
        (IpAddr::V6(router), IpAddr::V6(source)) => {
            let kind = Icmpv6Type::PacketTooBig { mtu: 1300 };
            let (router, source) = (router.octets(), source.octets());
            let header = Icmpv6Header::with_checksum(kind, router, source, quote).unwrap();
            (header.to_bytes().to_vec(), ICMP[1])
        }
        _ => unreachable!("a packet has one family"),
    };
    Packet::new(
        router,
        quoted.source,
        protocol,
        [&header[..], quote].concat(),
    )
}

/// The two fragments of a packet.
fn parts(packet: &Packet, id: u16) -> [Packet; 2] {
    let (first, later) = packet.payload.split_at(64);
    let part = |payload: &[u8], offset, more| {
        let packet = Packet {
            payload: payload.to_vec(),
            ..packet.clone()
        };
        packet.part(id, offset, more)
    };
    [part(first, 0, true), part(later, 8, false)]
}

fn control(mut packet: Packet, bits: u8) -> Packet {
    packet.payload[13] = bits;
    sealed(packet)
}

#[test]
fn every_packet_has_the_addresses_of_its_network_and_right_checksums() {
    both_engines(|| {
        let mut cases = Vec::new();
        for (family, source) in sources().into_iter().enumerate() {
            let (host, _, relay_address) = families()[family];
            // Every length, so that carries and odd bytes occur.
            for bytes in [0, 1, 2, 3, 100, 1400] {
                let sent = sealed(relay(family, bytes));
                let arrives = Some((Side::Tornet, from(&sent, source).steered()));
                cases.push(Case::new("relay", Side::Host, sent.outbound(&[]), arrives));
                let answer = to(&relay_answer(family, bytes), source);
                let arrives = Some((Side::Host, to(&answer, host).delivered(&[])));
                cases.push(Case::new(
                    "answer",
                    Side::Tornet,
                    answer.incoming(&[]),
                    arrives,
                ));
            }
            // What the router quotes was sent to it, by the other address.
            for bytes in [28, 36, 48, 60, 80, 600] {
                let sent = from(&relay(family, 700), source);
                let error = too_big(ROUTERS[family], &sent, bytes);
                let quoted = from(&sent, host);
                let expected = too_big(ROUTERS[family], &quoted, bytes).delivered(&[]);
                let what = format!("error that quotes {bytes} bytes");
                let error = error.incoming(&[]);
                let arrives = match family == 0 || bytes >= 48 {
                    true => (Side::Host, expected),
                    false => (Side::Stack, error.clone()),
                };
                cases.push(Case::new(what, Side::Tornet, error, Some(arrives)));
            }
            let sent = parts(&sealed(relay(family, 200)), 5);
            let arrives = parts(&from(&relay(family, 200), source), 5);
            for (sent, arrives) in sent.iter().zip(arrives) {
                let arrives = Some((Side::Tornet, arrives.steered()));
                cases.push(Case::new(
                    "fragment",
                    Side::Host,
                    sent.outbound(&[]),
                    arrives,
                ));
            }
            let sent = parts(&to(&relay_answer(family, 200), source), 6);
            let arrives = parts(&sealed(relay_answer(family, 200)), 6);
            for (sent, arrives) in sent.iter().zip(arrives) {
                let arrives = Some((Side::Host, arrives.delivered(&[])));
                cases.push(Case::new(
                    "fragment back",
                    Side::Tornet,
                    sent.incoming(&[]),
                    arrives,
                ));
            }
            // All else is for the box itself.
            let answer = to(&relay_answer(family, 9), source);
            let unlisted = Packet {
                source: ROUTERS[family],
                ..answer.clone()
            };
            let other_port = Packet::new(relay_address, source, TCP, segment(9002, 40_001, 9));
            let udp = Packet::new(relay_address, source, UDP, segment(OR_PORT, 40_001, 9));
            let short = Packet {
                payload: answer.payload[..17].to_vec(),
                ..answer.clone()
            };
            let echo = Packet::new(relay_address, source, ICMP[family], noise(8, 40));
            let exit = Packet::new(source, ROUTERS[family], TCP, segment(40_001, 443, 9));
            for (what, packet) in [
                ("a bare SYN", control(answer, SYN)),
                ("an unlisted address", sealed(unlisted)),
                ("an unlisted port", sealed(other_port)),
                ("UDP", udp),
                ("a short header", short),
                ("an echo request", echo),
                (
                    "an error about other traffic",
                    too_big(ROUTERS[family], &exit, 60),
                ),
            ] {
                let frame = packet.incoming(&[]);
                let arrives = Some((Side::Stack, frame.clone()));
                cases.push(Case::new(what, Side::Tornet, frame, arrives));
            }
        }
        Rig::silent(Plan::default(), &translating()).verify(
            &cases,
            "host_received=16 relay=16 translated=16 incoming_forwarded=16 incoming_received=26 \
             translated_back=26 host_forwarded=26 incoming_to_stack=16",
        );
    });
}

/// Routers that know only their own network, and drop packets from the other one.
fn two_providers() -> Site {
    let site = Site::build(Plan::default()).unwrap();
    for (netns, foreign) in [
        (&site.tornet, ["192.0.2.0/24", "2001:db8:1::/64"]),
        (&site.clearnet, ["203.0.113.0/24", "2001:db8:3::/64"]),
    ] {
        let [v4, v6] = foreign;
        inspect(
            netns,
            &[format!("ip saddr {v4}"), format!("ip6 saddr {v6}")],
        );
    }
    for route in ["192.0.2.0/24", "2001:db8:1::/64"] {
        site.tornet.ip(&format!("route del {route}")).unwrap();
    }
    for netns in [&site.tornet, &site.clearnet] {
        netns.sysctl("net/ipv4/conf/all/rp_filter", "1").unwrap();
    }
    site
}

fn own_the_sources(site: &Site) {
    for line in [
        format!("addr add {SOURCE_V4}/24 dev incoming0"),
        format!("addr add {SOURCE_V6}/64 dev incoming0 nodad"),
    ] {
        site.middle.ip(&line).unwrap();
    }
}

fn can_connect(netns: &Netns, target: SocketAddr) -> bool {
    let limit = Duration::from_secs(2);
    netns.run(move || TcpStream::connect_timeout(&target, limit).is_ok())
}

#[test]
fn connections_over_a_second_provider_live_with_a_source_and_not_without() {
    both_engines(|| {
        let site = two_providers();
        let rig = Rig::on(site, &Config::default());
        // Of both IP versions; a connection needs no accept().
        let listen = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, OR_PORT)).unwrap();
        let listener = rig.site.tornet.run(listen);
        assert!(!can_connect(&rig.site.host, (RELAY_V4, OR_PORT).into()));
        assert!(!can_connect(&rig.site.host, (RELAY_V6, OR_PORT).into()));
        assert!(
            inspected(&rig.site.tornet, "wrong") > 0,
            "rig: nothing was dropped"
        );
        drop(listener);
        let site = rig.leave();
        own_the_sources(&site);
        let rig = Rig::on(site, &translating());
        let wrong = inspected(&rig.site.tornet, "wrong");
        let [host, clearnet, tornet] = rig.ends();
        let (exits, relays) = (tcp_at(clearnet), tcp_at(tornet));
        for (_, server, relay) in families() {
            converse(host, clearnet, server, 80, 300_000);
            converse(host, tornet, relay, OR_PORT, 300_000);
        }
        let (exits, relays) = (all_of(exits, 2), all_of(relays, 2));
        assert_eq!(inspected(tornet, "wrong"), wrong);
        assert_eq!(inspected(clearnet, "wrong"), 0);
        assert!(relays.iter().all(|frame| tos(&frame.bytes) & 0xfc == 0));
        let counters = counters(rig);
        assert_eq!(count(&counters, "exit"), exits.len() as u64);
        assert_eq!(count(&counters, "translated"), relays.len() as u64);
        assert!(count(&counters, "translated_back") > 200);
        assert_eq!(count(&counters, "malformed"), 0);
    });
}

/// The box's own stack answers for the address, and accepts frames that no host expects.
#[test]
fn the_box_answers_for_the_address_itself() {
    both_engines(|| {
        let site = two_providers();
        own_the_sources(&site);
        let rig = Rig::on(site, &translating());
        let [host, _, tornet] = rig.ends();
        let seen = Capture::start(host, "eth0", "in", TCP_FILTER).unwrap();
        for source in sources() {
            let text = source.to_string();
            tornet
                .command("ping", &["-n", "-c", "1", "-W", "2", &text])
                .unwrap();
            let refused = tornet.run(move || {
                let error = TcpStream::connect((source, 22)).unwrap_err();
                error.kind() == std::io::ErrorKind::ConnectionRefused
            });
            assert!(refused, "the box's own stack refuses");
        }
        assert!(seen.finish().unwrap().is_empty(), "the host got a segment");
        rig.stop();
    });
}

#[test]
fn path_mtu_discovery_works_behind_the_second_provider() {
    both_engines(|| {
        let site = two_providers();
        own_the_sources(&site);
        let far = Netns::new("far").unwrap();
        let tornet = &site.tornet;
        let near = VethEnd::new(tornet, "narrow", "02:00:00:00:04:01");
        let end = VethEnd::new(&far, "eth0", "02:00:00:00:04:02");
        exitmark_lab::site::connect(&end, &near, 1300).unwrap();
        for (interface, link) in [("narrow", tornet), ("eth0", &far)] {
            link.command("ethtool", &["-K", interface, "tx", "off", "gro", "off"])
                .unwrap();
        }
        tornet
            .ip_batch(&[
                format!("addr del {RELAY_V4}/32 dev eth0"),
                format!("addr del {RELAY_V6}/128 dev eth0"),
                "addr add 198.18.1.1/24 dev narrow".to_owned(),
                "addr add 2001:db8:19::1/64 dev narrow nodad".to_owned(),
                format!("route add {RELAY_V4} via 198.18.1.2"),
                format!("route add {RELAY_V6} via 2001:db8:19::2"),
            ])
            .unwrap();
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            tornet.sysctl(key, "1").unwrap();
        }
        far.ip_batch(&[
            "addr add 198.18.1.2/24 dev eth0".to_owned(),
            "addr add 2001:db8:19::2/64 dev eth0 nodad".to_owned(),
            format!("addr add {RELAY_V4}/32 dev eth0"),
            format!("addr add {RELAY_V6}/128 dev eth0"),
            // The ends do not know of the narrow link.
            "route add default via 198.18.1.1 advmss 1460".to_owned(),
            "route add default via 2001:db8:19::1 advmss 1440".to_owned(),
        ])
        .unwrap();
        let rig = Rig::on(site, &translating());
        let host = &rig.site.host;
        for (_, _, relay) in families() {
            converse(host, &far, relay, OR_PORT, 300_000);
            let route = host.ip(&format!("route get {relay}")).unwrap();
            assert_says(&route, &["mtu 1300"]);
        }
        rig.stop();
    });
}

/// Connections outlast a restart, a kill, and a relay set that lists their relays no more.
#[test]
fn translated_connections_outlast_the_process() {
    both_engines(|| {
        let site = two_providers();
        own_the_sources(&site);
        let tor = Tor::with(&listing_all([RELAY_V4.into(), RELAY_V6.into()]));
        let config = tor.config("").steer(SOURCES);
        let mut rig = Rig::on(site, &config);
        let targets = [RELAY_V4.into(), RELAY_V6.into()].map(|relay: IpAddr| (relay, OR_PORT));
        let serving: Vec<_> = targets
            .iter()
            .map(|(relay, port)| serve(&rig.site.tornet, *relay, *port, 3))
            .collect();
        let talks: Vec<_> = targets
            .iter()
            .flat_map(|target| (0..3).map(|_| SocketAddr::from(*target)))
            .map(|target| Conversation::start(&rig.site.host, None, target))
            .collect();
        Conversation::all_go_on(&talks, "at first");
        tor.publish(&listing(relay_at(SERVER_V4.into())));
        rig.said(REPLACED, 1..=1);
        Conversation::all_go_on(&talks, "with relays that are no longer listed");
        rig = rig.restart(&config);
        Conversation::all_go_on(&talks, "after a restart");
        rig.running.signal(Signal::SIGKILL).unwrap();
        rig.running.ended().unwrap();
        Conversation::all_go_on(&talks, "without a process");
        let rig = Rig::on(rig.site, &config);
        Conversation::all_go_on(&talks, "with a new process");
        for talk in talks {
            talk.end();
        }
        for server in serving {
            server.join().unwrap();
        }
        assert_eq!(inspected(&rig.site.clearnet, "wrong"), 0);
        rig.stop();
    });
}

/// How many connections are open at once.
const MANY: usize = 10_000;
const SERVING: &str = "serving";

/// Accepts connections, and returns each byte that arrives at one of them, until all have ended.
#[test]
#[ignore = "the server of ten_thousand_connections_…, which runs it as a process of its own: one \
            process may not have enough files for both ends"]
fn serve_many() {
    let listener = TcpListener::bind(SocketAddr::from((RELAY_V4, OR_PORT))).unwrap();
    // The backlog of the standard library is 128: a burst of SYNs would be repeated.
    nix::sys::socket::listen(&listener, Backlog::new(4096).unwrap()).unwrap();
    println!("\n{SERVING}");
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
    let wakes = |number| EpollEvent::new(EpollFlags::EPOLLIN, number);
    epoll.add(&listener, wakes(u64::MAX)).unwrap();
    let mut streams = Vec::new();
    let mut events = vec![EpollEvent::empty(); 512];
    let mut ended = 0;
    while ended < MANY {
        let ready = epoll.wait(&mut events, EpollTimeout::NONE).unwrap();
        for event in &events[..ready] {
            if event.data() == u64::MAX {
                let (stream, _) = listener.accept().unwrap();
                epoll
                    .add(&stream, wakes(u64::try_from(streams.len()).unwrap()))
                    .unwrap();
                streams.push(stream);
                continue;
            }
            let stream: &mut TcpStream = &mut streams[usize::try_from(event.data()).unwrap()];
            let mut byte = [0];
            match stream.read(&mut byte).unwrap() {
                0 => {
                    epoll.delete(&*stream).unwrap();
                    ended += 1;
                }
                _ => stream.write_all(&byte).unwrap(),
            }
        }
    }
}

/// The resident memory of a process in KiB.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Every connection carries a byte there and back after each event. Without a table of connections,
/// their number takes no memory.
#[test]
fn ten_thousand_connections_outlast_a_restart_and_a_kill() {
    exitmark_lab::needs_root!();
    let site = two_providers();
    own_the_sources(&site);
    for netns in [&site.host, &site.tornet] {
        netns
            .sysctl("net/ipv4/ip_local_port_range", "10240 65535")
            .unwrap();
        netns.sysctl("net/core/somaxconn", "4096").unwrap();
        netns
            .sysctl("net/ipv4/tcp_max_syn_backlog", "8192")
            .unwrap();
    }
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let config = translating().engine("xdp");
    let mut rig = Rig::on(site, &config);
    let mut server = contained(std::env::current_exe().unwrap());
    server.args([
        "translated::serve_many",
        "--exact",
        "--ignored",
        "--nocapture",
    ]);
    server.stdout(Stdio::piped());
    let mut server = rig.site.tornet.start(server).unwrap();
    // Open until its end: the test harness writes the result there.
    let output = BufReader::new(server.process().stdout.take().unwrap());
    let mut lines = output.lines().map_while(Result::ok);
    assert!(lines.by_ref().any(|line| line == SERVING));
    let before = memory(rig.running.pid());
    let mut clients = rig.site.host.run(|| -> Vec<TcpStream> {
        let target = SocketAddr::from((RELAY_V4, OR_PORT));
        (0..MANY)
            .map(|_| TcpStream::connect(target).unwrap())
            .collect()
    });
    for client in &clients {
        client.set_read_timeout(Some(timeout())).unwrap();
    }
    let mut talk = |when: &str| {
        for client in &mut clients {
            client
                .write_all(b"x")
                .unwrap_or_else(|error| panic!("{when}: {error}"));
        }
        for client in &mut clients {
            let mut byte = [0];
            let read = client.read_exact(&mut byte);
            read.unwrap_or_else(|error| panic!("{when}: {error}"));
        }
    };
    talk("at first");
    let after = memory(rig.running.pid());
    assert!(
        after < before + 1024,
        "{before} KiB without connections, {after} with them"
    );
    rig = rig.restart(&config);
    talk("after a restart");
    rig.running.signal(Signal::SIGKILL).unwrap();
    rig.running.ended().unwrap();
    talk("without a process");
    let rig = Rig::on(rig.site, &config);
    talk("with a new process");
    drop(clients);
    assert!(server.wait(timeout()).unwrap().success());
    for netns in [&rig.site.clearnet, &rig.site.tornet] {
        assert_eq!(inspected(netns, "wrong"), 0);
    }
    rig.stop();
}

/// Without the addresses on the box, answers would never arrive. Of IPv6 the kernel answers only for
/// those of the same NIC.
#[test]
fn a_source_that_the_box_does_not_have_is_an_alarm_until_it_is_there() {
    both_engines(|| {
        let rig = Rig::on(two_providers(), &translating());
        let alarm = rig.warning("source_missing");
        assert!(alarm.is_alarm, "{alarm:?}");
        assert_says(
            &alarm.text,
            &[&SOURCE_V4.to_string(), "and 1 more", "dev incoming0"],
        );
        rig.ip(format!("addr add {SOURCE_V4}/32 dev lo"));
        rig.ip(format!("addr add {SOURCE_V6}/128 dev lo nodad"));
        let of_v6 = format!("`ip addr add {SOURCE_V6}/64 dev incoming0`");
        eventually("an alarm for IPv6 alone", || {
            let alarm = rig.warning("source_missing").text;
            let is_of_one = alarm.contains(&of_v6) && !alarm.contains("more");
            is_of_one.then_some(()).ok_or(alarm)
        });
        own_the_sources(&rig.site);
        rig.no_warning("source_missing");
        rig.stop();
    });
}

/// The next hops are in a VLAN, and so are the addresses.
#[test]
fn a_source_of_a_vlan_belongs_on_the_vlan_interface() {
    needs_root!();
    let site = two_providers();
    own_the_sources(&site);
    let rig = Rig::on(site, &translating().steer("vlan = 30"));
    let alarm = rig.warning("source_missing").text;
    assert_says(&alarm, &["ip link add link incoming0", "vlan id 30"]);
    let doctor = || {
        let path = rig.configuration.to_str().unwrap();
        let output = exitmark(&rig.site, &["doctor", "--config", path]);
        String::from_utf8(output.stdout).unwrap()
    };
    let missing = "there is no interface for VLAN 30 on incoming0";
    assert_eq!(doctor().matches(missing).count(), 2);
    if has_vlan_interfaces() {
        rig.ip("link add link incoming0 name incoming0.30 type vlan id 30");
        rig.ip("link set incoming0.30 up");
        let on_vlan = format!("`ip addr add {SOURCE_V6}/64 dev incoming0.30`");
        eventually("an alarm for the VLAN interface", || {
            let alarm = rig.warning("source_missing").text;
            alarm.contains(&on_vlan).then_some(()).ok_or(alarm)
        });
        let said = doctor();
        let misplaced = "of incoming0, not of incoming0.30";
        assert_eq!(said.matches(misplaced).count(), 2, "{said}");
        rig.ip(format!("addr add {SOURCE_V6}/64 dev incoming0.30 nodad"));
        rig.no_warning("source_missing");
    }
    rig.stop();
}

#[test]
fn doctor_finds_other_uses_of_a_source() {
    exitmark_lab::needs_root!();
    let site = two_providers();
    own_the_sources(&site);
    let directory = tempfile::tempdir().unwrap();
    let path = translating().write(directory.path()).unwrap();
    let doctor = || {
        let output = exitmark(&site, &["doctor", "--config", path.to_str().unwrap()]);
        String::from_utf8(output.stdout).unwrap()
    };
    let said = doctor();
    assert_eq!(
        said.matches("no program of the box uses this address")
            .count(),
        2,
        "{said}"
    );
    // Sockets of both kinds, as of programs of the box.
    let listener = site
        .middle
        .run(|| TcpListener::bind((SOURCE_V4, 8080)).unwrap());
    let connected = site
        .tornet
        .run(|| TcpStream::connect((SOURCE_V4, 8080)).unwrap());
    // This one does not listen at that address alone.
    let wildcard = site
        .middle
        .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8081)).unwrap());
    for line in [
        format!(
            "route add default via {} dev incoming0 src {SOURCE_V4}",
            ROUTERS[0]
        ),
        format!("neigh add {SOURCE_V6} lladdr 02:00:00:00:03:77 dev incoming0"),
        format!("addr del {SOURCE_V6}/64 dev incoming0"),
        format!("addr add {SOURCE_V6}/128 dev lo nodad"),
    ] {
        site.middle.ip(&line).unwrap();
    }
    let said = doctor();
    let of = |source: IpAddr| {
        let is_of = |line: &&str| line.split_whitespace().nth(1) == Some(&source.to_string());
        said.lines().filter(is_of).collect::<Vec<_>>().join("\n")
    };
    assert_says(
        &of(SOURCE_V4.into()),
        &[
            "listens here: port 8080",
            "a TCP connection of the box",
            "the box's own connections leave from this address",
        ],
    );
    let of_v6 = of(SOURCE_V6.into());
    assert_says(
        &of_v6,
        &["of lo, not of incoming0", "02:00:00:00:03:77 answers"],
    );
    assert!(!said.contains("8081"), "{said}");
    drop((listener, connected, wildcard));
}

#[test]
fn a_program_that_listens_at_a_source_is_refused_at_start() {
    needs_root!();
    let site = two_providers();
    own_the_sources(&site);
    let listen = |site: &Site, address: IpAddr| {
        let endpoint = (address, 8080);
        site.middle
            .run(move || TcpListener::bind(endpoint).unwrap())
    };
    for (source, filter) in [
        (IpAddr::from(SOURCE_V4), SOURCE_V4.to_string()),
        (SOURCE_V6.into(), format!("[{SOURCE_V6}]")),
    ] {
        let listener = listen(&site, source);
        let endpoint = SocketAddr::from((source, 8080)).to_string();
        let command = format!("`ss -ltnp src {filter}`");
        assert_says(
            &refused(&site, &translating()),
            &["steer.source", &endpoint, &command, "another address"],
        );
        // The command lists it.
        let mut ss = Command::new("ss");
        ss.args(["-ltn", "src", &filter]);
        let listed = site.middle.output(ss).unwrap().stdout;
        assert!(String::from_utf8(listed).unwrap().contains(&endpoint));
        drop(listener);
    }
    // Elsewhere a program may listen, and at all addresses.
    let elsewhere = [(BOX_V4, 8081), (Ipv4Addr::UNSPECIFIED, 8082)];
    let elsewhere = elsewhere.map(|endpoint| {
        site.middle
            .run(move || TcpListener::bind(endpoint).unwrap())
    });
    let rig = Rig::on(site, &translating());
    drop(elsewhere);
    // A reload that changes the configuration is refused, too.
    let other = translating().steer("on_unavailable = \"drop\"");
    other.write(rig.directory.path()).unwrap();
    let reload = || exitmark(&rig.site, &["reload"]);
    let listener = listen(&rig.site, SOURCE_V4.into());
    let said = String::from_utf8(reload().stderr).unwrap();
    assert_says(&said, &["steer.source", "203.0.113.10:8080"]);
    drop(listener);
    assert!(reload().status.success());
    rig.stop();
}

#[test]
fn a_source_that_cannot_work_is_refused() {
    exitmark_lab::needs_root!();
    let site = silent(Plan::default());
    for (config, words) in [
        (
            Config::default().steer(format_args!("source = \"{HOST_V4}\"")),
            &["steer.source", "192.0.2.10", "host"][..],
        ),
        (
            Config::default().steer(format_args!("source = \"{SOURCE_V4}\"")),
            &["steer.source", "2001:db8:1::10", "IPv6"],
        ),
        (
            Config::default()
                .addresses([HOST_V4, Ipv4Addr::new(192, 0, 2, 11)])
                .steer(format_args!("source = \"{SOURCE_V4}\"")),
            &["steer.source", "203.0.113.10", "table"],
        ),
        (
            translating().incoming("uplink0", "02:00:00:00:03:02"),
            &["steer.source", "incoming", "uplink"],
        ),
    ] {
        assert_says(&refused(&site, &config), words);
    }
}
