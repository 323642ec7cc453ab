//! Facts in, findings out: each branch, as a table.

mod next_hops;
mod sources;
mod tor_host;

use super::facts::{Port, RelayFile, Trial};
use super::next_hops::HopFacts;
use super::tap::TapFacts;
use super::*;
use crate::settings::{Engine, Hop, Pin};
use caps::Capability;
use exitmark_datapath::{Role, XdpFeatures, XdpState};
use exitmark_nic::{NextHop, Nic, Offload, OffloadState, Offloads};
use exitmark_policy::packet::VlanTags;
use exitmark_relays::Validity;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::SystemTime;

const ALL_FEATURES: XdpFeatures = XdpFeatures {
    native: true,
    zero_copy: true,
    multi_buffer: true,
};

fn port(role: Option<Role>, name: &str, index: u32) -> Port {
    Port {
        role,
        name: name.to_owned(),
        nic: Ok(Nic {
            index,
            mac: format!("02:00:00:00:00:{index:02x}").parse().unwrap(),
            queues: 4,
            most_queues: 8,
            ..Nic::example(name, Some("ice"))
        }),
        xdp: Some(XdpState {
            program: 0,
            is_generic: false,
            takes_redirects: true,
            takes_long_redirects: true,
            features: Some(ALL_FEATURES),
        }),
    }
}

const CONSENSUS: &str = "network-status-version 3 microdesc\nvote-status consensus\n\
                         valid-after 2026-11-28 22:00:00\nfresh-until 2026-11-28 23:00:00\n\
                         valid-until 2026-11-29 01:00:00\n";

fn at(time: &str) -> SystemTime {
    humantime::parse_rfc3339_weak(time).unwrap()
}

#[test]
fn only_the_beginning_of_a_consensus_has_times() {
    let validity = Validity::of_beginning(CONSENSUS).unwrap();
    assert_eq!(validity.valid_after, at("2026-11-28 22:00:00"));
    assert_eq!(validity.valid_until, at("2026-11-29 01:00:00"));
    for other in [
        "",
        "dir-key-certificate-version 3\n",
        &CONSENSUS.replace("valid-until", "valid-under"),
        &CONSENSUS.replace("22:00:00", "25:00:00"),
        &CONSENSUS.replace("fresh-until 2026", "fresh-until 2036"),
    ] {
        assert_eq!(Validity::of_beginning(other), None, "{other}");
    }
}

fn sound() -> Facts {
    Facts {
        scope: CheckScope::default(),
        kernel: (6, 12),
        release: "6.12.0-amd64".to_owned(),
        trial: Trial::Loads(Ok(())),
        has_btf: true,
        has_bpf_fs: true,
        is_pinned: false,
        hides_pins: false,
        attached: Vec::new(),
        attached_cgroups: 0,
        missing: Vec::new(),
        memlock: None,
        cpu_latency: None,
        has_jit: Some(true),
        files: vec![RelayFile {
            path: "/var/lib/tor/cached-consensus".into(),
            trouble: None,
            validity: Validity::of_beginning(CONSENSUS),
        }],
        now: at("2026-11-28 22:30:00"),
        ports: vec![
            port(Some(Role::Host), "host0", 1),
            port(Some(Role::Uplink), "uplink0", 2),
            port(Some(Role::Incoming), "incoming0", 3),
        ],
        tap: None,
        next_hops: vec![HopFacts {
            hop: Hop {
                next_hop: "203.0.113.1".parse().unwrap(),
                vlan: VlanTags::UNTAGGED,
            },
            vlan: None,
            mac: Some("02:00:00:00:00:99".parse().unwrap()),
        }],
        sources: Ok(Vec::new()),
        cpus: 4,
        own_resolver: None,
        tor: None,
    }
}

fn nic(facts: &mut Facts, port: usize) -> &mut Nic {
    facts.ports[port].nic.as_mut().unwrap()
}

