//! A port that only sends, by an AF_PACKET socket.
//!
//! A queue of a NIC can have only one AF_XDP socket. The worker that has it may be that of another
//! wire; the workers of this wire send by such a port. The kernel copies each frame, and passes it to
//! the driver past the queueing discipline, as it does with frames of AF_XDP.
//!
//! Source: packet(7).

use super::options::set_option;
use crate::{Frame, FrameMemory, FramePool, Held, Port};
use nix::errno::Errno;
use nix::sys::socket::sockopt::SndBufForce;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

/// The most packets of one system call.
const PACKETS: usize = 64;
/// The most parts of all packets of one system call; a packet has at most 18.
const PARTS: usize = 128;
/// Bytes that the kernel reserves for a frame of full size that the NIC has not sent yet.
const BYTES_PER_FRAME: usize = 4096;

/// A port that receives nothing, and sends each frame when it is passed to [`Port::transmit`].
pub struct PacketPort {
    socket: OwnedFd,
    /// The most frames that the port holds.
    room: usize,
    /// Frames that were sent and not taken back yet.
    sent: Vec<Frame>,
    /// Frames of this call that the kernel has refused, and the error of the last one.
    refused: Vec<Frame>,
    failure: Option<Errno>,
}

impl PacketPort {
    /// A port of the NIC with this interface index, for at most `room` frames at once. It requires
    /// CAP_NET_RAW. After the NIC was removed, a new port is needed.
    ///
    /// # Errors
    /// The socket cannot be made, or the NIC does not exist.
    pub fn open(ifindex: u32, room: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Protocol 0: the socket receives nothing.
        let none = None::<SockProtocol>;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, none)?;
        let room = room as usize;
        // Without CAP_NET_ADMIN the default size remains; more frames are then dropped in a burst.
        let _ = setsockopt(&socket, SndBufForce, &(room * BYTES_PER_FRAME));
        let descriptor = socket.as_raw_fd();
        set_option(descriptor, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
        bind(&socket, ifindex)?;
        Ok(Self {
            socket,
            room,
            sent: Vec::with_capacity(room),
            refused: Vec::with_capacity(room),
            failure: None,
        })
    }

    /// As [`Port::transmit`]. What the kernel refuses stays in `leaving`.
    fn transmit(&mut self, memory: &impl FrameMemory, leaving: &mut Vec<Frame>) {
        let mut fitting = leaving.len().min(self.room - self.sent.len());
        while fitting > 0 && leaving[fitting - 1].has_more() {
            fitting -= 1;
        }
        let mut frames = leaving.drain(..fitting);
        while !frames.as_slice().is_empty() {
            match send(&self.socket, memory, frames.as_slice()) {
                Ok(count) => self.sent.extend(frames.by_ref().take(count)),
                // This packet is too long or too short; the next may not be.
                Err(error @ (Errno::EMSGSIZE | Errno::EINVAL)) => {
                    self.failure = Some(error);
                    let count = parts_of_first(frames.as_slice());
                    self.refused.extend(frames.by_ref().take(count));
                }
                // The socket's buffer or the NIC's ring is full, the NIC is down, or it is gone.
                Err(error) => {
                    self.failure = Some(error);
                    self.refused.extend(frames.by_ref());
                }
            }
        }
        drop(frames);
        leaving.append(&mut self.refused);
    }

    /// Sends frames; what the kernel refuses stays in `leaving`. Returns the error of the last one
    /// that it refused.
    pub(crate) fn send_all(
        &mut self,
        memory: &impl FrameMemory,
        leaving: &mut Vec<Frame>,
    ) -> Option<Errno> {
        self.failure = None;
        self.transmit(memory, leaving);
        self.failure
    }

    pub(crate) fn complete(&mut self, pool: &mut FramePool) {
        self.sent.drain(..).for_each(|frame| pool.put(frame));
    }

    const fn held(&self) -> Held {
        Held {
            receiving: 0,
            sending: self.sent.len(),
        }
    }
}

impl AsFd for PacketPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn bind(socket: &OwnedFd, ifindex: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?,
        sll_protocol: 0,
        sll_ifindex: i32::try_from(ifindex).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: the pointer and the length describe a live local, which the kernel only reads. nix
    // makes no such address from an interface index.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    Ok(Errno::result(bound).map(drop)?)
}

