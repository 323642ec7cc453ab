//! Unsafe code of the tap: its AF_XDP sockets with their memory and rings, the filter's BPF link,
//! and a setting of the C library's allocator.
//!
//! One rule makes it sound: a chunk of a queue's memory is either owned by the kernel (its address
//! is in the fill ring, or is in the receive ring and was not taken yet) or is in the one [`Batch`]
//! that can exist, because a batch borrows its queue. Dropping a batch wipes its chunks and returns
//! them to the kernel.
//!
//! libxdp is called directly: xsk-rs creates a transmit ring for every socket, and a tap must not
//! have one.
//!
//! Sources: the kernel's Documentation/networking/af_xdp.rst, libxdp's xsk.h.
#![allow(unsafe_code, reason = "accesses memory that is shared with the kernel")]

use libxdp_sys::{
    XDP_COPY, XDP_USE_NEED_WAKEUP, XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD, xsk_ring_cons,
    xsk_ring_cons__peek, xsk_ring_cons__release, xsk_ring_cons__rx_desc, xsk_ring_prod,
    xsk_ring_prod__fill_addr, xsk_ring_prod__reserve, xsk_ring_prod__submit, xsk_socket,
    xsk_socket__create_shared, xsk_socket__delete, xsk_socket_config, xsk_umem, xsk_umem__create,
    xsk_umem__delete, xsk_umem__fd, xsk_umem_config,
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use std::cell::UnsafeCell;
use std::ffi::{CStr, c_void};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use zeroize::Zeroize;

/// Allocations from this size on are returned to the system when they are freed, in bytes.
#[cfg(target_env = "gnu")]
const LARGE_BLOCK_BYTES: libc::c_int = 128 << 10;

/// Makes glibc return large blocks to the system when they are freed. By default glibc raises its
/// threshold after the first such free, and what reading databases and a state leaves behind is as
/// much as all that stays (mallopt(3), `M_MMAP_THRESHOLD`).
pub(in super::super) fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes two integers and is allowed at any time; if it rejects them, nothing
    // has changed.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES);
    }
}

/// XDP attach flags, from the kernel's if_link.h.
pub(super) const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
pub(super) const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Size of a chunk, which holds one packet: the kernel's minimum. The kernel reserves 256 bytes of
/// it.
pub(super) const CHUNK_BYTES: u32 = 2048;
const CHUNK: usize = CHUNK_BYTES as usize;
/// Packets of a batch at most.
pub(super) const BATCH: usize = 64;
/// The kernel requires a completion ring even if nothing is sent.
const COMPLETIONS: u32 = 1;

#[allow(clippy::cast_possible_truncation, reason = "two low bits")]
const BIND_FLAGS: u16 = (XDP_COPY | XDP_USE_NEED_WAKEUP) as u16;
#[allow(clippy::cast_possible_truncation, reason = "a small number")]
const BATCH_ENTRIES: u32 = BATCH as u32;
#[allow(clippy::cast_possible_truncation, reason = "a small structure")]
const STATISTICS_BYTES: libc::socklen_t = size_of::<libc::xdp_statistics>() as libc::socklen_t;

/// Attaches a program to a NIC for as long as the result is open.
pub(super) fn create_link(
    program: BorrowedFd<'_>,
    ifindex: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let target = i32::try_from(ifindex).map_err(io::Error::other)?;
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        flags,
        ..Default::default()
    };
    // SAFETY: the options are a live local with its own size in it, and the program's descriptor is
    // open. libbpf-rs cannot pass flags, which select native or generic mode.
    let fd = result(unsafe {
        libbpf_sys::bpf_link_create(
            program.as_raw_fd(),
            target,
            libbpf_sys::BPF_XDP,
            &raw const options,
        )
    })?;
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn result(returned: i32) -> io::Result<i32> {
    if returned < 0 {
        return Err(io::Error::from_raw_os_error(-returned));
    }
    Ok(returned)
}