fn each(facts: &mut Facts, change: fn(&mut Nic)) {
    for port in &mut facts.ports {
        change(port.nic.as_mut().unwrap());
    }
}

fn xdp(facts: &mut Facts, port: usize) -> &mut XdpState {
    facts.ports[port].xdp.as_mut().unwrap()
}

/// The findings, after a check that all of them are ok.
fn all_ok(facts: &Facts) -> Vec<Finding> {
    let all = findings(facts);
    for finding in &all {
        assert_eq!(finding.severity, Severity::Ok, "{finding:?}");
    }
    all
}

/// The findings that are warnings or faults.
fn amiss(facts: &Facts) -> Vec<Finding> {
    let mut all = findings(facts);
    all.retain(|finding| finding.severity != Severity::Ok);
    all
}

#[test]
fn a_sound_machine_has_no_warnings() {
    for finding in all_ok(&sound()) {
        assert_eq!(finding.fix, None, "{finding:?}");
    }
}

/// Fails unless the change is found as expected: severity, subject, a part of `what`, and the
/// command if there is one.
#[track_caller]
fn finds(expected: &str, spoil: impl Fn(&mut Facts)) {
    finds_in(sound(), expected, spoil);
}

/// As [`finds`], on a machine with these facts otherwise.
#[track_caller]
fn finds_in(mut facts: Facts, expected: &str, spoil: impl Fn(&mut Facts)) {
    let (expected, fix) = match expected.split_once(" => ") {
        Some((expected, fix)) => (expected, Some(fix)),
        None => (expected, None),
    };
    let (severity, rest) = expected.split_once(' ').unwrap();
    let (subject, words) = rest.split_once(": ").unwrap();
    spoil(&mut facts);
    let amiss = amiss(&facts);
    let finding = amiss
        .first()
        .unwrap_or_else(|| panic!("{words}: nothing was found"));
    assert_eq!(
        (finding.severity.to_string().as_str(), &*finding.subject),
        (severity, subject)
    );
    assert!(finding.what.contains(words), "{words}: {finding:?}");
    assert!(!finding.why.is_empty() || finding.what.contains("interface"));
    assert_eq!(finding.fix.as_deref(), fix, "{finding:?}");
    // One finding, or the same on several NICs.
    assert!(
        amiss.iter().all(|other| other.severity == finding.severity),
        "{words}: {amiss:?}"
    );
}

