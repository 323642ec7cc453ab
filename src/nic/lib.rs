//! Queries the machine's NICs over netlink, and changes a few of their settings.
//!
//! All requests go to the network namespace of the calling thread. This module handles no packets.

#![forbid(unsafe_code)]

mod admin;
mod driver;
mod error;
mod link;
mod link_loss;
mod local_nic;
mod next_hop;
mod offloads;
mod queues;
mod relatives;
mod route;
mod vlan;

use exitmark_policy::packet::MacAddr;
use futures_util::stream::TryStreamExt;
use ipnet::IpNet;
use queues::Queues;
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkLayerType, LinkMessage};
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use tokio::runtime::{Builder, Runtime};

pub use admin::set_admin;
pub use error::NicError;
pub use link::{LinkState, LinkWatch, index_of};
pub use link_loss::{LinkAction, LinkCoupling, PerSide, SideState, WireSide};
pub use local_nic::LocalNic;
pub use next_hop::{NextHop, NextHopError, NextHopMonitor, NextHopState};
pub use offloads::{Offload, OffloadState, Offloads};
pub use queues::{common_queues, possible_cpus};
pub use relatives::{Overview, Relative, Relatives, is_link_local};
pub use route::{Route, RouteQuery, filters_strictly};
pub use vlan::{VlanInterface, vlan_interface};

/// Ethernet's standard MTU, for which every driver receives a frame into one buffer.
const STANDARD_MTU: u32 = 1500;

/// The properties of a NIC at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// The interface name (IFLA_IFNAME), never an alternative name.
    pub name: String,
    /// The interface index, unique within the network namespace; it stays when the NIC is renamed.
    pub index: u32,
    /// The MAC address of the NIC.
    pub mac: MacAddr,
    /// The MTU: the longest packet in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Whether the NIC is set up (IFF_UP).
    pub is_up: bool,
    /// Whether the link is up (IFF_LOWER_UP).
    pub has_carrier: bool,
    /// Whether promiscuous mode is on (IFF_PROMISC).
    pub is_promiscuous: bool,
    /// The number of receive queues in use.
    pub queues: u32,
    /// The maximum number of receive queues.
    pub most_queues: u32,
    /// Whether the queues are combined: they receive and send (`ethtool -L NIC combined`).
    pub has_combined_queues: bool,
    /// Whether the driver can change the number of queues.
    pub sets_queues: bool,
    /// Whether the NIC is one end of a veth pair.
    pub is_veth: bool,
    /// The name of the driver, if the kernel reports it.
    pub driver: Option<String>,
    /// The box's own addresses on the NIC, with their prefix lengths.
    pub addresses: Vec<IpNet>,
    /// The receive offloads that matter to a wire.
    pub offloads: Offloads,
    /// The kind of the interface, and the interfaces above and below it.
    pub relatives: Relatives,
}

fn runtime() -> Result<Runtime, NicError> {
    let runtime = Builder::new_current_thread().enable_io().build();
    runtime.map_err(NicError::Netlink)
}

/// Runs one exchange with the kernel to its end.
fn converse<T>(conversation: impl Future<Output = Result<T, NicError>>) -> Result<T, NicError> {
    runtime()?.block_on(conversation)
}

fn connect() -> Result<rtnetlink::Handle, NicError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NicError::Netlink)?;
    tokio::spawn(connection);
    Ok(handle)
}

impl Nic {
    /// Queries the NIC with this name or alternative name.
    ///
    /// # Errors
    /// [`NicError::Missing`] if it does not exist; [`NicError::NotEthernet`], or for a bridge or
    /// bond without a MAC address [`NicError::Bundle`]; [`NicError::Netlink`] if a query fails.
    pub fn look(name: &str) -> Result<Self, NicError> {
        Self::look_at(name, true)
    }