/// How many frames the first packet has.
fn parts_of_first(frames: &[Frame]) -> usize {
    let last = frames.iter().position(|frame| !frame.has_more());
    last.map_or(frames.len(), |last| last + 1)
}

/// Sends as many whole packets as fit into one system call; returns how many frames they have.
///
/// # Errors
/// The kernel has refused the first packet.
fn send(socket: &OwnedFd, memory: &impl FrameMemory, frames: &[Frame]) -> Result<usize, Errno> {
    let empty = libc::iovec {
        iov_base: ptr::null_mut(),
        iov_len: 0,
    };
    let mut parts = [empty; PARTS];
    let mut lengths = [0; PACKETS];
    let (mut filled, mut packets) = (0, 0);
    while packets < PACKETS && filled < frames.len() {
        let length = parts_of_first(&frames[filled..]);
        let Some(slots) = parts.get_mut(filled..filled + length) else {
            break;
        };
        for (slot, frame) in slots.iter_mut().zip(&frames[filled..]) {
            let bytes = memory.view(frame);
            slot.iov_base = bytes.as_ptr().cast_mut().cast();
            slot.iov_len = bytes.len();
        }
        lengths[packets] = length;
        packets += 1;
        filled += length;
    }
    if packets == 0 {
        return Err(Errno::EMSGSIZE);
    }
    // SAFETY: it consists of numbers and pointers, for which zeros are values: no address, no
    // control data, no flags.
    let mut messages: [libc::mmsghdr; PACKETS] = unsafe { std::mem::zeroed() };
    let mut rest = &mut parts[..];
    for (message, &length) in messages.iter_mut().zip(&lengths[..packets]) {
        let (own, others) = rest.split_at_mut(length);
        message.msg_hdr.msg_iov = own.as_mut_ptr();
        message.msg_hdr.msg_iovlen = length;
        rest = others;
    }
    let count = u32::try_from(packets).unwrap_or(0);
    loop {
        // SAFETY: the first `count` messages are initialised; each has that many parts of `parts`,
        // and each part is the bytes of a frame, which stay while `memory` is borrowed. The kernel
        // only reads them. nix would allocate for each call.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
            )
        };
        match Errno::result(sent) {
            Ok(sent) => {
                let sent = usize::try_from(sent).unwrap_or(0).min(packets);
                return Ok(lengths[..sent].iter().sum());
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A port of a worker: the rings of a queue, or one that only sends.
pub enum WorkerPort<P> {
    /// The rings of a queue.
    Rings(P),
    /// Receives nothing.
    SendOnly(PacketPort),
}

impl<P> From<P> for WorkerPort<P> {
    fn from(port: P) -> Self {
        Self::Rings(port)
    }
}

impl<P: AsFd> AsFd for WorkerPort<P> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Rings(port) => port.as_fd(),
            Self::SendOnly(port) => port.as_fd(),
        }
    }
}

impl<P: Port> Port for WorkerPort<P> {
    type Memory = P::Memory;

    #[inline]
    fn receive(&mut self, memory: &mut P::Memory, arrived: &mut Vec<Frame>, limit: usize) {
        if let Self::Rings(port) = self {
            port.receive(memory, arrived, limit);
        }
    }

    #[inline]
    fn transmit(&mut self, memory: &mut P::Memory, leaving: &mut Vec<Frame>) {
        match self {
            Self::Rings(port) => port.transmit(memory, leaving),
            Self::SendOnly(port) => port.transmit(memory, leaving),
        }
    }

    #[inline]
    fn complete(&mut self, memory: &mut P::Memory, pool: &mut FramePool) {
        match self {
            Self::Rings(port) => port.complete(memory, pool),
            Self::SendOnly(port) => port.complete(pool),
        }
    }

    #[inline]
    fn fill(&mut self, memory: &mut P::Memory, pool: &mut FramePool) {
        if let Self::Rings(port) = self {
            port.fill(memory, pool);
        }
    }

    #[inline]
    fn kick(&mut self) {
        if let Self::Rings(port) = self {
            port.kick();
        }
    }

    #[inline]
    fn held(&self) -> Held {
        match self {
            Self::Rings(port) => port.held(),
            Self::SendOnly(port) => port.held(),
        }
    }

    #[inline]
    fn has_unsent(&mut self) -> bool {
        match self {
            Self::Rings(port) => port.has_unsent(),
            Self::SendOnly(_) => false,
        }
    }
}
