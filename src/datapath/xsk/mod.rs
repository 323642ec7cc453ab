//! Unsafe room 1: AF_XDP sockets, their rings and the UMEM that they share.
//!
//! xsk-rs' descriptors are plain numbers that anybody could use twice, so they never leave this
//! room: outside, a buffer is a [`super::Frame`] token. What makes every call below sound is one rule,
//! kept by the tokens' being neither `Copy` nor `Clone`: a chunk is either with the kernel (its
//! descriptor is in a ring) or its one token is in somebody's hands, and each worker touches
//! the chunks of its own part of the UMEM only.
//!
//! Sources: the kernel's Documentation/networking/af_xdp.rst.
#![allow(
    unsafe_code,
    reason = "one of the two rooms that talk to the kernel's shared memory"
)]

mod options;
mod port;

use super::{FramePool, Held, PerRole, Role};
use options::{XDP_MAX_TX_SKB_BUDGET, bound_zero_copy, set_option};
use std::ffi::CString;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;
use xsk_rs::Socket;
use xsk_rs::config::{
    BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig,
};
use xsk_rs::umem::frame::FrameDesc;

pub(super) use port::prefetch;
pub use port::{QueueGauge, Troubles, XskMemory, XskPort};

/// How often and how long apart a bind is tried while the queue's last owner goes away: the
/// kernel frees it up to 32 ms after that process ended.
const BIND_ATTEMPTS: u32 = 1000;
const BIND_PAUSE: Duration = Duration::from_millis(1);

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
        if let Err(error) = keep_out_of_dumps(&umem, &descriptors, settings.chunk_bytes) {
            tracing::warn!("a core dump of this process would hold packets: {error}");
        }
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

/// Packets are nobody's affair, also where somebody makes a core dump against this process' will.
fn keep_out_of_dumps(
    umem: &xsk_rs::Umem,
    descriptors: &[FrameDesc],
    chunk_bytes: u32,
) -> io::Result<()> {
    let Some(first) = descriptors.first() else {
        return Ok(());
    };
    let bytes = descriptors.len() * chunk_bytes as usize;
    // SAFETY: the descriptor is of this UMEM, and no ring has any of its chunks yet. xsk-rs tells
    // of no other address than a chunk's.
    let chunk = unsafe { umem.data(first) }.contents().as_ptr();
    // A descriptor's address counts from the beginning of the memory.
    let start = chunk.wrapping_sub(first.addr()).cast_mut().cast();
    // SAFETY: the memory begins there and has a chunk for each descriptor; the advice changes
    // what a dump has of it, and nothing else. No safe function gives advice on memory.
    match unsafe { libc::madvise(start, bytes, libc::MADV_DONTDUMP) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn ring_size(entries: u32) -> Result<QueueSize, XskError> {
    QueueSize::new(entries).map_err(|error| XskError::Size(entries, error.to_string()))
}

fn bind_hint(error: &io::Error, settings: XskSettings) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => {
            "; another program has this queue: end it first (`ss --xdp --all --processes` names it)"
        }
        Some(libc::EOPNOTSUPP | libc::EINVAL) if settings.zero_copy => {
            "; this driver has no zero-copy: set `datapath.zero_copy` to \"auto\" or \"off\""
        }
        Some(libc::EINVAL | libc::EOPNOTSUPP) if settings.multi_buffer => {
            "; packets that span several frames need Linux 6.6: lower the MTU of every port to \
             3486 or less"
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
