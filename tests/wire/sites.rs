//! The sites of docs/site.md, built from the page: its configuration files and its commands are used
//! as they are, but for the authorities, which are the lab's.

use crate::craft::{Packet, ethernet, families};
use crate::rack::{
    Conversation, Machine, add_addresses, add_port, complete_frames, has_vlan_interfaces, inspect,
    inspect_at, inspected, make_switch, serve,
};
use crate::reload::{AUTHORITIES, listing};
use crate::rig::{EXITMARK, assert_says, count, eventually, needs_root};
use crate::trunk::{Trunk, announcement, by_mac, from_others, to_others, with_other_mark};
use exitmark_box::observe::Warning;
use exitmark_datapath::Role;
use exitmark_lab::site::{
    CLEARNET_MAC, FAR_END, HOST_MAC, INCOMING_MAC, OR_PORT, Plan, RELAY_V4, RELAY_V6, SERVER_V4,
    SERVER_V6, Site, TORNET_MAC, connect, nic, relay_endpoints,
};
use exitmark_lab::{Capture, Netns, RawPort, RunningBox, VethEnd, is_installed, publish, veth};
use nix::mount::{MsFlags, mount};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::chown;
use std::path::Path;
use std::thread::JoinHandle;

const PAGE: &str = include_str!("../../docs/site.md");
const ONE_HOST: &str = "One host";
const RACK: &str = "A rack on a trunk";
const AGGREGATE: &str = "A link aggregate, or a cable per host";
const TWO_BOXES: &str = "Two boxes";
/// The blocks of each section, which the tests use.
const USED: [(&str, &[&str]); 4] = [
    (ONE_HOST, &["sh box", "toml box", "sh check"]),
    (
        RACK,
        &[
            "sh box",
            "toml box",
            "sh check",
            "text explain",
            "sh router-4",
            "sh router-6",
        ],
    ),
    (AGGREGATE, &["sh box", "toml box", "sh check"]),
    (
        TWO_BOXES,
        &[
            "toml box",
            "sh box-1",
            "sh box-2",
            "sh host",
            "sh host-static",
            "sh host-failover",
            "sh check",
        ],
    ),
];
const CONFIGURATION: &str = "/etc/exitmark/exitmark.toml";
/// The NICs of the page, by their roles.
const NICS: [(Role, &str); 3] = [
    (Role::Host, "enp1s0"),
    (Role::Uplink, "enp2s0"),
    (Role::Incoming, "enp3s0"),
];
/// The user ID of the packaged service's user.
const USER: u32 = 64_321;
const WEB: u16 = 443;

/// The fenced blocks of a section, each with its info string; drawings have none.
fn blocks(section: &str) -> Vec<(&'static str, String)> {
    let (_, rest) = PAGE.split_once(&format!("\n## {section}\n")).unwrap();
    let text = rest.split("\n## ").next().unwrap();
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(info) = line.strip_prefix("```") {
            let content = lines.by_ref().take_while(|line| *line != "```");
            let content = content.map(|line| format!("{line}\n")).collect();
            blocks.push((info, content));
        }
    }
    blocks
}

/// The block of a section with this info string.
fn block(section: &str, info: &str) -> String {
    let mut found = blocks(section).into_iter().filter(|block| block.0 == info);
    let (_, text) = found
        .next()
        .unwrap_or_else(|| panic!("{section}: no block `{info}`"));
    assert!(found.next().is_none(), "{section}: two blocks `{info}`");
    text
}

/// A block that the tests do not use could be wrong.
#[test]
fn every_block_of_the_page_is_tested() {
    for (section, used) in USED {
        let mut infos: Vec<_> = blocks(section).into_iter().map(|block| block.0).collect();
        infos.retain(|info| !info.is_empty());
        infos.sort_unstable();
        let mut used = used.to_vec();
        used.sort_unstable();
        assert_eq!(infos, used, "{section}");
    }
    let sections = PAGE.lines().filter_map(|line| line.strip_prefix("## "));
    assert_eq!(
        sections.collect::<Vec<_>>(),
        USED.map(|(section, _)| section)
    );
}

