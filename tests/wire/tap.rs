//! The tap gets a copy of every exit packet and of every answer to one, marked and cut after its
//! headers. The wire does not depend on it.

use crate::craft::{
    AF11, Packet, QINQ, TCP, UDP, VLAN, answer, exit, families, noise, relay_answer, segment,
};
use crate::rig::{
    Case, Config, Rig, Side, both_engines, classifies, eventually, exitmark, needs_root, passes,
    silent,
};
use crate::stacks::{all_of, converse, tcp_at};
use exitmark_lab::site::{
    CLEARNET_MAC, FAR_END, HOST_MAC, HOST_V4, HOST_V6, INCOMING_MAC, Plan, Site, TORNET_MAC,
};
use exitmark_lab::tap::{start_monitor, state_file};
use exitmark_lab::{Capture, CapturedFrame, Netns, RawPort, VethEnd, veth};
use exitmark_monitor::ledger::Ledger;
use nix::sys::signal::Signal;
use serde::Deserialize;

const MONITOR: &str = env!("CARGO_BIN_EXE_exitmark-monitor");

pub(crate) const TAP: &str = "tap0";
const ETHERNET: usize = 14;

/// The monitor behind the tap.
pub(crate) struct Monitor(Netns);

impl Monitor {
    /// Connects the tap of the box to a monitor.
    pub(crate) fn connect(site: &Site) -> Self {
        let monitor = Self(Netns::new("monitor").unwrap());
        monitor.connect_again(site);
        monitor
    }

    fn connect_again(&self, site: &Site) {
        let far = VethEnd {
            netns: &self.0,
            name: FAR_END,
            mac: "02:00:00:00:04:02",
            queues: 1,
        };
        let near = VethEnd {
            netns: &site.middle,
            name: TAP,
            mac: "02:00:00:00:04:01",
            queues: 1,
        };
        let no_ipv6 = |netns: &Netns| netns.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        no_ipv6(&self.0).unwrap();
        no_ipv6(&site.middle).unwrap();
        veth(&far, &near, 1500).unwrap();
    }

    pub(crate) fn watch(&self) -> Capture {
        Capture::start(&self.0, FAR_END, "in", "").unwrap()
    }
}

fn config() -> Config {
    Config::default().tap(TAP)
}

/// The bytes of IP packets in untagged frames, by their own lengths.
fn ip_bytes(frames: &[CapturedFrame]) -> u64 {
    let length = |frame: &CapturedFrame| {
        let bytes = &frame.bytes;
        let at = |at: usize| u64::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        match bytes[ETHERNET] >> 4 {
            4 => at(ETHERNET + 2),
            _ => 40 + at(ETHERNET + 4),
        }
    };
    frames.iter().map(length).sum()
}

const ROUNDS: u16 = 80;
/// The copies of one connection have room in every ring up to the monitor: a veth's has 256 places.
const CONNECTION_BYTES: usize = 60_000;