#[test]
fn each_fault_is_found_alone_with_its_command() {
    finds("fault kernel: 5.10", |f| f.kernel = (5, 10));
    finds("warning kernel: 6.1", |f| f.kernel = (6, 1));
    finds("warning kernel: 6.5", |f| f.kernel = (6, 5));
    finds("fault kernel: do not load on Linux 6.12.0-amd64", |f| {
        f.trial = Trial::Refused(
            "cannot load the XDP programs: the verifier of Linux 6.12.0-amd64 refuses the \
             program exitmark_host: R2 unbounded memory access"
                .to_owned(),
        );
    });
    finds("warning kernel: cannot be counted", |f| {
        f.trial = Trial::Loads(Err("no such tracepoint".to_owned()))
    });
    // One cause, one finding.
    finds("warning btf: vmlinux", |f| {
        f.trial = Trial::Loads(Err("no BTF".to_owned()));
        f.has_btf = false;
    });
    finds("warning btf: vmlinux", |f| f.has_btf = false);
    finds(
        "fault pins: engine connect is at /sys/fs/bpf/exitmark, attached to a cgroup => exitmark \
         detach --pins /sys/fs/bpf/exitmark",
        |f| (f.is_pinned, f.attached_cgroups) = (true, 1),
    );
    finds(
        "warning jit: interpreted => sysctl -w net.core.bpf_jit_enable=1",
        |f| f.has_jit = Some(false),
    );
    finds("warning cpu_latency: /dev/cpu_dma_latency", |f| {
        f.cpu_latency = Some(Err("Permission denied".to_owned()));
    });
    finds(
        "fault pins: not in a BPF file system => \
         mkdir -p /sys/fs/bpf && mount -t bpf bpf /sys/fs/bpf",
        |f| f.has_bpf_fs = false,
    );
    finds(
        "fault pins: not in a BPF file system => systemctl start run-bpf-exitmark.mount",
        |f| {
            f.has_bpf_fs = false;
            f.scope.pin.directory = "/run/bpf/exitmark/box".into();
        },
    );
    finds(
        "warning clock: is valid from 2026-11-28 22:00:00 UTC on, the clock is at 2026-11-28 \
         21:30:00 => timedatectl set-ntp true",
        |f| f.now = at("2026-11-28 21:30:00"),
    );
    finds(
        "fault clock: the clock is at 1970-01-01 00:10:00 => timedatectl set-ntp true",
        |f| f.now = at("1970-01-01 00:10:00"),
    );
    finds("warning relays: is past its fresh-until time", |f| {
        f.now = at("2026-11-29 00:30:00")
    });
    finds("warning relays: was valid until 2026-11-29 01:00:00", |f| {
        f.now = at("2026-11-29 02:00:00")
    });
    finds("fault relays: is stale", |f| {
        f.now = at("2026-12-24 02:00:00")
    });
    finds("warning relays: cached-consensus is stale", |f| {
        let newer = CONSENSUS.replace("2026-11-2", "2026-12-2");
        f.files.push(RelayFile {
            path: "/var/lib/tor-instances/a/cached-consensus".into(),
            trouble: None,
            validity: Validity::of_beginning(&newer),
        });
        f.now = at("2026-12-28 22:30:00");
    });
    for (name, capability) in [
        ("CAP_NET_ADMIN", Capability::CAP_NET_ADMIN),
        ("CAP_BPF", Capability::CAP_BPF),
        ("CAP_NET_RAW", Capability::CAP_NET_RAW),
        ("CAP_PERFMON", Capability::CAP_PERFMON),
    ] {
        finds(&format!("fault rights: {name}"), |f| {
            f.missing = vec![capability]
        });
    }
    finds("warning memory: 8192 KiB => ulimit -l unlimited", |f| {
        f.missing = vec![Capability::CAP_IPC_LOCK];
        f.memlock = Some(8 << 20);
    });
    finds(
        "fault relays: /var/lib/tor/cached-consensus does not exist",
        |f| f.files[0].trouble = Some(io::ErrorKind::NotFound),
    );
    finds("fault relays: may not be read", |f| {
        f.files[0].trouble = Some(io::ErrorKind::PermissionDenied)
    });
    finds("fault uplink0: there is no network interface", |f| {
        f.ports[1].nic = Err("there is no network interface uplink0 here".to_owned())
    });
    finds(
        "fault uplink0: uplink: down => ip link set dev uplink0 up",
        |f| nic(f, 1).is_up = false,
    );
    finds("warning uplink0: up, no carrier", |f| {
        nic(f, 1).has_carrier = false
    });
    finds("warning host0: generic mode only", |f| {
        xdp(f, 0).features = Some(XdpFeatures {
            native: false,
            ..ALL_FEATURES
        })
    });
    finds("fault host0: no zero-copy", |f| {
        f.scope.needs_zero_copy = true;
        xdp(f, 0).features = Some(XdpFeatures {
            zero_copy: false,
            ..ALL_FEATURES
        });
    });
    finds(
        "fault host0: another XDP program => ip link set dev host0 xdpdrv off",
        |f| xdp(f, 0).program = 77,
    );
    finds(
        "fault host0: another XDP program => ip link set dev host0 xdpgeneric off",
        |f| {
            xdp(f, 0).program = 77;
            xdp(f, 0).is_generic = true;
            // Ours is on another NIC.
            f.attached = vec![(Role::Host, 2, 77)];
            f.is_pinned = true;
        },
    );
    finds(
        "fault incoming0: MTU 9000, not 1500 => ip link set dev incoming0 mtu 1500",
        |f| nic(f, 2).mtu = 9000,
    );
    // More than the others, which support as many: the command goes to those, below.
    finds(
        "fault host0: 4 receive queues, not 8 => ethtool -L host0 combined 8",
        |f| nic(f, 2).queues = 8,
    );
    finds(
        "fault uplink0: 1 receive queue, not 4 => ethtool -L uplink0 rx 4",
        |f| {
            each(f, |nic| nic.most_queues = 4);
            nic(f, 1).queues = 1;
            nic(f, 1).has_combined_queues = false;
        },
    );
    // More queue pairs than virtio_net can pair with CPUs.
    finds(
        "fault host0: 4 receive queues, more than 2 => ethtool -L host0 combined 2",
        |f| {
            f.cpus = 2;
            each(f, |nic| {
                nic.driver = Some("virtio_net".to_owned());
                nic.most_queues = 4;
            });
        },
    );
    // An unknown driver may be virtio_net.
    finds(
        "fault host0: 4 receive queues, more than 2 => ethtool -L host0 combined 2",
        |f| {
            f.cpus = 2;
            each(f, |nic| (nic.driver, nic.most_queues) = (None, 4));
        },
    );
    // The others are raised to the NIC that needs a queue for each CPU ...
    finds(
        "fault host0: 4 receive queues, not 8 => ethtool -L host0 combined 8",
        |f| {
            f.cpus = 8;
            nic(f, 1).driver = Some("i40e".to_owned());
        },
    );
    // ... or no command repairs it.
    finds("warning uplink0: fewer queues than the 8 CPUs", |f| {
        f.cpus = 8;
        each(f, |nic| nic.most_queues = 4);
        nic(f, 1).driver = Some("mlx5_core".to_owned());
    });
    // No command for a driver that does not support it.
    finds(
        "fault uplink0: 4 receive queues, not 1 => ethtool -L uplink0 combined 1",
        |f| {
            let e1000e = nic(f, 0);
            (e1000e.queues, e1000e.most_queues) = (1, 1);
            e1000e.sets_queues = false;
        },
    );
    finds(
        "fault host0: no number of queues is possible on every port",
        |f| {
            for (port, queues) in [(0, 1), (1, 4), (2, 4)] {
                let nic = nic(f, port);
                (nic.queues, nic.most_queues) = (queues, queues);
                nic.sets_queues = false;
            }
        },
    );
    finds("fault uplink0: from a zero-copy port", |f| {
        (f.scope.engine, f.scope.needs_zero_copy) = (Engine::Xdp, true);
        nic(f, 1).driver = Some("virtio_net".to_owned());
    });
    finds(
        "warning host0: 4 receive queues, not 8 => ethtool -L host0 combined 8",
        |f| {
            f.scope.engine = Engine::Xdp;
            nic(f, 1).queues = 8;
        },
    );
    finds("fault host0: rx-vlan-hw-parse is on and cannot", |f| {
        nic(f, 0).offloads = Offloads::default().with(Offload::RxVlan, OffloadState::FixedOn);
    });
    finds("fault host0: rx-lro is on and cannot", |f| {
        nic(f, 0).offloads = Offloads::default().with(Offload::Lro, OffloadState::FixedOn);
    });
    finds(
        "fault host0: 192.0.2.7/24 => ip addr del 192.0.2.7/24 dev host0",
        |f| nic(f, 0).addresses = vec!["192.0.2.7/24".parse().unwrap()],
    );
    finds(
        "fault uplink0: 2001:db8::7/64 => ip addr del 2001:db8::7/64 dev uplink0",
        |f| nic(f, 1).addresses = vec!["2001:db8::7/64".parse().unwrap()],
    );
    finds(
        "warning eth0.100: link-local => sysctl -w net.ipv6.conf.eth0/100.disable_ipv6=1",
        |f| {
            let nic = nic(f, 1);
            nic.name = "eth0.100".to_owned();
            nic.addresses = vec!["fe80::7/64".parse().unwrap()];
        },
    );
    finds("warning incoming0: not in the neighbour table", |f| {
        f.next_hops[0].mac = None
    });
    finds(
        "warning incoming0: not in the neighbour table => ping -c 1 -I incoming0 203.0.113.1",
        |f| {
            f.next_hops[0].mac = None;
            nic(f, 2).addresses = vec!["203.0.113.2/24".parse().unwrap()];
        },
    );
    finds("fault incoming0: own MAC address", |f| {
        let own = nic(f, 2).mac;
        f.next_hops[0].hop.next_hop = NextHop::Mac(own);
    });
}

