//! Several wires with one `incoming`: the program of each passes the frames for hosts that it does not
//! know on to that of the next.
//!
//! A map with one program, for a tail call. The programs of a chain must agree in what the kernel
//! compares when one is added: type, JIT compilation, and BPF_F_XDP_HAS_FRAGS.

use super::contract::index_of;
use super::{Kernel, KernelError, NEXT_WIRE, ONLY, Pins, absent, map_error};
use crate::Role;
use libbpf_rs::{MapCore, MapFlags};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::Ordering;

impl Kernel {
    /// Passes frames that arrive by `incoming` for a host that this program does not know to the
    /// `incoming` program of the next wire, from the next frame on; `None` for the last wire. That
    /// program counts and delivers them. It stays loaded as long as this program's map is pinned.
    ///
    /// # Errors
    /// The two programs are loaded for different [`Buffers`](super::Buffers), or the map cannot be written.
    pub fn chain_to(&self, next: Option<&Self>) -> Result<(), KernelError> {
        if !self.has_siblings {
            return Ok(());
        }
        let links = self.links()?;
        let set = |has_next: u64| {
            links[index_of!(exitmark_links, has_next_wire)].store(has_next, Ordering::Relaxed);
        };
        let Some(next) = next else {
            set(0);
            let map = &self.skeleton.maps.next_wire;
            return absent(map.delete(&ONLY)).map_err(map_error(NEXT_WIRE));
        };
        if next.buffers != self.buffers {
            return Err(KernelError::OtherBuffers);
        }
        self.pass_to(next.program(Role::Incoming))?;
        set(1);
        Ok(())
    }

    /// As [`Kernel::chain_to`], with the program that another process has pinned for a wire which is
    /// not set up now. Returns whether there is one.
    ///
    /// # Errors
    /// The pin cannot be opened, or the kernel refuses the program.
    pub fn chain_to_pinned(&self, pins: &Pins) -> Result<bool, KernelError> {
        if !self.has_siblings {
            return Ok(false);
        }
        let Some(program) = pins.named(&format!("program_{}", Role::Incoming))? else {
            return Ok(false);
        };
        self.pass_to(program.as_fd())?;
        let links = self.links()?;
        links[index_of!(exitmark_links, has_next_wire)].store(1, Ordering::Relaxed);
        Ok(true)
    }

    /// Pins the program of `incoming` where it is not attached, for [`Kernel::chain_to_pinned`].
    ///
    /// # Errors
    /// The pin cannot be made.
    pub fn pin_incoming(&self, pins: &Pins) -> Result<(), KernelError> {
        Ok(pins.pin_program(Role::Incoming, self.program(Role::Incoming))?)
    }

    fn pass_to(&self, program: BorrowedFd<'_>) -> Result<(), KernelError> {
        let program = program.as_raw_fd().to_ne_bytes();
        let map = &self.skeleton.maps.next_wire;
        map.update(&ONLY, &program, MapFlags::ANY)
            .map_err(map_error(NEXT_WIRE))
    }
}