/// Memory for packets, excluded from core dumps.
struct Area {
    start: NonNull<u8>,
    bytes: NonZeroUsize,
}

impl Area {
    fn new(bytes: NonZeroUsize) -> io::Result<Self> {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe { mmap_anonymous(None, bytes, access, MapFlags::MAP_PRIVATE) }?;
        let area = Self {
            start: start.cast(),
            bytes,
        };
        // SAFETY: the mapping was made above with this length; the advice only affects core dumps.
        unsafe { madvise(start, bytes.get(), MmapAdvise::MADV_DONTDUMP) }?;
        Ok(area)
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `new`, and no reference to it outlives `self`.
        let _ = unsafe { munmap(self.start.cast(), self.bytes.get()) };
    }
}

/// libxdp's view of the rings. libxdp keeps pointers to these while the socket exists, so they must
/// not move, and are accessed by pointer only.
struct Rings {
    fill: UnsafeCell<xsk_ring_prod>,
    completions: UnsafeCell<xsk_ring_cons>,
    received: UnsafeCell<xsk_ring_cons>,
}

impl Rings {
    fn new() -> Box<Self> {
        let consumer = xsk_ring_cons {
            cached_prod: 0,
            cached_cons: 0,
            mask: 0,
            size: 0,
            producer: ptr::null_mut(),
            consumer: ptr::null_mut(),
            ring: ptr::null_mut(),
            flags: ptr::null_mut(),
        };
        Box::new(Self {
            fill: UnsafeCell::new(xsk_ring_prod {
                cached_prod: 0,
                cached_cons: 0,
                mask: 0,
                size: 0,
                producer: ptr::null_mut(),
                consumer: ptr::null_mut(),
                ring: ptr::null_mut(),
                flags: ptr::null_mut(),
            }),
            completions: UnsafeCell::new(consumer),
            received: UnsafeCell::new(consumer),
        })
    }
}

/// A socket with its own memory, for one receive queue.
pub(super) struct Queue {
    /// Null until the socket is bound.
    socket: *mut xsk_socket,
    umem: NonNull<xsk_umem>,
    rings: Box<Rings>,
    area: Area,
    frames: u32,
}

// SAFETY: everything it points to is its own, and is not tied to a thread.
unsafe impl Send for Queue {}

