//! The addresses of the box itself, on all NICs.

use super::{NicError, address, connect, converse, unanswered};
use exitmark_policy::packet::MacAddr;
use futures_util::stream::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::link::{LinkAttribute, Prop};

/// A NIC of the box and its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// The interface name (IFLA_IFNAME).
    pub name: String,
    /// Its alternative names (`ip link property`, ip-link(8)).
    pub alt_names: Vec<String>,
    /// The MAC address, if the NIC has a unicast one.
    pub mac: Option<MacAddr>,
    /// The IP addresses on the NIC, with their prefix lengths.
    pub networks: Vec<IpNet>,
}

impl Own {
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
            let mut addresses = Vec::new();
            let mut replies = handle.address().get().execute();
            while let Some(message) = replies.try_next().await.map_err(unanswered)? {
                addresses.extend(address(&message).map(|net| (message.header.index, net)));
            }
            let mut nics = Vec::new();
            let mut links = handle.link().get().execute();
            while let Some(link) = links.try_next().await.map_err(unanswered)? {
                let index = link.header.index;
                let mut nic = Self {
                    name: String::new(),
                    alt_names: Vec::new(),
                    mac: None,
                    networks: addresses
                        .iter()
                        .filter(|(of, _)| *of == index)
                        .map(|(_, net)| *net)
                        .collect(),
                };
                for attribute in link.attributes {
                    match attribute {
                        LinkAttribute::IfName(name) => nic.name = name,
                        LinkAttribute::PropList(properties) => {
                            nic.alt_names
                                .extend(properties.into_iter().filter_map(alt_name));
                        }
                        LinkAttribute::Address(bytes) => {
                            let mac = bytes.as_slice().try_into().ok().map(MacAddr::new);
                            nic.mac = mac.filter(|mac| mac.is_unicast());
                        }
                        _ => {}
                    }
                }
                nics.push(nic);
            }
            Ok(nics)
        })
    }
}

fn alt_name(property: Prop) -> Option<String> {
    match property {
        Prop::AltIfName(name) => Some(name),
        _ => None,
    }
}
