//! Where the programs run: on the NICs, and at the tracepoints that tell what NICs drop.

use super::pins::Watch;
use super::sys::{XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE};
use super::{Kernel, KernelError, Pins, map_error, sys};
use crate::datapath::Role;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// In the kernel's common receive path: works on every NIC, several times slower.
    Generic,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// Whether XDP can redirect frames to this NIC. Some drivers can from when they have a program
/// themselves.
///
/// # Errors
/// There is no such NIC.
pub fn takes_redirects(ifindex: u32) -> Result<bool, KernelError> {
    let state = sys::xdp_state(ifindex).map_err(map_error("ports"))?;
    Ok(state.takes_redirects)
}

/// A program on a NIC, for as long as its link is pinned.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// How it is attached.
    pub mode: AttachMode,
    /// It was there already, and now has this program.
    pub taken_over: bool,
    /// What was cleaned up on the way, to be said.
    pub remarks: Vec<String>,
}

impl Kernel {
    /// Attaches a role's program to a NIC: in the place of the one that is pinned for it, or
    /// anew, natively where the driver can, else generically. From then on it stays without
    /// this process.
    ///
    /// # Errors
    /// The NIC takes it in neither way, or it cannot be pinned.
    pub fn attach(
        &self,
        pins: &Pins,
        role: Role,
        interface: &str,
        ifindex: u32,
    ) -> Result<Attachment, KernelError> {
        let program = self.program(role);
        let mut remarks = Vec::new();
        let failed = |source: io::Error| KernelError::Attach {
            interface: interface.to_owned(),
            hint: attach_hint(&source),
            source,
        };
        let mut taken_over = false;
        if let Some(link) = pins.link(role)? {
            let attached_to = sys::link_ifindex(link.as_fd()).map_err(failed)?;
            if attached_to == ifindex {
                sys::update_link(link.as_fd(), program).map_err(failed)?;
                taken_over = true;
            } else {
                remarks.push(match attached_to {
                    0 => format!("the NIC that was {role} before is gone: its pin is removed"),
                    _ => format!("another NIC was {role} before: the program is taken off it"),
                });
                pins.remove_link(role)?;
            }
        }
        if !taken_over {
            let link = match sys::create_link(program, ifindex, XDP_FLAGS_DRV_MODE) {
                Ok(link) => link,
                // Taken by another program, or no right to: generic mode would change neither.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EPERM)) => {
                    return Err(failed(error));
                }
                Err(native) => sys::create_link(program, ifindex, XDP_FLAGS_SKB_MODE)
                    .map_err(|_| failed(native))?,
            };
            pins.pin_link(role, link)?;
        }
        let state = sys::xdp_state(ifindex).map_err(failed)?;
        Ok(Attachment {
            mode: if state.is_generic {
                AttachMode::Generic
            } else {
                AttachMode::Native
            },
            taken_over,
            remarks,
        })
    }

    fn program(&self, role: Role) -> BorrowedFd<'_> {
        let programs = &self.skeleton.progs;
        match role {
            Role::Host => programs.exitmark_host.as_fd(),
            Role::Uplink => programs.exitmark_uplink.as_fd(),
            Role::Incoming => programs.exitmark_incoming.as_fd(),
        }
    }

    /// Counts, from now on and without this process, what the NICs do not take.
    ///
    /// # Errors
    /// It cannot be attached or pinned.
    pub fn watch_drops(&self, pins: &Pins) -> Result<(), KernelError> {
        if self.counts_drops {
            let programs = &self.skeleton.progs;
            pins.remove_watches()?;
            for (watch, program) in [
                (Watch::Unsent, programs.exitmark_unsent.as_fd()),
                (Watch::Unredirected, programs.exitmark_unredirected.as_fd()),
            ] {
                let link = sys::create_tracing_link(program).map_err(map_error("counters"))?;
                pins.pin_watch(watch, link)?;
            }
        }
        Ok(())
    }
}

fn attach_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => {
            "; another XDP program is attached: `exitmark detach` takes an exitmark's off, \
             `ip link set dev NIC xdp off` another one's"
        }
        Some(libc::EPERM) => "; it takes CAP_NET_ADMIN and CAP_BPF",
        Some(libc::ERANGE | libc::EINVAL | libc::EOPNOTSUPP) => {
            "; the driver may not take this MTU or number of queues with XDP"
        }
        _ => "",
    }
}
