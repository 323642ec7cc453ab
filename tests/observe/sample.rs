//! A report with a value in every field.

use exitmark_box::observe::{
    AuditReport, ClassCount, ConnectionClass, ConnectionsReport, DocumentSignatures, DropCount,
    EngineReport, FrameCount, GroupReport, HostReport, LatencyReport, LostCopies, MalformedCount,
    MismatchCount, NextHopReport, PortReport, RelaySetReport, RelaySource, Report, SourceState,
    SteeringReport, SteeringState, TapReport, Warning, WorkerReport,
};

/// More than an `f64` can represent exactly.
pub(crate) const EXACT: u64 = (1 << 53) + 1;

/// The same of engine connect, which has connections and no frames.
pub(crate) fn report_of_connect() -> Report {
    let classes = [("exit", EXACT, 12), ("relay", 7, 3), ("resolver", 0, 0)];
    let connections = ConnectionsReport {
        users: 2,
        classes: classes
            .map(|(class, opened, earlier)| ConnectionClass {
                class: class.to_owned(),
                opened,
                earlier,
            })
            .into(),
        marked: EXACT,
        own_tos: 1,
        unmarked: 2,
        steered: 4,
        own_source: 5,
        unsteered: 6,
        earlier_marked: 10,
        earlier_unmarked: 11,
        no_policy: 13,
    };
    let whole = report();
    Report {
        engine: EngineReport {
            asked: "connect".to_owned(),
            chosen: "connect".to_owned(),
            reason: "the sockets of tor on this machine".to_owned(),
            ..EngineReport::default()
        },
        connections: Some(connections),
        relay_set: whole.relay_set,
        warnings: whole.warnings,
        version: whole.version,
        started_at: whole.started_at,
        uptime_seconds: whole.uptime_seconds,
        mode: whole.mode,
        classify_by: whole.classify_by,
        mark: whole.mark,
        generation: whole.generation,
        reloads: whole.reloads,
        ..Report::default()
    }
}

pub(crate) fn report() -> Report {
    Report {
        version: "0.1.0".to_owned(),
        started_at: 1_700_000_000,
        uptime_seconds: 266_645.25,
        mode: "enforce".to_owned(),
        classify_by: "relay-set".to_owned(),
        mark: "af11".to_owned(),
        generation: 17,
        engine: EngineReport {
            asked: "auto".to_owned(),
            chosen: "af_xdp".to_owned(),
            reason: "every port is bound zero-copy".to_owned(),
            xdp_frames: 250_000,
            af_xdp_frames: 750_000,
        },
        connections: None,
        ports: ports(),
        classes: classes(),
        malformed: [("truncated", 0), ("bad_length", 4)]
            .map(|(reason, frames)| MalformedCount {
                reason: reason.to_owned(),
                frames,
            })
            .into(),
        frames: FrameCount {
            marked: EXACT,
            cleared: 2,
            unsteered: 3,
            unrouted_vlan: 8,
            unrouted_family: 9,
            unrouted_source: 15,
            translated: 16,
            translated_back: 17,
            host_by_uplink: 7,
            hosts_full: 14,
            unnamed_listener: 10,
            disagreement: 4,
            unseen_fragment: 5,
            no_user_space: 6,
        },
        drops: [("tx_full", Some("uplink"), 12), ("no_egress", None, 0)]
            .map(|(reason, port, frames)| DropCount {
                reason: reason.to_owned(),
                port: port.map(str::to_owned),
                frames,
            })
            .into(),
        taps: vec![TapReport {
            interface: "tap0".to_owned(),
            is_up: false,
            copied_out: EXACT,
            copied_in: 21,
            lost: [("full", 22), ("down", 0), ("refused", 23)]
                .map(|(reason, copies)| LostCopies {
                    reason: reason.to_owned(),
                    copies,
                })
                .into(),
        }],
        groups: Vec::new(),
        steering: SteeringReport::new("uplink", 2, vec![next_hop()]),
        hosts: vec![host("192.0.2.10", 1, 0)],
        relay_set: relay_set(),
        workers: vec![WorkerReport {
            wire: String::new(),
            queue: 0,
            total: 4096,
            pool: 2000,
            in_hand: 0,
            receiving: 2048,
            sending: 48,
            unaccounted: 0,
        }],
        unaccounted_frames: 0,
        residence: vec![LatencyReport {
            engine: "af_xdp".to_owned(),
            samples: 10,
            sum_seconds: 0.000_05,
            quantiles: vec![(0.5, 2.5e-6), (0.99, 9e-6), (0.999, 1.5e-5)],
            buckets: vec![(1e-6, 1), (5e-6, 8), (1e-5, 9)],
        }],
        audit: AuditReport {
            one_in: 1024,
            checked: 976,
            skipped: 3,
            lost: 1,
            mismatches: vec![MismatchCount {
                kind: "mark".to_owned(),
                frames: 0,
            }],
        },
        reloads: 2,
        reloads_refused: 1,
        warnings: vec![
            Warning {
                kind: "relay-set-stale".to_owned(),
                is_alarm: true,
                text: "the relay set is older than its documents are good for, so exit traffic \
                       is not marked any more; see why tor does not fetch a consensus"
                    .to_owned(),
            },
            Warning {
                kind: "generic-xdp".to_owned(),
                is_alarm: false,
                text: "uplink: the driver has no native XDP".to_owned(),
            },
        ],
    }
}