/// Real connections in both directions: the monitor's volumes are those of the host's
/// own traffic, although the copies have no payload, and the wire no mark.
#[test]
fn the_monitor_behind_the_tap_counts_what_the_host_sends_and_receives() {
    both_engines(|| {
        let site = Site::build(Plan::default()).unwrap();
        for netns in [&site.host, &site.clearnet] {
            // Merged segments would lack headers.
            netns
                .command("ethtool", &["-K", FAR_END, "gro", "off"])
                .unwrap();
        }
        let monitor = Monitor::connect(&site);
        let directory = tempfile::tempdir().unwrap();
        let configuration = format!(
            "interface = \"{FAR_END}\"\naddresses = [\"{HOST_V4}\", \"{HOST_V6}\"]\n[tap]\n\
             directions = \"both\"\n[period]\nlength = \"30days\"\ndirectory = \"periods\"\n\
             state = \"state\"\n[metrics]\nlisten = \"off\"\n"
        );
        let file = directory.path().join("monitor.toml");
        std::fs::write(&file, configuration).unwrap();
        std::fs::create_dir(directory.path().join("periods")).unwrap();
        let counting = start_monitor(&monitor.0, MONITOR, &file).unwrap();
        let rig = Rig::on(site, &config().more("[mark]\nat_uplink = \"strip\""));
        let [host, clearnet, _] = rig.ends();
        let [mut up, mut down] = [tcp_at(clearnet), tcp_at(host)];
        for (_, server, _) in families() {
            for port in 0..ROUNDS {
                converse(host, clearnet, server, 8000 + port, CONNECTION_BYTES);
                eventually("the monitor has counted each packet", || {
                    let counters = counting.counters().unwrap();
                    let counted = counters["packets"] + counters["down_packets"];
                    let captured = up.so_far().len() + down.so_far().len();
                    match counted == u64::try_from(captured).unwrap() {
                        true => Ok(()),
                        false => Err(format!(
                            "{captured} were captured: {counters:?}, {:?}",
                            rig.running.counters()
                        )),
                    }
                });
            }
        }
        let connections = 2 * usize::from(ROUNDS);
        let [up, down] = [up, down].map(|capture| all_of(capture, connections));
        // A SYN may have been sent again.
        let is_syn = |frame: &&CapturedFrame| tcp_control(&frame.bytes) & (SYN | ACK) == SYN;
        let begun = up.iter().filter(is_syn).count();
        let [up, down] = [up, down].map(|frames| ip_bytes(&frames));
        // The monitor's NIC must not go with the site while the monitor runs.
        let _site = rig.leave();
        let last = counting.end().unwrap();
        assert!(last.status.success(), "{}", last.log);
        let state = std::fs::read_to_string(state_file(&directory.path().join("state")).unwrap());
        let kept: Kept = serde_json::from_str(state.unwrap().lines().next().unwrap()).unwrap();
        let (mut flows, mut counted) = (0, [0, 0]);
        for (_, counts) in kept.ledger.cells {
            flows += counts.flows;
            counted[0] += counts.bytes;
            counted[1] += counts.down_bytes;
        }
        println!(
            "up and down: counted {counted:?}, captured {:?}",
            [up, down]
        );
        assert_eq!(flows, u64::try_from(begun).unwrap());
        assert_eq!(counted, [up, down]);
        assert!(up > 8_000_000 && down > 8_000_000);
    });
}

/// The control bits of a TCP segment without IP options (RFC 9293).
fn tcp_control(frame: &[u8]) -> u8 {
    let transport = match frame[ETHERNET] >> 4 {
        4 => ETHERNET + IP[0],
        _ => ETHERNET + IP[1],
    };
    frame[transport + 13]
}

/// The state that the monitor has stored.
#[derive(Deserialize)]
struct Kept {
    ledger: Ledger,
}

/// The expected copy of a packet whose frame this is: the mark, and `headers` bytes of IP and
/// transport headers behind the Ethernet header and the tags.
fn copy(packet: &Packet, to: &str, from: &str, tags: &[(u16, u16)], headers: usize) -> Vec<u8> {
    let ecn = packet.tos & 3;
    let mut frame = packet.clone().tos(AF11 | ecn).framed(to, from, tags);
    frame.truncate(ETHERNET + 4 * tags.len() + headers);
    frame
}

fn copy_out(packet: &Packet, headers: usize) -> Vec<u8> {
    copy(packet, CLEARNET_MAC, HOST_MAC, &[], headers)
}

fn copy_in(packet: &Packet, headers: usize) -> Vec<u8> {
    copy(packet, HOST_MAC, CLEARNET_MAC, &[], headers)
}

/// The bytes of an IP header without options or extension headers.
const IP: [usize; 2] = [20, 40];
const TCP_BYTES: usize = 20;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const SYN_ACK: u8 = 0x12;
const RST_ACK: u8 = 0x14;

/// The packet with other control bits, and with this number of bytes of TCP options.
fn controlled(mut packet: Packet, control: u8, options: u8) -> Packet {
    packet.payload[12] = (5 + options / 4) << 4;
    packet.payload[13] = control;
    packet
}

/// Sends frames, and checks that each arrives where it belongs, and that the monitor gets exactly
/// these copies, in any order.
#[track_caller]
fn copies(rig: &Rig, monitor: &Monitor, sent: &[(Case, Option<Vec<u8>>)]) {
    let mut eye = monitor.watch();
    for (case, _) in sent {
        passes(&rig.site, case);
    }
    let mut expected: Vec<_> = sent.iter().filter_map(|(_, copy)| copy.clone()).collect();
    assert!(eye.counts(expected.len()), "{:02x?}", eye.so_far());
    let captured = eye.finish().unwrap();
    let mut captured: Vec<_> = captured.into_iter().map(|one| one.bytes).collect();
    captured.sort();
    expected.sort();
    assert_eq!(captured, expected);
}