impl Queue {
    /// Creates a socket with memory for `frames` packets, a power of two, and gives it to the
    /// kernel.
    pub(super) fn new(frames: u32) -> io::Result<Self> {
        let bytes = NonZeroUsize::new(frames as usize * CHUNK)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let area = Area::new(bytes)?;
        let rings = Rings::new();
        let config = xsk_umem_config {
            // Twice the number of chunks: the kernel publishes that it took chunks from the fill
            // ring after it publishes the packets in them, so chunks can be returned before that.
            fill_size: frames * 2,
            comp_size: COMPLETIONS,
            frame_size: CHUNK_BYTES,
            frame_headroom: 0,
            flags: 0,
        };
        let mut umem = ptr::null_mut();
        // SAFETY: the area is page-aligned and this long; it and the rings stay where they are
        // until the UMEM is deleted, which `drop` does before it lets go of them. The
        // configuration is only read here.
        result(unsafe {
            xsk_umem__create(
                &raw mut umem,
                area.start.as_ptr().cast::<c_void>(),
                bytes.get() as u64,
                rings.fill.get(),
                rings.completions.get(),
                &raw const config,
            )
        })?;
        let umem = NonNull::new(umem).ok_or_else(|| io::Error::other("libxdp made no UMEM"))?;
        let mut queue = Self {
            socket: ptr::null_mut(),
            umem,
            rings,
            area,
            frames,
        };
        fcntl(&queue, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        // Filled before binding: some drivers read the ring only then.
        queue.give(
            (0..frames).map(|chunk| u64::from(chunk) * u64::from(CHUNK_BYTES)),
            frames,
        );
        Ok(queue)
    }

    /// Binds the socket to a NIC's queue, in copy mode. May be retried after a failure.
    pub(super) fn bind(&mut self, interface: &CStr, number: u32) -> io::Result<()> {
        debug_assert!(self.socket.is_null(), "it is bound once");
        let config = xsk_socket_config {
            // One entry for each chunk: the ring never overflows.
            rx_size: self.frames,
            tx_size: 0,
            __bindgen_anon_1: libxdp_sys::xsk_socket_config__bindgen_ty_1 {
                libxdp_flags: XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
            },
            xdp_flags: 0,
            bind_flags: BIND_FLAGS,
        };
        // SAFETY: the UMEM is alive, these are its rings, and it has no other socket; the name is a
        // C string; a null transmit ring is allowed. All of them stay until `drop`.
        result(unsafe {
            xsk_socket__create_shared(
                &raw mut self.socket,
                interface.as_ptr(),
                number,
                self.umem.as_ptr(),
                self.rings.received.get(),
                ptr::null_mut(),
                self.rings.fill.get(),
                self.rings.completions.get(),
                &raw const config,
            )
        })
        .map(|_| ())
    }

    /// Takes up to [`BATCH`] received packets.
    pub(super) fn take(&mut self) -> Batch<'_> {
        let mut batch = Batch {
            queue: self,
            chunks: [Chunk::default(); BATCH],
            count: 0,
        };
        if batch.queue.socket.is_null() {
            return batch;
        }
        let received = batch.queue.rings.received.get();
        let mut first = 0;
        // SAFETY: the ring was set up when the socket was bound, and is not accessed elsewhere
        // while `self` is borrowed.
        let count = unsafe { xsk_ring_cons__peek(received, BATCH_ENTRIES, &raw mut first) };
        for index in 0..count {
            // SAFETY: `peek` found this many entries from `first` on.
            let descriptor = unsafe { xsk_ring_cons__rx_desc(received, first.wrapping_add(index)) };
            // SAFETY: the entry is in the ring, and the kernel does not write to it until it is
            // released.
            let descriptor = unsafe { *descriptor };
            let chunk = Chunk::of(
                descriptor.addr,
                descriptor.len,
                batch.queue.area.bytes.get(),
            );
            debug_assert!(chunk.is_some(), "the kernel has our chunks only");
            if let Some(chunk) = chunk {
                batch.chunks[batch.count as usize] = chunk;
                batch.count += 1;
            }
        }
        if count > 0 {
            // SAFETY: as for `peek`; all of these entries were copied above.
            unsafe { xsk_ring_cons__release(received, count) };
        }
        batch
    }

    /// Returns `count` chunks to the kernel, by address. They must not be accessed afterwards.
    fn give(&mut self, addresses: impl Iterator<Item = u64>, count: u32) {
        if count == 0 {
            return;
        }
        let fill = self.rings.fill.get();
        let mut first = 0;
        // SAFETY: the ring was set up with the UMEM, and is not accessed elsewhere while `self` is
        // borrowed.
        let room = unsafe { xsk_ring_prod__reserve(fill, count, &raw mut first) };
        debug_assert_eq!(room, count, "the ring has room for twice what there is");
        let mut given = 0;
        for address in addresses.take(room as usize) {
            // SAFETY: `reserve` returned this many entries from `first` on.
            let entry = unsafe { xsk_ring_prod__fill_addr(fill, first.wrapping_add(given)) };
            // SAFETY: the entry is in the ring, aligned, and owned by us until it is submitted.
            unsafe { *entry = address };
            given += 1;
        }
        // SAFETY: as for `reserve`; this many entries were written. The chunks are in the UMEM, and
        // callers do not access them any more.
        unsafe { xsk_ring_prod__submit(fill, given) };
    }

