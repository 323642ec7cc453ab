//! Sockets whose fill ring is full before they are bound.
//!
//! A driver initialises its receive ring when a socket is bound zero-copy, and takes the frames
//! that are in the fill ring then. igb (Linux 6.14 to 6.19) never checks again if receive and
//! transmit have separate interrupts: `igb_xsk_wakeup` in igb_xsk.c raises only the transmit one,
//! so a queue whose fill ring was empty at bind never receives. xsk-rs, and libxdp with a shared
//! UMEM, make the rings and bind the socket in one call. libxdp makes the rings beforehand only for
//! the first socket of a UMEM; so each queue gets a UMEM of its own, over its worker's part of the
//! memory that xsk-rs mapped. Frames can still move from port to port: a chunk has the same
//! address in every UMEM of a worker, and is in at most one ring. The cost is that the kernel pins
//! and maps the part once per port.
//!
//! Sources: the kernel's Documentation/networking/af_xdp.rst, libxdp's xsk.h.

use super::rings::{Descriptor, Rings};
use libxdp_sys::{
    XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD, xdp_desc, xsk_prod_nb_free, xsk_ring_cons,
    xsk_ring_cons__comp_addr, xsk_ring_cons__peek, xsk_ring_cons__release, xsk_ring_cons__rx_desc,
    xsk_ring_prod, xsk_ring_prod__fill_addr, xsk_ring_prod__needs_wakeup, xsk_ring_prod__reserve,
    xsk_ring_prod__submit, xsk_ring_prod__tx_desc, xsk_socket, xsk_socket__create_shared,
    xsk_socket__delete, xsk_socket_config, xsk_socket_config__bindgen_ty_1, xsk_umem,
    xsk_umem__create, xsk_umem__delete, xsk_umem__fd, xsk_umem_config,
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::cell::UnsafeCell;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::{self, NonNull};

/// XDP_PKT_CONTD of `struct xdp_desc`: the packet continues in the next descriptor.
const CONTINUES: u32 = 1;

impl Descriptor for xdp_desc {
    fn empty() -> Self {
        Self {
            addr: 0,
            len: 0,
            options: 0,
        }
    }

    #[inline]
    fn address(&self) -> usize {
        // 64-bit platforms only, as xsk-rs.
        usize::try_from(self.addr).unwrap_or(usize::MAX)
    }

    #[inline]
    fn length(&self) -> usize {
        self.len as usize
    }

    #[inline]
    fn has_more(&self) -> bool {
        self.options & CONTINUES != 0
    }

    #[inline]
    fn set_more(&mut self, more: bool) {
        self.options = u32::from(more);
    }

    const MOVES: bool = true;

    #[inline]
    fn moved(self, by: isize, length: usize) -> Self {
        Self {
            addr: self.addr.wrapping_add_signed(by as i64),
            // A frame's length is less than 2^16.
            len: u32::try_from(length).unwrap_or(u32::MAX),
            ..self
        }
    }
}

/// One worker's part of the memory.
#[derive(Clone)]
pub(super) struct UmemPart {
    /// Keeps the memory mapped as long as this part is in use.
    pub(super) _region: xsk_rs::Umem,
    /// The beginning of the part; page-aligned.
    pub(super) start: NonNull<u8>,
    /// The size of the part in bytes, a multiple of the page size.
    pub(super) bytes: usize,
    pub(super) chunk_bytes: u32,
}

/// libxdp's view of the rings. libxdp keeps pointers to them while the socket exists, so they are
/// never moved, and are only accessed by pointer.
struct Views {
    fill: UnsafeCell<xsk_ring_prod>,
    completion: UnsafeCell<xsk_ring_cons>,
    rx: UnsafeCell<xsk_ring_cons>,
    tx: UnsafeCell<xsk_ring_prod>,
}

impl Views {
    fn new() -> Box<Self> {
        let producer = xsk_ring_prod {
            cached_prod: 0,
            cached_cons: 0,
            mask: 0,
            size: 0,
            producer: ptr::null_mut(),
            consumer: ptr::null_mut(),
            ring: ptr::null_mut(),
            flags: ptr::null_mut(),
        };
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
            fill: UnsafeCell::new(producer),
            completion: UnsafeCell::new(consumer),
            rx: UnsafeCell::new(consumer),
            tx: UnsafeCell::new(producer),
        })
    }
}

