//! The namespaces and their addresses: one world with everything but the exit hosts, and seven lots:
//! three exit hosts with a box each, three with both links themselves, and one with a box between two
//! providers that drop each other's addresses.

use exitmark_lab::bpf::Programs;
use exitmark_lab::site::connect;
use exitmark_lab::{Netns, VethEnd, veth};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub(crate) const OR_PORT: u16 = 9001;
pub(crate) const DIR_PORT: u16 = 7000;

/// An address of each family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dual {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

impl Dual {
    pub(crate) fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    pub(crate) fn at(self, port: u16) -> [SocketAddr; 2] {
        self.both().map(|address| SocketAddr::new(address, port))
    }
}

pub(crate) const WEB: Dual = Dual {
    v4: Ipv4Addr::new(198, 51, 100, 7),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 7),
};
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 53);

pub(crate) const EXITS: &str = "192.0.2.0/24";

/// Whether an address is an exit host's, IPv4 or IPv6.
pub(crate) fn is_exit_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets().starts_with(&[192, 0, 2]),
        IpAddr::V6(v6) => v6.segments().starts_with(&[0x2001, 0xdb8, 1]),
    }
}

/// The number of relay addresses in the world.
const RELAYS: u8 = 16;

/// The addresses of the world's relays: `number` is from 1 to 16.
pub(crate) fn relay(number: u8) -> Dual {
    Dual {
        v4: Ipv4Addr::new(198, 18, 0, number),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, number.into()),
    }
}

/// The world's ends of the two links of each lot.
const LINKS: [(&str, &str); 7] = [
    ("up0", "in0"),
    ("up1", "in1"),
    ("up2", "in2"),
    ("up3", "in3"),
    ("up4", "in4"),
    ("up5", "in5"),
    ("up6", "in6"),
];
/// The lots without a box.
const BARE: std::ops::Range<u8> = 3..6;

/// One exit host, its box if it has one, and the world's ends of the two links.
pub(crate) struct Lot {
    pub(crate) host: Netns,
    /// The box; without one, the host has the two links itself, as `eth0` and `eth1`.
    pub(crate) middle: Option<Netns>,
    /// The world's ends of the link to the clearnet and of the one for Tor traffic.
    pub(crate) uplink: &'static str,
    pub(crate) incoming: &'static str,
    pub(crate) host_mac: String,
    pub(crate) gateway_mac: String,
    /// The next hop of steered frames.
    pub(crate) hop_mac: String,
    /// The host's addresses. Unbound sockets use the first one.
    pub(crate) first: Dual,
    pub(crate) second: Dual,
    /// The address on `eth1`, if the host has that link; or that of the box on `incoming0` in place of
    /// the host's, if the two providers drop each other's addresses.
    pub(crate) third: Option<Dual>,
}

pub(crate) struct Ground {
    pub(crate) world: Netns,
    /// The namespace of the tap `mon0`, which receives copies of all frames from the uplinks.
    pub(crate) listener: Netns,
    pub(crate) lots: Vec<Lot>,
}

fn ip(netns: &Netns, line: impl AsRef<str>) {
    netns.ip(line.as_ref()).unwrap();
}

fn disable_ipv6(netns: &Netns, name: &str) {
    let key = format!("net/ipv6/conf/{name}/disable_ipv6");
    netns.sysctl(&key, "1").unwrap();
}

impl Ground {
    pub(crate) fn build() -> Self {
        let world = Netns::new("world").unwrap();
        for address in (1..=RELAYS).map(relay).chain([WEB]) {
            let Dual { v4, v6 } = address;
            ip(&world, format!("addr add {v4}/32 dev lo"));
            ip(&world, format!("addr add {v6}/128 dev lo"));
        }
        ip(&world, format!("addr add {RESOLVER}/32 dev lo"));
        // Steered frames arrive by another link than the route to their source.
        for conf in ["all", "default"] {
            let key = format!("net/ipv4/conf/{conf}/rp_filter");
            world.sysctl(&key, "0").unwrap();
        }
        let lots = (0..).zip(LINKS);
        let lots = lots.map(|(number, links)| Lot::build(&world, number, links));
        let lots = lots.collect();
        let listener = tap(&world, LINKS.map(|(uplink, _)| uplink));
        Self {
            world,
            listener,
            lots,
        }
    }
}

