//! Unsafe room 1: AF_XDP sockets, their rings and the UMEM that they share.
//!
//! xsk-rs' descriptors are plain numbers that anybody could use twice, so they never leave this
//! file: outside, a buffer is a [`Frame`] token. What makes every call below sound is one rule,
//! kept by the tokens' being neither `Copy` nor `Clone`: a chunk is either with the kernel (its
//! descriptor is in a ring) or its one token is in somebody's hands, and each worker touches
//! the chunks of its own part of the UMEM only.
//!
//! Sources: the kernel's Documentation/networking/af_xdp.rst.
#![allow(
    unsafe_code,
    reason = "one of the two rooms that talk to the kernel's shared memory"
)]

use super::{Frame, FramePool, Held, Memory, PerRole, Port, Role};
use libc::{c_int, c_void, socklen_t};
use std::ffi::CString;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::thread;
use std::time::Duration;
use xsk_rs::config::{
    BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig,
};
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket, TxQueue};

/// How often and how long apart a bind is tried while the queue's last owner goes away: the
/// kernel frees it up to 32 ms after that process ended.
const BIND_ATTEMPTS: u32 = 1000;
const BIND_PAUSE: Duration = Duration::from_millis(1);
/// The most `sendto` calls in one kick. With the raised budget one is enough; a kernel without
/// it sends 32 packets a call.
const MAX_SENDS: u32 = 64;
/// Socket option of Linux 6.17: how many packets one `sendto` in copy mode may send.
const XDP_MAX_TX_SKB_BUDGET: c_int = 9;
/// `struct xdp_options`, its only flag.
const XDP_OPTIONS_ZEROCOPY: u32 = 1;

/// What all sockets of the box have in common.
#[derive(Clone, Copy, Debug)]
pub struct XskSettings {
    /// Entries of each ring; a power of two.
    pub ring: u32,
    /// Frames that a worker may hold in its hands.
    pub in_hand: u32,
    /// Bytes of a frame, headroom included: 2,048 or 4,096.
    pub chunk_bytes: u32,
    /// Whether a packet may span several frames (XDP_USE_SG).
    pub multi_buffer: bool,
    /// Whether to bind zero-copy.
    pub zero_copy: bool,
}

/// Why sockets cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum XskError {
    /// The UMEM cannot be made or registered.
    #[error(
        "cannot register {bytes} bytes of packet memory: {source}; the memory lock limit may be \\
         too small (raise LimitMEMLOCK or grant CAP_IPC_LOCK), or make `datapath.ring` smaller"
    )]
    Umem {
        /// How large it would have been.
        bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// A socket cannot be bound to a queue.
    #[error(
        "cannot bind an AF_XDP socket to queue {queue} of {interface} ({mode}): {source}{hint}"
    )]
    Bind {
        /// The NIC.
        interface: String,
        /// The queue's number.
        queue: u32,
        /// Copy or zero-copy.
        mode: &'static str,
        /// What the kernel said.
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// A size that AF_XDP does not take.
    #[error("AF_XDP refuses the size {0}: {1}")]
    Size(u32, String),
}

/// The memory that every socket of the box shares.
pub struct Umem {
    umem: xsk_rs::Umem,
    descriptors: Vec<FrameDesc>,
    settings: XskSettings,
    frames_per_worker: u32,
}

/// One worker's share of the box: a queue of each port, its part of the UMEM, its frames.
pub struct Bound {
    /// The queue of each port.
    pub ports: PerRole<Option<XskPort>>,
    /// The memory of their frames.
    pub memory: XskMemory,
    /// All of those frames, none of them in a ring yet.
    pub pool: FramePool,
}

impl Umem {
    /// Makes the memory for `workers` workers of `ports` ports each.
    ///
    /// # Errors
    /// The kernel does not register it.
    pub fn new(settings: XskSettings, workers: u32, ports: u32) -> Result<Self, XskError> {
        // Every ring that holds frames can be full at once, and the worker's hands too: no port
        // can take another's frames away.
        let frames_per_worker = ports * 2 * settings.ring + settings.in_hand;
        let config = UmemConfig::builder()
            .frame_size(
                FrameSize::new(settings.chunk_bytes)
                    .map_err(|error| XskError::Size(settings.chunk_bytes, error.to_string()))?,
            )
            .fill_queue_size(ring_size(settings.ring)?)
            .comp_queue_size(ring_size(settings.ring)?)
            .build()
            .map_err(|error| XskError::Size(settings.chunk_bytes, error.to_string()))?;
        let frames = NonZeroU32::new(frames_per_worker * workers)
            .ok_or_else(|| XskError::Size(0, "no frames".to_owned()))?;
        let (umem, descriptors) =
            xsk_rs::Umem::new(config, frames, false).map_err(|error| XskError::Umem {
                bytes: u64::from(frames.get()) * u64::from(settings.chunk_bytes),
                source: io_error(&error),
            })?;
        Ok(Self {
            umem,
            descriptors,
            settings,
            frames_per_worker,
        })
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.descriptors.len() as u64 * u64::from(self.settings.chunk_bytes)
    }