fn ports() -> Vec<PortReport> {
    let port = |role: &str, interface: &str| PortReport {
        role: role.to_owned(),
        interface: interface.to_owned(),
        engine: "af_xdp".to_owned(),
        reason: "every port is bound zero-copy".to_owned(),
        xdp: "native".to_owned(),
        sockets: "zero-copy".to_owned(),
        driver: Some("igb".to_owned()),
        mtu: 1500,
        queues: 1,
        has_carrier: true,
        received_frames: 1_000_000,
        received_bytes: 1_400_000_000,
        forwarded_frames: 400_000,
        to_stack_frames: 7,
        handed_frames: 750_000,
        spilled_frames: 250_000,
        missed_frames: 1,
        tx_invalid_frames: 0,
        cut_frames: 0,
    };
    vec![
        port("host", "eth0"),
        PortReport {
            xdp: "generic".to_owned(),
            sockets: "copy".to_owned(),
            reason: "its driver has no native XDP".to_owned(),
            driver: None,
            ..port("uplink", "enp129s0f0np0v1")
        },
        PortReport {
            has_carrier: false,
            received_frames: u64::MAX,
            received_bytes: u64::MAX,
            ..port("incoming", "eth2")
        },
    ]
}

/// The only next hop of the report.
fn next_hop() -> NextHopReport {
    NextHopReport {
        next_hop: "198.51.100.1".to_owned(),
        vlan: "untagged".to_owned(),
        groups: vec!["host".to_owned()],
        families: vec!["IPv4".to_owned()],
        state: SteeringState::Steering,
        mac: Some("02:00:5e:10:00:09".to_owned()),
    }
}

fn host(address: &str, mac: u8, changes: u64) -> HostReport {
    HostReport {
        address: address.to_owned(),
        mac: format!("02:00:00:00:00:{mac:02x}"),
        changes,
    }
}

/// A report on a site with two groups, a next hop for each IP version and group, and four host
/// addresses. One next hop cannot be used.
pub(crate) fn of_site() -> Report {
    let mut report = report();
    let group = |name: &str, frames: u64| GroupReport {
        name: name.to_owned(),
        classes: [
            ("relay", frames, frames * 1400),
            ("exit", EXACT, 9000),
            ("host", 0, 0),
        ]
        .map(|(class, frames, bytes)| ClassCount {
            class: class.to_owned(),
            frames,
            bytes,
        })
        .into(),
        marked: EXACT,
        unrouted_vlan: 8,
        ..GroupReport::default()
    };
    let quiet = GroupReport {
        name: "exits-b".to_owned(),
        ..GroupReport::default()
    };
    report.groups = vec![group("exits-a", 400_000), quiet];
    let hop = |next_hop: &str, vlan: &str, groups: &[&str], family: &str| NextHopReport {
        next_hop: next_hop.to_owned(),
        vlan: vlan.to_owned(),
        groups: groups.iter().map(|&name| name.to_owned()).collect(),
        families: vec![family.to_owned()],
        ..self::next_hop()
    };
    let unresolved = NextHopReport {
        state: SteeringState::Unresolved,
        mac: None,
        ..hop("2001:db8:3::1", "VLAN 200.30", &["exits-a"], "IPv6")
    };
    let next_hops = vec![
        hop("198.51.100.1", "untagged", &["exits-a", "exits-b"], "IPv4"),
        unresolved,
        hop("02:00:5e:10:00:09", "VLAN 30", &["exits-b"], "IPv6"),
    ];
    report.steering = SteeringReport::new("uplink", 4, next_hops);
    report.hosts = vec![
        host("192.0.2.10", 1, 0),
        host("192.0.2.11", 2, 1),
        host("192.0.2.12", 1, 3),
        host("2001:db8::10", 1, 0),
    ];
    report
}

fn classes() -> Vec<ClassCount> {
    [
        ("non_ip", 10, 600),
        ("malformed", 4, 240),
        ("foreign", 0, 0),
        ("resolver", 1000, 80_000),
        ("reply", 49_986, 3_999_160),
        ("relay", 400_000, 560_000_000),
        ("exempt", 0, 0),
        ("exit", 500_000, 720_000_000),
        ("host", 49_000, EXACT),
    ]
    .map(|(class, frames, bytes)| ClassCount {
        class: class.to_owned(),
        frames,
        bytes,
    })
    .into()
}

fn relay_set() -> RelaySetReport {
    RelaySetReport {
        endpoints: 8123,
        listed: 8000,
        departed: 120,
        extra: 3,
        age: Some("stale".to_owned()),
        is_passing: true,
        is_missing: false,
        sources: vec![RelaySource {
            path: "/var/lib/tor/cached-microdesc-consensus".to_owned(),
            state: SourceState::InForce,
            refusal: None,
            valid_after: 1_700_000_000,
            fresh_until: 1_700_003_600,
            valid_until: 1_700_010_800,
            signatures: Some(DocumentSignatures {
                good: 6,
                needed: 5,
                unknown: 3,
                known: 9,
            }),
        }],
        accepted_at: Some(1_700_000_300),
        accepted: 12,
        refused: 1,
        last_refusal: Some("older than the document in force".to_owned()),
        failure: Some("older than the document in force".to_owned()),
        unsaved: None,
    }
}

/// A report with an older document, and a source that is refused.
pub(crate) fn with_several_sources() -> Report {
    let mut report = report();
    let sources = &mut report.relay_set.sources;
    sources.push(RelaySource {
        path: "/var/lib/tor-instances/a/cached-consensus".to_owned(),
        state: SourceState::Older,
        ..sources[0].clone()
    });
    sources.push(RelaySource {
        path: "/var/lib/tor-instances/b/cached-consensus".to_owned(),
        state: SourceState::Refused,
        refusal: Some("/var/lib/tor-instances/b/cached-consensus: the file is empty".to_owned()),
        ..RelaySource::default()
    });
    report
}