/// Mirrors frames that arrive by these links to a receive-only namespace.
fn tap(world: &Netns, uplinks: [&'static str; LINKS.len()]) -> Netns {
    let listener = Netns::new("listener").unwrap();
    let near = VethEnd::new(world, "tap0", "02:00:00:00:04:01");
    let far = VethEnd::new(&listener, "mon0", "02:00:00:00:04:02");
    veth(&near, &far, 1500).unwrap();
    for (netns, name) in [(world, "tap0"), (&listener, "mon0")] {
        disable_ipv6(netns, name);
    }
    // Copies wait while the monitor's end has no room (since Linux 6.16).
    let queue = [
        "qdisc", "add", "dev", "tap0", "root", "pfifo", "limit", "100000",
    ];
    world.command("tc", &queue).unwrap();
    let mirror = Programs::build("tests/tor/mirror.bpf.c").unwrap();
    mirror.aim("tap", 0, world, "tap0").unwrap();
    for uplink in uplinks {
        mirror.attach_tc("mirror", world, uplink).unwrap();
    }
    listener
}

impl Lot {
    /// Whether the box translates: its two providers drop each other's addresses.
    pub(crate) const fn has_two_providers(&self) -> bool {
        self.middle.is_some() && self.third.is_some()
    }

    /// The packets that each provider has dropped, because of an address of the other network.
    pub(crate) fn dropped(&self, world: &Netns) -> [u64; 2] {
        [self.uplink, self.incoming].map(|link| {
            let arguments = ["list", "counter", "netdev", "providers", link];
            let text = world.command("nft", &arguments).unwrap();
            let mut words = text
                .split_whitespace()
                .skip_while(|word| *word != "packets");
            words.nth(1).unwrap().parse().unwrap()
        })
    }

    fn build(world: &Netns, number: u8, (uplink, incoming): (&'static str, &'static str)) -> Self {
        let host = Netns::new(&format!("host{number}")).unwrap();
        let has_box = !BARE.contains(&number);
        let middle = has_box.then(|| Netns::new(&format!("box{number}")).unwrap());
        let mac = |link: u8, end: u8| format!("02:00:00:{number:02x}:{link:02x}:{end:02x}");
        let links = match &middle {
            Some(middle) => vec![
                (&host, "eth0", middle, "host0", 1),
                (world, uplink, middle, "uplink0", 2),
                (world, incoming, middle, "incoming0", 3),
            ],
            None => vec![
                (world, uplink, &host, "eth0", 2),
                (world, incoming, &host, "eth1", 3),
            ],
        };
        for (there, far, here, near, link) in links {
            let macs = (mac(link, 1), mac(link, 2));
            let far = VethEnd::new(there, far, &macs.0);
            let near = VethEnd::new(here, near, &macs.1);
            connect(&far, &near, 1500).unwrap();
        }
        for port in ["host0", "uplink0"] {
            if let Some(middle) = &middle {
                disable_ipv6(middle, port);
            }
        }
        let third = match &middle {
            None => Some(two_links(&host, world, number, incoming)),
            Some(middle) if number >= BARE.end => {
                Some(two_providers(middle, world, number, [uplink, incoming]))
            }
            Some(_) => None,
        };
        let v4 = |last| Ipv4Addr::new(192, 0, 2, 32 * number + last);
        let v6 = |last| Ipv6Addr::new(0x2001, 0xdb8, 1, number.into(), 0, 0, 0, last);
        let (gateway4, gateway6) = (v4(1), v6(1));
        ip(world, format!("addr add {gateway4}/27 dev {uplink}"));
        ip(world, format!("addr add {gateway6}/64 dev {uplink}"));
        let [first, second] = [10, 11].map(|last| Dual {
            v4: v4(last),
            v6: v6(last.into()),
        });
        for Dual { v4, v6 } in [first, second] {
            ip(&host, format!("addr add {v4}/27 dev eth0"));
            // Without DAD, because the route below uses the address at once.
            ip(&host, format!("addr add {v6}/64 dev eth0 nodad"));
        }
        // Explicit, because the kernel prefers the newer one of two addresses.
        let Dual { v4, v6 } = first;
        ip(&host, format!("route add default via {gateway4} src {v4}"));
        ip(
            &host,
            format!("-6 route add default via {gateway6} src {v6}"),
        );
        Self {
            host_mac: if middle.is_some() {
                mac(1, 1)
            } else {
                mac(2, 2)
            },
            gateway_mac: mac(2, 1),
            hop_mac: mac(3, 1),
            host,
            middle,
            uplink,
            incoming,
            first,
            second,
            third,
        }
    }
}

/// The addresses on the network of relay traffic.
fn on_incoming(number: u8) -> impl Fn(u8) -> Dual {
    move |last| Dual {
        v4: Ipv4Addr::new(203, 0, 113, 32 * number + last),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 3, number.into(), 0, 0, 0, last.into()),
    }
}