/// A frame of the host that leaves as it is, or with this ToS byte.
fn out(what: &str, packet: &Packet, tos: u8, tags: &[(u16, u16)]) -> Case {
    Case::to_uplink(what, packet, tos, tags)
}

fn inbound(what: &str, packet: &Packet) -> Case {
    Case::untouched(what, Side::Clearnet, packet.inbound(&[]))
}

#[test]
fn exit_packets_are_copied_marked_and_cut_while_the_wire_stays_clean() {
    both_engines(|| {
        for at_uplink in ["strip", "keep"] {
            let mark = |tos: u8| match at_uplink {
                "strip" => tos & 3,
                _ => AF11 | tos & 3,
            };
            let site = silent(Plan::default());
            let monitor = Monitor::connect(&site);
            let lines = format!("[mark]\nat_uplink = {at_uplink:?}\nprotocols = \"tcp+udp\"");
            let rig = Rig::on(site, &config().host("listeners = [22]").more(lines));
            let mut sent = Vec::new();
            for (family, ip) in IP.into_iter().enumerate() {
                let (host, server, _) = families()[family];
                for tos in [0, 1, 3] {
                    let packet = exit(family, 900).tos(tos);
                    let cut = copy_out(&packet, ip + TCP_BYTES);
                    sent.push((out("exit", &packet, mark(tos), &[]), Some(cut)));
                }
                for tags in [&[VLAN][..], &[QINQ, VLAN], &[QINQ, (0x9100, 5), VLAN]] {
                    let packet = exit(family, 60);
                    let cut = copy(&packet, CLEARNET_MAC, HOST_MAC, tags, ip + TCP_BYTES);
                    sent.push((out("tagged", &packet, mark(0), tags), Some(cut)));
                }
                let options = controlled(exit(family, 100), SYN, 40);
                let cut = copy_out(&options, ip + 60);
                sent.push((out("TCP options", &options, mark(0), &[]), Some(cut)));
                let udp = Packet::new(host, server, UDP, noise(9, 300));
                let cut = copy_out(&udp, ip + 8);
                sent.push((out("UDP", &udp, mark(0), &[]), Some(cut)));
                let first = exit(family, 44).part(7, 0, true);
                let header = if family == 0 { 0 } else { 8 };
                let cut = copy_out(&first, ip + header + TCP_BYTES);
                sent.push((out("first fragment", &first, mark(0), &[]), Some(cut)));
                let later = exit(family, 44).part(7, 8, false);
                let cut = copy_out(&later, ip + header);
                sent.push((out("later fragment", &later, mark(0), &[]), Some(cut)));
                // Not exit traffic.
                sent.push((Case::relay(family, 60), None));
                let ssh = Packet::new(host, server, TCP, segment(22, 50_000, 70));
                sent.push((out("reply", &ssh, 0, &[]), None));
            }
            copies(&rig, &monitor, &sent);
            let copied = sent.iter().filter(|(_, copy)| copy.is_some()).count();
            rig.counts("tapped_out", u64::try_from(copied).unwrap());
            rig.stop();
        }
    });
}

