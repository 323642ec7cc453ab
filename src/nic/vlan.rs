//! VLAN interfaces that the box's own network stack has on top of a NIC (`type vlan`, ip-link(8)),
//! found by the NIC and the VLAN tags of their frames.
//!
//! Sources: the kernel's include/uapi/linux/if_link.h (IFLA_LINK, IFLA_LINK_NETNSID, IFLA_VLAN_ID,
//! IFLA_VLAN_PROTOCOL) and net/8021q/vlan.c.

use super::link::{NAME_BYTES, lower_of};
use super::{LinkState, Nic, NicError, connect, converse, link};
use exitmark_policy::packet::MacAddr;
use rtnetlink::packet_route::link::{
    InfoData, InfoVlan, LinkAttribute, LinkInfo, LinkMessage, VlanProtocol,
};

/// A VLAN interface at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VlanInterface {
    /// The interface index. An interface that is deleted and created again has another one.
    pub index: u32,
    /// The interface name (IFLA_IFNAME), which need not contain the tags.
    pub name: String,
    /// The MAC address; by default that of the NIC below.
    pub mac: MacAddr,
    /// Whether the interface is set up (IFF_UP).
    pub is_up: bool,
    /// The MTU: the longest packet in bytes, without the Ethernet header and the tags.
    pub mtu: u32,
    /// The tag protocol identifier of each tag, the outer first: 0x8100 (802.1Q) or 0x88a8
    /// (802.1ad).
    pub tpids: Vec<u16>,
}

/// Finds the VLAN interface on top of the NIC with index `parent` whose frames have these VLAN IDs:
/// one, or an outer and an inner one (QinQ), each from 1 to 4094. `None` if there is none in this
/// network namespace; also for another number of IDs. The name does not matter.
///
/// A NIC can have two interfaces with one ID, of 802.1Q and of 802.1ad. Of these, 802.1Q is
/// preferred for a single tag and for an inner one, 802.1ad for an outer one (IEEE 802.1Q-2022
/// clause 9.5: 802.1ad is the TPID of service tags).
///
/// # Errors
/// [`NicError::Netlink`]: the socket cannot be made, or the kernel does not answer.
pub fn vlan_interface(parent: u32, tags: &[u16]) -> Result<Option<VlanInterface>, NicError> {
    converse(async {
        let links = link::all(&connect()?).await?;
        Ok(find(&links, parent, tags))
    })
}

impl VlanInterface {
    /// Refuses an interface with another MAC address than the NIC below it: the NIC takes frames
    /// to that address for frames to another station.
    ///
    /// # Errors
    /// [`NicError::VlanMac`] with the command that sets the NIC's MAC address.
    pub fn refuse_other_mac(&self, nic: &Nic) -> Result<(), NicError> {
        match self.mac == nic.mac {
            true => Ok(()),
            false => Err(NicError::VlanMac {
                vlan: self.name.clone(),
                mac: self.mac,
                nic: nic.name.clone(),
                wanted: nic.mac,
            }),
        }
    }

    /// Refuses an interface whose tags have other TPIDs than those that the box writes: 802.1ad for
    /// the outer tag of a pair, 802.1Q for every other one.
    ///
    /// # Errors
    /// [`NicError::VlanProtocol`] with the commands that create the interface anew.
    pub fn refuse_other_protocol(&self, nic: &Nic, tags: &[u16]) -> Result<(), NicError> {
        let written = (0..tags.len()).map(|depth| if is_service(depth, tags) { AD } else { Q });
        let is_same = self.tpids.iter().copied().eq(written.map(u16::from));
        match is_same {
            true => Ok(()),
            false => Err(NicError::VlanProtocol {
                vlan: self.name.clone(),
                nic: nic.name.clone(),
                tags: tags.to_vec(),
            }),
        }
    }

    /// Refuses an interface that is set down.
    ///
    /// # Errors
    /// [`NicError::VlanDown`] with the command that sets it up.
    pub fn refuse_down(&self) -> Result<(), NicError> {
        match self.is_up {
            true => Ok(()),
            false => Err(NicError::VlanDown(self.name.clone())),
        }
    }
}