/// The explained policy needs no machine.
#[test]
fn the_page_shows_the_policy_that_check_explains() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("exitmark.toml");
    fs::write(&path, block(RACK, "toml box")).unwrap();
    let output = std::process::Command::new(EXITMARK)
        .args(["check", "--explain", "--config"])
        .arg(&path)
        .output()
        .unwrap();
    let explained = String::from_utf8(output.stdout).unwrap();
    assert_says(&explained, &[&block(RACK, "text explain")]);
}

/// Runs a script of the page in a namespace, up to the first command that fails.
fn run(netns: &Netns, script: &str) -> String {
    let programs = Path::new(EXITMARK).parent().unwrap().display();
    let script = format!("PATH={programs}:$PATH\n{script}");
    netns.command("sh", &["-ec", &script]).unwrap()
}

/// The files that the packages and tor have installed, in the mount namespace of a box.
fn furnish(netns: &Netns, configuration: String) {
    let mut documents = listing(relay_endpoints()[0]);
    documents.listed = relay_endpoints().to_vec();
    netns.run(move || {
        let tmpfs = |place: &str| {
            let kind = Some("tmpfs");
            mount(kind, place, kind, MsFlags::empty(), None::<&str>).unwrap();
        };
        let kept = ["passwd", "group", "nsswitch.conf", "ld.so.cache"];
        let kept = kept.map(|name| (name, fs::read(Path::new("/etc").join(name))));
        tmpfs("/etc");
        for (name, content) in kept {
            let mut content = content.unwrap_or_default();
            match name {
                "passwd" => {
                    let user =
                        format!("exitmark:x:{USER}:{USER}::/nonexistent:/usr/sbin/nologin\n");
                    content.extend(user.bytes());
                }
                "group" => content.extend(format!("exitmark:x:{USER}:\n").bytes()),
                _ => {}
            }
            fs::write(Path::new("/etc").join(name), content).unwrap();
        }
        fs::create_dir("/etc/exitmark").unwrap();
        fs::write(CONFIGURATION, configuration).unwrap();
        tmpfs("/var/lib");
        for place in ["/var/lib/tor", "/var/lib/exitmark", "/run/exitmark"] {
            fs::create_dir(place).unwrap();
        }
        for place in ["/var/lib/exitmark", "/run/exitmark"] {
            chown(place, Some(USER), Some(USER)).unwrap();
        }
        let name = "cached-microdesc-consensus";
        publish(Path::new("/var/lib/tor"), name, &documents, &AUTHORITIES).unwrap();
        // run-bpf-exitmark.mount
        let place = "/run/bpf/exitmark";
        fs::create_dir_all(place).unwrap();
        let kind = Some("bpf");
        mount(kind, place, kind, MsFlags::empty(), None::<&str>).unwrap();
    });
}

/// The configuration of a section, with the lab's authorities.
fn configuration(section: &str) -> String {
    let text = block(section, "toml box");
    let relays = "[relays]\n";
    assert_eq!(text.matches(relays).count(), 1, "{text}");
    text.replace(relays, &format!("{relays}{}\n", AUTHORITIES.toml()))
}

/// Gives the NICs of a box the names of the page. They are down and have no address.
fn rename_nics(netns: &Netns) {
    for (role, name) in NICS {
        let old = nic(role);
        netns
            .sysctl(&format!("net/ipv6/conf/{old}/disable_ipv6"), "0")
            .unwrap();
        for line in [
            format!("link set {old} down"),
            format!("addr flush dev {old}"),
            format!("link set {old} name {name}"),
        ] {
            netns.ip(&line).unwrap();
        }
    }
}

/// The commands `check` and `doctor` of a section, which find no fault; then starts the box.
fn check_and_start(netns: &Netns, section: &str, has_doctor: bool) -> RunningBox {
    check(netns, section, has_doctor);
    RunningBox::start(netns, EXITMARK, Path::new(CONFIGURATION)).unwrap()
}

