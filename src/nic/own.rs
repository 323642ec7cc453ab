//! The addresses of the box itself, on all NICs.

use super::{NicError, address, connect, converse, unanswered};
use crate::packet::MacAddr;
use futures_util::stream::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::link::LinkAttribute;

/// A NIC of the box and its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// The interface name.
    pub name: String,
    /// The MAC address, if the NIC has a unicast one.
    pub mac: Option<MacAddr>,
    /// The IP addresses on the NIC, with their prefix lengths.
    pub networks: Vec<IpNet>,
}

impl Own {
    /// Every NIC of this network namespace, including loopback.
    ///
    /// # Errors
    /// The netlink request fails.
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