impl Nic {
    /// The VLAN interface on top of this NIC, as [`vlan_interface`] finds it.
    ///
    /// # Errors
    /// [`NicError::NoVlan`] with the commands that create it; [`NicError::Netlink`].
    pub fn vlan_interface(&self, tags: &[u16]) -> Result<VlanInterface, NicError> {
        if let Some(found) = vlan_interface(self.index, tags)? {
            return Ok(found);
        }
        // The outer interface of a pair may exist.
        let outer = match tags {
            [outer, _] => vlan_interface(self.index, &[*outer])?,
            _ => None,
        };
        Err(NicError::NoVlan {
            nic: self.name.clone(),
            tags: tags.to_vec(),
            outer: outer.map(|outer| outer.name),
        })
    }
}

const Q: VlanProtocol = VlanProtocol::Ieee8021Q;
const AD: VlanProtocol = VlanProtocol::Ieee8021Ad;

/// Whether the tag at this depth, 0 for the outermost, is a service tag (IEEE 802.1ad).
const fn is_service(depth: usize, tags: &[u16]) -> bool {
    depth + 1 < tags.len()
}

/// The properties of a VLAN interface that identify it.
#[derive(Clone, Copy)]
struct Vlan<'a> {
    /// The index of the interface below.
    lower: u32,
    id: u16,
    protocol: VlanProtocol,
    message: &'a LinkMessage,
}

impl<'a> Vlan<'a> {
    /// `None` if the interface is not a VLAN interface on top of another one in this network
    /// namespace.
    fn of(message: &'a LinkMessage) -> Option<Self> {
        let (mut id, mut protocol) = (None, VlanProtocol::default());
        for property in properties(message)? {
            match property {
                InfoVlan::Id(value) => id = Some(*value),
                InfoVlan::Protocol(value) => protocol = *value,
                _ => {}
            }
        }
        Some(Self {
            lower: lower_of(message)?,
            id: id?,
            protocol,
            message,
        })
    }

    const fn index(&self) -> u32 {
        self.message.header.index
    }

    fn is_service(&self) -> bool {
        self.protocol == VlanProtocol::Ieee8021Ad
    }
}

fn properties(message: &LinkMessage) -> Option<&[InfoVlan]> {
    let infos = message.attributes.iter().find_map(|one| match one {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(properties)) => Some(properties.as_slice()),
        _ => None,
    })
}

/// The VLAN ID of the interface that a message is about; `None` if that is not a VLAN interface.
pub(super) fn vlan_id(message: &LinkMessage) -> Option<u16> {
    Vlan::of(message).map(|vlan| vlan.id)
}