#[test]
fn offloads_that_run_turns_off_are_not_faults() {
    let mut facts = sound();
    for offload in Offload::ALL {
        let nic = nic(&mut facts, 0);
        nic.offloads = nic.offloads.with(offload, OffloadState::On);
    }
    let on = all_ok(&facts);
    for offload in Offload::ALL {
        let is_named = |finding: &Finding| finding.what.starts_with(offload.name());
        assert!(on.iter().any(is_named));
    }
}

#[test]
fn without_cap_bpf_the_load_test_is_reported_as_not_tried() {
    let mut facts = sound();
    facts.trial = Trial::NotTried;
    let said = render(&findings(&facts));
    let line = "ok       kernel     whether the XDP programs load on Linux 6.12.0-amd64 was not \
                tried: that takes CAP_BPF";
    assert!(said.contains(line), "{said}");
    facts.trial = Trial::Loads(Ok(()));
    let said = render(&findings(&facts));
    let line = "the XDP programs load on Linux 6.12.0-amd64\n";
    assert!(said.contains(line), "{said}");
}

#[test]
fn exitmarks_own_program_is_not_a_fault() {
    let mut facts = sound();
    facts.is_pinned = true;
    facts.attached = vec![(Role::Host, 1, 77)];
    xdp(&mut facts, 0).program = 77;
    let is_known = |finding: &Finding| finding.what.contains("exitmark's XDP program");
    assert!(all_ok(&facts).iter().any(is_known));
}

