//! Attaches the programs: to the NICs, and to the tracepoints that report dropped frames.

use super::contract::index_of;
use super::pins::DropCounter;
use super::sys::{XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE};
pub use super::sys::{XdpFeatures, XdpState, kernel_version};
use super::{Kernel, KernelError, Pins, map_error, sys};
use crate::{PerRole, Role};
use libbpf_rs::MapCore;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver (XDP_FLAGS_DRV_MODE).
    Native,
    /// In the kernel's generic receive path (XDP_FLAGS_SKB_MODE): any NIC, several times slower.
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

/// The XDP program on a NIC, and the XDP features of its driver.
///
/// # Errors
/// The NIC does not exist.
pub fn xdp_state(ifindex: u32) -> Result<XdpState, KernelError> {
    sys::xdp_state(ifindex).map_err(map_error("ports"))
}

/// A program on a NIC. It stays as long as its link is pinned or this value exists.
#[derive(Debug)]
pub struct Attachment {
    /// The role of the NIC, which selects the program.
    pub role: Role,
    /// Native (in the driver) or generic (in the network stack).
    pub mode: AttachMode,
    /// Keeps the program on the NIC if the pin is removed.
    link: OwnedFd,
    /// The link that was taken over, and its previous program if that could be opened.
    before: Option<(OwnedFd, Option<OwnedFd>)>,
}

/// The programs that count frames dropped by NICs. They stay as long as their links are pinned or
/// this value exists.
#[derive(Debug, Default)]
pub struct DropCounters(Vec<(DropCounter, OwnedFd)>);

impl Attachment {
    /// Whether this replaced the program of another process.
    pub const fn is_taken_over(&self) -> bool {
        self.before.is_some()
    }

    /// Gives up the previous program: [`Attachment::revert`] can no longer restore it.
    pub fn keep(&mut self) {
        self.before = None;
    }

    /// Restores the previous program, or detaches this one if there was none.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn revert(self, pins: &Pins) -> Result<(), KernelError> {
        match self.before {
            Some((link, Some(program))) => {
                sys::update_link(link.as_fd(), program.as_fd()).map_err(map_error("ports"))?;
                Ok(pins.pin_program(self.role, program.as_fd())?)
            }
            // The previous program cannot be opened; the new one keeps forwarding by itself.
            Some((_, None)) => Ok(()),
            None => Ok(pins.remove_link(self.role).map(drop)?),
        }
    }
}

impl Kernel {
    /// Attaches a role's program to a NIC. Replaces the program of the role's pinned link if there
    /// is one (after [`Kernel::clear`], that link is on this NIC); otherwise makes a new link,
    /// native if the driver can, else generic. The program then stays without this process.
    ///
    /// # Errors
    /// The NIC accepts the program in neither mode, or it cannot be pinned.
    pub fn attach(
        &self,
        pins: &Pins,
        role: Role,
        interface: &str,
        ifindex: u32,
    ) -> Result<Attachment, KernelError> {
        let program = self.program(role);
        let failed = |error| attach_error(error, interface, ifindex);
        let (link, before) = match pins.link(role)? {
            Some(link) => {
                let target = sys::link_target(link.as_fd()).map_err(failed)?;
                // A process that was killed, or another build, may have left it unpinned.
                let old = pins.open_program(role, target.program);
                let old = old.inspect_err(|error| {
                    tracing::warn!(
                        "the program on {interface} is replaced and cannot be restored if this \
                         start fails, because it cannot be opened: {error}"
                    );
                });
                let old = old.ok();
                pins.pin_program(role, program)?;
                if let Err(error) = sys::update_link(link.as_fd(), program) {
                    match &old {
                        Some(old) => pins.pin_program(role, old.as_fd())?,
                        None => pins.remove_program(role)?,
                    }
                    return Err(failed(error));
                }
                let kept = link.try_clone().map_err(failed)?;
                (kept, Some((link, old)))
            }
            None => {
                pins.pin_program(role, program)?;
                let native = sys::create_link(program, ifindex, XDP_FLAGS_DRV_MODE);
                let link = native.or_else(|native| match native.raw_os_error() {
                    // Another program, possibly in generic mode, is attached, or the capabilities
                    // are missing: generic mode would fail as well.
                    Some(libc::EBUSY | libc::EEXIST | libc::EPERM) => Err(native),
                    _ => {
                        let generic = sys::create_link(program, ifindex, XDP_FLAGS_SKB_MODE);
                        generic.map_err(|_| native)
                    }
                });
                if link.is_err() {
                    pins.remove_program(role)?;
                }
                let link = link.map_err(failed)?;
                pins.pin_link(role, &link)?;
                (link, None)
            }
        };
        let state = sys::xdp_state(ifindex).map_err(failed)?;
        Ok(Attachment {
            role,
            link,
            mode: match state.is_generic {
                true => AttachMode::Generic,
                false => AttachMode::Native,
            },
            before,
        })
    }