    /// The socket's drop counters.
    pub(super) fn statistics(&self) -> io::Result<libc::xdp_statistics> {
        let mut statistics = libc::xdp_statistics {
            rx_dropped: 0,
            rx_invalid_descs: 0,
            tx_invalid_descs: 0,
            rx_ring_full: 0,
            rx_fill_ring_empty_descs: 0,
            tx_ring_empty_descs: 0,
        };
        let mut length = STATISTICS_BYTES;
        // SAFETY: both pointers are to live, writable variables, and `length` is the size of the
        // first, which consists of integers. nix has no safe wrapper for AF_XDP's options.
        let returned = unsafe {
            libc::getsockopt(
                self.as_fd().as_raw_fd(),
                libc::SOL_XDP,
                libc::XDP_STATISTICS,
                (&raw mut statistics).cast::<c_void>(),
                &raw mut length,
            )
        };
        match returned {
            0 => Ok(statistics),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the UMEM is alive. Its first socket, the only one here, has its descriptor.
        let fd = unsafe { xsk_umem__fd(self.umem.as_ptr()) };
        // SAFETY: the descriptor stays open as long as the UMEM, which is borrowed here.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: it is null or a socket that was not deleted; its UMEM and rings are alive.
        unsafe { xsk_socket__delete(self.socket) };
        // SAFETY: the UMEM's only socket is gone, if there was one; the rings and the memory are
        // dropped after this.
        unsafe { xsk_umem__delete(self.umem.as_ptr()) };
    }
}

/// A packet's place in its queue's memory, within one chunk.
#[derive(Clone, Copy, Default)]
struct Chunk {
    at: usize,
    length: usize,
}

impl Chunk {
    /// `None` if the place is not within one chunk of the memory.
    fn of(address: u64, length: u32, bytes: usize) -> Option<Self> {
        let (at, length) = (usize::try_from(address).ok()?, length as usize);
        (at < bytes && at % CHUNK + length <= CHUNK).then_some(Self { at, length })
    }

    const fn address(self) -> u64 {
        (self.at - self.at % CHUNK) as u64
    }
}

/// Received packets. Dropping the batch wipes them and returns their chunks to the kernel.
pub(super) struct Batch<'q> {
    queue: &'q mut Queue,
    chunks: [Chunk; BATCH],
    count: u32,
}

impl Batch<'_> {
    fn chunks(&self) -> &[Chunk] {
        &self.chunks[..self.count as usize]
    }

    /// The packets' bytes, as truncated by the filter.
    pub(super) fn packets(&self) -> impl Iterator<Item = &[u8]> {
        self.chunks().iter().map(|chunk| {
            // SAFETY: `Chunk::of` has checked that this is within the memory.
            let start = unsafe { self.queue.area.start.add(chunk.at) };
            // SAFETY: the whole chunk is. It came from the receive ring and is not in the fill ring
            // yet, so the kernel does not write to it; here only `drop` does.
            unsafe { std::slice::from_raw_parts(start.as_ptr(), chunk.length) }
        })
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for chunk in self.chunks() {
            // SAFETY: as in `packets`.
            let start = unsafe { self.queue.area.start.add(chunk.at) };
            // SAFETY: as in `packets`, whose slices ended with the borrow of this batch; the chunks
            // of a batch are distinct.
            let bytes = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), chunk.length) };
            bytes.zeroize();
        }
        let chunks = self.chunks[..self.count as usize].iter();
        self.queue
            .give(chunks.map(|chunk| chunk.address()), self.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_lies_within_one_chunk_of_the_memory() {
        let bytes = 4 * CHUNK;
        let place = |address, length| {
            let chunk = Chunk::of(address, length, bytes)?;
            Some((chunk.address(), chunk.at, chunk.length))
        };
        assert_eq!(place(0, 2048), Some((0, 0, 2048)));
        assert_eq!(place(6144 + 256, 1792), Some((6144, 6400, 1792)));
        for (address, length) in [(0, 2049), (256, 1793), (8192, 0), (u64::MAX, 1), (8191, 2)] {
            assert_eq!(place(address, length), None, "{length} bytes at {address}");
        }
    }
}