/// The commands `check` and `doctor` of a section, which find no fault. Returns their output.
fn check(netns: &Netns, section: &str, has_doctor: bool) -> String {
    let mut output = String::new();
    for line in block(section, "sh check").lines() {
        let is_of_box = line.contains("status") || line.contains("doctor") && !has_doctor;
        if !is_of_box {
            let text = run(netns, line);
            let has_fault = text.lines().any(|line| line.starts_with("fault"));
            assert!(!has_fault, "{line}:\n{text}");
            output += &text;
        }
    }
    // The wire's NICs send nothing by themselves.
    for nic in ["enp1s0", "enp2s0"] {
        let path = format!("/proc/sys/net/ipv6/conf/{nic}/disable_ipv6");
        assert_eq!(netns.command("cat", &[&path]).unwrap(), "1\n");
    }
    output
}

/// The command `status` of a section, after the box has classified frames.
fn status(netns: &Netns, section: &str) -> String {
    let block = block(section, "sh check");
    let line = block.lines().find(|line| line.contains("status")).unwrap();
    run(netns, line)
}

fn stop(running: RunningBox) {
    let last = running.stop_well().unwrap();
    assert_eq!(count(&last.counters, "unsteered"), 0, "{:?}", last.counters);
}

/// Connections to a web server and to a relay, by these IP versions (0 and 1).
fn converse(
    host: &Netns,
    [web, relays]: [&Netns; 2],
    versions: &[usize],
) -> (Vec<Conversation>, Vec<JoinHandle<()>>) {
    let (mut all, mut servers) = (Vec::new(), Vec::new());
    for &version in versions {
        let (_, server, relay) = families()[version];
        for (netns, address, port) in [(web, server, WEB), (relays, relay, OR_PORT)] {
            servers.push(serve(netns, address, port, 1));
            let target = SocketAddr::new(address, port);
            all.push(Conversation::start(host, None, target));
        }
    }
    (all, servers)
}

fn end((all, servers): (Vec<Conversation>, Vec<JoinHandle<()>>)) {
    all.into_iter().for_each(Conversation::end);
    servers
        .into_iter()
        .for_each(|server| server.join().unwrap());
}

/// Checks that a machine has received segments, and no wrong ones.
#[track_caller]
fn is_right(netns: &Netns) {
    let counts = ["right", "wrong"].map(|name| inspected(netns, name));
    assert!(
        counts[0] > 20 && counts[1] == 0,
        "{}: {counts:?}",
        netns.label()
    );
}

#[test]
fn one_host() {
    needs_root!();
    if !is_installed("nft") {
        return;
    }
    let site = Site::build(Plan::default()).unwrap();
    inspect(&site.clearnet, &with_other_mark("af11"));
    let mut wrong = with_other_mark("0x00").to_vec();
    wrong.extend([from_others(&[INCOMING_MAC]), to_others(TORNET_MAC)]);
    inspect(&site.tornet, &wrong);
    let middle = &site.middle;
    rename_nics(middle);
    furnish(middle, configuration(ONE_HOST));
    run(middle, &block(ONE_HOST, "sh box"));
    let running = check_and_start(middle, ONE_HOST, true);
    let talk = converse(&site.host, [&site.clearnet, &site.tornet], &[0, 1]);
    Conversation::all_go_on(&talk.0, "through the box");
    end(talk);
    is_right(&site.clearnet);
    is_right(&site.tornet);
    assert_says(&status(middle, ONE_HOST), &[TORNET_MAC, "warnings"]);
    assert_eq!(site.status().unwrap().warnings, []);
    stop(running);
}