    /// Binds queue `worker` of each of these NICs. To be called once for each worker.
    ///
    /// # Errors
    /// A queue cannot be bound as asked.
    pub fn bind(
        &self,
        worker: u32,
        interfaces: &PerRole<Option<String>>,
    ) -> Result<Bound, XskError> {
        let first = (worker * self.frames_per_worker) as usize;
        let range = first..first + self.frames_per_worker as usize;
        let mut ports = PerRole::from_fn(|_| None);
        for role in Role::ALL {
            if let Some(interface) = &interfaces[role] {
                ports[role] = Some(self.bind_port(interface, worker)?);
            }
        }
        Ok(Bound {
            ports,
            memory: XskMemory {
                umem: self.umem.clone(),
                descriptors: self.descriptors[range].into(),
                first,
                chunk_bytes: self.settings.chunk_bytes as usize,
            },
            pool: FramePool::new(self.frames_per_worker),
        })
    }

    fn bind_port(&self, interface: &str, queue: u32) -> Result<XskPort, XskError> {
        let (mode, flag) = if self.settings.zero_copy {
            ("zero-copy", BindFlags::XDP_ZEROCOPY)
        } else {
            ("copy", BindFlags::XDP_COPY)
        };
        let failed = |source: io::Error| XskError::Bind {
            interface: interface.to_owned(),
            queue,
            mode,
            hint: bind_hint(&source, self.settings),
            source,
        };
        let mut flags = flag | BindFlags::XDP_USE_NEED_WAKEUP;
        if self.settings.multi_buffer {
            flags |= BindFlags::XDP_USE_SG;
        }
        let config = SocketConfig::builder()
            .rx_queue_size(ring_size(self.settings.ring)?)
            .tx_queue_size(ring_size(self.settings.ring)?)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(flags)
            .build();
        let name = CString::new(interface).map_err(|error| failed(error.into()))?;
        let name = Interface::new(name);
        let mut attempt = 0;
        let (tx, rx, rings) = loop {
            // SAFETY: the call is unsafe because a (device, queue) pair must not be given two
            // pairs of fill and completion rings over one UMEM. Each pair is bound once: roles
            // have different NICs, and each worker has its own queue number.
            match unsafe { Socket::new(config, &self.umem, &name, queue) } {
                Ok(bound) => break bound,
                Err(error) => {
                    let error = io_error(&error);
                    attempt += 1;
                    if error.raw_os_error() != Some(libc::EBUSY) || attempt >= BIND_ATTEMPTS {
                        return Err(failed(error));
                    }
                    thread::sleep(BIND_PAUSE);
                }
            }
        };
        let (fill, completion) =
            rings.ok_or_else(|| failed(io::Error::other("its rings are in use already")))?;
        let fd = tx.fd().as_raw_fd();
        // A kernel before 6.17 does not know the option; kicks then take more calls.
        let _ = set_option(fd, XDP_MAX_TX_SKB_BUDGET, self.settings.ring);
        Ok(XskPort {
            zero_copy: bound_zero_copy(fd).map_err(failed)?,
            tx,
            rx,
            fill,
            completion,
            ring: self.settings.ring as usize,
            held: Held::default(),
            scratch: vec![FrameDesc::default(); self.settings.ring as usize].into(),
        })
    }
}

fn ring_size(entries: u32) -> Result<QueueSize, XskError> {
    QueueSize::new(entries).map_err(|error| XskError::Size(entries, error.to_string()))
}

fn bind_hint(error: &io::Error, settings: XskSettings) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "; another program has this queue: end it first",
        Some(libc::EOPNOTSUPP | libc::EINVAL) if settings.zero_copy => {
            "; this driver has no zero-copy: set `datapath.zero_copy` to \"auto\" or \"off\""
        }
        Some(libc::EINVAL | libc::EOPNOTSUPP) if settings.multi_buffer => {
            "; packets that span several frames need Linux 6.6: lower the MTU of every port to \
             3498 or less"
        }
        Some(libc::EINVAL) => "; the NIC has no such queue, or is down",
        Some(libc::EPERM) => "; it takes CAP_NET_RAW",
        _ => "",
    }
}

/// The operating system's error in an xsk-rs error.
fn io_error(error: &(dyn std::error::Error + 'static)) -> io::Error {
    error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error)
        .map_or_else(
            || io::Error::other(error.to_string()),
            io::Error::from_raw_os_error,
        )
}

