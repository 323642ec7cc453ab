//! The addresses of the box itself, on all NICs.

use super::{LinkState, NicError, all_addresses, connect, converse, link};
use exitmark_policy::packet::MacAddr;
use ipnet::IpNet;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, Prop};

/// A NIC of the box and its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNic {
    /// The interface name (IFLA_IFNAME).
    pub name: String,
    /// Its alternative names (`ip link property`, ip-link(8)).
    pub alt_names: Vec<String>,
    /// The MAC address, if the NIC has a unicast one.
    pub mac: Option<MacAddr>,
    /// The IP addresses on the NIC, with their prefix lengths.
    pub networks: Vec<IpNet>,
}

impl LocalNic {
    /// Whether the NIC has this name: its interface name or an alternative one.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.alt_names.iter().any(|alt| alt == name)
    }

    /// Every NIC of this network namespace, including loopback.
    ///
    /// # Errors
    /// [`NicError::Netlink`]: the socket cannot be made, or the kernel does not answer.
    pub fn all() -> Result<Vec<Self>, NicError> {
        converse(async {
            let handle = connect()?;
            let addresses = all_addresses(&handle).await?;
            let nic = |link: LinkMessage| {
                let state = LinkState::of_message(&link);
                let here = addresses.iter().filter(|(of, _)| *of == state.index);
                Self {
                    name: state.name,
                    alt_names: alt_names(link),
                    mac: state.mac.filter(|mac| mac.is_unicast()),
                    networks: here.map(|(_, net)| *net).collect(),
                }
            };
            Ok(link::all(&handle).await?.into_iter().map(nic).collect())
        })
    }
}

fn alt_names(link: LinkMessage) -> Vec<String> {
    let properties = link.attributes.into_iter().filter_map(|one| match one {
        LinkAttribute::PropList(properties) => Some(properties),
        _ => None,
    });
    properties.flatten().filter_map(alt_name).collect()
}

fn alt_name(property: Prop) -> Option<String> {
    match property {
        Prop::AltIfName(name) => Some(name),
        _ => None,
    }
}