#[test]
fn answers_to_exit_packets_are_copied() {
    both_engines(|| {
        let site = silent(Plan::default());
        let monitor = Monitor::connect(&site);
        let rig = Rig::on(site, &config().host("listeners = [22]"));
        let mut sent = Vec::new();
        for (family, ip) in IP.into_iter().enumerate() {
            let (host, server, _) = families()[family];
            for tos in [0, 2, 0xb8] {
                let packet = answer(family, 1000).tos(tos);
                let cut = copy_in(&packet, ip + TCP_BYTES);
                sent.push((inbound("answer", &packet), Some(cut)));
            }
            for (what, control) in [("SYN and ACK", SYN_ACK), ("RST and ACK", RST_ACK)] {
                let packet = controlled(answer(family, 40), control, 8);
                let cut = copy_in(&packet, ip + TCP_BYTES + 8);
                sent.push((inbound(what, &packet), Some(cut)));
            }
            let first = answer(family, 44).part(7, 0, true);
            let header = if family == 0 { 0 } else { 8 };
            let cut = copy_in(&first, ip + header + TCP_BYTES);
            sent.push((inbound("first fragment", &first), Some(cut)));
            let later = answer(family, 44).part(7, 8, false);
            sent.push((
                inbound("later fragment", &later),
                Some(copy_in(&later, ip + header)),
            ));
            // By the other network, as the router there sends it.
            let packet = answer(family, 60);
            let cut = copy(&packet, INCOMING_MAC, TORNET_MAC, &[], ip + TCP_BYTES);
            sent.push((Case::to_host("by incoming", &packet, &[]), Some(cut)));
            // None of these answers exit traffic.
            let opening = controlled(answer(family, 40), SYN, 8);
            sent.push((inbound("SYN", &opening), None));
            sent.push((inbound("of a relay", &relay_answer(family, 100)), None));
            let to_listener = Packet::new(server, host, TCP, segment(50_000, 22, 70));
            sent.push((inbound("to a listener", &to_listener), None));
            let udp = Packet::new(server, host, UDP, noise(9, 90));
            sent.push((inbound("UDP", &udp), None));
            let elsewhere = Packet::new(server, server, TCP, segment(443, 40_000, 70));
            sent.push((inbound("to another host", &elsewhere), None));
            let unseen = answer(family, 44).part(99, 8, false);
            sent.push((inbound("unseen fragment", &unseen), None));
        }
        // The host's MAC address is learned from its frames.
        passes(&rig.site, &Case::relay(0, 60));
        passes(&rig.site, &Case::relay(1, 60));
        copies(&rig, &monitor, &sent);
        let copied = sent.iter().filter(|(_, copy)| copy.is_some()).count();
        rig.counts("tapped_in", u64::try_from(copied).unwrap());
        assert_eq!(rig.count("tapped_out"), 0);
        rig.stop();
    });
}

#[test]
fn answers_are_not_copied_if_the_file_says_so_and_audit_copies_without_marking() {
    both_engines(|| {
        let site = silent(Plan::default());
        let monitor = Monitor::connect(&site);
        let audit = config().top("mode = \"audit\"");
        let rig = Rig::on(site, &audit.more("[tap]\ndirections = \"out\""));
        let packet = exit(0, 500);
        let sent = [
            (out("exit", &packet, 0, &[]), Some(copy_out(&packet, 40))),
            (inbound("answer", &answer(0, 100)), None),
        ];
        copies(&rig, &monitor, &sent);
        rig.stop();
    });
}

#[test]
fn a_reload_changes_what_is_copied() {
    both_engines(|| {
        let site = silent(Plan::default());
        let monitor = Monitor::connect(&site);
        let rig = Rig::on(site, &config());
        let packet = exit(0, 500);
        let cut = copy_out(&packet, 40);
        let back = answer(0, 100);
        let sent = |copies_answers: bool| {
            let of_answer = copies_answers.then(|| copy_in(&back, 40));
            [
                (Case::exit(0, 500), Some(cut.clone())),
                (inbound("answer", &back), of_answer),
            ]
        };
        copies(&rig, &monitor, &sent(true));
        let one_way = config().more("[tap]\ndirections = \"out\"");
        one_way.write(rig.directory.path()).unwrap();
        let reloaded = exitmark(&rig.site, &["reload"]);
        assert!(reloaded.status.success(), "{reloaded:?}");
        copies(&rig, &monitor, &sent(false));
        rig.stop();
    });
}

/// Sends an exit packet until its copy arrives.
#[track_caller]
fn is_copied_again(rig: &Rig, monitor: &Monitor) {
    let packet = exit(0, 60);
    let mut eye = monitor.watch();
    eventually("a copy", || {
        passes(&rig.site, &Case::exit(0, 60));
        match eye.sees(&copy_out(&packet, 40)) {
            true => Ok(()),
            false => Err(rig.running.log()),
        }
    });
}

#[test]
fn the_wire_forwards_without_a_tap_and_uses_it_when_it_is_there() {
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &config());
        rig.warning("tap_down");
        classifies(&rig.site, true, "the tap is missing");
        rig.counts("tap_down", 1);
        let monitor = Monitor::connect(&rig.site);
        rig.no_warning("tap_down");
        is_copied_again(&rig, &monitor);
        rig.ip(format!("link set {TAP} down"));
        rig.warning("tap_down");
        let before = rig.count("tap_down");
        classifies(&rig.site, true, "the tap is down");
        rig.counts("tap_down", before + 1);
        rig.ip(format!("link set {TAP} up"));
        rig.no_warning("tap_down");
        is_copied_again(&rig, &monitor);
        rig.ip(format!("link del {TAP}"));
        rig.warning("tap_down");
        classifies(&rig.site, true, "the tap is gone");
        monitor.connect_again(&rig.site);
        rig.no_warning("tap_down");
        is_copied_again(&rig, &monitor);
        rig.stop();
    });
}