#[test]
fn queues_that_virtio_has_added_for_xdp_are_not_faults() {
    let mut facts = sound();
    facts.cpus = 2;
    facts.is_pinned = true;
    for port in [0, 1, 2] {
        // Two for the traffic, and one for each CPU.
        nic(&mut facts, port).driver = Some("virtio_net".to_owned());
        nic(&mut facts, port).most_queues = 4;
        xdp(&mut facts, port).program = 77;
    }
    facts.attached = vec![
        (Role::Host, 1, 77),
        (Role::Uplink, 2, 77),
        (Role::Incoming, 3, 77),
    ];
    all_ok(&facts);
}

#[test]
fn zero_copy_is_advertised_by_a_driver_until_a_socket_is_bound() {
    let mut facts = sound();
    nic(&mut facts, 0).driver = Some("virtio_net".to_owned());
    let said = render(&findings(&facts));
    for words in [
        "driver virtio_net: native XDP, zero-copy advertised",
        "iommu_platform=on,queue_reset=on",
        "`exitmark status`",
    ] {
        assert!(said.contains(words), "{said}");
    }
    xdp(&mut facts, 0).features = Some(XdpFeatures {
        zero_copy: false,
        ..ALL_FEATURES
    });
    let said = render(&findings(&facts));
    let line = "driver virtio_net: native XDP, no zero-copy\n";
    assert!(said.contains(line), "{said}");
}