#[test]
fn a_rack_on_a_trunk() {
    needs_root!();
    if !is_installed("nft") {
        return;
    }
    let (site, trunk) = Trunk::build();
    let middle = &site.middle;
    rename_nics(middle);
    let has_vlans = has_vlan_interfaces();
    let (mut configuration, mut commands) = (configuration(RACK), block(RACK, "sh box"));
    if !has_vlans {
        // The same without the box's own VLAN interface.
        configuration = by_mac(&configuration);
        let lines = commands.lines().filter(|line| !line.contains("enp3s0.30"));
        commands = lines.collect::<Vec<_>>().join("\n");
    }
    furnish(middle, configuration);
    run(middle, &commands);
    for (router, info) in trunk.routers.iter().zip(["sh router-4", "sh router-6"]) {
        run(&router.netns, &block(RACK, info));
    }
    if !has_vlans {
        trunk.know_the_box();
    }
    let running = check_and_start(middle, RACK, has_vlans);
    trunk.converse();
    trunk.is_right();
    let mut words = vec!["exits-10", "exits-20", "VLAN 30"];
    words.extend(trunk.hosts.iter().map(|host| host.mac));
    words.extend(trunk.routers.iter().map(|router| router.mac));
    let text = status(middle, RACK);
    assert_says(&text, &words);
    assert!(!text.contains("ALARM"), "{text}");
    let report = site.status().unwrap();
    assert_eq!(report.warnings, []);
    assert_eq!(report.frames.unrouted_vlan + report.frames.unsteered, 0);
    stop(running);
}

/// The interfaces of the host and of the switch by wire, in place of the members of a bond.
const MEMBERS: [&str; 2] = [FAR_END, "eth1"];
/// The NICs of the page by wire, `host` before `uplink`.
const WIRES: [[&str; 2]; 2] = [["enp1s0", "enp2s0"], ["enp5s0", "enp6s0"]];

/// A second cable, from the host by the box to the switch. In place of a bond, both ends have a
/// bridge whose ports forward no frame to each other. It leaves a port without a link at once, as a
/// bond its member.
fn aggregate(site: &Site) {
    let ends = [
        (&site.host, HOST_MAC, ["192.0.2.10/24", "2001:db8:1::10/64"]),
        (
            &site.clearnet,
            CLEARNET_MAC,
            ["192.0.2.1/24", "2001:db8:1::1/64"],
        ),
    ];
    for (side, (netns, mac, addresses)) in ends.into_iter().enumerate() {
        let near_mac = format!("02:00:00:00:0{}:31", side + 1);
        let near = VethEnd::new(&site.middle, WIRES[1][side], &near_mac);
        connect(&VethEnd::new(netns, MEMBERS[1], mac), &near, 1500).unwrap();
        netns.silence(FAR_END).unwrap();
        for line in [
            "link add br0 type bridge mcast_snooping 0".to_owned(),
            format!("link set br0 address {mac} up"),
        ] {
            netns.ip(&line).unwrap();
        }
        for member in MEMBERS {
            let key = format!("net/ipv6/conf/{member}/disable_ipv6");
            netns.sysctl(&key, "1").unwrap();
            add_port(netns, member);
            let port = format!("link set {member} type bridge_slave isolated on learning off");
            netns.ip(&port).unwrap();
        }
        add_addresses(netns, "br0", &addresses);
    }
    for router in ["192.0.2.1", "2001:db8:1::1"] {
        let line = format!("route add default via {router}");
        site.host.ip(&line).unwrap();
    }
    let servers = [format!("{SERVER_V4}/32"), format!("{SERVER_V6}/128")];
    add_addresses(
        &site.clearnet,
        "br0",
        &servers.each_ref().map(String::as_str),
    );
    distribute(site);
}

/// Lets the host send by the first cable, and the switch by the second one, as long as they have a
/// link.
fn distribute(site: &Site) {
    let ends = [(&site.host, CLEARNET_MAC), (&site.clearnet, HOST_MAC)];
    for ((netns, other_mac), member) in ends.into_iter().zip(MEMBERS) {
        let entry = [
            "fdb", "replace", other_mac, "dev", member, "master", "dynamic",
        ];
        netns.command("bridge", &entry).unwrap();
    }
}

/// Checks that a frame of LACP (IEEE 802.1AX) reaches the other end of its cable unchanged, and no
/// other member.
fn lacp_crosses(site: &Site) {
    let ends = [&site.host, &site.clearnet];
    for (from, to) in [(0, 1), (1, 0)] {
        for (wire, member) in MEMBERS.into_iter().enumerate() {
            let mac = [HOST_MAC, CLEARNET_MAC][from];
            let frame = ethernet("01:80:c2:00:00:02", mac, &[], 0x8809, &[1; 110]);
            let eye = |member| Capture::start(ends[to], member, "in", "").unwrap();
            let [mut eye, mut other] = [eye(member), eye(MEMBERS[1 - wire])];
            let port = RawPort::open(ends[from], member).unwrap();
            port.send(&frame).unwrap();
            assert!(eye.sees(&frame), "{} {member}", ends[from].label());
            let captured = other.so_far();
            assert!(captured.iter().all(|one| one.bytes != frame), "{member}");
        }
    }
}

