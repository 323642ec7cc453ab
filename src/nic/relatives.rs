//! Relations between interfaces: bridges, bonds and teams with their ports, macvlans on top of a
//! NIC. exitmark uses none of them as a port or tap, because another interface sends or receives
//! by it.
//!
//! Sources: the kernel's include/uapi/linux/if_link.h (IFLA_LINKINFO, IFLA_MASTER, IFLA_LINK).

use super::link::{lower_of, master_of, name_of};
use super::{Nic, NicError, all_addresses, connect, converse, link};
use futures_util::stream::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use std::net::IpAddr;

/// Another interface: a master, or one on top of a NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relative {
    /// The interface name (IFLA_IFNAME); `interface N` if the one with index N is gone.
    pub name: String,
    /// The kind, as in `ip -d link`; empty for hardware.
    pub kind: String,
}

/// The relations of an interface to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relatives {
    /// The kind, as in `ip -d link`; `None` for hardware.
    pub kind: Option<String>,
    /// The interface of which it is a port.
    pub master: Option<Relative>,
    /// The interfaces on top of it that are set up, and send by it.
    pub uppers: Vec<Relative>,
}

/// Kinds whose frames leave by their ports.
const BUNDLES: [&str; 5] = ["bridge", "bond", "team", "openvswitch", "hsr"];
/// Kinds that share the NIC below them with other interfaces.
const SHARES: [&str; 4] = ["macvlan", "macvtap", "ipvlan", "ipvtap"];
/// Kinds of interfaces on top of a NIC that send by it.
const UPPERS: [&str; 6] = ["macvlan", "macvtap", "ipvlan", "ipvtap", "vlan", "macsec"];
/// The kind of master that neither sends nor receives by its ports: it is only a routing table.
const ROUTING_TABLE: &str = "vrf";

impl Relatives {
    /// Reads kind and master from the interface's message, and queries the master's name. Queries
    /// the interfaces on top of it if `with_uppers` is set.
    pub(super) async fn look(
        handle: &rtnetlink::Handle,
        message: &LinkMessage,
        with_uppers: bool,
    ) -> Result<Self, NicError> {
        let mut relatives = Self {
            kind: kind_of(message),
            ..Self::default()
        };
        if let Some(master) = master_of(message) {
            let by_index = handle.link().get().match_index(master);
            let found = Box::pin(by_index.execute()).try_next().await;
            // The master may have been removed meanwhile.
            let found = found.ok().flatten();
            let name = found.as_ref().and_then(name_of).map(str::to_owned);
            relatives.master = Some(Relative {
                name: name.unwrap_or_else(|| format!("interface {master}")),
                kind: found.as_ref().and_then(kind_of).unwrap_or_default(),
            });
        }
        if with_uppers {
            relatives.uppers = uppers(handle, message.header.index).await?;
        }
        Ok(relatives)
    }
}

/// The interfaces that are set up on top of this one, in this network namespace.
async fn uppers(handle: &rtnetlink::Handle, index: u32) -> Result<Vec<Relative>, NicError> {
    let links = link::all(handle).await?;
    let uppers = links
        .iter()
        .filter_map(upper)
        .filter(|(on, _)| *on == index);
    Ok(uppers.map(|(_, upper)| upper).collect())
}

/// The index of the NIC by which this interface sends, and the interface. `None` if it is down, or
/// does not send by another interface of this network namespace.
fn upper(link: &LinkMessage) -> Option<(u32, Relative)> {
    let on = lower_of(link)?;
    let kind = kind_of(link)?;
    let sends = link.header.flags.contains(LinkFlags::Up) && UPPERS.contains(&kind.as_str());
    let name = name_of(link).unwrap_or_default().to_owned();
    sends.then_some((on, Relative { name, kind }))
}

/// The relations and addresses of all interfaces in this network namespace, at one time.
#[derive(Debug, Default)]
pub struct Overview {
    links: Vec<(u32, Relative)>,
    uppers: Vec<(u32, Relative)>,
    addresses: Vec<(u32, IpNet)>,
}

impl Overview {
    /// Queries all interfaces and addresses of this network namespace.
    ///
    /// # Errors
    /// [`NicError::Netlink`]: the socket cannot be made, or the kernel does not answer.
    pub fn look() -> Result<Self, NicError> {
        converse(async {
            let handle = connect()?;
            let links = link::all(&handle).await?;
            let relative = |link: &LinkMessage| {
                let name = name_of(link).unwrap_or_default().to_owned();
                let kind = kind_of(link).unwrap_or_default();
                (link.header.index, Relative { name, kind })
            };
            Ok(Self {
                links: links.iter().map(relative).collect(),
                uppers: links.iter().filter_map(upper).collect(),
                addresses: all_addresses(&handle).await?,
            })
        })
    }

    /// An interface on top of the one with this index that is set up, if any.
    pub fn upper_of(&self, index: u32) -> Option<&Relative> {
        of(&self.uppers, index)
    }

    /// The interface with index `master`, unless it is a VRF, which neither sends nor receives by
    /// its ports.
    pub fn bundle(&self, master: u32) -> Option<&Relative> {
        of(&self.links, master).filter(|link| link.kind != ROUTING_TABLE)
    }

    /// An address of this machine on the interface with this index, except IPv6 link-local ones.
    pub fn address_of(&self, index: u32) -> Option<IpNet> {
        let mut addresses = self.addresses.iter();
        let found = addresses.find(|(on, address)| *on == index && !is_link_local(address));
        found.map(|&(_, address)| address)
    }
}

