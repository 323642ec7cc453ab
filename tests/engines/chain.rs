//! Several wires with one `incoming`: the first program passes frames for the hosts of the others on.

use crate::rig::{Rig, in_namespace};
use exitmark_datapath::{
    Buffers, Counter, DropReason, Form, Kernel, KernelError, KnownHost, Links, PerRole, Pins, Ran,
    Role,
};
use exitmark_lab::cases::{HOST4, HOST6, WEB4, WEB6};
use exitmark_lab::differential::Scenario;
use exitmark_lab::frames::{Frame, TO, tcp};
use exitmark_lab::{Capture, Netns, RawPort, VethEnd, needs_root, veth, wait_until};
use exitmark_nic::Nic;
use exitmark_policy::packet::MacAddr;
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const OWN: MacAddr = MacAddr::new([2, 0, 0, 0, 3, 1]);
const NEXT_HOP: MacAddr = MacAddr::new([2, 0, 0, 0, 3, 2]);
const UNKNOWN: &str = "192.0.2.77:40000";
const WIRES: usize = 3;

/// The host of a wire.
fn host(wire: usize) -> MacAddr {
    MacAddr::from_u64(0x0200_0000_0100 + wire as u64).unwrap()
}

/// Two groups: an address that has sent nothing does not get the MAC address of the only host.
fn scenario() -> Scenario {
    let group = |addresses: &str| {
        format!(
            "mark=10 at_uplink=Keep steer=Both protocols=Tcp addresses={addresses} \
             relay_addresses= resolvers= exempt= listeners= host_mac=none vlan= path=0,0,none,"
        )
    };
    let text = format!(
        "mode=Enforce host_mark=none relays= incoming=incoming,{OWN},{NEXT_HOP} next_hops= \
         drops_unsteered=false seeks_host=false longest=9014 hand_over= {} {}",
        group("192.0.2.10/32,192.0.2.77/32,2001:db8:1::10/128"),
        group("192.0.2.99/32"),
    );
    text.parse().unwrap()
}

fn rig(buffers: Buffers) -> Rig {
    let scenario = scenario();
    Rig::new(buffers, &scenario.snapshot().unwrap(), scenario.incoming)
}

fn chain(buffers: Buffers) -> [Rig; WIRES] {
    let rigs = std::array::from_fn(|_| rig(buffers));
    for pair in rigs.windows(2) {
        pair[0].kernel.chain_to(Some(&pair[1].kernel)).unwrap();
    }
    rigs
}

/// The host of a wire sends a frame from this address.
fn learns(rigs: &mut [Rig; WIRES], wire: usize, address: &str) {
    let to = if address == HOST6 { WEB6 } else { WEB4 };
    let frame = tcp(address, to).macs(TO, host(wire)).build();
    rigs[wire].run(Role::Host, &frame);
}

fn to_box(from: &str, address: &str) -> Frame {
    tcp(from, address).macs(OWN, NEXT_HOP)
}

/// The counters that a frame from `incoming` changes.
fn counts(rig: &Rig) -> [u64; 5] {
    let counts = rig.kernel.counts().unwrap();
    let tally = &counts.tally;
    [
        tally.of(Counter::Received(Role::Incoming)),
        tally.of(Counter::Forwarded(Role::Host)),
        tally.of(Counter::Dropped(DropReason::HostMacUnknown)),
        counts.to_stack[Role::Incoming],
        counts.spilled[Role::Incoming],
    ]
}

/// Sends a frame by the NIC of the first wire. Returns what it added to the counters of each wire.
fn run(rigs: &mut [Rig; WIRES], frame: &Frame) -> (Ran, [[u64; 5]; WIRES]) {
    let before = rigs.each_ref().map(counts);
    let (ran, _) = rigs[0].run(Role::Incoming, &frame.build());
    let after = rigs.each_ref().map(counts);
    let added = |wire: usize| std::array::from_fn(|at| after[wire][at] - before[wire][at]);
    (ran, std::array::from_fn(added))
}

const NOTHING: [u64; 5] = [0; 5];
const DELIVERED: [u64; 5] = [1, 1, 0, 0, 0];
const DROPPED: [u64; 5] = [1, 0, 1, 0, 0];
const TO_STACK: [u64; 5] = [0, 0, 0, 1, 0];

