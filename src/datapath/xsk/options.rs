//! Options of AF_XDP and AF_PACKET sockets, which the standard library, nix and xsk-rs lack.

use libc::{c_int, c_void, socklen_t};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// Socket option since Linux 6.17: how many packets one `sendto` in copy mode may send.
pub(super) const XDP_MAX_TX_SKB_BUDGET: c_int = 9;
/// The only flag of `struct xdp_options`.
const XDP_OPTIONS_ZEROCOPY: u32 = 1;

pub(super) fn set_option(fd: RawFd, level: c_int, option: c_int, value: u32) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which outlives the call; the kernel
    // only reads it. The standard library and nix know none of these options.
    let result = unsafe {
        libc::setsockopt(
            fd,
            level,
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

pub(super) fn bound_zero_copy(socket: impl AsRawFd) -> io::Result<bool> {
    // `struct xdp_options` is one number, its flags.
    let mut flags: u32 = 0;
    read_option(&socket, libc::XDP_OPTIONS, &mut flags)?;
    Ok(flags & XDP_OPTIONS_ZEROCOPY != 0)
}

/// Reads a socket option whose C type is `T`, made of integers only.
pub(super) fn read_option<T: Copy>(
    socket: &impl AsRawFd,
    option: c_int,
    into: &mut T,
) -> io::Result<()> {
    let mut length = socklen_of::<T>();
    // SAFETY: both pointers are to live, writable places, and `length` is the size of the first;
    // every value of its bytes is a `T`, since callers pass plain integers.
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
