//! No output, status or state of the box contains a remote address.
//!
//! The test sends unique addresses through the box in frames of every kind, and then searches for
//! them, in every spelling, in everything that the box prints, serves or leaves behind.

use crate::craft::{Packet, QINQ, TCP, UDP, VLAN, ethernet, noise, segment};
use crate::needles::{Search, Who};
use crate::reload::{AUTHORITIES, KEPT, REPLACED, Tor, listing, relay, replace};
use crate::rig::{Config, EXITMARK, Rig, Side, both_engines, capture, exitmark, silent};
use etherparse::Ipv4Header;
use exitmark_datapath::contract;
use exitmark_lab::consensus::ConsensusBuilder;
use exitmark_lab::process::dumping_in;
use exitmark_lab::site::{HOST_MAC, HOST_V4, HOST_V6, Plan};
use exitmark_lab::{Netns, RawPort};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use nix::sys::signal::Signal;
use pcap_file::pcapng::{Block, PcapNgReader};
use std::collections::BTreeSet;
use std::fs;
use std::mem::offset_of;
use std::net::IpAddr;
use std::path::Path;

const HOST: &str = "listeners = [22]\n\
     resolvers = [\"198.51.100.153\", \"2001:db8:51:a0b0:c0d0:e0f0:1122:3399\"]\n\
     exempt = [\"198.51.100.160/28\", \"2001:db8:51:a0b0:c0d0:e0f0:1122:33a0/124\"]\n";

/// Frames of every class, in both directions, valid and malformed.
fn frames() -> Vec<(Side, Vec<u8>)> {
    let mut frames = Vec::new();
    for family in [0, 1] {
        let host: IpAddr = [HOST_V4.into(), HOST_V6.into()][family];
        let to = |who: Who, protocol, payload: Vec<u8>| {
            Packet::new(host, who.addresses()[family], protocol, payload)
        };
        let stream = |who, port| to(who, TCP, segment(40_000, port, 30));
        let [first, second] = [noise(1, 64), noise(2, 40)];
        let quoted = stream(Who::Exit, 443).bytes();
        let error = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &quoted].concat();
        let [stranger, exit] = [Who::Stranger, Who::Exit].map(|who| who.addresses()[family]);
        let whole = [segment(40_000, 443, 0), first.clone()].concat();
        let outbound = [
            stream(Who::Exit, 443),
            stream(Who::Relay, 9001),
            stream(Who::Exempt, 443),
            to(Who::Resolver, UDP, segment(40_000, 53, 30)),
            to(Who::Client, TCP, segment(22, 50_000, 30)),
            to(Who::Stranger, UDP, segment(40_000, 443, 30)).tos(0x28),
            // An ICMP error, or a similar packet, with another packet in it.
            to(Who::Stranger, [1, 58][family], error),
            Packet::new(stranger, exit, TCP, first),
            to(Who::Exit, TCP, whole).part(7, 0, true),
            to(Who::Exit, TCP, second.clone()).part(7, 10, false),
            to(Who::Exit, TCP, second.clone()).part(9, 10, false),
        ];
        for packet in &outbound {
            for tags in [&[][..], &[VLAN], &[QINQ, VLAN], &[QINQ, VLAN, VLAN]] {
                frames.push((Side::Host, packet.outbound(tags)));
            }
        }
        let whole = stream(Who::Exit, 443).outbound(&[]);
        let mut odd = whole.clone();
        odd[14] = 0x55;
        frames.push((Side::Host, odd));
        let addresses_end = 14 + [20, 40][family];
        for length in [addresses_end - 1, addresses_end, addresses_end + 3] {
            frames.push((Side::Host, whole[..length].to_vec()));
        }
        let from = |who: Who, payload| Packet::new(who.addresses()[family], host, TCP, payload);
        let inbound = [
            from(Who::Client, segment(50_000, 22, 30)),
            from(Who::Exit, segment(443, 40_000, 30)),
            from(Who::Relay, segment(9001, 40_000, 30)),
            from(Who::Client, second).part(11, 10, false),
        ];
        for packet in &inbound {
            frames.push((Side::Clearnet, packet.inbound(&[])));
            frames.push((Side::Tornet, packet.incoming(&[])));
        }
    }
    // An ARP request for that address.
    let IpAddr::V4(queried) = Who::Exit.addresses()[0] else {
        unreachable!("the first is of IPv4");
    };
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    let question = [&head[..], &noise(5, 16), &queried.octets()].concat();
    let question = ethernet("ff:ff:ff:ff:ff:ff", HOST_MAC, &[], 0x0806, &question);
    frames.push((Side::Host, question));
    frames
}

