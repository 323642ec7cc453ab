//! A whole site in namespaces: a Tor host, the box, the clearnet, and the network that carries
//! Tor traffic.
//!
//! ```text
//!  host ── eth0 ─── host0 ┌─────┐ uplink0 ─── eth0 ── clearnet (router, web server)
//!                         │ box │
//!                         └─────┘ incoming0 ─ eth0 ── tornet (router, relay)
//! ```

use super::{LabError, Netns, RunningBox, VethEnd, poll, veth};
use exitmark_box::control::{Client, ControlError, DEFAULT_SOCKET};
use exitmark_box::observe::Report;
use exitmark_datapath::Role;
use exitmark_policy::Endpoint;
use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// The Tor host's MAC address.
pub const HOST_MAC: &str = "02:00:00:00:01:01";
/// The host's clearnet IPv4 address.
pub const HOST_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The host's clearnet IPv6 address.
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
/// The MAC address of the clearnet's router.
pub const CLEARNET_MAC: &str = "02:00:00:00:02:02";
/// The web server's IPv4 address, routed by the clearnet's router.
pub const SERVER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// The web server's IPv6 address, routed by the clearnet's router.
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 7);
/// The MAC address of the box's NIC on the network that carries Tor traffic.
pub const INCOMING_MAC: &str = "02:00:00:00:03:01";
/// The MAC address of the router there, which is the next hop of steered frames.
pub const TORNET_MAC: &str = "02:00:00:00:03:02";
/// The relay's IPv4 address, routed by that router.
pub const RELAY_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The relay's IPv6 address, routed by that router.
pub const RELAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 1);
/// The relay's ORPort on both addresses.
pub const OR_PORT: u16 = 9001;
/// The box's own IPv4 address on the network that carries Tor traffic.
pub const BOX_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// The box's own IPv6 address on the network that carries Tor traffic.
pub const BOX_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 2);

/// The four namespaces of a site.
pub struct Site {
    /// The Tor host, with `eth0`.
    pub host: Netns,
    /// The box, with `host0`, `uplink0` and `incoming0`.
    pub middle: Netns,
    /// The router and server on the clearnet's side.
    pub clearnet: Netns,
    /// The router and relay on the network that carries Tor traffic.
    pub tornet: Netns,
}

/// The parameters of a site.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The MTU of every link, in bytes.
    pub mtu: u32,
    /// The number of queues of each of the box's NICs.
    pub queues: u32,
    /// Whether the hosts are bare: no stack has an address, so that none sends by itself, and the
    /// far ends poll without a program.
    pub is_bare: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self::of_mtu(1500)
    }
}

impl Plan {
    /// With this MTU, otherwise the default.
    pub const fn of_mtu(mtu: u32) -> Self {
        Self {
            mtu,
            queues: 1,
            is_bare: false,
        }
    }

    /// With this number of queues, otherwise the default.
    pub const fn of_queues(queues: u32) -> Self {
        Self {
            queues,
            ..Self::of_mtu(1500)
        }
    }
}

/// The name of the interface at the far end of each of the box's NICs.
pub const FAR_END: &str = "eth0";

/// The name of a NIC of the box.
pub const fn nic(role: Role) -> &'static str {
    match role {
        Role::Host => "host0",
        Role::Uplink => "uplink0",
        Role::Incoming => "incoming0",
    }
}

/// The MAC address of a NIC of the box.
pub const fn nic_mac(role: Role) -> &'static str {
    match role {
        Role::Host => "02:00:00:00:01:02",
        Role::Uplink => "02:00:00:00:02:01",
        Role::Incoming => INCOMING_MAC,
    }
}

/// The bytes of a MAC address in `ip link` notation; 0 for one that is not a number.
pub fn mac(text: &str) -> [u8; 6] {
    let mut mac = [0; 6];
    for (byte, digits) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
    }
    mac
}

/// Connects a NIC of a box to its far end, which polls and completes checksums as a NIC does.
///
/// # Errors
/// Fails if `ip` or `ethtool` fails.
pub fn connect(far: &VethEnd<'_>, near: &VethEnd<'_>, mtu: u32) -> Result<(), LabError> {
    veth(far, near, mtu)?;
    // A veth pair does not complete checksums.
    far.netns
        .command("ethtool", &["-K", far.name, "tx", "off"])?;
    poll(far.netns, far.name)
}

impl Site {
    /// Creates links, addresses and routes, but no neighbour entries.
    ///
    /// # Errors
    /// Fails without privilege, or if `ip` or `ethtool` is missing or fails.
    pub fn build(plan: Plan) -> Result<Self, LabError> {
        let site = Self {
            host: Netns::new("host")?,
            middle: Netns::new("box")?,
            clearnet: Netns::new("clearnet")?,
            tornet: Netns::new("tornet")?,
        };
        if plan.is_bare {
            for netns in [&site.host, &site.middle, &site.clearnet, &site.tornet] {
                for conf in ["all", "default"] {
                    netns.sysctl(&format!("net/ipv6/conf/{conf}/disable_ipv6"), "1")?;
                    netns.sysctl(&format!("net/ipv4/conf/{conf}/rp_filter"), "0")?;
                }
            }
        }
        for role in Role::ALL {
            site.connect(role, nic_mac(role), plan)?;
        }
        if !plan.is_bare {
            // The two wire ports have no addresses.
            for port in [Role::Host, Role::Uplink].map(nic) {
                let key = format!("net/ipv6/conf/{port}/disable_ipv6");
                site.middle.sysctl(&key, "1")?;
            }
            site.address()?;
        }
        Ok(site)
    }

