//! The namespaces and their addresses: one world with everything but the exit hosts, and three
//! lots, each an exit host with a box of its own.

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

/// One exit host, its box, and the world's ends of the two links behind the box.
pub(crate) struct Lot {
    pub(crate) host: Netns,
    pub(crate) middle: Netns,
    /// The world's ends of `uplink0` and `incoming0`.
    pub(crate) uplink: &'static str,
    pub(crate) incoming: &'static str,
    pub(crate) host_mac: String,
    pub(crate) gateway_mac: String,
    /// The next hop of steered frames.
    pub(crate) hop_mac: String,
    /// The host's addresses. Unbound sockets use the first one.
    pub(crate) first: Dual,
    pub(crate) second: Dual,
}

pub(crate) struct Ground {
    pub(crate) world: Netns,
    /// The namespace of the tap `mon0`, which receives copies of all frames from the uplinks.
    pub(crate) listener: Netns,
    pub(crate) lots: [Lot; 3],
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
        let lots = [(0, "up0", "in0"), (1, "up1", "in1"), (2, "up2", "in2")]
            .map(|(number, uplink, incoming)| Lot::build(&world, number, uplink, incoming));
        let listener = tap(&world, lots.each_ref().map(|lot| lot.uplink));
        Self {
            world,
            listener,
            lots,
        }
    }
}

/// Mirrors frames that arrive by these links to a receive-only namespace.
fn tap(world: &Netns, uplinks: [&'static str; 3]) -> Netns {
    let listener = Netns::new("listener").unwrap();
    let near = VethEnd::new(world, "tap0", "02:00:00:00:04:01");
    let far = VethEnd::new(&listener, "mon0", "02:00:00:00:04:02");
    veth(&near, &far, 1500).unwrap();
    for (netns, name) in [(world, "tap0"), (&listener, "mon0")] {
        disable_ipv6(netns, name);
    }
    let mirror = Programs::build("tests/tor/mirror.bpf.c").unwrap();
    mirror.aim("tap", 0, world, "tap0").unwrap();
    for uplink in uplinks {
        mirror.attach_tc("mirror", world, uplink).unwrap();
    }
    listener
}

impl Lot {
    fn build(world: &Netns, number: u8, uplink: &'static str, incoming: &'static str) -> Self {
        let host = Netns::new(&format!("host{number}")).unwrap();
        let middle = Netns::new(&format!("box{number}")).unwrap();
        let mac = |link: u8, end: u8| format!("02:00:00:{number:02x}:{link:02x}:{end:02x}");
        for (netns, name, port, link) in [
            (&host, "eth0", "host0", 1),
            (world, uplink, "uplink0", 2),
            (world, incoming, "incoming0", 3),
        ] {
            let (far, near) = (mac(link, 1), mac(link, 2));
            let far = VethEnd::new(netns, name, &far);
            let near = VethEnd::new(&middle, port, &near);
            connect(&far, &near, 1500).unwrap();
        }
        for port in ["host0", "uplink0"] {
            disable_ipv6(&middle, port);
        }
        let v4 = |last| Ipv4Addr::new(192, 0, 2, 64 * number + last);
        let v6 = |last| Ipv6Addr::new(0x2001, 0xdb8, 1, number.into(), 0, 0, 0, last);
        let (gateway4, gateway6) = (v4(1), v6(1));
        ip(world, format!("addr add {gateway4}/26 dev {uplink}"));
        ip(world, format!("addr add {gateway6}/64 dev {uplink}"));
        let [first, second] = [10, 11].map(|last| Dual {
            v4: v4(last),
            v6: v6(last.into()),
        });
        for Dual { v4, v6 } in [first, second] {
            ip(&host, format!("addr add {v4}/26 dev eth0"));
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
            host_mac: mac(1, 1),
            gateway_mac: mac(2, 1),
            hop_mac: mac(3, 1),
            host,
            middle,
            uplink,
            incoming,
            first,
            second,
        }
    }
}