/// Waits until the members of the host and of the switch have a link or none, by wire.
#[track_caller]
fn have_links(site: &Site, expected: [[bool; 2]; 2], running: &RunningBox) {
    let of_wire = |member| {
        [&site.host, &site.clearnet].map(|netns| {
            let line = format!("-o link show dev {member}");
            netns.ip(&line).unwrap().contains("LOWER_UP")
        })
    };
    eventually(
        "the links of the host and of the switch",
        || match MEMBERS.map(of_wire) {
            found if found == expected => Ok(()),
            found => Err(format!("{found:?}\n{}", running.log())),
        },
    );
}

#[test]
fn a_link_aggregate() {
    needs_root!();
    if !is_installed("nft") {
        return;
    }
    let site = Site::build(Plan::default()).unwrap();
    aggregate(&site);
    inspect_at(&site.clearnet, &MEMBERS, &with_other_mark("af11"));
    let mut wrong = with_other_mark("0x00").to_vec();
    wrong.extend([from_others(&[INCOMING_MAC]), to_others(TORNET_MAC)]);
    inspect(&site.tornet, &wrong);
    let middle = &site.middle;
    rename_nics(middle);
    furnish(middle, configuration(ONE_HOST));
    run(middle, &block(AGGREGATE, "sh box"));
    // From one wire to two, without a detachment.
    let one = RunningBox::start(middle, EXITMARK, Path::new(CONFIGURATION)).unwrap();
    one.stop_well().unwrap();
    middle.run(|| fs::write(CONFIGURATION, configuration(AGGREGATE)).unwrap());
    let text = check(middle, AGGREGATE, true);
    let wires = "2 wires: a (enp1s0 and enp2s0), b (enp5s0 and enp6s0), relay traffic by enp3s0 to";
    assert_says(&text, &[wires]);
    for nic in WIRES.as_flattened().iter().chain(&["enp3s0"]) {
        let is_mtu = |line: &&str| line.contains(nic) && line.contains("MTU 1500");
        assert_eq!(text.lines().filter(is_mtu).count(), 1, "{nic}:\n{text}");
    }
    let running = RunningBox::start(middle, EXITMARK, Path::new(CONFIGURATION)).unwrap();
    running.wait_log(&["/run/bpf/exitmark/box: the wires of the box are other ones now"]);
    have_links(&site, [[true; 2]; 2], &running);
    lacp_crosses(&site);
    let talk = converse(&site.host, [&site.clearnet, &site.tornet], &[0, 1]);
    Conversation::all_go_on(&talk.0, "by one cable, and answered by the other");
    let report = site.status().unwrap();
    assert_eq!(report.warnings, []);
    for port in &report.ports {
        let (received, forwarded) = (port.received_frames, port.forwarded_frames);
        match port.interface.as_str() {
            "enp1s0" | "enp6s0" => assert!(received > 20, "{port:?}"),
            "enp2s0" | "enp5s0" => assert!(forwarded > 20, "{port:?}"),
            _ => assert!(received > 20 && forwarded > 20, "{port:?}"),
        }
    }
    let words = [TORNET_MAC, "enp1s0", "enp2s0", "enp3s0", "enp5s0", "enp6s0"];
    assert_says(&status(middle, AGGREGATE), &words);

    // The first cable is cut behind the box, then the second one before it.
    for (wire, cut, is_host) in [(0, &site.clearnet, false), (1, &site.host, true)] {
        let set = |state| format!("link set {} {state}", MEMBERS[wire]);
        cut.ip(&set("down")).unwrap();
        let mut links = [[true; 2]; 2];
        links[wire] = [false; 2];
        have_links(&site, links, &running);
        Conversation::all_go_on(&talk.0, "by the other cable");
        let held = WIRES[wire][usize::from(is_host)];
        let warnings = site.status().unwrap().warnings;
        let of_link = |kind| warnings.iter().filter(move |one| one.kind == kind);
        let of_loss: Vec<_> = of_link("link_loss").collect();
        assert_eq!(of_loss.len(), 1, "{warnings:?}");
        assert_says(&of_loss[0].text, &[held]);
        for nic in WIRES[1 - wire] {
            let mut of_links = of_link("no_carrier").chain(of_link("link_loss"));
            assert_eq!(of_links.find(|one| one.text.contains(nic)), None);
        }
        // The box itself has set it down.
        let by_hand = |one: &&Warning| one.text.contains("ip link set");
        assert_eq!(warnings.iter().find(by_hand), None);
        cut.ip(&set("up")).unwrap();
        have_links(&site, [[true; 2]; 2], &running);
        distribute(&site);
        Conversation::all_go_on(&talk.0, "by both cables again");
    }
    end(talk);
    is_right(&site.clearnet);
    is_right(&site.tornet);
    let alarms = |warning: &Warning| warning.is_alarm;
    eventually("no alarm", || match site.status().unwrap().warnings {
        warnings if !warnings.iter().any(alarms) => Ok(()),
        warnings => Err(format!("{warnings:?}")),
    });
    stop(running);
}

