//! Several wires with one `incoming`: the program of each passes the frames for hosts that it does not
//! know on to that of the next.
//!
//! A map with one program, for a tail call. The programs of a chain must agree in what the kernel
//! compares when one is added: type, JIT compilation, and BPF_F_XDP_HAS_FRAGS.

use super::contract::index_of;
use super::{Kernel, KernelError, NEXT_WIRE, ONLY, absent, map_error};
use crate::Role;
use libbpf_rs::{MapCore, MapFlags};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

impl Kernel {
    /// Passes frames that arrive by `incoming` for a host that this program does not know to the
    /// `incoming` program of the next wire, from the next frame on; `None` for the last wire. That
    /// program counts and delivers them. It stays loaded as long as this program's map is pinned.
    ///
    /// # Errors
    /// The two programs are loaded for different [`Buffers`](super::Buffers), or the map cannot be written.
    pub fn chain_to(&self, next: Option<&Self>) -> Result<(), KernelError> {
        let links = self.links()?;
        let set = |has_next: u64| {
            links[index_of!(exitmark_links, has_next_wire)].store(has_next, Ordering::Relaxed);
        };
        let map = &self.skeleton.maps.next_wire;
        let Some(next) = next else {
            set(0);
            return absent(map.delete(&ONLY)).map_err(map_error(NEXT_WIRE));
        };
        if next.buffers != self.buffers {
            return Err(KernelError::OtherBuffers);
        }
        let program = next.program(Role::Incoming).as_raw_fd().to_ne_bytes();
        map.update(&ONLY, &program, MapFlags::ANY)
            .map_err(map_error(NEXT_WIRE))?;
        set(1);
        Ok(())
    }
}