    /// Detaches a role's program from its NIC and attaches it again in the same mode, so that the
    /// driver reinitialises. Frames that arrive in between are lost.
    ///
    /// # Errors
    /// As [`Kernel::attach`]; then nothing is attached. If the pins belong to another user, nothing
    /// has changed.
    pub fn reattach(
        &self,
        pins: &Pins,
        role: Role,
        interface: &str,
        ifindex: u32,
        mode: AttachMode,
    ) -> Result<Attachment, KernelError> {
        pins.remove_link(role)?;
        match mode {
            AttachMode::Native => self.attach(pins, role, interface, ifindex),
            AttachMode::Generic => self.attach_generic(pins, role, interface, ifindex),
        }
    }

    /// Detaches a program and attaches it again in generic mode. It must not have taken over
    /// another program: in between the NIC has none.
    ///
    /// # Errors
    /// The NIC refuses the program, or it cannot be pinned; then nothing is attached.
    pub fn make_generic(
        &self,
        pins: &Pins,
        attachment: &mut Attachment,
        interface: &str,
        ifindex: u32,
    ) -> Result<(), KernelError> {
        debug_assert!(
            !attachment.is_taken_over(),
            "the frames of a box would be lost"
        );
        let (role, mode) = (attachment.role, AttachMode::Generic);
        *attachment = self.reattach(pins, role, interface, ifindex, mode)?;
        Ok(())
    }

    fn attach_generic(
        &self,
        pins: &Pins,
        role: Role,
        interface: &str,
        ifindex: u32,
    ) -> Result<Attachment, KernelError> {
        pins.pin_program(role, self.program(role))?;
        let link = sys::create_link(self.program(role), ifindex, XDP_FLAGS_SKB_MODE);
        let link = link.map_err(|error| attach_error(error, interface, ifindex))?;
        pins.pin_link(role, &link)?;
        Ok(Attachment {
            role,
            mode: AttachMode::Generic,
            link,
            before: None,
        })
    }

    /// Restores the pins if any is missing: removed by hand, or with its file system. The programs
    /// stay on their NICs meanwhile. Returns whether any was missing.
    ///
    /// # Errors
    /// The file system refuses a change.
    pub fn pin_again(
        &self,
        pins: &mut Pins,
        attachments: &[Attachment],
        drop_counters: &DropCounters,
    ) -> Result<bool, KernelError> {
        let is_any_missing = pins.are_wiped(
            attachments.iter().map(|one| one.role),
            drop_counters.0.iter().map(|&(counter, _)| counter),
            (self.layout, self.pinned_maps()),
        );
        if !is_any_missing {
            return Ok(false);
        }
        pins.renew()?;
        for attachment in attachments {
            pins.pin_program(attachment.role, self.program(attachment.role))?;
            if pins.link(attachment.role)?.is_none() {
                pins.pin_link(attachment.role, &attachment.link)?;
            }
        }
        pins.remove_drop_counters()?;
        for (counter, link) in &drop_counters.0 {
            pins.pin_drop_counter(*counter, link)?;
        }
        self.pin_maps(pins)?;
        Ok(true)
    }

