//! The programs against the reference: random destinations around the edges of every set.

use crate::client::{Client, hex};
use crate::rig::{Host, needs_root};
use exitmark_lab::Random;
use exitmark_lab::cases::connections::snapshot;
use exitmark_policy::judge_connection;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

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
        "198.51.100.7:443",
        "198.18.9.0:9001",
        "[2001:db8:18::ffff:ffff]:443",
    ];
    let listed = relays.map(|relay| format!("\"{relay}\"")).join(", ");
    let text = host.text("", "");
    let text = text.replace("extra = [", &format!("extra = [{listed}, "));
    let settings = exitmark_box::settings::Settings::parse(&text, Path::new("")).unwrap();
    let snapshot = snapshot(&settings);

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
        "2001:db8:51::7",
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
