//! Unsafe module 1: AF_XDP sockets, their rings and the UMEM that they share.
//!
//! The descriptors of xsk-rs are plain numbers that could be used twice, so they never leave this
//! module: outside, a chunk is a [`super::Frame`] token. Every call below is sound by one rule,
//! which holds because tokens are neither `Copy` nor `Clone`: a chunk either belongs to the kernel
//! (its descriptor is in a ring), or to the owner of its one token; and each worker accesses only
//! the chunks of its own part of the memory.
//!
//! In copy mode the sockets are those of xsk-rs and share one UMEM. Zero-copy sockets are made
//! here, over libxdp, because their fill rings must be full when they are bound: see [`filled`].
//!
//! A worker without a queue of a NIC sends there by an AF_PACKET socket, which copies its frames.
//!
//! Sources: the kernel's Documentation/networking/af_xdp.rst.
#![allow(
    unsafe_code,
    reason = "one of the modules that access memory shared with the kernel"
)]

mod filled;
mod options;
mod packet;
mod port;
mod rings;

use super::{FramePool, PerRole, Port, Role};
use filled::UmemPart;
use libxdp_sys::xdp_desc;
use options::{XDP_MAX_TX_SKB_BUDGET, bound_zero_copy, set_option};
use std::ffi::{CStr, CString};
use std::io;
use std::num::NonZeroU32;
use std::ptr::NonNull;
use std::thread;
use std::time::Duration;
use xsk_rs::Socket;
use xsk_rs::config::{
    BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig,
};
use xsk_rs::umem::frame::FrameDesc;

pub use filled::FilledRings;
pub use packet::{PacketPort, WorkerPort};
pub(super) use port::prefetch;
pub use port::{QueueGauge, Troubles, XskMemory, XskPort};
pub use rings::{Rings, SharedRings};

/// How often and at what interval a bind is retried while the queue's previous owner releases it:
/// the kernel frees the queue up to 32 ms after that process ended.
const BIND_ATTEMPTS: u32 = 1000;
const BIND_PAUSE: Duration = Duration::from_millis(1);

/// The settings of all sockets of the box.
#[derive(Clone, Copy, Debug)]
pub struct XskSettings {
    /// Entries of each ring; a power of two.
    pub ring: u32,
    /// Frames that a worker may hold outside of the pool and rings.
    pub in_hand: u32,
    /// Bytes of a frame, headroom included: 2,048 or 4,096.
    pub chunk_bytes: u32,
    /// Whether a packet may span several frames (XDP_USE_SG).
    pub multi_buffer: bool,
    /// Whether to bind zero-copy (XDP_ZEROCOPY); otherwise in copy mode (XDP_COPY).
    pub zero_copy: bool,
}

/// Why sockets cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum XskError {
    /// A UMEM of this many bytes cannot be made or registered, for example because of
    /// RLIMIT_MEMLOCK (ENOBUFS).
    #[error(
        "cannot register {0} bytes of packet memory: {1}; the memory lock limit may be \
         too small (raise LimitMEMLOCK or grant CAP_IPC_LOCK), or make `datapath.ring` smaller"
    )]
    Umem(u64, #[source] io::Error),
    /// A socket cannot be bound to a queue.
    #[error(
        "cannot bind an AF_XDP socket to queue {queue} of {interface} ({mode}): {source}{hint}"
    )]
    Bind {
        /// The interface name of the NIC.
        interface: String,
        /// The number of the queue, from 0.
        queue: u32,
        /// The mode of the bind, "copy" or "zero-copy".
        mode: &'static str,
        /// The error that the kernel returned.
        source: io::Error,
        /// The remedy; empty, or begins with a semicolon.
        hint: &'static str,
    },
    /// A size that AF_XDP does not accept.
    #[error("AF_XDP refuses the size {0}: {1}")]
    Size(u32, String),
}

/// The memory of every socket of the box.
pub struct Umem {
    umem: xsk_rs::Umem,
    descriptors: Vec<FrameDesc>,
    start: NonNull<u8>,
    settings: XskSettings,
    frames_per_worker: u32,
}