/// The rings of a queue with a UMEM of its own. The receive and transmit rings exist from `bind`
/// on; before, only [`Rings::fill`] may be called.
pub struct FilledRings {
    /// The socket; null until `bind`.
    socket: *mut xsk_socket,
    umem: NonNull<xsk_umem>,
    views: Box<Views>,
    entries: u32,
    _part: UmemPart,
}

// SAFETY: it owns everything that it points to, except the memory, which is shared by the rule of
// this module; nothing is tied to a thread.
unsafe impl Send for FilledRings {}

impl FilledRings {
    /// Registers the part as a UMEM and makes its fill and completion rings.
    pub(super) fn new(part: UmemPart, entries: u32) -> io::Result<Self> {
        let views = Views::new();
        let config = xsk_umem_config {
            fill_size: entries,
            comp_size: entries,
            frame_size: part.chunk_bytes,
            frame_headroom: 0,
            flags: 0,
        };
        let mut umem = ptr::null_mut();
        // SAFETY: the part is mapped, this long, and kept so by `_part`; the views stay where
        // they are until the UMEM is deleted, which `drop` does before it lets go of either. The
        // configuration is only read here.
        result(unsafe {
            xsk_umem__create(
                &raw mut umem,
                part.start.as_ptr().cast(),
                part.bytes as u64,
                views.fill.get(),
                views.completion.get(),
                &raw const config,
            )
        })?;
        let umem = NonNull::new(umem).ok_or_else(|| io::Error::other("libxdp made no UMEM"))?;
        let rings = Self {
            socket: ptr::null_mut(),
            umem,
            views,
            entries,
            _part: part,
        };
        // SAFETY: the descriptor stays open as long as `rings`.
        let socket = unsafe { BorrowedFd::borrow_raw(rings.socket()) };
        fcntl(socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        Ok(rings)
    }

    /// Binds the socket, once. May be retried after a failure.
    pub(super) fn bind(&mut self, interface: &CStr, queue: u32, flags: u16) -> io::Result<()> {
        debug_assert!(self.socket.is_null(), "it is bound once");
        let config = xsk_socket_config {
            rx_size: self.entries,
            tx_size: self.entries,
            __bindgen_anon_1: xsk_socket_config__bindgen_ty_1 {
                libxdp_flags: XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
            },
            xdp_flags: 0,
            bind_flags: flags,
        };
        // SAFETY: the UMEM is alive and these are its rings, which it has no other socket for; the
        // name is a C string. All of it stays until `drop`.
        result(unsafe {
            xsk_socket__create_shared(
                &raw mut self.socket,
                interface.as_ptr(),
                queue,
                self.umem.as_ptr(),
                self.views.rx.get(),
                self.views.tx.get(),
                self.views.fill.get(),
                self.views.completion.get(),
                &raw const config,
            )
        })
    }
}

fn result(returned: i32) -> io::Result<()> {
    match returned {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// The length of a slice as a number of ring entries.
#[allow(
    clippy::cast_possible_truncation,
    reason = "a ring has at most 32,768 entries"
)]
const fn entries(slice_length: usize) -> u32 {
    slice_length as u32
}

// libxdp set up every ring before it is used here, and `&mut self` excludes any other access to it
// from user space. `peek` and `reserve` return how many entries from `first` on belong to user
// space until they are released or submitted.
impl Rings for FilledRings {
    type Descriptor = xdp_desc;

    fn socket(&self) -> RawFd {
        // SAFETY: the UMEM is alive. Its only socket has the same descriptor.
        unsafe { xsk_umem__fd(self.umem.as_ptr()) }
    }

    #[inline]
    fn receive(&mut self, into: &mut [xdp_desc]) -> usize {
        let (ring, mut first) = (self.views.rx.get(), 0);
        // SAFETY: as above.
        let count = unsafe { xsk_ring_cons__peek(ring, entries(into.len()), &raw mut first) };
        for (at, slot) in (0..count).zip(into) {
            // SAFETY: as above.
            let entry = unsafe { xsk_ring_cons__rx_desc(ring, first.wrapping_add(at)) };
            // SAFETY: the entry is in the ring, and the kernel leaves it alone.
            *slot = unsafe { *entry };
        }
        if count > 0 {
            // SAFETY: as above; all of these entries were copied.
            unsafe { xsk_ring_cons__release(ring, count) };
        }
        count as usize
    }

