//! What the machine's NICs are and can, asked over netlink, and the little that is set on them.
//!
//! Everything here asks the network namespace of the calling thread. Nothing here knows what a
//! packet is.

mod way;

use crate::packet::MacAddr;
use ethtool::{EthtoolAttr, EthtoolChannelAttr};
use futures_util::stream::{StreamExt, TryStreamExt};
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo};
use std::future::Future;
use std::io;
use tokio::runtime::{Builder, Runtime};

pub use way::{NextHop, NextHopError, Way, WayWatch};

/// A NIC as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Its name.
    pub name: String,
    /// The kernel's number for it.
    pub index: u32,
    /// Its own MAC address.
    pub mac: MacAddr,
    /// The longest packet it takes, in bytes without the Ethernet header.
    pub mtu: u32,
    /// Whether it is set up.
    pub is_up: bool,
    /// Whether it was asked to take frames for any address.
    pub is_promiscuous: bool,
    /// How many receive queues are in use.
    pub queues: u32,
    /// It is one end of a veth pair.
    pub is_veth: bool,
}

/// Why a NIC cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// Netlink itself does not work.
    #[error("cannot ask the kernel about network interfaces: {0}")]
    Netlink(io::Error),
    /// No such interface.
    #[error("there is no network interface {0} here; `ip link` lists those there are")]
    Missing(String),
    /// Not an Ethernet NIC.
    #[error("{0} has no MAC address: exitmark needs Ethernet interfaces")]
    NotEthernet(String),
    /// Nobody may be resolved.
    #[error("cannot have the kernel resolve a next hop on {0}: it takes CAP_NET_ADMIN")]
    Resolve(String),
    /// A change was refused.
    #[error("cannot turn promiscuous mode {wanted} on {name}: {reason}")]
    Promiscuous {
        /// The NIC.
        name: String,
        /// `on` or `off`.
        wanted: &'static str,
        /// What the kernel said.
        reason: String,
    },
}

fn runtime() -> Result<Runtime, NicError> {
    Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(NicError::Netlink)
}

/// Runs one conversation with the kernel to its end.
fn converse<T>(conversation: impl Future<Output = Result<T, NicError>>) -> Result<T, NicError> {
    runtime()?.block_on(conversation)
}

fn connect() -> Result<rtnetlink::Handle, NicError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NicError::Netlink)?;
    tokio::spawn(connection);
    Ok(handle)
}

impl Nic {
    /// Looks at the NIC of this name.
    ///
    /// # Errors
    /// It is not there, or is no Ethernet NIC.
    pub fn look(name: &str) -> Result<Self, NicError> {
        converse(async {
            // The conversation ends when its last handle is dropped.
            let handle = connect()?;
            let request = handle.link().get().match_name(name.to_owned());
            let message = match Box::pin(request.execute()).try_next().await {
                Ok(Some(message)) => message,
                Ok(None) => return Err(NicError::Missing(name.to_owned())),
                Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => {
                    return Err(NicError::Missing(name.to_owned()));
                }
                Err(error) => return Err(NicError::Netlink(io::Error::other(error))),
            };
            let mut mac = None;
            let mut mtu = 0;
            let mut is_veth = false;
            for attribute in &message.attributes {
                match attribute {
                    LinkAttribute::Address(bytes) => {
                        mac = bytes.as_slice().try_into().ok().map(MacAddr::new);
                    }
                    LinkAttribute::Mtu(bytes) => mtu = *bytes,
                    LinkAttribute::LinkInfo(infos) => {
                        is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                    }
                    _ => {}
                }
            }
            let flags = message.header.flags;
            Ok(Self {
                name: name.to_owned(),
                index: message.header.index,
                mac: mac
                    .filter(|mac| mac.is_unicast())
                    .ok_or_else(|| NicError::NotEthernet(name.to_owned()))?,
                mtu,
                is_up: flags.contains(LinkFlags::Up),
                is_promiscuous: flags.contains(LinkFlags::Promisc),
                queues: queues(name).await?,
                is_veth,
            })
        })
    }

    /// Looks at the NIC that the kernel has by this number, if there is one.
    pub fn of_index(index: u32) -> Option<Self> {
        let name = nix::net::if_::if_indextoname(index).ok()?;
        Self::look(name.to_str().ok()?).ok()
    }

    /// Turns promiscuous mode on or off: a wire must take frames for any address.
    ///
    /// # Errors
    /// No privilege.
    pub fn set_promiscuous(&self, on: bool) -> Result<(), NicError> {
        converse(async {
            let change = LinkUnspec::new_with_index(self.index)
                .promiscuous(on)
                .build();
            let handle = connect()?;
            let done = handle.link().set(change).execute().await;
            done.map_err(|error| NicError::Promiscuous {
                name: self.name.clone(),
                wanted: if on { "on" } else { "off" },
                reason: error.to_string(),
            })
        })
    }
}

/// How many receive queues a NIC uses now: its combined channels and those that only receive.
/// A driver that cannot say has one.
async fn queues(name: &str) -> Result<u32, NicError> {
    let (connection, mut handle, _) = ethtool::new_connection().map_err(NicError::Netlink)?;
    tokio::spawn(connection);
    let Ok(mut replies) = handle.channel().get(Some(name)).execute().await else {
        return Ok(1);
    };
    let mut queues = 0;
    while let Some(Ok(reply)) = replies.next().await {
        for attribute in &reply.payload.nlas {
            if let EthtoolAttr::Channel(
                EthtoolChannelAttr::CombinedCount(count) | EthtoolChannelAttr::RxCount(count),
            ) = attribute
            {
                queues += count;
            }
        }
    }
    Ok(queues.max(1))
}