/// One worker's resources: a queue of each port, its part of the memory, its frames.
pub struct Bound<R: Rings> {
    /// The queue of each port; `None` for a role without a NIC.
    pub ports: PerRole<Option<XskPort<R>>>,
    /// The memory of their frames.
    pub memory: XskMemory<R::Descriptor>,
    /// The frames that are in no ring.
    pub pool: FramePool,
}

impl Umem {
    /// Makes the memory for `workers` workers of `ports` ports each.
    ///
    /// # Errors
    /// [`XskError::Umem`] if the kernel does not map or register the memory, [`XskError::Size`] if
    /// a size in `settings` is not one of AF_XDP's, or the number of frames is 0.
    pub fn new(settings: XskSettings, workers: u32, ports: u32) -> Result<Self, XskError> {
        // Enough for all rings to be full while the worker holds its maximum: no port can starve
        // another of frames.
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
        let (umem, descriptors) = xsk_rs::Umem::new(config, frames, false).map_err(|error| {
            let bytes = u64::from(frames.get()) * u64::from(settings.chunk_bytes);
            XskError::Umem(bytes, io_error(&error))
        })?;
        let start = beginning(&umem, &descriptors)
            .ok_or_else(|| XskError::Size(0, "no frames".to_owned()))?;
        let bytes = descriptors.len() * settings.chunk_bytes as usize;
        if let Err(error) = keep_out_of_dumps(start, bytes) {
            tracing::warn!("a core dump of this process would hold packets: {error}");
        }
        Ok(Self {
            umem,
            descriptors,
            start,
            settings,
            frames_per_worker,
        })
    }

    /// The size of the memory in bytes.
    pub fn bytes(&self) -> u64 {
        self.descriptors.len() as u64 * u64::from(self.settings.chunk_bytes)
    }

    /// Binds queue `worker` of each of these NICs, with sockets that share one UMEM and whose fill
    /// rings are filled afterwards. Call this once per worker.
    ///
    /// # Errors
    /// [`XskError::Bind`] if the NIC does not exist, the queue is in use for longer than a second,
    /// or the driver refuses the mode; [`XskError::Size`] if the rings' size is not a power of two.
    pub fn bind(
        &self,
        worker: u32,
        interfaces: &PerRole<Option<String>>,
    ) -> Result<Bound<SharedRings>, XskError> {
        let first = (worker * self.frames_per_worker) as usize;
        let range = first..first + self.frames_per_worker as usize;
        let mut ports = PerRole::from_fn(|_| None);
        for role in Role::ALL {
            if let Some(interface) = &interfaces[role] {
                ports[role] = Some(self.bind_shared(interface, worker)?);
            }
        }
        Ok(Bound {
            ports,
            memory: XskMemory {
                _region: self.umem.clone(),
                start: self.start,
                descriptors: self.descriptors[range].into(),
                first,
                chunk_bytes: self.settings.chunk_bytes as usize,
            },
            pool: FramePool::new(self.frames_per_worker),
        })
    }

    /// As [`Umem::bind`], with sockets whose fill rings are full before they are bound, as
    /// zero-copy drivers need it. Chunks must be whole pages.
    ///
    /// # Errors
    /// As [`Umem::bind`]; and [`XskError::Umem`] if the kernel does not register the memory once
    /// more for each port.
    pub fn bind_filled(
        &self,
        worker: u32,
        interfaces: &PerRole<Option<String>>,
    ) -> Result<Bound<FilledRings>, XskError> {
        let frames = self.frames_per_worker as usize;
        let bytes = frames * self.settings.chunk_bytes as usize;
        // SAFETY: the memory has as many parts of this size as there are workers.
        let start = unsafe { self.start.add(worker as usize * bytes) };
        let part = UmemPart {
            _region: self.umem.clone(),
            start,
            bytes,
            chunk_bytes: self.settings.chunk_bytes,
        };
        let chunk = |chunk: usize| xdp_desc {
            addr: chunk as u64 * u64::from(self.settings.chunk_bytes),
            len: 0,
            options: 0,
        };
        let mut memory = XskMemory {
            _region: self.umem.clone(),
            start,
            descriptors: (0..frames).map(chunk).collect(),
            first: 0,
            chunk_bytes: self.settings.chunk_bytes as usize,
        };
        let mut pool = FramePool::new(self.frames_per_worker);
        let mut ports = PerRole::from_fn(|_| None);
        for role in Role::ALL {
            let Some(interface) = &interfaces[role] else {
                continue;
            };
            let rings = FilledRings::new(part.clone(), self.settings.ring);
            let rings = rings.map_err(|error| XskError::Umem(bytes as u64, error))?;
            let mut port = XskPort::new(rings, self.settings.ring);
            port.fill(&mut memory, &mut pool);
            let flags = self.flags().bits();
            self.bind_to(interface, worker, |name| {
                port.rings.bind(name, worker, flags)
            })?;
            ports[role] = Some(self.settle(port, interface, worker)?);
        }
        Ok(Bound {
            ports,
            memory,
            pool,
        })
    }