/// The box's address on the network of relay traffic, and two providers: each drops packets with an
/// address of the other network, and counts them.
fn two_providers(middle: &Netns, world: &Netns, number: u8, links: [&str; 2]) -> Dual {
    let at = on_incoming(number);
    for (netns, link, last) in [(world, links[1], 1), (middle, "incoming0", 10)] {
        let Dual { v4, v6 } = at(last);
        ip(netns, format!("addr add {v4}/27 dev {link}"));
        ip(netns, format!("addr add {v6}/64 dev {link} nodad"));
    }
    let foreign = [
        ["203.0.113.0/24", "2001:db8:3::/48"],
        ["192.0.2.0/24", "2001:db8:1::/48"],
    ];
    let mut table = "table netdev providers {\n".to_owned();
    for (link, [v4, v6]) in links.into_iter().zip(foreign) {
        table += &format!(
            "  counter {link} {{ }}\n  chain {link} {{\n    type filter hook ingress device {link} \
             priority 0;\n    ip saddr {v4} counter name {link} drop\n    ip6 saddr {v6} counter \
             name {link} drop\n  }}\n"
        );
    }
    world.command("nft", &[&format!("{table}}}")]).unwrap();
    at(10)
}

/// The mark of relay connections, by which they leave by `eth1`.
pub(crate) const FWMARK: &str = "0x77";

/// The address and the routes of the second link of a host: for what has the mark, or that source.
fn two_links(host: &Netns, world: &Netns, number: u8, incoming: &str) -> Dual {
    let at = on_incoming(number);
    for (netns, link, last) in [(world, incoming, 1), (host, "eth1", 10)] {
        let Dual { v4, v6 } = at(last);
        ip(netns, format!("addr add {v4}/27 dev {link}"));
        ip(netns, format!("addr add {v6}/64 dev {link} nodad"));
    }
    // Answers to the clearnet addresses arrive by eth0.
    for link in ["all", "eth0", "eth1"] {
        let key = format!("net/ipv4/conf/{link}/rp_filter");
        host.sysctl(&key, "0").unwrap();
    }
    let (own, [hop4, hop6]) = (at(10), at(1).both());
    for (family, hop, source) in [
        ("-4", hop4, IpAddr::from(own.v4)),
        ("-6", hop6, IpAddr::from(own.v6)),
    ] {
        ip(
            host,
            format!("{family} route add default via {hop} dev eth1 table 77"),
        );
        ip(host, format!("{family} rule add fwmark {FWMARK} lookup 77"));
        ip(host, format!("{family} rule add from {source} lookup 77"));
    }
    own
}