#[test]
fn an_address_that_the_tap_gets_is_an_alarm() {
    both_engines(|| {
        let site = silent(Plan::default());
        let monitor = Monitor::connect(&site);
        let rig = Rig::on(site, &config());
        rig.no_warning("address");
        rig.ip(format!("address add 10.9.9.1/24 dev {TAP}"));
        let alarm = rig.warning("address");
        let mend = format!("address del 10.9.9.1/24 dev {TAP}");
        crate::rig::assert_says(&alarm.text, &["tap0 (tap)", &format!("`ip {mend}`")]);
        assert!(alarm.is_alarm);
        rig.no_warning("tap_down");
        is_copied_again(&rig, &monitor);
        rig.ip(mend);
        rig.no_warning("address");
        rig.stop();
    });
}

/// Copies by it would go out on the wire.
#[test]
fn a_port_that_gets_the_name_of_a_missing_tap_is_not_used() {
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &config());
        rig.warning("tap_down");
        rig.ip(format!("link property add dev uplink0 altname {TAP}"));
        let alarm = "ALARM: tap0 (tap) is a name of the NIC uplink0";
        rig.running.wait_log(&[alarm]);
        passes(&rig.site, &Case::exit(0, 60));
        rig.stop();
    });
}

#[test]
fn copies_of_a_burst_are_sent_or_counted_as_lost_and_the_wire_loses_nothing() {
    const FRAMES: u64 = 20_000;
    both_engines(|| {
        let site = silent(Plan::default());
        let monitor = Monitor::connect(&site);
        let rig = Rig::on(site, &config());
        let mut eye = monitor.watch();
        let frame = exit(0, 60).outbound(&[]);
        let port = rig.port(Side::Host);
        for _ in 0..FRAMES {
            port.send(&frame).unwrap();
        }
        rig.counts("uplink_forwarded", FRAMES);
        let lost = ["tap_full", "tap_down", "tap_refused"];
        rig.wait_for("the copies", |counters| {
            let names = lost.iter().chain(&["tapped_out"]);
            let numbers = names.filter_map(|name| counters.get(*name));
            numbers.sum::<u64>() == FRAMES
        });
        let copied = rig.count("tapped_out");
        assert!(eye.counts(usize::try_from(copied).unwrap()));
        let captured = eye.finish().unwrap();
        assert_eq!(captured.len(), usize::try_from(copied).unwrap());
        rig.stop();
    });
}

#[test]
fn a_box_that_takes_over_after_sigkill_copies_again_and_counts_on() {
    both_engines(|| {
        let site = silent(Plan::default());
        let monitor = Monitor::connect(&site);
        let rig = Rig::on(site, &config());
        is_copied_again(&rig, &monitor);
        let before = rig.count("tapped_out");
        let Rig { site, running, .. } = rig;
        running.signal(Signal::SIGKILL).unwrap();
        drop(running);
        // The program forwards by itself; its ring fills up.
        let mut eye = monitor.watch();
        let port = RawPort::open(&site.host, FAR_END).unwrap();
        let mut arrived = crate::rig::watch(&site, Side::Clearnet);
        for _ in 0..10 {
            port.send(&exit(0, 60).outbound(&[])).unwrap();
        }
        assert!(arrived.counts(10));
        assert!(eye.so_far().is_empty());
        let rig = Rig::on(site, &config());
        is_copied_again(&rig, &monitor);
        assert!(rig.count("tapped_out") > before);
        rig.stop();
    });
}

#[test]
fn a_nic_that_cannot_be_a_tap_is_refused() {
    needs_root!();
    let site = silent(Plan::default());
    let _monitor = Monitor::connect(&site);
    let says = |words: &[&str]| {
        crate::rig::assert_says(&crate::rig::refused(&site, &config()), words);
    };
    site.middle
        .ip(&format!("addr add 10.9.9.1/24 dev {TAP}"))
        .unwrap();
    says(&["tap0 (ports.tap) has the address 10.9.9.1", "ip addr del"]);
    site.middle.ip(&format!("addr flush dev {TAP}")).unwrap();
    site.middle.ip("link add br0 type bridge").unwrap();
    site.middle
        .ip(&format!("link set {TAP} master br0"))
        .unwrap();
    says(&["tap0", "br0"]);
}