fn find(links: &[LinkMessage], parent: u32, tags: &[u16]) -> Option<VlanInterface> {
    let vlans: Vec<Vlan<'_>> = links.iter().filter_map(Vlan::of).collect();
    let on = |lower: u32, id: u16| {
        let all = vlans.iter().copied();
        all.filter(move |vlan| vlan.lower == lower && vlan.id == id)
    };
    let chain = match *tags {
        [id] => vec![on(parent, id).min_by_key(Vlan::is_service)?],
        [outer, inner] => {
            let pairs = on(parent, outer)
                .flat_map(|outer| on(outer.index(), inner).map(move |inner| [outer, inner]));
            let rank = |[outer, inner]: &[Vlan<'_>; 2]| (inner.is_service(), !outer.is_service());
            pairs.min_by_key(rank)?.to_vec()
        }
        _ => return None,
    };
    let state = LinkState::of_message(chain.last()?.message);
    Some(VlanInterface {
        index: state.index,
        name: state.name,
        mac: state.mac?,
        is_up: state.is_up,
        mtu: state.mtu,
        tpids: chain.iter().map(|vlan| vlan.protocol.into()).collect(),
    })
}

/// The commands that create the VLAN interface with these tags on a NIC, each in backquotes.
/// `outer` is the name of the interface with the outer tag of a pair, if it exists.
pub(super) fn commands(nic: &str, tags: &[u16], outer: Option<&str>) -> String {
    let mut lower = nic.to_owned();
    let mut commands = Vec::new();
    for (depth, id) in tags.iter().enumerate() {
        let is_outer = is_service(depth, tags);
        if let Some(outer) = outer.filter(|_| is_outer) {
            outer.clone_into(&mut lower);
            continue;
        }
        let name = name_for(nic, &tags[..=depth]);
        let protocol = if is_outer { " proto 802.1ad" } else { "" };
        commands.push(format!(
            "`ip link add link {lower} name {name} type vlan{protocol} id {id}`"
        ));
        commands.push(format!("`ip link set dev {name} up`"));
        lower = name;
    }
    commands.push(format!("`ip addr add ADDRESS/PREFIX dev {lower}`"));
    commands.join(", ")
}

/// A name for a VLAN interface that is not too long.
fn name_for(nic: &str, tags: &[u16]) -> String {
    let full = format!("{nic}.{}", joined(tags));
    match full.len() <= NAME_BYTES {
        true => full,
        false => format!("vlan{}", joined(tags)),
    }
}

/// The tags in a message, the outer one first: `VLAN 30`, `VLAN 200.10`.
pub(super) fn in_words(tags: &[u16]) -> String {
    format!("VLAN {}", joined(tags))
}

fn joined(tags: &[u16]) -> String {
    let ids: Vec<String> = tags.iter().map(u16::to_string).collect();
    ids.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::link::{InfoKind, LinkFlags};

    const NIC: u32 = 7;
    const MAC: [u8; 6] = [2, 0, 0, 0, 3, 1];

    /// The kernel's message about a VLAN interface that is set up.
    fn vlan(index: u32, lower: u32, protocol: VlanProtocol, id: u16) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(format!("any{index}")),
            LinkAttribute::Address(MAC.to_vec()),
            LinkAttribute::Mtu(1496),
            LinkAttribute::Link(lower),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(vec![
                    InfoVlan::Protocol(protocol),
                    InfoVlan::Id(id),
                ])),
            ]),
        ];
        message
    }

    fn found(links: &[LinkMessage], tags: &[u16]) -> Option<(u32, Vec<u16>)> {
        find(links, NIC, tags).map(|found| (found.index, found.tpids))
    }

    #[test]
    fn a_tag_is_found_on_its_nic_only() {
        let links = [
            vlan(10, 8, Q, 30),
            vlan(11, NIC, Q, 31),
            vlan(12, NIC, Q, 30),
        ];
        let expected = VlanInterface {
            index: 12,
            name: "any12".to_owned(),
            mac: MacAddr::new(MAC),
            is_up: true,
            mtu: 1496,
            tpids: vec![0x8100],
        };
        assert_eq!(find(&links, NIC, &[30]), Some(expected));
        for tags in [&[32][..], &[], &[30, 31], &[30, 30, 30]] {
            assert_eq!(found(&links, tags), None, "{tags:?}");
        }
    }

    #[test]
    fn ieee_8021q_is_preferred_for_a_single_tag() {
        let both = [vlan(10, NIC, AD, 30), vlan(11, NIC, Q, 30)];
        assert_eq!(found(&both, &[30]), Some((11, vec![0x8100])));
        assert_eq!(found(&both[..1], &[30]), Some((10, vec![0x88a8])));
    }

    #[test]
    fn a_pair_is_an_interface_on_top_of_an_interface() {
        let single = vlan(10, NIC, Q, 10);
        let [outer_q, inner_q] = [vlan(20, NIC, Q, 200), vlan(21, 20, Q, 10)];
        let [outer_ad, inner_ad] = [vlan(30, NIC, AD, 200), vlan(31, 30, AD, 10)];
        let inner = vlan(32, 30, Q, 10);
        let mut links = vec![single, outer_q.clone(), outer_ad];
        assert_eq!(found(&links, &[200, 10]), None);
        for (more, index, tpids) in [
            (inner_ad, 31, vec![0x88a8, 0x88a8]),
            (inner_q, 21, vec![0x8100, 0x8100]),
            (inner, 32, vec![0x88a8, 0x8100]),
        ] {
            // Of each pair the later one is preferred, in any order of the kernel's messages.
            links.push(more);
            assert_eq!(found(&links, &[200, 10]), Some((index, tpids.clone())));
            let reversed: Vec<_> = links.iter().rev().cloned().collect();
            assert_eq!(found(&reversed, &[200, 10]), Some((index, tpids)));
        }
        assert_eq!(found(&links, &[10, 200]), None);
    }

    #[test]
    fn an_interface_on_a_nic_of_another_network_namespace_is_not_found() {
        let mut moved = vlan(10, NIC, Q, 30);
        moved.attributes.push(LinkAttribute::LinkNetNsId(0));
        assert_eq!(found(&[moved], &[30]), None);
    }

    #[test]
    fn only_vlan_interfaces_have_an_id() {
        assert_eq!(vlan_id(&vlan(10, NIC, Q, 30)), Some(30));
        assert_eq!(vlan_id(&LinkMessage::default()), None);
    }

    #[test]
    fn a_missing_interface_is_reported_with_its_commands() {
        let text = |nic: &str, tags: &[u16], outer: Option<&str>| {
            let error = NicError::NoVlan {
                nic: nic.to_owned(),
                tags: tags.to_vec(),
                outer: outer.map(str::to_owned),
            };
            error.to_string()
        };
        let single = text("enp3s0", &[30], None);
        for words in [
            "VLAN 30 on enp3s0",
            "`ip link add link enp3s0 name enp3s0.30 type vlan id 30`, \
             `ip link set dev enp3s0.30 up`, `ip addr add ADDRESS/PREFIX dev enp3s0.30`",
        ] {
            assert!(single.contains(words), "{single}");
        }
        let pair = text("enp3s0", &[200, 10], None);
        for words in [
            "VLAN 200.10 on enp3s0",
            "`ip link add link enp3s0 name enp3s0.200 type vlan proto 802.1ad id 200`, \
             `ip link set dev enp3s0.200 up`, \
             `ip link add link enp3s0.200 name enp3s0.200.10 type vlan id 10`, \
             `ip link set dev enp3s0.200.10 up`, \
             `ip addr add ADDRESS/PREFIX dev enp3s0.200.10`",
        ] {
            assert!(pair.contains(words), "{pair}");
        }
        let inner = text("enp3s0", &[200, 10], Some("service"));
        assert!(!inner.contains("802.1ad"), "{inner}");
        let words = "`ip link add link service name enp3s0.200.10 type vlan id 10`";
        assert!(inner.contains(words), "{inner}");
        // `enp3s0f0np0.4094` is one byte too long.
        let long = text("enp3s0f0np0", &[4094], None);
        let words = "`ip link add link enp3s0f0np0 name vlan4094 type vlan id 4094`";
        assert!(long.contains(words), "{long}");
        assert_eq!(name_for("enp3s0f0np", &[4094]), "enp3s0f0np.4094");
        assert_eq!(name_for("enp3s0f0np0", &[4094, 4094]), "vlan4094.4094");
    }

    #[test]
    fn interfaces_that_are_down_or_have_another_mac_are_refused_with_the_remedy() {
        let mut vlan = find(&[vlan(10, NIC, Q, 30)], NIC, &[30]).unwrap();
        let mut nic = Nic::example("enp3s0", None);
        nic.mac = MacAddr::new(MAC);
        assert!(vlan.refuse_other_mac(&nic).is_ok());
        assert!(vlan.refuse_down().is_ok());
        assert!(vlan.refuse_other_protocol(&nic, &[30]).is_ok());
        for (tags, tpids) in [
            (&[30][..], &[0x88a8][..]),
            (&[200, 30], &[0x8100, 0x8100]),
            (&[200, 30], &[0x88a8, 0x88a8]),
        ] {
            vlan.tpids = tpids.to_vec();
            let refused = vlan.refuse_other_protocol(&nic, tags).unwrap_err();
            let words = [
                "any10",
                "802.1Q",
                "802.1ad",
                "`ip link del dev any10`",
                "type vlan id 30",
            ];
            for words in words {
                assert!(refused.to_string().contains(words), "{refused}");
            }
        }
        vlan.is_up = false;
        let refused = vlan.refuse_down().unwrap_err().to_string();
        assert!(refused.contains("`ip link set dev any10 up`"), "{refused}");
        vlan.mac = MacAddr::new([2, 0, 0, 0, 3, 9]);
        let refused = vlan.refuse_other_mac(&nic).unwrap_err().to_string();
        for words in [
            "02:00:00:00:03:09",
            "enp3s0",
            "`ip link set dev any10 address 02:00:00:00:03:01`",
        ] {
            assert!(refused.contains(words), "{refused}");
        }
    }
}
