//! The same for a Tor host with engine connect.

use super::super::tor_facts::{RelayRoutes, TorFacts};
use super::*;
use exitmark_policy::SocketRules;
use exitmark_policy::packet::Version;

/// Relay connections leave by `eth1`, which has the addresses of `steer.source`.
fn routes(version: Version) -> RelayRoutes {
    let source = match version {
        Version::V4 => "203.0.113.10",
        Version::V6 => "2001:db8:3::10",
    };
    RelayRoutes {
        version,
        source: Some((source.parse().unwrap(), "eth1".to_owned())),
        relays: Some("eth1".to_owned()),
        others: Some("eth0".to_owned()),
        unanswered: None,
    }
}

fn tor_host() -> Facts {
    Facts {
        scope: CheckScope {
            engine: Engine::Connect,
            ..CheckScope::default()
        },
        ports: Vec::new(),
        next_hops: Vec::new(),
        tor: Some(TorFacts {
            mount: Some("/sys/fs/cgroup".into()),
            cgroups: Vec::new(),
            users: vec![
                ("debian-tor".to_owned(), vec![105]),
                ("_tor-*".to_owned(), vec![120, 121]),
            ],
            sockets: SocketRules {
                source_v4: Some("203.0.113.10".parse().unwrap()),
                source_v6: Some("2001:db8:3::10".parse().unwrap()),
                ..SocketRules::default()
            },
            interface: None,
            routes: Ok(vec![routes(Version::V4), routes(Version::V6)]),
        }),
        ..sound()
    }
}

fn tor(facts: &mut Facts) -> &mut TorFacts {
    facts.tor.as_mut().unwrap()
}

/// Leaves the routes of one IP version, and changes them.
fn route(facts: &mut Facts, version: Version, change: impl Fn(&mut RelayRoutes)) {
    let routes = tor(facts).routes.as_mut().unwrap();
    routes.retain(|routes| routes.version == version);
    change(&mut routes[0]);
}

/// Steers by a fwmark alone, and routes by `eth0`.
fn by_fwmark(facts: &mut Facts, version: Version) {
    tor(facts).sockets = SocketRules {
        fwmark: 0x77,
        ..SocketRules::default()
    };
    route(facts, version, |routes| {
        routes.source = None;
        routes.relays = Some("eth0".to_owned());
    });
}

/// Steers by a NIC alone.
fn by_interface(facts: &mut Facts, name: &str, exists: bool) {
    let tor = tor(facts);
    tor.sockets = SocketRules::default();
    tor.interface = Some((name.to_owned(), exists));
    route(facts, Version::V4, |routes| routes.source = None);
}

#[track_caller]
fn finds(expected: &str, spoil: impl Fn(&mut Facts)) {
    finds_in(tor_host(), expected, spoil);
}

#[track_caller]
fn says(line: &str, change: impl Fn(&mut Facts)) {
    let mut facts = tor_host();
    change(&mut facts);
    let said = render(&all_ok(&facts));
    assert!(said.contains(line), "{said}");
}

#[test]
fn a_sound_tor_host_has_no_warnings() {
    for finding in all_ok(&tor_host()) {
        assert_eq!(finding.fix, None, "{finding:?}");
    }
    for line in [
        "kernel    Linux 6.12\n",
        "kernel    the programs of engine connect load on Linux 6.12.0-amd64\n",
        "cgroups   cgroup2 is mounted at /sys/fs/cgroup\n",
        "users     tor.users: debian-tor has the user ID 105\n",
        "users     tor.users: _tor-* has the user IDs 120, 121\n",
        "steering  relay connections over IPv4 leave by eth1, tor's others by eth0\n",
        "steering  relay connections over IPv6 leave by eth1, tor's others by eth0\n",
    ] {
        says(line, |_| ());
    }
}