const BOX_2_INCOMING: &str = "02:00:00:00:03:21";
const ROUTER_2_MAC: &str = "02:00:00:00:02:22";
/// The addresses that the routers share, without their prefix lengths.
const SHARED: [&str; 2] = ["192.0.2.1", "fe80::1"];

/// Two boxes between the switch of a host and two routers, and the Internet behind these.
struct Pair {
    /// The two switches, the first box, and router 1.
    site: Site,
    second: Netns,
    second_router: Netns,
    host: Machine,
    relay_router: Machine,
    internet: Netns,
}

impl Pair {
    fn router(&self, number: usize) -> &Netns {
        match number {
            1 => &self.site.clearnet,
            _ => &self.second_router,
        }
    }

    fn build() -> Self {
        let site = Site::build(Plan::default()).unwrap();
        let labels = ["box-2", "router-2", "internet"];
        let [second, second_router, internet] = labels.map(|label| Netns::new(label).unwrap());
        make_switch(&site.host);
        make_switch(&site.tornet);
        let host = Machine::new(&site.host, "host", HOST_MAC, 1500);
        let host = host.with_addresses(&["192.0.2.10/24", "2001:db8:1::10/64"]);
        let relay_router = Machine::new(&site.tornet, "router", TORNET_MAC, 1500);
        let addresses = ["203.0.113.1/24", "2001:db8:3::1/64"];
        let relay_router = relay_router.with_addresses(&addresses);
        // The second box.
        let near = |name, mac| VethEnd::new(&second, name, mac);
        for (far, near) in [
            (
                VethEnd::new(&site.host, "eth1", "02:00:00:00:01:21"),
                near(nic(Role::Host), "02:00:00:00:01:22"),
            ),
            (
                VethEnd::new(&second_router, FAR_END, ROUTER_2_MAC),
                near(nic(Role::Uplink), "02:00:00:00:02:21"),
            ),
            (
                VethEnd::new(&site.tornet, "eth1", "02:00:00:00:03:22"),
                near(nic(Role::Incoming), BOX_2_INCOMING),
            ),
        ] {
            connect(&far, &near, 1500).unwrap();
        }
        add_port(&site.host, "eth1");
        add_port(&site.tornet, "eth1");
        let pair = Self {
            site,
            second,
            second_router,
            host,
            relay_router,
            internet,
        };
        pair.address();
        pair.inspect();
        pair
    }