    fn look_at(name: &str, with_uppers: bool) -> Result<Self, NicError> {
        converse(async {
            // The connection ends when its last handle is dropped.
            let handle = connect()?;
            let message = link::by_name(&handle, name).await?;
            let message = message.ok_or_else(|| NicError::Missing(name.to_owned()))?;
            // `name` may be an alternative name.
            let own_name = link::name_of(&message).unwrap_or(name);
            let relatives = Relatives::look(&handle, &message, with_uppers).await?;
            Self::of_message(&handle, own_name, &message, relatives).await
        })
    }

    async fn of_message(
        handle: &rtnetlink::Handle,
        name: &str,
        message: &LinkMessage,
        relatives: Relatives,
    ) -> Result<Self, NicError> {
        let (mut bus, mut device) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::ParentDevBusName(name) => bus = Some(name),
                LinkAttribute::ParentDevName(name) => device = Some(name),
                _ => {}
            }
        }
        let state = LinkState::of_message(message);
        let is_ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        let Some(mac) = state.mac.filter(|mac| mac.is_unicast() && is_ethernet) else {
            // A bridge or bond without ports has no MAC address either.
            relatives.refuse_bundles(name)?;
            return Err(NicError::NotEthernet(name.to_owned()));
        };
        let driver = bus
            .zip(device)
            .and_then(|(bus, device)| driver(bus, device));
        let driver = driver.or_else(|| relatives.kind.clone());
        let queues = Queues::look(name, driver.as_deref()).await?;
        Ok(Self {
            name: name.to_owned(),
            index: state.index,
            mac,
            mtu: state.mtu,
            is_up: state.is_up,
            has_carrier: state.has_carrier,
            is_promiscuous: state.is_promiscuous,
            queues: queues.now,
            most_queues: queues.most,
            has_combined_queues: queues.are_combined,
            is_veth: relatives.kind.as_deref() == Some("veth"),
            sets_queues: queues.can_be_set,
            driver,
            addresses: addresses(handle, state.index).await?,
            offloads: Offloads::look(name).await?,
            relatives,
        })
    }

    /// The MAC address of a neighbour on this NIC in the kernel's neighbour table, if there is one.
    /// Does not resolve it.
    ///
    /// # Errors
    /// [`NicError::Netlink`]: the socket cannot be made, or the kernel does not answer.
    pub fn neighbour(&self, address: IpAddr) -> Result<Option<MacAddr>, NicError> {
        let family = match address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        converse(async {
            let handle = connect()?;
            let request = handle.neighbours().get().set_address_family(family);
            let entries: Vec<_> = request.execute().try_collect().await.map_err(unanswered)?;
            let mut here = entries
                .iter()
                .filter(|one| one.header.ifindex == self.index);
            Ok(here.find_map(|entry| next_hop::mac_of(entry, address)))
        })
    }

    /// The names of all Ethernet NICs.
    ///
    /// # Errors
    /// [`NicError::Netlink`]: the socket cannot be made, or the kernel does not answer.
    pub fn names() -> Result<Vec<String>, NicError> {
        converse(async {
            let mut links = link::all(&connect()?).await?;
            links.retain(|link| link.header.link_layer_type == LinkLayerType::Ether);
            let names = links.iter().filter_map(link::name_of);
            Ok(names.map(str::to_owned).collect())
        })
    }

    /// Whether an XDP program on this NIC must be loaded for frames in several buffers. Above
    /// Ethernet's standard MTU, drivers do not report how much they receive into one buffer. On
    /// veth, a program for single buffers turns off the peer's segmentation offload.
    pub fn may_need_several_buffers(&self) -> bool {
        self.is_veth || self.mtu > STANDARD_MTU
    }

    /// The longest packet, in bytes, that the driver receives into one buffer with an Ethernet
    /// header and two VLAN tags.
    pub fn one_buffer_mtu(&self) -> u32 {
        driver::one_buffer_mtu(self.driver.as_deref())
    }

    /// Whether the NIC sends frames that the XDP program redirects to it from a port bound
    /// zero-copy, by the table of drivers.
    pub fn takes_zero_copy_redirects(&self) -> bool {
        driver::takes_zero_copy_redirects(self.driver.as_deref())
    }

    /// The interface name as part of a sysctl name, with dots replaced by slashes.
    pub fn sysctl_name(&self) -> String {
        self.name.replace('.', "/")
    }

    /// Queries the NIC with this index, without the interfaces on top of it. `None` if it does not
    /// exist.
    ///
    /// # Errors
    /// The netlink request fails, or the interface is not an Ethernet NIC.
    pub fn of_index(index: u32) -> Result<Option<Self>, NicError> {
        let Ok(name) = nix::net::if_::if_indextoname(index) else {
            return Ok(None);
        };
        match Self::look_at(&name.to_string_lossy(), false) {
            Ok(nic) => Ok(Some(nic)),
            // Removed or renamed meanwhile.
            Err(NicError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Turns promiscuous mode on or off. A wire needs it to receive frames for any address.
    ///
    /// # Errors
    /// [`NicError::Promiscuous`]: CAP_NET_ADMIN is missing, or the NIC is gone.
    pub fn set_promiscuous(&self, on: bool) -> Result<(), NicError> {
        converse(async {
            let change = LinkUnspec::new_with_index(self.index).promiscuous(on);
            let done = connect()?.link().set(change.build()).execute().await;
            done.map_err(|error| NicError::Promiscuous {
                name: self.name.clone(),
                wanted: if on { "on" } else { "off" },
                reason: error.to_string(),
            })
        })
    }
}

impl Nic {
    /// A NIC for unit tests: up, with carrier and one queue, and without addresses.
    pub fn example(name: &str, driver: Option<&str>) -> Self {
        Self {
            name: name.to_owned(),
            index: 1,
            mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            is_up: true,
            has_carrier: true,
            is_promiscuous: false,
            queues: 1,
            most_queues: 1,
            has_combined_queues: true,
            sets_queues: true,
            is_veth: false,
            driver: driver.map(str::to_owned),
            addresses: Vec::new(),
            offloads: Offloads::default(),
            relatives: Relatives::default(),
        }
    }
}

fn unanswered(error: rtnetlink::Error) -> NicError {
    NicError::Netlink(io::Error::other(error))
}

/// The driver of a device. Unlike /sys/class/net, /sys/bus is the same in every network namespace.
fn driver(bus: &str, device: &str) -> Option<String> {
    if [bus, device].iter().any(|part| part.contains('/')) {
        return None;
    }
    let link = Path::new("/sys/bus").join(bus).join("devices").join(device);
    let target = std::fs::read_link(link.join("driver")).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

async fn addresses(handle: &rtnetlink::Handle, ifindex: u32) -> Result<Vec<IpNet>, NicError> {
    let request = handle.address().get().set_link_index_filter(ifindex);
    let messages: Vec<_> = request.execute().try_collect().await.map_err(unanswered)?;
    Ok(messages.iter().filter_map(address).collect())
}

/// All addresses of this network namespace, each with the index of its NIC.
async fn all_addresses(handle: &rtnetlink::Handle) -> Result<Vec<(u32, IpNet)>, NicError> {
    let replies = handle.address().get().execute();
    let messages: Vec<_> = replies.try_collect().await.map_err(unanswered)?;
    let on = |message: &AddressMessage| Some((message.header.index, address(message)?));
    Ok(messages.iter().filter_map(on).collect())
}

/// The local address in a message, which on point-to-point links also has the peer's.
fn address(message: &AddressMessage) -> Option<IpNet> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = local.or(Some(*ip)),
            AddressAttribute::Address(ip) => address = address.or(Some(*ip)),
            _ => {}
        }
    }
    IpNet::new(local.or(address)?, message.header.prefix_len).ok()
}

fn connect_ethtool() -> Result<ethtool::EthtoolHandle, NicError> {
    let (connection, handle, _) = ethtool::new_connection().map_err(NicError::Netlink)?;
    tokio::spawn(connection);
    Ok(handle)
}