/// Starts a box with full logging, whose core dumps, if any, would be in its directory.
pub(crate) fn start(config: &Config) -> Rig {
    Rig::by(silent(Plan::default()), config, |directory| {
        let mut command = dumping_in(directory, EXITMARK);
        command.env("RUST_LOG", "trace");
        command
    })
}

pub(crate) struct Load {
    ports: [RawPort; 4],
    frames: Vec<(Side, Vec<u8>)>,
}

impl Load {
    pub(crate) fn new(rig: &Rig) -> Self {
        Self {
            ports: Side::ALL.map(|side| rig.port(side)),
            frames: frames(),
        }
    }

    pub(crate) fn send(&self) {
        for (side, frame) in &self.frames {
            self.ports[*side as usize].send(frame).unwrap();
        }
    }

    pub(crate) fn of(&self, side: Side) -> u64 {
        self.frames.iter().filter(|(from, _)| *from == side).count() as u64
    }
}

/// The number of frames in a capture whose IPv4 header checksum confirms a guess of the blanked
/// address: a checksum narrows an address down to one in 2^16.
fn confirmed(capture: &[u8]) -> usize {
    let mut reader = PcapNgReader::new(capture).unwrap();
    let mut confirmed = 0;
    while let Some(block) = reader.next_block() {
        let Block::EnhancedPacket(packet) = block.unwrap() else {
            continue;
        };
        let mut at = 14;
        let is_tag = |kind: &[u8]| kind != [8, 0];
        while packet.data.get(at - 2..at).is_some_and(is_tag) {
            at += 4;
        }
        let Some(header) = packet.data.get(at..at + 20) else {
            continue;
        };
        let guesses = Who::ALL.map(|who| who.addresses()[0]);
        confirmed += usize::from(guesses.into_iter().any(|guess| {
            let IpAddr::V4(guess) = guess else {
                return false;
            };
            let mut header = header.to_vec();
            for address in [12, 16] {
                if header[address..address + 4] == [0; 4] {
                    header[address..address + 4].copy_from_slice(&guess.octets());
                }
            }
            let header = Ipv4Header::from_slice(&header).map(|(header, _)| header);
            header.is_ok_and(|header| header.header_checksum == header.calc_header_checksum())
        }));
    }
    confirmed
}

fn content(map: &MapHandle) -> Vec<u8> {
    let mut bytes = Vec::new();
    for key in map.keys() {
        bytes.extend(&key);
        if map.map_type().is_percpu() {
            let values = map.lookup_percpu(&key, MapFlags::ANY).unwrap();
            bytes.extend(values.into_iter().flatten().flatten());
        } else {
            bytes.extend(map.lookup(&key, MapFlags::ANY).unwrap().unwrap_or_default());
        }
    }
    bytes
}

/// The map of the policy in force, inside the pinned one.
fn policy(policies: &MapHandle) -> MapHandle {
    let id = policies.lookup(&[0; 4], MapFlags::ANY).unwrap().unwrap();
    MapHandle::from_map_id(u32::from_ne_bytes(id[..4].try_into().unwrap())).unwrap()
}

/// Calls a function with the name and the handle of every pinned map.
fn with_maps<T: Send + 'static>(
    middle: &Netns,
    each: impl Fn(&str, MapHandle) -> T + Send + 'static,
) -> Vec<T> {
    middle.run(move || {
        let mut paths = vec![Path::new("/sys/fs/bpf/exitmark").to_owned()];
        let mut done = Vec::new();
        while let Some(path) = paths.pop() {
            if path.is_dir() {
                let entries = fs::read_dir(path).unwrap();
                paths.extend(entries.map(|entry| entry.unwrap().path()));
                continue;
            }
            let name = path.file_name().unwrap().to_str().unwrap();
            let others = ["link_", "program_", "watch_"];
            if !others.iter().any(|other| name.starts_with(other)) {
                done.push(each(name, MapHandle::from_pinned_path(&path).unwrap()));
            }
        }
        done
    })
}

/// Changes the mark in the kernel's policy, so that it differs from the process' one.
fn falsify(middle: &Netns) {
    with_maps(middle, |name, map| {
        if name == "policies" {
            let policy = policy(&map);
            let mut image = policy.lookup(&[0; 4], MapFlags::ANY).unwrap().unwrap();
            // The mark of the first group.
            let groups = offset_of!(contract::exitmark_policy, groups);
            image[groups + offset_of!(contract::exitmark_group, mark)] ^= 0x40;
            policy.update(&[0; 4], &image, MapFlags::ANY).unwrap();
        }
    });
}