    fn address(&self) {
        self.router(1).ip("addr flush dev eth0").unwrap();
        let inside = [
            ["192.0.2.2/24", "2001:db8:1::2/64"],
            ["192.0.2.3/24", "2001:db8:1::3/64"],
        ];
        let routers = [self.router(1), self.router(2), &self.relay_router.netns];
        for (number, router) in routers.into_iter().enumerate() {
            let subnet = number + 1;
            let ends = [router, &self.internet];
            let names = ["net0".to_owned(), format!("net{subnet}")];
            let macs = ["02:00:00:00:09:00", "02:00:00:00:09:01"];
            let end = |side: usize| VethEnd::new(ends[side], &names[side], macs[side]);
            veth(&end(0), &end(1), 1500).unwrap();
            for side in [0, 1] {
                complete_frames(ends[side], &names[side]);
                let host = side + 1;
                let own = [
                    format!("198.18.{subnet}.{host}/24"),
                    format!("2001:db8:a{subnet}::{host}/64"),
                ];
                let own = own.each_ref().map(String::as_str);
                add_addresses(ends[side], &names[side], &own);
            }
            for via in [
                format!("198.18.{subnet}.2"),
                format!("2001:db8:a{subnet}::2"),
            ] {
                router.ip(&format!("route add default via {via}")).unwrap();
            }
            if let Some(own) = inside.get(number) {
                add_addresses(router, FAR_END, own);
            }
        }
        for address in [IpAddr::from(SERVER_V4), RELAY_V4.into()] {
            let line = format!("addr add {address}/32 dev lo");
            self.internet.ip(&line).unwrap();
        }
        for address in [IpAddr::from(SERVER_V6), RELAY_V6.into()] {
            let line = format!("addr add {address}/128 dev lo");
            self.internet.ip(&line).unwrap();
        }
        for netns in routers.into_iter().chain([&self.internet]) {
            netns.sysctl("net/ipv4/ip_forward", "1").unwrap();
            netns.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
            let conf = "for each in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$each; done";
            netns.command("sh", &["-c", conf]).unwrap();
        }
        self.route_to_host(0, 1);
        self.route_to_host(1, 2);
    }

    /// Lets the Internet reach the host's network by this router.
    fn route_to_host(&self, version: usize, router: usize) {
        let line = match version {
            0 => format!("route replace 192.0.2.0/24 via 198.18.{router}.1"),
            _ => format!("route replace 2001:db8:1::/64 via 2001:db8:a{router}::1"),
        };
        self.internet.ip(&line).unwrap();
    }

    /// Routers count exit traffic without the mark, and the router for relay traffic what is marked
    /// or not from a box.
    fn inspect(&self) {
        for router in [1, 2] {
            let mut wrong = with_other_mark("af11").to_vec();
            wrong.push(from_others(&[HOST_MAC]));
            inspect(self.router(router), &wrong);
        }
        let mut wrong = with_other_mark("0x00").to_vec();
        wrong.push(from_others(&[INCOMING_MAC, BOX_2_INCOMING]));
        inspect(&self.relay_router.netns, &wrong);
    }

    /// Gives a router an address that it shares with the other one.
    fn take_over(&self, router: usize, shared: &str) {
        let length = if shared.contains(':') { 64 } else { 24 };
        let netns = self.router(router);
        let address = format!("{shared}/{length}");
        add_addresses(netns, FAR_END, &[&address]);
    }

    /// Starts both boxes as the page says.
    fn start(&self) -> [RunningBox; 2] {
        let boxes = [(&self.site.middle, "sh box-1"), (&self.second, "sh box-2")];
        boxes.map(|(netns, info)| {
            rename_nics(netns);
            furnish(netns, configuration(TWO_BOXES));
            run(netns, &block(TWO_BOXES, info));
            check_and_start(netns, TWO_BOXES, true)
        })
    }

    fn converse(&self, versions: &[usize]) -> (Vec<Conversation>, Vec<JoinHandle<()>>) {
        converse(&self.host.netns, [&self.internet; 2], versions)
    }
}

/// The frames of exit and of relay traffic that a box has judged.
fn judged(running: &RunningBox) -> [u64; 2] {
    let counters = running.counters().unwrap();
    ["marked", "incoming_forwarded"].map(|name| count(&counters, name))
}

/// How box 1 fails.
#[derive(Clone, Copy, Debug)]
enum Failure {
    Detached,
    CableCut,
}

