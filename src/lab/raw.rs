//! Sends frames that no network stack would send.

use super::{LabError, Netns};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind, send,
    sendto, socket,
};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

/// The time for which sending a frame to a full interface is retried.
const FULL: Duration = Duration::from_millis(100);

/// A packet socket bound to one interface, for sending whole Ethernet frames.
pub struct RawPort {
    socket: OwnedFd,
    address: LinkAddr,
}

impl RawPort {
    /// Opens a raw port on an interface of a namespace.
    ///
    /// # Errors
    /// Fails without privilege, or if the interface does not exist.
    pub fn open(netns: &Netns, interface: &str) -> Result<Self, LabError> {
        let name = interface.to_owned();
        netns.run(move || {
            let failed = |what: &str, error: nix::Error| {
                LabError(format!("{what} for raw frames on {name}: {error}"))
            };
            let address = getifaddrs()
                .map_err(|error| failed("cannot list interfaces", error))?
                .filter(|entry| entry.interface_name == name)
                .find_map(|entry| entry.address?.as_link_addr().copied())
                .ok_or_else(|| LabError(format!("there is no interface {name}")))?;
            let (family, close) = (AddressFamily::Packet, SockFlag::SOCK_CLOEXEC);
            let socket = socket(family, SockType::Raw, close, None::<SockProtocol>)
                .map_err(|error| failed("cannot open a packet socket", error))?;
            bind(socket.as_raw_fd(), &address)
                .map_err(|error| failed("cannot bind a packet socket", error))?;
            Ok(Self { socket, address })
        })
    }

    /// Sends a frame; returns whether the interface accepted it. Retries a full one for a while: a
    /// rejected frame is dropped, so no frame is sent twice.
    pub fn offer(&self, frame: &[u8]) -> bool {
        let mut begin = None;
        loop {
            match send(self.socket.as_raw_fd(), frame, MsgFlags::empty()) {
                Ok(_) => return true,
                Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR)
                    if begin.get_or_insert_with(Instant::now).elapsed() < FULL =>
                {
                    thread::yield_now();
                }
                Err(_) => return false,
            }
        }
    }

    /// Sends one frame unchanged; returns when it is handed to the interface.
    ///
    /// # Errors
    /// Fails if the frame exceeds the MTU or the interface is down.
    pub fn send(&self, frame: &[u8]) -> Result<(), LabError> {
        debug_assert!(self.address.len() > 0);
        let (socket, length) = (self.socket.as_raw_fd(), frame.len());
        let failed = |error| {
            LabError(format!(
                "cannot send a raw frame of {length} bytes: {error}"
            ))
        };
        let sent = sendto(socket, frame, &self.address, MsgFlags::empty());
        sent.map(drop).map_err(failed)
    }
}