fn set_option(fd: RawFd, option: c_int, value: u32) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which outlives the call; the kernel
    // only reads it. The standard library and nix know no AF_XDP options.
    let result = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_XDP,
            option,
            (&raw const value).cast::<c_void>(),
            socklen_of::<u32>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether the socket was bound zero-copy.
fn bound_zero_copy(socket: impl AsRawFd) -> io::Result<bool> {
    // `struct xdp_options` is one number, its flags.
    let mut flags: u32 = 0;
    read_option(&socket, libc::XDP_OPTIONS, &mut flags)?;
    Ok(flags & XDP_OPTIONS_ZEROCOPY != 0)
}

/// Reads a socket option whose C type is `T`, made of integers only.
fn read_option<T: Copy>(socket: &impl AsRawFd, option: c_int, into: &mut T) -> io::Result<()> {
    let mut length = socklen_of::<T>();
    // SAFETY: both pointers are to live, writable places, and `length` says how large the first
    // one is; every value of its bytes is a `T`, since those that call this pass plain integers.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_XDP,
            option,
            (into as *mut T).cast::<c_void>(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[allow(clippy::cast_possible_truncation, reason = "sizes of small structures")]
const fn socklen_of<T>() -> socklen_t {
    size_of::<T>() as socklen_t
}

/// One worker's part of the UMEM.
pub struct XskMemory {
    umem: xsk_rs::Umem,
    /// The descriptor of each chunk, as it last came out of a ring.
    descriptors: Box<[FrameDesc]>,
    /// The number of the first chunk in the whole UMEM.
    first: usize,
    chunk_bytes: usize,
}

impl XskMemory {
    /// The token of a descriptor that the kernel handed back, or none where it describes
    /// nothing of ours: xsk-rs checks nothing, and a wrong one must not become a pointer.
    fn token(&mut self, descriptor: FrameDesc) -> Option<Frame> {
        let chunk = (descriptor.addr() / self.chunk_bytes).checked_sub(self.first)?;
        let length = descriptor.lengths().data();
        let slot = self.descriptors.get_mut(chunk)?;
        if descriptor.addr() % self.chunk_bytes + length > self.chunk_bytes {
            return None;
        }
        *slot = descriptor;
        Some(Frame::new(
            u32::try_from(chunk).ok()?,
            u16::try_from(length).ok()?,
            descriptor.has_more_frames(),
        ))
    }
}

impl Memory for XskMemory {
    #[inline]
    fn bytes(&mut self, frame: &Frame) -> &mut [u8] {
        let descriptor = &mut self.descriptors[frame.chunk()];
        // SAFETY: the descriptor is of this UMEM, within bounds (`token` checked it or
        // `Umem::new` made it), and its chunk is not with the kernel, since its token is here.
        let mut data = unsafe { self.umem.data_mut(descriptor) };
        let bytes = data.contents_mut();
        let (start, length) = (bytes.as_mut_ptr(), bytes.len());
        // SAFETY: the same bytes as above, exclusively borrowed through `self` for as long as the
        // result lives; xsk-rs' own view of them ends with this function.
        unsafe { std::slice::from_raw_parts_mut(start, length) }
    }

    #[inline]
    fn prefetch(&self, frame: &Frame) {
        // SAFETY: as in `bytes`; nothing is written here.
        let data = unsafe { self.umem.data(&self.descriptors[frame.chunk()]) };
        if let Some(byte) = data.contents().first() {
            prefetch(byte);
        }
    }
}

/// Asks the processor to fetch the cache line of this byte, without waiting for it.
#[inline]
pub(super) fn prefetch(byte: &u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction (SSE, which every x86-64 has) reads nothing that the program could
    // see and faults on no address, and this one is valid. No safe function does the same yet.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>((&raw const *byte).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::hint::black_box(*byte);
}

/// One queue of a NIC.
pub struct XskPort {
    tx: TxQueue,
    rx: RxQueue,
    fill: FillQueue,
    completion: CompQueue,
    ring: usize,
    held: Held,
    scratch: Box<[FrameDesc]>,
    zero_copy: bool,
}

impl XskPort {
    /// Whether the kernel bound this queue zero-copy.
    pub const fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// A view of what this queue misses, for another thread. It keeps the socket open.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn gauge(&self) -> io::Result<QueueGauge> {
        Ok(QueueGauge(self.as_fd().try_clone_to_owned()?))
    }

    fn unsent(&mut self) -> usize {
        self.ring - (self.tx.nb_free_exact() as usize).min(self.ring)
    }
}

/// What a queue could not take in.
pub struct QueueGauge(OwnedFd);

impl QueueGauge {
    /// What went wrong at this queue so far.
    ///
    /// # Errors
    /// The socket does not say.
    pub fn troubles(&self) -> io::Result<Troubles> {
        let mut statistics = libc::xdp_statistics {
            rx_dropped: 0,
            rx_invalid_descs: 0,
            tx_invalid_descs: 0,
            rx_ring_full: 0,
            rx_fill_ring_empty_descs: 0,
            tx_ring_empty_descs: 0,
        };
        read_option(&self.0, libc::XDP_STATISTICS, &mut statistics)?;
        Ok(Troubles {
            missed: statistics.rx_dropped + statistics.rx_ring_full,
            tx_invalid: statistics.tx_invalid_descs,
        })
    }
}

/// What went wrong at a queue, in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Packets that were received and could not be handed over: the rx ring was full, no empty
    /// frame was there, or the packet was too long.
    pub missed: u64,
    /// Frames to send that the kernel refused, e.g. of a packet in more than 17 pieces.
    pub tx_invalid: u64,
}