    /// The host at the far end of a NIC of the box, and its MAC address.
    pub const fn far_end(&self, role: Role) -> (&Netns, &'static str) {
        match role {
            Role::Host => (&self.host, HOST_MAC),
            Role::Uplink => (&self.clearnet, CLEARNET_MAC),
            Role::Incoming => (&self.tornet, TORNET_MAC),
        }
    }

    /// Creates a NIC of the box, with this MAC address, and its far end.
    ///
    /// # Errors
    /// As [`Site::build`].
    pub fn connect(&self, role: Role, mac: &str, plan: Plan) -> Result<(), LabError> {
        let (netns, far_mac) = self.far_end(role);
        let end = |netns, name, mac| VethEnd {
            queues: plan.queues,
            ..VethEnd::new(netns, name, mac)
        };
        let far = end(netns, FAR_END, far_mac);
        let near = end(&self.middle, nic(role), mac);
        if !plan.is_bare {
            return connect(&far, &near, plan.mtu);
        }
        veth(&far, &near, plan.mtu)?;
        // A veth accepts redirected frames only while its peer polls, as for GRO.
        for (end, gro) in [(&far, "on"), (&near, "off")] {
            let offloads = ["-K", end.name, "tx", "off", "gro", gro];
            end.netns.command("ethtool", &offloads)?;
        }
        Ok(())
    }

    /// Removes all addresses but those of loopback.
    ///
    /// # Errors
    /// As [`Netns::silence`].
    pub fn silence(&self) -> Result<(), LabError> {
        for role in Role::ALL {
            self.far_end(role).0.silence(FAR_END)?;
        }
        self.middle.silence(nic(Role::Incoming))
    }

    /// The frames that cables have dropped so far.
    ///
    /// # Errors
    /// As [`Netns::transmitted`].
    pub fn dropped(&self) -> Result<Dropped, LabError> {
        let sum = |ends: &[(&Netns, &str)]| -> Result<u64, LabError> {
            let counters = ends.iter().map(|(netns, name)| netns.transmitted(name));
            counters.map(|sent| sent.map(|sent| sent.dropped)).sum()
        };
        Ok(Dropped {
            before_box: sum(&[(&self.host, FAR_END), (&self.clearnet, FAR_END)])?,
            behind_box: sum(&Role::ALL.map(|role| (&self.middle, nic(role))))?,
        })
    }

    fn address(&self) -> Result<(), LabError> {
        let add = |address: &str| format!("addr add {address} dev {FAR_END}");
        self.host.ip_batch(&[
            add(&format!("{HOST_V4}/24")),
            add(&format!("{HOST_V6}/64")),
            "route add default via 192.0.2.1".to_owned(),
            "route add default via 2001:db8:1::1".to_owned(),
        ])?;
        self.clearnet.ip_batch(&[
            add("192.0.2.1/24"),
            add("2001:db8:1::1/64"),
            add(&format!("{SERVER_V4}/32")),
            add(&format!("{SERVER_V6}/128")),
        ])?;
        self.middle.ip_batch(&[
            format!("addr add {BOX_V4}/24 dev incoming0"),
            format!("addr add {BOX_V6}/64 dev incoming0"),
        ])?;
        let tornet = &self.tornet;
        tornet.ip_batch(&[
            add("203.0.113.1/24"),
            add("2001:db8:3::1/64"),
            add(&format!("{RELAY_V4}/32")),
            add(&format!("{RELAY_V6}/128")),
            // Answers to the host go through the box.
            format!("route add 192.0.2.0/24 via {BOX_V4}"),
            format!("route add 2001:db8:1::/64 via {BOX_V6}"),
        ])?;
        tornet.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
        tornet.sysctl("net/ipv4/conf/eth0/rp_filter", "0")?;
        Ok(())
    }

    /// Starts `exitmark run` in the box and returns when it is ready.
    ///
    /// # Errors
    /// Fails if the box does not become ready; the error contains its log.
    pub fn run(
        &self,
        exitmark: impl AsRef<OsStr>,
        configuration: &Path,
    ) -> Result<RunningBox, LabError> {
        RunningBox::start(&self.middle, exitmark, configuration)
    }

    /// The report of the running box, from its control socket.
    ///
    /// # Errors
    /// Fails if the box does not answer.
    pub fn status(&self) -> Result<Report, LabError> {
        self.ask(Client::status)
    }

    /// The metrics of the running box, from its control socket.
    ///
    /// # Errors
    /// Fails if the box does not answer.
    pub fn metrics(&self) -> Result<String, LabError> {
        self.ask(Client::metrics)
    }

    fn ask<T: Send + 'static>(
        &self,
        question: fn(&Client) -> Result<T, ControlError>,
    ) -> Result<T, LabError> {
        let ask = move || question(&Client::new(DEFAULT_SOCKET));
        self.middle
            .run(ask)
            .map_err(|error| LabError(error.to_string()))
    }
}

/// Frames dropped by cables that were full or down.
#[derive(Clone, Copy, Debug)]
pub struct Dropped {
    /// Between the hosts and the box.
    pub before_box: u64,
    /// Between the box and the hosts.
    pub behind_box: u64,
}

impl Dropped {
    /// The frames dropped since `before`.
    #[must_use]
    pub const fn since(&self, before: &Self) -> Self {
        Self {
            before_box: self.before_box - before.before_box,
            behind_box: self.behind_box - before.behind_box,
        }
    }
}

/// The endpoints at which the site's relay listens.
pub fn relay_endpoints() -> [Endpoint; 2] {
    [IpAddr::from(RELAY_V4), IpAddr::from(RELAY_V6)].map(|address| Endpoint::new(address, OR_PORT))
}