    /// Detaches the programs from NICs that no longer have their role, so that no old link blocks
    /// a new one. Returns one remark for the log per program.
    ///
    /// # Errors
    /// A link cannot be read or removed.
    pub fn clear(&self, pins: &Pins, nics: PerRole<u32>) -> Result<Vec<String>, KernelError> {
        let mut remarks = Vec::new();
        for (role, &ifindex) in nics.iter() {
            let Some(link) = pins.link(role)? else {
                continue;
            };
            let target = sys::link_target(link.as_fd()).map_err(map_error("ports"))?;
            // An interface index is valid in one network namespace only.
            let is_on_it = target.ifindex == ifindex
                && ifindex != 0
                && xdp_state(ifindex)?.program == target.program;
            if is_on_it {
                continue;
            }
            remarks.push(match (target.ifindex, ifindex) {
                (0, _) => format!("the NIC that was {role} before is gone: its pin is removed"),
                (_, 0) => {
                    format!("{role} is no longer configured: the program is detached from its NIC")
                }
                _ => format!("another NIC was {role} before: the program is detached from it"),
            });
            pins.remove_link(role)?;
        }
        Ok(remarks)
    }

    /// The program of the NIC with this role.
    pub fn program(&self, role: Role) -> BorrowedFd<'_> {
        let programs = &self.skeleton.progs;
        match role {
            Role::Host => programs.exitmark_host.as_fd(),
            Role::Uplink => programs.exitmark_uplink.as_fd(),
            Role::Incoming => programs.exitmark_incoming.as_fd(),
        }
    }

    /// Attaches the programs that count redirected frames dropped by NICs. They keep counting
    /// without this process.
    ///
    /// # Errors
    /// A program cannot be attached or pinned.
    pub fn count_drops(&self, pins: &Pins) -> Result<DropCounters, KernelError> {
        let mut drop_counters = DropCounters::default();
        if self.counts_drops {
            let ports = self.skeleton.maps.ports.info();
            let number = ports.map_err(map_error("ports"))?.info.id;
            let links = self.links()?;
            links[index_of!(exitmark_links, ports_map)].store(number.into(), Ordering::Relaxed);
            let programs = &self.skeleton.progs;
            for (counter, program) in [
                (DropCounter::Unsent, programs.exitmark_unsent.as_fd()),
                (
                    DropCounter::Unredirected,
                    programs.exitmark_unredirected.as_fd(),
                ),
            ] {
                let link = sys::create_tracing_link(program).map_err(map_error("counters"))?;
                pins.pin_drop_counter(counter, &link)?;
                drop_counters.0.push((counter, link));
            }
        }
        Ok(drop_counters)
    }
}

fn attach_error(source: io::Error, interface: &str, ifindex: u32) -> KernelError {
    KernelError::Attach {
        interface: interface.to_owned(),
        hint: attach_hint(&source, interface, ifindex),
        source,
    }
}

fn attach_hint(error: &io::Error, interface: &str, ifindex: u32) -> String {
    match error.raw_os_error() {
        // EEXIST: the other program is in another mode.
        Some(libc::EBUSY | libc::EEXIST) => {
            let state = xdp_state(ifindex).ok().filter(|state| state.program != 0);
            let number = state.map_or_else(String::new, |state| {
                let number = state.program;
                format!(" (number {number}; `bpftool prog show id {number}` says what it is)")
            });
            // `xdp off` does not detach a generic program.
            let mode = match state {
                Some(state) if state.is_generic => "xdpgeneric",
                _ => "xdp",
            };
            format!(
                "; another XDP program is attached{number}: `exitmark detach` detaches one of \
                 exitmark, `ip link set dev {interface} {mode} off` another one"
            )
        }
        Some(libc::EPERM) => "; that requires CAP_NET_ADMIN and CAP_BPF".to_owned(),
        Some(libc::ERANGE | libc::EINVAL | libc::EOPNOTSUPP) => {
            "; the driver may not support this MTU or number of queues with XDP: lower them"
                .to_owned()
        }
        _ => String::new(),
    }
}