    #[inline]
    fn complete(&mut self, into: &mut [xdp_desc]) -> usize {
        let (ring, mut first) = (self.views.completion.get(), 0);
        // SAFETY: as above.
        let count = unsafe { xsk_ring_cons__peek(ring, entries(into.len()), &raw mut first) };
        for (at, slot) in (0..count).zip(into) {
            // SAFETY: as above.
            let entry = unsafe { xsk_ring_cons__comp_addr(ring, first.wrapping_add(at)) };
            *slot = xdp_desc {
                // SAFETY: the entry is in the ring, and the kernel leaves it alone.
                addr: unsafe { *entry },
                ..xdp_desc::empty()
            };
        }
        if count > 0 {
            // SAFETY: as above; all of these entries were copied.
            unsafe { xsk_ring_cons__release(ring, count) };
        }
        count as usize
    }

    #[inline]
    fn room_to_fill(&mut self, wanted: u32) -> u32 {
        // SAFETY: as above.
        unsafe { xsk_prod_nb_free(self.views.fill.get(), wanted) }
    }

    #[inline]
    unsafe fn fill(&mut self, chunks: &[xdp_desc]) -> usize {
        let (ring, mut first) = (self.views.fill.get(), 0);
        // SAFETY: as above.
        let room = unsafe { xsk_ring_prod__reserve(ring, entries(chunks.len()), &raw mut first) };
        for (at, chunk) in (0..room).zip(chunks) {
            // SAFETY: as above.
            let entry = unsafe { xsk_ring_prod__fill_addr(ring, first.wrapping_add(at)) };
            // SAFETY: the entry is in the ring, and the kernel leaves it alone.
            unsafe { *entry = chunk.addr };
        }
        if room > 0 {
            // SAFETY: as above; all of these entries were written.
            unsafe { xsk_ring_prod__submit(ring, room) };
        }
        room as usize
    }

    #[inline]
    fn room_to_send(&mut self, wanted: u32) -> u32 {
        // SAFETY: as above.
        unsafe { xsk_prod_nb_free(self.views.tx.get(), wanted) }
    }

    #[inline]
    unsafe fn send(&mut self, chunks: &[xdp_desc]) -> usize {
        let (ring, mut first) = (self.views.tx.get(), 0);
        // SAFETY: as above.
        let room = unsafe { xsk_ring_prod__reserve(ring, entries(chunks.len()), &raw mut first) };
        for (at, chunk) in (0..room).zip(chunks) {
            // SAFETY: as above.
            let entry = unsafe { xsk_ring_prod__tx_desc(ring, first.wrapping_add(at)) };
            // SAFETY: the entry is in the ring, and the kernel leaves it alone.
            unsafe { *entry = *chunk };
        }
        if room > 0 {
            // SAFETY: as above; all of these entries were written.
            unsafe { xsk_ring_prod__submit(ring, room) };
        }
        room as usize
    }

    #[inline]
    fn exact_room_to_send(&mut self) -> u32 {
        // Asking for the whole ring makes libxdp read the kernel's index.
        self.room_to_send(self.entries)
    }

    fn wake_to_receive(&mut self) {
        // SAFETY: as above.
        if unsafe { xsk_ring_prod__needs_wakeup(self.views.fill.get()) } == 0 {
            return;
        }
        // SAFETY: the descriptor stays open as long as `self`.
        let socket = unsafe { BorrowedFd::borrow_raw(self.socket()) };
        let _ = poll(
            &mut [PollFd::new(socket, PollFlags::POLLIN)],
            PollTimeout::ZERO,
        );
    }

    fn needs_wake_to_send(&self) -> bool {
        // SAFETY: as above.
        unsafe { xsk_ring_prod__needs_wakeup(self.views.tx.get()) != 0 }
    }

    fn wake_to_send(&mut self) {
        // SAFETY: a null pointer with a length of 0 means no buffer; AF_XDP sends what is in the ring.
        unsafe {
            libc::sendto(
                self.socket().as_raw_fd(),
                ptr::null(),
                0,
                libc::MSG_DONTWAIT,
                ptr::null(),
                0,
            );
        }
    }
}

impl Drop for FilledRings {
    fn drop(&mut self) {
        // SAFETY: it is null or a socket that was not deleted; its UMEM and views are alive.
        unsafe { xsk_socket__delete(self.socket) };
        // SAFETY: the UMEM's only socket is gone, if there was one; the views and the memory are
        // dropped after this.
        unsafe { xsk_umem__delete(self.umem.as_ptr()) };
    }
}