impl AsFd for XskPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor stays open as long as the queue that is borrowed here.
        unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) }
    }
}

impl Port for XskPort {
    type Memory = XskMemory;

    fn receive(&mut self, memory: &mut XskMemory, arrived: &mut Vec<Frame>, limit: usize) {
        let room = limit.min(self.ring);
        // SAFETY: the descriptors written are those that the kernel took from this UMEM's fill
        // ring; they are used nowhere but in `token`.
        let count = unsafe { self.rx.consume(&mut self.scratch[..room]) };
        for &descriptor in &self.scratch[..count] {
            // A descriptor of nothing of ours leaves a frame unaccounted for, which is alarmed.
            arrived.extend(memory.token(descriptor));
        }
        self.held.receiving -= count.min(self.held.receiving);
    }

    fn transmit(&mut self, memory: &mut XskMemory, leaving: &mut Vec<Frame>) {
        let wanted = u32::try_from(leaving.len()).unwrap_or(u32::MAX);
        let room = (self.tx.nb_free(wanted) as usize).min(self.ring - self.held.sending);
        let mut fitting = leaving.len().min(room);
        while fitting > 0 && leaving[fitting - 1].has_more() {
            fitting -= 1;
        }
        for (slot, frame) in self.scratch.iter_mut().zip(leaving.drain(..fitting)) {
            *slot = memory.descriptors[frame.chunk()];
            slot.set_options(u32::from(frame.has_more()));
        }
        // SAFETY: these chunks belong to this UMEM, and their tokens ended with the drain above:
        // nobody can touch them until they come back as completions.
        let sent = unsafe { self.tx.produce(&self.scratch[..fitting]) };
        debug_assert_eq!(sent, fitting, "the ring had room");
        self.held.sending += sent;
    }

    fn complete(&mut self, memory: &mut XskMemory, pool: &mut FramePool) {
        if self.held.sending == 0 {
            return;
        }
        // SAFETY: as in `receive`, for what was given to the tx ring.
        let count = unsafe { self.completion.consume(&mut self.scratch) };
        for &descriptor in &self.scratch[..count] {
            if let Some(frame) = memory.token(descriptor) {
                pool.put(frame);
            }
        }
        self.held.sending -= count.min(self.held.sending);
    }

    fn fill(&mut self, memory: &mut XskMemory, pool: &mut FramePool) {
        let wanted = self.ring - self.held.receiving;
        if wanted == 0 {
            return;
        }
        let room = self.fill.nb_free(u32::try_from(wanted).unwrap_or(u32::MAX)) as usize;
        let mut count = 0;
        while count < wanted.min(room)
            && let Some(frame) = pool.take()
        {
            self.scratch[count] = memory.descriptors[frame.chunk()];
            count += 1;
        }
        // SAFETY: these chunks belong to this UMEM, and their tokens ended in the loop above:
        // nobody can touch them until they come back as received frames.
        let filled = unsafe { self.fill.produce(&self.scratch[..count]) };
        debug_assert_eq!(filled, count, "the ring had room");
        self.held.receiving += filled;
    }

    fn kick(&mut self) {
        if self.fill.needs_wakeup() {
            let _ = self.fill.wakeup(self.rx.fd_mut(), 0);
        }
        if self.held.sending == 0 || !self.tx.needs_wakeup() {
            return;
        }
        let mut unsent = self.unsent();
        for _ in 0..MAX_SENDS {
            if unsent == 0 {
                return;
            }
            // An error is a link that is down or a queue that is full; the frames stay in the
            // ring, and what does not fit behind them is dropped and counted.
            let _ = self.tx.wakeup();
            let before = std::mem::replace(&mut unsent, self.unsent());
            if unsent >= before {
                return;
            }
        }
    }

    fn held(&self) -> Held {
        self.held
    }

    fn has_unsent(&mut self) -> bool {
        self.held.sending > 0 && self.unsent() > 0
    }
}
