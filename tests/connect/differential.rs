//! The programs against the reference: random destinations around the edges of every set.

use crate::client::{Client, hex};
use crate::rig::{Host, needs_root};
use exitmark_lab::Random;
use exitmark_policy::{Snapshot, judge_connection};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

const CASES: usize = 4_000;

/// An address near one of those that the rules name, or any other.
fn address(random: &mut Random, named: &[IpAddr]) -> IpAddr {
    let near = named[random.below(named.len())];
    let step = u8::try_from(random.below(3)).unwrap();
    match (near, random.below(8)) {
        (IpAddr::V4(_), 0) => Ipv4Addr::from(0x0100_0000 | random.wide() >> 2).into(),
        (IpAddr::V4(near), 1) => near.to_ipv6_mapped().into(),
        (IpAddr::V4(near), _) => {
            let number = u32::from(near)
                .wrapping_add(u32::from(step))
                .wrapping_sub(1);
            Ipv4Addr::from(number).into()
        }
        (IpAddr::V6(near), _) => {
            let number = u128::from(near)
                .wrapping_add(u128::from(step))
                .wrapping_sub(1);
            Ipv6Addr::from(number).into()
        }
    }
}

#[test]
fn the_kernel_decides_as_the_reference() {
    needs_root!();
    let host = Host::new();
    // No packet leaves: connections fail after they were judged.
    for family in ["-4", "-6"] {
        host.host
            .ip(&format!("{family} route del default"))
            .unwrap();
        let route = format!("{family} route add blackhole default");
        host.host.ip(&route).unwrap();
    }
    let relays = [
        "198.18.0.1:9001",
        "198.51.100.7:443",
        "198.18.9.0:9001",
        "[2001:db8:18::1]:9001",
        "[2001:db8:18::ffff:ffff]:443",
    ];
    let listed = relays.map(|relay| format!("\"{relay}\"")).join(", ");
    let extra = "extra = [\"198.18.0.1:9001\", \"[2001:db8:18::1]:9001\"]";
    let text = host.text("", "");
    assert!(text.contains(extra));
    let text = text.replace(extra, &format!("extra = [{listed}]")).replace(
        "exempt = [\"198.18.9.0/24\"]",
        "exempt = [\"198.18.9.0/24\", \"2001:db8:18:1::/64\"]",
    );
    let settings = exitmark_box::settings::Settings::parse(&text, Path::new("")).unwrap();
    let mut rules = (*settings.rules).clone();
    let own = [
        "127.0.0.0/8",
        "0.0.0.0/8",
        "169.254.0.0/16",
        "::/128",
        "::1/128",
        "fe80::/10",
    ];
    let own = own.into_iter().map(str::to_owned).chain([
        "192.0.2.10/32".to_owned(),
        "203.0.113.10/32".to_owned(),
        "2001:db8:1::10/128".to_owned(),
        "2001:db8:3::10/128".to_owned(),
    ]);
    rules.exempt = rules.exempt.with(own.map(|net| net.parse().unwrap()));
    let endpoints = relays.map(|relay| relay.parse().unwrap());
    let endpoints = exitmark_policy::EndpointSet::new(endpoints).unwrap();
    let snapshot = Snapshot::new(1, Arc::new(rules), endpoints);

    let running = host.start(&text);
    let mut client = Client::start(&host.host, host.user);
    let named: Vec<IpAddr> = [
        "198.18.0.1",
        "198.51.100.7",
        "198.18.9.0",
        "198.18.9.255",
        "192.0.2.10",
        "203.0.113.10",
        "127.255.255.255",
        "169.254.255.255",
        "2001:db8:18::1",
        "2001:db8:18::ffff:ffff",
        "2001:db8:18:1::",
        "2001:db8:18:1:ffff:ffff:ffff:ffff",
        "2001:db8:1::10",
        "::2",
        "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ]
    .map(|text| text.parse().unwrap())
    .into();
    let mut random = Random::new(0xc0ffee);
    let mut marked = 0_usize;
    for case in 0..CASES {
        let port = [53, 80, 443, 853, 9001, 9002][random.below(6)];
        let destination = SocketAddr::new(address(&mut random, &named), port);
        // Link-local addresses need a scope, and are refused before they are judged.
        if matches!(destination.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local()) {
            continue;
        }
        let expected = judge_connection(destination, &snapshot);
        let tos = hex(&client.ask(&format!("try {destination}")));
        let expected_tos = expected.mark.map_or(0, |mark| mark.bits() << 2);
        // Older kernels refuse IP_TOS on IPv4-mapped sockets.
        let is_mapped = destination.ip().to_canonical() != destination.ip();
        if !(is_mapped && tos == 0) {
            assert_eq!(
                tos, expected_tos,
                "case {case}: {destination}, {expected:?}"
            );
        }
        marked += usize::from(tos != 0);
    }
    assert!(
        (CASES / 10..CASES * 9 / 10).contains(&marked),
        "{marked} marked"
    );
    running.stop_well().unwrap();
}