#[test]
fn only_what_engine_connect_needs_is_required() {
    // Those of XDP and AF_XDP are not.
    says("Linux 6.1\n", |f| f.kernel = (6, 1));
    says("all needed capabilities", |f| {
        f.missing = vec![Capability::CAP_NET_RAW, Capability::CAP_IPC_LOCK];
        f.memlock = Some(8 << 20);
    });
    says(
        "whether the programs of engine connect load on Linux 6.12.0-amd64 was not tried",
        |f| f.trial = Trial::NotTried,
    );
    finds("fault kernel: 5.10", |f| f.kernel = (5, 10));
    finds(
        "fault kernel: the programs of engine connect do not load on Linux 6.12.0-amd64",
        |f| f.trial = Trial::Refused("R2 unbounded memory access".to_owned()),
    );
    finds(
        "warning kernel: open before the start cannot be found",
        |f| f.trial = Trial::Loads(Err("no such iterator".to_owned())),
    );
    // One cause, one finding.
    finds("warning btf: vmlinux", |f| {
        f.trial = Trial::Loads(Err("no BTF".to_owned()));
        f.has_btf = false;
    });
    finds("fault rights: CAP_PERFMON", |f| {
        f.trial = Trial::Loads(Err("this process lacks CAP_PERFMON".to_owned()));
        f.missing = vec![Capability::CAP_PERFMON];
    });
    finds("fault rights: CAP_BPF", |f| {
        f.missing = vec![Capability::CAP_BPF]
    });
    finds("fault rights: CAP_NET_ADMIN", |f| {
        f.missing = vec![Capability::CAP_NET_ADMIN];
    });
}

#[test]
fn pins_of_a_box_are_in_the_way_and_own_ones_are_taken_over() {
    for (cgroups, line) in [
        (
            1,
            "engine connect is at /sys/fs/bpf/exitmark, attached to a cgroup:",
        ),
        (
            2,
            "engine connect is at /sys/fs/bpf/exitmark, attached to 2 cgroups:",
        ),
        (
            0,
            "there are pins at /sys/fs/bpf/exitmark, but this user sees no attached program:",
        ),
    ] {
        says(line, |f| {
            (f.is_pinned, f.attached_cgroups) = (true, cgroups)
        });
    }
    finds(
        "fault pins: there is a box at /sys/fs/bpf/exitmark, attached to 1 ports => exitmark detach \
         --pins /sys/fs/bpf/exitmark",
        |f| {
            f.is_pinned = true;
            f.attached = vec![(Role::Host, 1, 77)];
        },
    );
}

#[test]
fn cgroups_and_users_that_are_missing_are_found() {
    finds(
        "fault cgroups: no cgroup2 file system => mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 \
         none /sys/fs/cgroup/unified",
        |f| tor(f).mount = None,
    );
    let cgroup = "/sys/fs/cgroup/system.slice/tor@default.service";
    let with = |trouble| {
        move |f: &mut Facts| {
            tor(f).users = Vec::new();
            tor(f).cgroups = vec![(cgroup.into(), trouble)];
        }
    };
    says(&format!("cgroups   {cgroup} exists\n"), with(None));
    finds(
        &format!("fault cgroups: {cgroup} does not exist"),
        with(Some(io::ErrorKind::NotFound)),
    );
    finds(
        &format!("fault cgroups: {cgroup} cannot be opened: permission denied"),
        with(Some(io::ErrorKind::PermissionDenied)),
    );
    finds("warning users: tor.users: _tor-* matches no user", |f| {
        tor(f).users[1].1 = Vec::new();
    });
    finds("fault users: tor.users: debian-tor matches no user", |f| {
        for (_, ids) in &mut tor(f).users {
            ids.clear();
        }
    });
}

#[test]
fn a_fwmark_needs_a_rule_for_another_nic() {
    finds(
        "warning steering: relay connections over IPv4 leave by eth0, as tor's others do => ip rule \
         add fwmark 0x77 lookup 100 && ip route replace default via GATEWAY dev NIC table 100",
        |f| by_fwmark(f, Version::V4),
    );
    finds(
        "warning steering: relay connections over IPv6 leave by eth0, as tor's others do => ip -6 \
         rule add fwmark 0x77 lookup 100 && ip -6 route replace default via GATEWAY dev NIC table 100",
        |f| by_fwmark(f, Version::V6),
    );
    // With an address on another NIC, that NIC is meant.
    finds(
        "warning steering: relay connections over IPv4 leave by eth0, as tor's others do => ip rule \
         add fwmark 0x77 lookup 100 && ip route replace default via GATEWAY dev eth1 table 100",
        |f| {
            tor(f).sockets.fwmark = 0x77;
            route(f, Version::V4, |routes| {
                routes.relays = Some("eth0".to_owned());
            });
        },
    );
}