fn of(all: &[(u32, Relative)], index: u32) -> Option<&Relative> {
    let found = all.iter().find(|(on, _)| *on == index);
    found.map(|(_, found)| found)
}

/// Whether the address is IPv6 link-local, which the kernel assigns by itself.
pub fn is_link_local(address: &IpNet) -> bool {
    matches!(address.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn kind_of(message: &LinkMessage) -> Option<String> {
    let mut attributes = message.attributes.iter();
    let infos = attributes.find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    })
}

impl Relatives {
    /// Refuses the interface with this name if it is a bridge or the like, shares a NIC, or is a
    /// port of one of these.
    pub(super) fn refuse_bundles(&self, name: &str) -> Result<(), NicError> {
        let name = name.to_owned();
        if let Some(kind) = self.kind.clone() {
            if BUNDLES.contains(&kind.as_str()) {
                return Err(NicError::Bundle(Relative { name, kind }));
            }
            if SHARES.contains(&kind.as_str()) {
                return Err(NicError::Share(Relative { name, kind }));
            }
        }
        match &self.master {
            Some(master) if master.kind != ROUTING_TABLE => {
                Err(NicError::Member(name, master.clone()))
            }
            _ => Ok(()),
        }
    }
}

impl Nic {
    /// Refuses an interface that depends on others: bridges, bonds, teams, interfaces that share a
    /// NIC, and the ports of any of these.
    ///
    /// # Errors
    /// [`NicError::Bundle`], [`NicError::Share`] or [`NicError::Member`]; the message says which
    /// interface to use instead.
    pub fn refuse_bundles(&self) -> Result<(), NicError> {
        self.relatives.refuse_bundles(&self.name)
    }

    /// Refuses a NIC if an interface on top of it sends by it.
    ///
    /// # Errors
    /// [`NicError::Upper`] with the first such interface that is set up.
    pub fn refuse_uppers(&self) -> Result<(), NicError> {
        match self.relatives.uppers.first() {
            Some(upper) => Err(NicError::Upper(self.name.clone(), upper.clone())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::link::InfoKind;

    fn nic(kind: Option<&str>, master: Option<&str>) -> Nic {
        let mut nic = Nic::example("eth0", None);
        nic.relatives.kind = kind.map(str::to_owned);
        nic.relatives.master = master.map(|kind| Relative {
            name: "over0".to_owned(),
            kind: kind.to_owned(),
        });
        nic
    }

    #[test]
    fn accepts_only_independent_nics() {
        for kind in [None, Some("veth"), Some("dummy"), Some("tun"), Some("vlan")] {
            for master in [None, Some("vrf")] {
                assert!(nic(kind, master).refuse_bundles().is_ok(), "{kind:?}");
            }
        }
        for kind in BUNDLES.into_iter().chain(SHARES) {
            let refused = nic(Some(kind), None).refuse_bundles().unwrap_err();
            let refused = refused.to_string();
            let article = match kind {
                "openvswitch" | "hsr" | "ipvlan" | "ipvtap" => "an",
                _ => "a",
            };
            let words = format!("eth0 is {article} {kind}, ");
            assert!(refused.contains(&words), "{refused}");
            assert!(refused.contains("name "), "{refused}");
        }
        // Also with a master of unknown kind.
        for master in BUNDLES.into_iter().chain([""]) {
            let refused = nic(Some("veth"), Some(master)).refuse_bundles();
            let refused = refused.unwrap_err().to_string();
            for words in ["`ip link set dev eth0 nomaster`", "over0"] {
                assert!(refused.contains(words), "{refused}");
            }
        }
    }

    /// The kernel's message about an interface of this kind on top of the NIC with index 7.
    fn on_top(kind: InfoKind, flags: LinkFlags, more: Option<LinkAttribute>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.flags = flags;
        message.attributes = vec![
            LinkAttribute::IfName("top0".to_owned()),
            LinkAttribute::Link(7),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]),
        ];
        message.attributes.extend(more);
        message
    }

    #[test]
    fn interfaces_on_top_count_if_they_are_set_up_here() {
        use InfoKind::{IpVlan, IpVtap, MacSec, MacVlan, MacVtap, Vlan};
        for kind in [Vlan, MacVlan, MacVtap, IpVlan, IpVtap, MacSec] {
            let found = upper(&on_top(kind.clone(), LinkFlags::Up, None));
            let expected = Relative {
                name: "top0".to_owned(),
                kind: kind.to_string(),
            };
            assert_eq!(found, Some((7, expected)));
            assert_eq!(upper(&on_top(kind.clone(), LinkFlags::empty(), None)), None);
            let elsewhere = Some(LinkAttribute::LinkNetNsId(0));
            assert_eq!(upper(&on_top(kind, LinkFlags::Up, elsewhere)), None);
        }
        // IFLA_LINK of a veth is its peer.
        assert_eq!(upper(&on_top(InfoKind::Veth, LinkFlags::Up, None)), None);
    }

    #[test]
    fn refuse_uppers_names_the_interface_on_top() {
        let mut nic = nic(None, None);
        assert!(nic.refuse_uppers().is_ok());
        nic.relatives.uppers.push(Relative {
            name: "mv0".to_owned(),
            kind: "macvlan".to_owned(),
        });
        let refused = nic.refuse_uppers().unwrap_err().to_string();
        for words in ["eth0", "macvlan mv0", "`ip link set dev mv0 down`"] {
            assert!(refused.contains(words), "{refused}");
        }
    }
}