/// Checks that the host of a wire gets the frame, and that no other wire counts it.
#[track_caller]
fn delivers(rigs: &mut [Rig; WIRES], wire: usize, frame: &Frame) {
    let (ran, added) = run(rigs, frame);
    assert!(ran.redirected, "wire {wire}");
    let delivered = frame.clone().macs(host(wire), NEXT_HOP).build();
    assert!(ran.frame == delivered, "wire {wire}");
    let mut expected = [NOTHING; WIRES];
    expected[wire] = DELIVERED;
    assert_eq!(added, expected, "wire {wire}");
}

#[track_caller]
fn drops(rigs: &mut [Rig; WIRES], by: usize, frame: &Frame) {
    let (ran, added) = run(rigs, frame);
    assert!(!ran.redirected && !ran.passed, "by {by}");
    let mut expected = [NOTHING; WIRES];
    expected[by] = DROPPED;
    assert_eq!(added, expected, "by {by}");
}

#[test]
fn the_wire_that_knows_the_host_delivers_and_counts() {
    in_namespace(|| {
        for buffers in [Buffers::One, Buffers::Several] {
            let mut rigs = chain(buffers);
            let frames = [to_box(WEB4, HOST4), to_box(WEB6, HOST6)];
            for (frame, address) in frames.iter().zip([HOST4, HOST6]) {
                drops(&mut rigs, WIRES - 1, frame);
                // The first wire that knows the address, from the last to the first.
                for wire in (0..WIRES).rev() {
                    learns(&mut rigs, wire, address);
                    delivers(&mut rigs, wire, frame);
                }
            }
            // The programs read the headers of a jumbo frame anew.
            let jumbo = [1200, 8000].map(|bytes| to_box(WEB4, UNKNOWN).payload(bytes));
            learns(&mut rigs, 2, UNKNOWN);
            for frame in &jumbo[..1 + usize::from(buffers == Buffers::Several)] {
                delivers(&mut rigs, 2, frame);
            }
        }
    });
}

#[test]
fn a_frame_that_is_for_no_host_stays_with_the_first_wire() {
    in_namespace(|| {
        let mut rigs = chain(Buffers::Several);
        for frame in [
            to_box(WEB4, "192.0.2.9:1"),
            tcp(WEB4, HOST4).macs(TO, NEXT_HOP),
        ] {
            let (ran, added) = run(&mut rigs, &frame);
            assert!(ran.passed && ran.frame == frame.build());
            assert_eq!(added, [TO_STACK, NOTHING, NOTHING]);
        }
    });
}

#[test]
fn a_chain_is_cut_and_joined_again() {
    in_namespace(|| {
        let mut rigs = chain(Buffers::Several);
        let frame = to_box(WEB4, HOST4);
        learns(&mut rigs, 2, HOST4);
        delivers(&mut rigs, 2, &frame);
        for _ in 0..2 {
            rigs[0].kernel.chain_to(None).unwrap();
            drops(&mut rigs, 0, &frame);
        }
        rigs[0].kernel.chain_to(Some(&rigs[2].kernel)).unwrap();
        delivers(&mut rigs, 2, &frame);
        rigs[0].kernel.chain_to(Some(&rigs[1].kernel)).unwrap();
        delivers(&mut rigs, 2, &frame);
        rigs[1].kernel.chain_to(None).unwrap();
        drops(&mut rigs, 1, &frame);
    });
}

/// The kernel empties the map when nothing refers to it any more.
#[test]
fn the_chain_outlives_the_process_by_its_pin() {
    in_namespace(|| {
        let pins = Pins::open(Path::new("/sys/fs/bpf/chain")).unwrap();
        let [first, second] = [0; 2].map(|_| rig(Buffers::Several).kernel);
        first.chain_to(Some(&second)).unwrap();
        first.pin_maps(&pins).unwrap();
        drop((first, second));
        let entries = std::fs::read_dir("/sys/fs/bpf/chain").unwrap();
        let mut maps = entries.map(|entry| entry.unwrap().path().join("next_wire"));
        let map = maps.find(|path| path.exists()).unwrap();
        let map = MapHandle::from_pinned_path(map).unwrap();
        let program = map.lookup(&[0; 4], MapFlags::ANY).unwrap();
        assert!(program.is_some_and(|number| number != [0; 4]));
        drop(map);
        pins.remove().unwrap();
    });
}