#[test]
fn a_source_needs_a_rule_for_its_nic() {
    finds(
        "warning steering: relay connections over IPv4 leave by eth0, as tor's others do => ip rule \
         add from 203.0.113.10 lookup 100 && ip route replace default via GATEWAY dev eth1 table 100",
        |f| {
            route(f, Version::V4, |routes| {
                routes.relays = Some("eth0".to_owned());
            });
        },
    );
    // A machine with one NIC: the address alone distinguishes them, and no command is a repair.
    says(
        "relay connections over IPv6 leave by eth0, as tor's others do: they are distinguished by \
         their address 2001:db8:3::10; for a NIC of their own: `ip -6 rule add from 2001:db8:3::10 \
         lookup 100 && ip -6 route replace default via GATEWAY dev NIC table 100`",
        |f| {
            route(f, Version::V6, |routes| {
                routes.relays = Some("eth0".to_owned());
                routes.source.as_mut().unwrap().1 = "eth0".to_owned();
            });
        },
    );
}

/// `eth0` is the NIC of all connections, and has the address.
#[test]
fn an_address_distinguishes_connections_by_a_common_nic() {
    says(
        "relay connections over IPv4 leave by eth0, as tor's others do: they are distinguished by \
         their address 203.0.113.10\n",
        |f| {
            tor(f).interface = Some(("eth0".to_owned(), true));
            route(f, Version::V4, |routes| {
                routes.relays = Some("eth0".to_owned());
                routes.source.as_mut().unwrap().1 = "eth0".to_owned();
            });
        },
    );
}

#[test]
fn a_nic_needs_a_route_and_not_to_be_that_of_all_connections() {
    finds(
        "fault steering: steer.interface \"eth1\" does not exist",
        |f| {
            by_interface(f, "eth1", false);
            tor(f).routes = Ok(Vec::new());
        },
    );
    finds(
        "fault steering: relay connections over IPv4 have no route => ip route add default via \
         GATEWAY dev eth1 metric 4096",
        |f| {
            by_interface(f, "eth1", true);
            route(f, Version::V4, |routes| routes.relays = None);
        },
    );
    finds(
        "warning steering: relay connections over IPv4 leave by eth0, as tor's others do",
        |f| {
            by_interface(f, "eth0", true);
            route(f, Version::V4, |routes| {
                routes.relays = Some("eth0".to_owned());
            });
        },
    );
    says(
        "relay connections over IPv4 leave by eth1, tor's others by eth0\n",
        |f| by_interface(f, "eth1", true),
    );
}

#[test]
fn an_ip_version_without_any_route_is_a_fault_only_if_it_has_a_source() {
    let without = |f: &mut Facts| {
        route(f, Version::V6, |routes| {
            (routes.relays, routes.others) = (None, None);
        });
    };
    finds(
        "fault steering: relay connections over IPv6 have no route => ip -6 rule add from \
         2001:db8:3::10 lookup 100 && ip -6 route replace default via GATEWAY dev eth1 table 100",
        without,
    );
    let mut facts = tor_host();
    by_fwmark(&mut facts, Version::V6);
    without(&mut facts);
    let found = all_ok(&facts);
    assert!(found.iter().all(|finding| finding.subject != "steering"));
    says("relay connections over IPv4 leave by eth1\n", |f| {
        route(f, Version::V4, |routes| routes.others = None);
    });
}

#[test]
fn a_strict_reverse_path_filter_is_found_with_its_command() {
    finds(
        "fault steering: answers to relay connections over IPv4 are dropped at eth1 => ip rule add \
         from 203.0.113.11 lookup 100 && ip route replace default via GATEWAY dev eth1 table 100",
        |f| {
            route(f, Version::V4, |routes| {
                routes.unanswered = Some("203.0.113.11".parse().unwrap());
            });
        },
    );
}

#[test]
fn what_is_not_steered_or_not_readable_is_reported() {
    says(
        "relay connections leave as tor's others do: [steer] names no source, fwmark or interface",
        |f| {
            tor(f).sockets = SocketRules::default();
            tor(f).routes = Ok(Vec::new());
        },
    );
    finds(
        "warning steering: the routes of relay connections cannot be read",
        |f| {
            tor(f).routes = Err("netlink does not answer".to_owned());
        },
    );
}