    fn flags(&self) -> BindFlags {
        let mut flags = BindFlags::XDP_USE_NEED_WAKEUP;
        flags |= match self.settings.zero_copy {
            true => BindFlags::XDP_ZEROCOPY,
            false => BindFlags::XDP_COPY,
        };
        if self.settings.multi_buffer {
            flags |= BindFlags::XDP_USE_SG;
        }
        flags
    }

    fn failed(&self, interface: &str, queue: u32, source: io::Error) -> XskError {
        XskError::Bind {
            interface: interface.to_owned(),
            queue,
            mode: match self.settings.zero_copy {
                true => "zero-copy",
                false => "copy",
            },
            hint: bind_hint(&source, self.settings),
            source,
        }
    }

    /// Binds, and retries while the queue's previous owner releases it.
    fn bind_to<T>(
        &self,
        interface: &str,
        queue: u32,
        mut bind: impl FnMut(&CStr) -> io::Result<T>,
    ) -> Result<T, XskError> {
        let failed = |error| self.failed(interface, queue, error);
        let name = CString::new(interface).map_err(|error| failed(error.into()))?;
        let mut attempt = 0;
        loop {
            match bind(&name) {
                Ok(bound) => return Ok(bound),
                Err(error) => {
                    attempt += 1;
                    if error.raw_os_error() != Some(libc::EBUSY) || attempt >= BIND_ATTEMPTS {
                        return Err(failed(error));
                    }
                    thread::sleep(BIND_PAUSE);
                }
            }
        }
    }

    fn bind_shared(&self, interface: &str, queue: u32) -> Result<XskPort<SharedRings>, XskError> {
        let config = SocketConfig::builder()
            .rx_queue_size(ring_size(self.settings.ring)?)
            .tx_queue_size(ring_size(self.settings.ring)?)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(self.flags())
            .build();
        let (tx, rx, rings) = self.bind_to(interface, queue, |name| {
            let name = Interface::new(name.to_owned());
            // SAFETY: the call is unsafe because a (device, queue) pair must not be given two
            // pairs of fill and completion rings over one UMEM. Each pair is bound once: roles
            // have different NICs, and each worker has its own queue number.
            unsafe { Socket::new(config, &self.umem, &name, queue) }
                .map_err(|error| io_error(&error))
        })?;
        let (fill, completion) = rings.ok_or_else(|| {
            let error = io::Error::other("its rings are already in use");
            self.failed(interface, queue, error)
        })?;
        let rings = SharedRings {
            tx,
            rx,
            fill,
            completion,
        };
        self.settle(XskPort::new(rings, self.settings.ring), interface, queue)
    }

    /// Completes a port after its socket was bound: sets and reads socket options.
    fn settle<R: Rings>(
        &self,
        mut port: XskPort<R>,
        interface: &str,
        queue: u32,
    ) -> Result<XskPort<R>, XskError> {
        let socket = port.rings.socket();
        // Kernels before 6.17 lack the option; kicks then take more calls.
        let _ = set_option(
            socket,
            libc::SOL_XDP,
            XDP_MAX_TX_SKB_BUDGET,
            self.settings.ring,
        );
        port.zero_copy =
            bound_zero_copy(socket).map_err(|error| self.failed(interface, queue, error))?;
        Ok(port)
    }
}