/// The first wire's program is on the NIC; the second one's port gets the frame. One that its NIC does
/// not take is a loss of the second wire only.
#[test]
fn frames_from_the_nic_of_the_first_wire_leave_by_a_port_of_the_second() {
    needs_root!();
    let (near, far) = (Netns::new("near").unwrap(), Netns::new("far").unwrap());
    for netns in [&near, &far] {
        netns.disable_ipv6().unwrap();
    }
    let own = OWN.to_string();
    for (name, mac, peer) in [
        ("in0", &*own, "router"),
        ("host0", "02:00:00:00:04:00", "tor0"),
        ("host1", "02:00:00:00:04:01", "tor1"),
    ] {
        let end = VethEnd::new(&near, name, mac);
        let peer_end = VethEnd::new(&far, peer, "02:00:00:00:05:00");
        veth(&end, &peer_end, 1500).unwrap();
        // A veth takes redirected frames if its peer has NAPI.
        far.command("ethtool", &["-K", peer, "gro", "on"]).unwrap();
    }
    let capture = |name: &str| Capture::start(&far, name, "in", "ip").unwrap();
    let mut captures = ["tor0", "tor1"].map(capture);
    let router = RawPort::open(&far, "router").unwrap();
    let frame = to_box(WEB4, HOST4);
    let delivered = frame.clone().macs(host(1), NEXT_HOP).build();
    let sent = frame.build();
    let (wires, attached) = near.run(|| {
        let index = |name: &str| Nic::look(name).unwrap().index;
        let netns = std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
        let wires = ["host0", "host1"].map(|name| {
            let pins = Pins::open(&Path::new("/sys/fs/bpf").join(name)).unwrap();
            let (kernel, _) = Kernel::load_pinned(
                &pins,
                Form {
                    buffers: Buffers::Several,
                    has_siblings: true,
                    has_tap: false,
                },
            )
            .unwrap();
            let scenario = scenario();
            kernel.publish(&scenario.snapshot().unwrap()).unwrap();
            let links = Links::over(kernel.links().unwrap(), scenario.incoming);
            links.allow_redirects(PerRole::from_fn(|_| true), 9014);
            let nics = PerRole::new([index(name), 0, index("in0")]);
            links.name_nics(netns, nics);
            kernel.set_port(Role::Host, Some(nics[Role::Host])).unwrap();
            let drop_counters = kernel.count_drops(&pins).unwrap();
            (kernel, links, pins, drop_counters)
        });
        let [(first, _, pins, _), (second, links, _, _)] = &wires;
        links.remember_hosts([KnownHost {
            address: HOST4.parse::<SocketAddr>().unwrap().ip(),
            mac: host(1),
            changes: 0,
        }]);
        first.chain_to(Some(second)).unwrap();
        let attached = first.attach(pins, Role::Incoming, "in0", index("in0"));
        (wires, attached.unwrap())
    });
    let numbers = || {
        let counters = [
            Counter::Received(Role::Incoming),
            Counter::Forwarded(Role::Host),
            Counter::Dropped(DropReason::TxDown(Role::Host)),
        ];
        wires.each_ref().map(|(kernel, ..)| {
            let tally = kernel.counts().unwrap().tally;
            counters.map(|counter| tally.of(counter))
        })
    };
    router.send(&sent).unwrap();
    assert!(captures[1].sees(&delivered));
    assert_eq!(numbers(), [[0, 0, 0], [1, 1, 0]]);
    near.ip("link set dev host1 down").unwrap();
    router.send(&sent).unwrap();
    let expected = [[0, 0, 0], [2, 1, 1]];
    let state = || format!("{:?}", numbers());
    wait_until("the loss is counted", || numbers() == expected, state);
    assert_eq!(captures[0].so_far().len(), 0);
    drop(attached);
    near.run(move || {
        for (_, _, pins, drop_counters) in wires {
            drop(drop_counters);
            pins.remove_links().unwrap();
            pins.remove().unwrap();
        }
    });
}

#[test]
fn programs_for_other_buffers_are_not_chained() {
    in_namespace(|| {
        let rigs = [Buffers::One, Buffers::Several].map(rig);
        let refused = rigs[0].kernel.chain_to(Some(&rigs[1].kernel));
        assert!(matches!(refused, Err(KernelError::OtherBuffers)));
        let refused = rigs[1].kernel.chain_to(Some(&rigs[0].kernel));
        assert!(matches!(refused, Err(KernelError::OtherBuffers)));
    });
}
