//! A host that marks its exit traffic itself: `classify_by = "host-mark"`, without a relay set.

use crate::craft::{AF11, Packet, QINQ, UDP, VLAN, exit, families, noise, segment};
use crate::rig::{Case, Config, Rig, both_engines, count};
use crate::stacks::{
    TCP_FILTER, all_of, assert_none, connect, converse_with_tos, counters, ping_with, tcp_at, tos,
};
use exitmark_lab::Capture;
use exitmark_lab::site::{HOST_V4, HOST_V6, Plan};
use nix::errno::Errno;
use std::net::{IpAddr, SocketAddr};

const CS1: u8 = 0x20;

/// A host that marks with AF11, unless `host` sets another mark.
fn config(host: &str, more: &str) -> Config {
    let config = Config::default().top("classify_by = \"host-mark\"");
    config.host(host).relays("").more(more)
}

#[test]
fn tcp_with_the_hosts_mark_is_exit_and_all_other_tcp_is_relay() {
    both_engines(|| {
        let mut cases = Vec::new();
        for family in [0, 1] {
            for tags in [&[][..], &[QINQ, VLAN]] {
                for ecn in 0..4 {
                    let packet = exit(family, 70);
                    let marked = packet.clone().tos(AF11 | ecn);
                    cases.push(Case::to_uplink("exit", &marked, AF11 | ecn, tags));
                    let other = packet.tos(0xb8 | ecn);
                    cases.push(match tags {
                        [] => Case::to_tornet("relay", &other, 0xb8 | ecn),
                        // The next hop is in the untagged network.
                        _ => Case::to_uplink("tagged relay", &other, 0xb8 | ecn, tags),
                    });
                }
            }
            let (host, server, _) = families()[family];
            let udp = Packet::new(host, server, UDP, noise(1, 60)).tos(AF11 | 1);
            cases.push(Case::to_uplink("udp", &udp, 1, &[]));
            let reply = Packet::new(host, server, 6, segment(22, 50_000, 9)).tos(AF11);
            cases.push(Case::to_uplink("reply", &reply, 0, &[]));
            // Exempt prefixes precede the remaining TCP.
            let mut exempt = exit(family, 9);
            exempt.destination = ["203.0.113.9", "2001:db8:113::9"][family].parse().unwrap();
            cases.push(Case::to_uplink("exempt", &exempt, 0, &[]));
        }
        let host = "listeners = [22]\nexempt = [\"203.0.113.0/24\", \"2001:db8:113::/48\"]";
        Rig::silent(Plan::default(), &config(host, "")).verify(
            &cases,
            "host_received=38 exit=16 relay=16 exempt=2 reply=2 host=2 cleared=4 unsteered=8 \
             unrouted_vlan=8 uplink_forwarded=30 incoming_forwarded=8",
        );
    });
}

#[test]
fn the_box_replaces_the_hosts_mark_by_its_own() {
    both_engines(|| {
        let mut cases = Vec::new();
        for family in [0, 1] {
            let packet = exit(family, 70);
            let marked = packet.clone().tos(CS1 | 1);
            cases.push(Case::to_uplink("exit", &marked, AF11 | 1, &[]));
            // The box's mark on the host's frames does not mean exit.
            cases.push(Case::to_tornet("relay", &packet.clone().tos(AF11 | 2), 2));
            let (host, server, _) = families()[family];
            let udp = Packet::new(host, server, UDP, noise(1, 60));
            cases.push(Case::to_uplink("udp", &udp.tos(CS1), 0, &[]));
            // Every fragment has the mark, but only the first one counts.
            for (offset, more) in [(0, true), (9, false)] {
                let fragment = packet.clone().tos(CS1).part(4, offset, more);
                cases.push(Case::to_uplink("fragment", &fragment, AF11, &[]));
                let fragment = packet.clone().part(5, offset, more);
                cases.push(Case::to_tornet("fragment", &fragment, 0));
            }
            let stray = packet.tos(CS1).part(6, 9, false);
            cases.push(Case::to_uplink("stray", &stray, 0, &[]));
        }
        Rig::silent(Plan::default(), &config("dscp = \"cs1\"", "")).verify(
            &cases,
            "host_received=16 exit=6 marked=6 relay=6 host=4 unseen_fragment=2 cleared=6 \
             uplink_forwarded=10 incoming_forwarded=6",
        );
    });
}