impl Failure {
    fn happen(self, pair: &Pair, first: RunningBox) {
        match self {
            Self::Detached => {
                first.stop_well().unwrap();
                run(
                    &pair.site.middle,
                    &format!("exitmark detach --config {CONFIGURATION}"),
                );
            }
            Self::CableCut => {
                pair.site.host.ip("link set eth0 down").unwrap();
                first.stop_well().unwrap();
            }
        }
    }
}

#[test]
fn two_boxes_with_vrrp() {
    needs_root!();
    if !is_installed("nft") {
        return;
    }
    for failure in [Failure::Detached, Failure::CableCut] {
        println!("{failure:?}");
        let pair = Pair::build();
        pair.take_over(1, SHARED[0]);
        pair.take_over(2, SHARED[1]);
        let [first, second] = pair.start();
        run(&pair.host.netns, &block(TWO_BOXES, "sh host"));
        announcements_cross(&pair);
        let talk = pair.converse(&[0, 1]);
        Conversation::all_go_on(&talk.0, "through both boxes");
        let (by_first, by_second) = (judged(&first), judged(&second));
        assert!(
            by_first
                .into_iter()
                .chain(by_second)
                .all(|frames| frames > 5)
        );
        for netns in [&pair.site.middle, &pair.second] {
            assert_says(&status(netns, TWO_BOXES), &[TORNET_MAC]);
        }

        failure.happen(&pair, first);
        // What VRRP does: router 2 takes the address over and announces it.
        let before = judged(&second);
        pair.take_over(2, SHARED[0]);
        let frame = announcement(SHARED[0].parse().unwrap(), ROUTER_2_MAC);
        let port = RawPort::open(pair.router(2), FAR_END).unwrap();
        port.send(&frame).unwrap();
        pair.route_to_host(0, 2);
        assert_taken_over(&pair, &second, before, talk);
    }
}

#[test]
fn two_boxes_with_static_routes() {
    needs_root!();
    if !is_installed("nft") {
        return;
    }
    let pair = Pair::build();
    let [first, second] = pair.start();
    run(&pair.host.netns, &block(TWO_BOXES, "sh host-static"));
    let talk = pair.converse(&[0, 1]);
    Conversation::all_go_on(&talk.0, "through both boxes");
    let (by_first, by_second) = (judged(&first), judged(&second));
    assert!(
        by_first
            .into_iter()
            .chain(by_second)
            .all(|frames| frames > 5)
    );

    Failure::CableCut.happen(&pair, first);
    let before = judged(&second);
    run(&pair.host.netns, &block(TWO_BOXES, "sh host-failover"));
    pair.route_to_host(0, 2);
    assert_taken_over(&pair, &second, before, talk);
}

/// Checks that the second box marks and steers new IPv4 connections, and that open ones continue.
fn assert_taken_over(
    pair: &Pair,
    second: &RunningBox,
    before: [u64; 2],
    talk: (Vec<Conversation>, Vec<JoinHandle<()>>),
) {
    Conversation::all_go_on(&talk.0, "open connections");
    end(talk);
    let of_open = judged(second);
    let new = pair.converse(&[0]);
    Conversation::all_go_on(&new.0, "new connections");
    end(new);
    let of_new = judged(second);
    for kind in [0, 1] {
        assert!(before[kind] < of_open[kind] && of_open[kind] < of_new[kind]);
    }
    for router in [1, 2] {
        is_right(pair.router(router));
    }
    is_right(&pair.relay_router.netns);
}

/// A VRRP announcement of router 1 arrives at router 2 unchanged, through both boxes.
fn announcements_cross(pair: &Pair) {
    let advertisement = vec![0x31, 1, 255, 1, 0, 100, 0, 0, 192, 0, 2, 1];
    let from = [192, 0, 2, 2].into();
    let mut packet = Packet::new(from, [224, 0, 0, 18].into(), 112, advertisement);
    packet.hops = 255;
    let frame = packet.framed("01:00:5e:00:00:12", "00:00:5e:00:01:01", &[]);
    let mut eye = Capture::start(pair.router(2), FAR_END, "in", "").unwrap();
    let port = RawPort::open(pair.router(1), FAR_END).unwrap();
    port.send(&frame).unwrap();
    assert!(eye.sees(&frame), "the announcement of router 1");
}