#[test]
fn long_packets_need_multi_buffer_in_kernel_and_drivers() {
    let jumbo = |change: fn(&mut Facts)| {
        let mut facts = sound();
        each(&mut facts, |nic| nic.mtu = 9000);
        change(&mut facts);
        let fixes = findings(&facts)
            .into_iter()
            .filter_map(|finding| finding.fix);
        fixes.collect::<Vec<_>>()
    };
    assert!(jumbo(|_| ()).is_empty());
    let all =
        ["host0", "uplink0", "incoming0"].map(|nic| format!("ip link set dev {nic} mtu 3498"));
    assert_eq!(jumbo(|facts| facts.kernel = (6, 1)), all);
    let one = |facts: &mut Facts| {
        xdp(facts, 1).features = Some(XdpFeatures {
            multi_buffer: false,
            ..ALL_FEATURES
        });
    };
    assert_eq!(jumbo(one), all);
    assert_eq!(jumbo(|facts| facts.scope.forbids_frags = true), all);
}

#[test]
fn a_shared_uplink_may_have_an_address_and_is_checked_for_the_next_hop() {
    let mut facts = sound();
    facts.ports.pop();
    facts.scope.shares_uplink = true;
    nic(&mut facts, 1).addresses = vec!["192.0.2.7/24".parse().unwrap()];
    assert!(
        all_ok(&facts)
            .iter()
            .any(|finding| finding.subject == "uplink0" && finding.what.contains("next hop"))
    );
}

#[test]
fn a_nic_that_wires_share_is_judged_once_unless_it_differs() {
    let known = all_ok(&sound());
    let mut other = sound();
    other.ports[0] = port(Some(Role::Host), "host1", 4);
    other.ports[1] = port(Some(Role::Uplink), "uplink1", 5);
    let found = of_another_wire(&other, &known);
    let subjects: BTreeSet<_> = found.iter().map(|finding| &*finding.subject).collect();
    assert_eq!(subjects, BTreeSet::from(["host1", "uplink1"]));
    // Its MTU has to be that of both wires.
    for port in 0..2 {
        nic(&mut other, port).mtu = 1400;
    }
    let found = of_another_wire(&other, &known);
    let of_shared: Vec<_> = found
        .iter()
        .filter(|finding| finding.subject == "incoming0")
        .collect();
    assert_eq!(of_shared.len(), 1, "{of_shared:?}");
    assert_eq!(of_shared[0].what, "MTU 1500, not 1400");
}

/// The pins of each wire are looked at, and the machine with the first wire's NICs.
#[test]
fn the_scope_of_a_configuration_has_the_pins_of_several_wires() {
    let scope = |wires: &str| {
        let text = format!(
            "{wires}[host]\naddresses = [\"192.0.2.10\"]\n[relays]\nextra = [\"198.51.100.1:9001\"]\n"
        );
        CheckScope::by(&Settings::parse(&text, Path::new("")).unwrap())
    };
    let wire = |name: &str| format!("[[wire]]\nhost = \"{name}\"\nuplink = \"{name}u\"\n");
    let several = scope(&(wire("a") + &wire("b")));
    let pins = Pin::default().directory;
    assert_eq!(
        several.wire_pins,
        [pins.join("wire-a"), pins.join("wire-b")]
    );
    assert_eq!(several.pin.directory, pins);
    let names: Vec<_> = several.ports.iter().map(|(_, name)| &**name).collect();
    assert_eq!(names, ["a", "au"]);
    assert!(scope(&wire("a")).wire_pins.is_empty());
}