fn listing_relays() -> ConsensusBuilder {
    let [v4, v6] = Who::Relay.addresses().map(relay);
    let mut builder = listing(v4);
    builder.listed.push(v6);
    builder
}

#[test]
fn no_output_or_state_contains_a_remote_address() {
    let search = Search::new();
    both_engines(|| {
        let tor = Tor::with(&listing_relays());
        let rig = start(&tor.config("").host(HOST).datapath("sample = 1"));
        let middle = &rig.site.middle;
        let load = Load::new(&rig);
        load.send();
        rig.wait_for("every frame", |counters| {
            counters.get("host_received") == Some(&load.of(Side::Host))
                && counters.get("uplink_received") == Some(&load.of(Side::Clearnet))
        });
        let counters = rig.running.counters().unwrap();
        let classes = "non_ip malformed foreign resolver reply relay exempt exit host";
        for class in classes.split(' ') {
            assert!(counters.get(class) > Some(&0), "no {class} in {counters:?}");
        }

        // Provoke every kind of error message.
        let text = fs::read_to_string(&rig.configuration).unwrap();
        fs::write(&rig.configuration, format!("{text}\n[mark]\ndscp = 64\n")).unwrap();
        rig.running.signal(Signal::SIGHUP).unwrap();
        rig.said("the configuration stays as it was", 1..=1);
        fs::write(&rig.configuration, text).unwrap();
        let good = fs::read(tor.consensus()).unwrap();
        let mut spoilt = good.clone();
        spoilt[good.len() / 3] ^= 1;
        for (number, document) in (2..).zip([&spoilt[..], &good[..good.len() / 2]]) {
            replace(&tor.consensus(), document);
            rig.said(KEPT, number..=number);
        }
        let mut other = listing_relays();
        other.relays += 10;
        replace(&tor.consensus(), other.sign(&AUTHORITIES).as_bytes());
        rig.said(REPLACED, 1..=1);

        let captured = |options: &[&str]| {
            let arguments = [&["--frames", "300"], options].concat();
            fs::read(capture(&rig, &arguments, || load.send())).unwrap()
        };
        let plain = captured(&[]);
        search.finds("a capture", &plain, &[]);
        assert_eq!(confirmed(&plain), 0, "checksums that confirm an address");
        let exposing = captured(&["--addresses"]);
        search.finds("a capture with addresses", &exposing, &Who::ALL);
        assert!(confirmed(&exposing) > 0, "the attack works");

        // Frames that differ from the policy.
        falsify(middle);
        if rig.running.ready.contains("engine=xdp") {
            load.send();
            rig.wait_for("a mismatch", |counters| counters["audit_mismatches"] > 0);
            // A mismatch is counted before it is reported.
            rig.said("ALARM", 1..);
        }

        for arguments in [&["status"][..], &["status", "--json"]] {
            let shown = exitmark(&rig.site, arguments);
            search.finds(&arguments.join(" "), &shown.stdout, &[]);
        }
        let metrics = rig.site.metrics().unwrap();
        search.finds("metrics", metrics.as_bytes(), &[]);
        let metrics = middle.http(9787, "GET /metrics").unwrap();
        search.finds("metrics by TCP", metrics.as_bytes(), &[]);
        // The state file stores the consensus' relays.
        let state = fs::read(tor.directory.path().join("relays.state")).unwrap();
        search.finds("the state", &state, &[Who::Relay]);

        rig.running.counters().unwrap();
        search.finds("standard output", rig.running.printed().as_bytes(), &[]);
        let last = rig.running.stop().unwrap();
        assert!(last.status.success(), "{}", last.log);
        search.finds("standard error", last.log.as_bytes(), &[]);

        let maps = with_maps(&rig.site.middle, |name, map| {
            let bytes = match map.map_type() {
                MapType::ArrayOfMaps => content(&policy(&map)),
                _ => content(&map),
            };
            (name.to_owned(), bytes)
        });
        let names: BTreeSet<_> = maps.iter().map(|(name, _)| name.as_str()).collect();
        let all = "counters guards links policies undo worker_counters";
        assert_eq!(names, all.split(' ').collect());
        for (name, bytes) in &maps {
            // The policy contains relays and resolvers.
            let known: &[_] = match name.as_str() {
                "policies" => &[Who::Relay, Who::Resolver],
                _ => &[],
            };
            search.finds(&format!("the map {name}"), bytes, known);
        }
    });
}