fn beginning(umem: &xsk_rs::Umem, descriptors: &[FrameDesc]) -> Option<NonNull<u8>> {
    let first = descriptors.first()?;
    // SAFETY: the descriptor is of this UMEM, and no ring has any of its chunks yet. xsk-rs
    // exposes only the addresses of chunks.
    let chunk = unsafe { umem.data(first) }.contents().as_ptr();
    // A descriptor's address counts from the beginning of the memory.
    NonNull::new(chunk.wrapping_sub(first.addr()).cast_mut())
}

/// Excludes packet memory from core dumps, even if dumps are forced (MADV_DONTDUMP).
fn keep_out_of_dumps(start: NonNull<u8>, bytes: usize) -> io::Result<()> {
    // SAFETY: the memory begins there and is this long; the advice affects only core dumps. No
    // safe function for it exists.
    match unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_DONTDUMP) } {
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
        Some(libc::EOPNOTSUPP) if settings.zero_copy => {
            "; this driver has no zero-copy: set `datapath.zero_copy` to \"auto\" or \"off\""
        }
        Some(libc::EINVAL) if settings.zero_copy => {
            "; the driver advertises zero-copy and refuses it for this NIC (virtio_net without \
             an IOMMU: QEMU's iommu_platform=on; else the MTU, or the number of queues): set \
             `datapath.zero_copy` to \"auto\" or \"off\""
        }
        Some(libc::ENOENT) if settings.zero_copy => {
            "; the NIC cannot reset a queue, which zero-copy requires (virtio_net: QEMU's \
             queue_reset=on): set `datapath.zero_copy` to \"auto\" or \"off\""
        }
        Some(libc::EINVAL | libc::EOPNOTSUPP) if settings.multi_buffer => {
            "; packets that span several frames need Linux 6.6: lower the MTU of every port to \
             3486 or less"
        }
        Some(libc::EINVAL) => {
            "; the NIC may have no such queue (any more): `ethtool -l NIC` shows how many it has"
        }
        Some(libc::ENODEV) => "; the NIC is gone: `ip link` lists those that are there",
        Some(libc::ENETDOWN) => "; the NIC is down: `ip link set dev NIC up`",
        Some(libc::ENOBUFS | libc::ENOMEM) => {
            "; memory is short: raise LimitMEMLOCK or grant CAP_IPC_LOCK, or make \
             `datapath.ring` smaller"
        }
        Some(libc::EPERM) => "; that requires CAP_NET_RAW",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_of_a_bind_has_its_own_hint() {
        let copy = XskSettings {
            ring: 2048,
            in_hand: 64,
            chunk_bytes: 2048,
            multi_buffer: false,
            zero_copy: false,
        };
        let zero_copy = XskSettings {
            zero_copy: true,
            ..copy
        };
        let several = XskSettings {
            multi_buffer: true,
            ..copy
        };
        for (code, settings, words) in [
            (libc::EBUSY, copy, "another program has this queue"),
            (libc::EOPNOTSUPP, zero_copy, "has no zero-copy"),
            (libc::EINVAL, zero_copy, "iommu_platform=on"),
            (libc::ENOENT, zero_copy, "queue_reset=on"),
            (libc::EINVAL, several, "Linux 6.6"),
            (libc::EINVAL, copy, "ethtool -l NIC"),
            (libc::ENODEV, copy, "is gone"),
            (libc::ENETDOWN, copy, "ip link set dev NIC up"),
            (libc::ENOBUFS, copy, "LimitMEMLOCK"),
            (libc::EPERM, zero_copy, "CAP_NET_RAW"),
        ] {
            let hint = bind_hint(&io::Error::from_raw_os_error(code), settings);
            assert!(
                hint.starts_with("; ") && hint.contains(words),
                "{code}: {hint}"
            );
        }
    }
}