#[test]
fn a_tap_that_cannot_send_is_a_warning_and_one_of_another_use_a_fault() {
    let of = |nic: Option<&dyn Fn(&mut Nic)>| {
        let nic = nic.map(|change| {
            let mut nic = Nic::example("tap0", Some("igb"));
            change(&mut nic);
            nic
        });
        let tap = Some(TapFacts::of("tap0".to_owned(), nic));
        let facts = Facts { tap, ..sound() };
        let amiss = findings(&facts).into_iter();
        let amiss = amiss.filter(|one| one.subject == "tap0" && one.severity != Severity::Ok);
        let amiss = amiss.map(|one| (one.severity, one.what, one.fix));
        amiss.collect::<Vec<_>>()
    };
    let (warning, fault) = (Severity::Warning, Severity::Fault);
    assert_eq!(of(Some(&|_| ())), []);
    let missing = (warning, "tap: no NIC has this name".to_owned(), None);
    assert_eq!(of(None), [missing]);
    let up = Some("ip link set dev tap0 up".to_owned());
    assert_eq!(
        of(Some(&|nic| nic.is_up = false)),
        [(warning, "tap: down".to_owned(), up)]
    );
    let unplugged = (warning, "tap: up, no carrier".to_owned(), None);
    assert_eq!(of(Some(&|nic| nic.has_carrier = false)), [unplugged]);
    let address = |nic: &mut Nic| nic.addresses = vec!["192.0.2.7/24".parse().unwrap()];
    let remove = Some("ip addr del 192.0.2.7/24 dev tap0".to_owned());
    let found = (
        fault,
        "tap: has the address 192.0.2.7/24".to_owned(),
        remove,
    );
    assert_eq!(of(Some(&address)), [found]);
}

#[test]
fn a_nic_without_a_role_has_no_faults_only_warnings() {
    let mut facts = sound();
    facts.next_hops.clear();
    facts.ports = vec![port(None, "eth0", 1), port(None, "eth1", 2)];
    nic(&mut facts, 0).is_up = false;
    nic(&mut facts, 0).addresses = vec!["192.0.2.7/24".parse().unwrap()];
    // NICs without roles are not compared with each other.
    nic(&mut facts, 1).mtu = 9000;
    nic(&mut facts, 1).queues = 1;
    let amiss = amiss(&facts);
    assert_eq!(amiss.len(), 1, "{amiss:?}");
    assert_eq!(amiss[0].severity, Severity::Warning);
    assert_eq!(amiss[0].fix.as_deref(), Some("ip link set dev eth0 up"));
}

/// Without a configuration, all NICs are looked at.
#[test]
fn the_nics_of_a_tor_host_are_not_looked_at() {
    let look = |engine| {
        let scope = CheckScope {
            engine,
            ..CheckScope::default()
        };
        Facts::look(scope).ports.len()
    };
    assert_eq!(look(Engine::Connect), 0);
    assert_ne!(look(Engine::Auto), 0);
}

#[test]
fn a_word_is_safe_in_a_shell() {
    assert_eq!(word("eth0.100"), "eth0.100");
    assert_eq!(word("a;reboot"), "'a;reboot'");
    assert_eq!(word("it's"), r"'it'\''s'");
    assert_eq!(word(""), "''");
}

#[test]
fn findings_are_aligned_with_their_commands_below() {
    let findings = [
        Finding::ok("kernel", "6.6"),
        Finding::fault("uplink0", "uplink: down")
            .because("nothing crosses")
            .mended_by("ip link set dev uplink0 up"),
    ];
    let text = "ok       kernel   6.6\n\
                fault    uplink0  uplink: down: nothing crosses\n\
                \u{20}                 fix: ip link set dev uplink0 up\n";
    assert_eq!(render(&findings), text);
}

#[test]
fn a_resolver_of_the_host_is_reported_as_by_the_running_box() {
    let facts = Facts {
        own_resolver: Some("a recursive resolver on the host".to_owned()),
        ..sound()
    };
    let found = findings(&facts);
    let found = found.iter().find(|one| one.subject == "host.resolvers");
    let found = found.expect("a finding");
    assert_eq!(found.severity, Severity::Warning);
    assert!(found.what.contains("recursive resolver"));
    let none = findings(&sound());
    assert!(none.iter().all(|one| one.subject != "host.resolvers"));
}