#[test]
fn neither_mark_leaves_with_strip() {
    both_engines(|| {
        let mut cases = Vec::new();
        for family in [0, 1] {
            let (host, server, _) = families()[family];
            for ecn in 0..4 {
                let packet = exit(family, 70);
                let marked = packet.clone().tos(CS1 | ecn);
                cases.push(Case::to_uplink("exit", &marked, ecn, &[VLAN]));
                cases.push(Case::to_tornet("relay", &packet.tos(ecn), ecn));
                for mark in [CS1, AF11] {
                    let udp = Packet::new(host, server, UDP, noise(1, 60));
                    cases.push(Case::to_uplink("udp", &udp.tos(mark | ecn), ecn, &[]));
                }
            }
        }
        let config = config("tos = 0x20", "[mark]\nat_uplink = \"strip\"");
        Rig::silent(Plan::default(), &config).verify(
            &cases,
            "host_received=32 exit=8 relay=8 host=16 cleared=24 uplink_forwarded=24 \
             incoming_forwarded=8",
        );
    });
}

/// Sockets that set the mark themselves, as a patched tor does, from the first SYN to the last
/// ACK; and sockets that do not.
#[test]
fn tcp_of_a_patched_host_goes_by_the_mark_of_its_sockets() {
    both_engines(|| {
        for (more, leaves) in [("", AF11), ("[mark]\nat_uplink = \"strip\"", 0)] {
            let rig = Rig::lively(Plan::default(), &config("", more));
            let [host, clearnet, tornet] = rig.ends();
            let (exits, relays) = (tcp_at(clearnet), tcp_at(tornet));
            for (_, server, relay) in families() {
                converse_with_tos(AF11, host, clearnet, server, 80, 300_000);
                // No set lists this relay; an unmarked socket connects to it.
                converse_with_tos(0, host, tornet, relay, 443, 300_000);
            }
            let (exits, relays) = (all_of(exits, 2), all_of(relays, 2));
            for (frames, dscp) in [(&exits, leaves), (&relays, 0)] {
                for frame in frames {
                    assert_eq!(tos(&frame.bytes) & 0xfc, dscp);
                }
            }
            let counters = counters(rig);
            let cleared = if leaves == 0 { exits.len() } else { 0 };
            assert_eq!(count(&counters, "exit"), exits.len() as u64);
            assert_eq!(count(&counters, "relay"), relays.len() as u64);
            assert_eq!(count(&counters, "cleared"), cleared as u64);
            assert_none(&counters, &["marked", "reply", "disagreement"]);
        }
    });
}

/// The kernel answers a ping with the ToS of the request: any remote host could provoke marked
/// answers.
#[test]
fn answers_to_marked_pings_leave_unmarked() {
    both_engines(|| {
        let rig = Rig::lively(Plan::default(), &config("", ""));
        let [host, clearnet, _] = rig.ends();
        let filter = "icmp[0] == 0 or icmp6[0] == 129";
        let before = Capture::start(host, "eth0", "out", filter).unwrap();
        let after = Capture::start(clearnet, "eth0", "in", filter).unwrap();
        for address in [IpAddr::from(HOST_V4), HOST_V6.into()] {
            ping_with(&["-Q", "0x28"], clearnet, address, 56).unwrap();
        }
        for (mut capture, dscp) in [(before, AF11), (after, 0)] {
            assert!(capture.counts(2));
            for frame in capture.finish().unwrap() {
                assert_eq!(tos(&frame.bytes) & 0xfc, dscp);
            }
        }
        let counters = counters(rig);
        assert_eq!(count(&counters, "cleared"), 2);
        assert_eq!(count(&counters, "exit"), 0);
    });
}

/// The kernel refuses a connection with the ToS of the SYN too.
#[test]
fn refusals_of_the_hosts_kernel_leave_unmarked_by_the_uplink() {
    both_engines(|| {
        let rig = Rig::lively(Plan::default(), &config("", ""));
        let [host, clearnet, tornet] = rig.ends();
        let before = Capture::start(host, "eth0", "out", TCP_FILTER).unwrap();
        let (after, steered) = (tcp_at(clearnet), tcp_at(tornet));
        for address in [IpAddr::from(HOST_V4), HOST_V6.into()] {
            for tos in [AF11, 0] {
                let closed = SocketAddr::new(address, 81);
                let refused = clearnet.run(move || connect(closed, tos).err());
                assert_eq!(refused, Some(Errno::ECONNREFUSED));
            }
        }
        for (mut capture, dscp) in [(before, AF11), (after, 0)] {
            assert!(capture.counts(4));
            let frames = capture.finish().unwrap();
            let marked = frames.iter().filter(|one| tos(&one.bytes) & 0xfc == AF11);
            assert_eq!(marked.count(), if dscp == AF11 { 2 } else { 0 });
        }
        let counters = counters(rig);
        assert!(steered.finish().unwrap().is_empty());
        assert_eq!(count(&counters, "cleared"), 2);
        assert_none(&counters, &["exit", "relay", "marked"]);
    });
}
