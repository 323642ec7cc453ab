//! Where the programs run: on the NICs, and at the tracepoints that tell what NICs drop.

use super::pins::Watch;
use super::sys::{XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE};
pub use super::sys::{XdpAbilities, XdpState, kernel_version};
use super::{Kernel, KernelError, PINNED_MAPS, Pins, map_error, sys};
use crate::datapath::{PerRole, Role};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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

/// What XDP is on a NIC, and what its driver can do.
///
/// # Errors
/// There is no such NIC.
pub fn xdp_state(ifindex: u32) -> Result<XdpState, KernelError> {
    sys::xdp_state(ifindex).map_err(map_error("ports"))
}

/// A program on a NIC, for as long as its link is pinned or this is there.
#[derive(Debug)]
pub struct Attachment {
    /// The port's role.
    pub role: Role,
    /// How it is attached.
    pub mode: AttachMode,
    /// Keeps the program on the NIC when the pin is removed.
    link: OwnedFd,
    /// The link, and the program that was there before if it could be opened.
    before: Option<(OwnedFd, Option<OwnedFd>)>,
}

/// The programs that count what NICs drop, for as long as their links are pinned or this is there.
#[derive(Debug, Default)]
pub struct Watches(Vec<(Watch, OwnedFd)>);

impl Attachment {
    /// Whether another process' program was there and has been replaced.
    pub const fn is_taken_over(&self) -> bool {
        self.before.is_some()
    }

    /// Lets go of what was there before.
    pub fn keep(&mut self) {
        self.before = None;
    }

    /// Puts back what was there before, or takes the program off.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn revert(self, pins: &Pins) -> Result<(), KernelError> {
        match self.before {
            Some((link, Some(program))) => {
                sys::update_link(link.as_fd(), program.as_fd()).map_err(map_error("ports"))?;
                Ok(pins.pin_program(self.role, program.as_fd())?)
            }
            // The new one forwards on without this process.
            Some((_, None)) => Ok(()),
            None => Ok(pins.remove_link(self.role).map(drop)?),
        }
    }
}

impl Kernel {
    /// Attaches a role's program to a NIC: in the place of the one that is pinned for it, or
    /// anew (after [`Kernel::clear`], what is pinned is on this NIC), natively where the driver
    /// can, else generically. From then on it stays without this process.
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
        let failed = |source: io::Error| KernelError::Attach {
            interface: interface.to_owned(),
            hint: attach_hint(&source, interface, ifindex),
            source,
        };
        let (link, before) = match pins.link(role)? {
            Some(link) => {
                let target = sys::link_target(link.as_fd()).map_err(failed)?;
                // A process that was killed, or another build, may have left it without a pin.
                let old = pins.open_program(role, target.program);
                let old = old.inspect_err(|error| {
                    tracing::warn!(
                        "the program on {interface} is replaced for good: it cannot be opened, to \
                         be put back if this start fails: {error}"
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
                let link = match sys::create_link(program, ifindex, XDP_FLAGS_DRV_MODE) {
                    Ok(link) => Ok(link),
                    // Taken by another program, which may be in generic mode itself, or no right
                    // to: generic mode changes neither.
                    Err(error)
                        if matches!(
                            error.raw_os_error(),
                            Some(libc::EBUSY | libc::EEXIST | libc::EPERM)
                        ) =>
                    {
                        Err(error)
                    }
                    Err(native) => {
                        let generic = sys::create_link(program, ifindex, XDP_FLAGS_SKB_MODE);
                        generic.map_err(|_| native)
                    }
                };
                let link = match link {
                    Ok(link) => link,
                    Err(error) => {
                        pins.remove_program(role)?;
                        return Err(failed(error));
                    }
                };
                pins.pin_link(role, &link)?;
                (link, None)
            }
        };
        let state = sys::xdp_state(ifindex).map_err(failed)?;
        Ok(Attachment {
            role,
            link,
            mode: if state.is_generic {
                AttachMode::Generic
            } else {
                AttachMode::Native
            },
            before,
        })
    }

    /// Takes a role's program off its NIC and attaches it again in the same mode, so that the
    /// driver sets itself up anew. Frames that arrive in between are lost.
    ///
    /// # Errors
    /// As [`Kernel::attach`]; then nothing is attached. Where the pins are another user's, nothing
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

    /// Attaches a program again, in generic mode. It must be the first one there: in between the
    /// NIC has none.
    ///
    /// # Errors
    /// The NIC does not take it, or it cannot be pinned; then it is attached no more.
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
        pins.remove_link(attachment.role)?;
        *attachment = self.attach_generic(pins, attachment.role, interface, ifindex)?;
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
        let link = link.map_err(|source| KernelError::Attach {
            interface: interface.to_owned(),
            hint: attach_hint(&source, interface, ifindex),
            source,
        })?;
        pins.pin_link(role, &link)?;
        Ok(Attachment {
            role,
            mode: AttachMode::Generic,
            link,
            before: None,
        })
    }

    /// Whether anything of what this box has pinned is gone: removed by hand, or with its file
    /// system.
    pub fn is_unpinned(&self, pins: &Pins, attachments: &[Attachment], watches: &Watches) -> bool {
        pins.are_wiped(
            attachments.iter().map(|one| one.role),
            watches.0.iter().map(|&(watch, _)| watch),
            (self.layout, &PINNED_MAPS),
        )
    }

    /// Pins again what was unpinned. The programs are on their NICs all the while.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn pin_again(
        &self,
        pins: &mut Pins,
        attachments: &[Attachment],
        watches: &Watches,
    ) -> Result<(), KernelError> {
        pins.renew()?;
        for attachment in attachments {
            pins.pin_program(attachment.role, self.program(attachment.role))?;
            if pins.link(attachment.role)?.is_none() {
                pins.pin_link(attachment.role, &attachment.link)?;
            }
        }
        pins.remove_watches()?;
        for (watch, link) in &watches.0 {
            pins.pin_watch(*watch, link)?;
        }
        self.pin_maps(pins)
    }

    /// Takes the programs off NICs that do not play these roles any more, so that no link is in
    /// the way of another one. Returns what was done, to be said.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn clear(&self, pins: &Pins, nics: PerRole<u32>) -> Result<Vec<String>, KernelError> {
        let mut remarks = Vec::new();
        for (role, &ifindex) in nics.iter() {
            let Some(link) = pins.link(role)? else {
                continue;
            };
            let target = sys::link_target(link.as_fd()).map_err(map_error("ports"))?;
            // A number means a NIC in one network namespace only.
            let is_on_it = target.ifindex == ifindex
                && ifindex != 0
                && xdp_state(ifindex)?.program == target.program;
            if is_on_it {
                continue;
            }
            remarks.push(match (target.ifindex, ifindex) {
                (0, _) => format!("the NIC that was {role} before is gone: its pin is removed"),
                (_, 0) => format!("there is no {role} any more: the program is taken off its NIC"),
                _ => format!("another NIC was {role} before: the program is taken off it"),
            });
            pins.remove_link(role)?;
        }
        Ok(remarks)
    }

    pub(super) fn program(&self, role: Role) -> BorrowedFd<'_> {
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
    pub fn watch_drops(&self, pins: &Pins) -> Result<Watches, KernelError> {
        let mut watches = Watches::default();
        if self.counts_drops {
            let programs = &self.skeleton.progs;
            for (watch, program) in [
                (Watch::Unsent, programs.exitmark_unsent.as_fd()),
                (Watch::Unredirected, programs.exitmark_unredirected.as_fd()),
            ] {
                let link = sys::create_tracing_link(program).map_err(map_error("counters"))?;
                pins.pin_watch(watch, &link)?;
                watches.0.push((watch, link));
            }
        }
        Ok(watches)
    }
}

fn attach_hint(error: &io::Error, interface: &str, ifindex: u32) -> String {
    match error.raw_os_error() {
        // EEXIST: the other one is in another mode.
        Some(libc::EBUSY | libc::EEXIST) => {
            let state = xdp_state(ifindex).ok().filter(|state| state.program != 0);
            let number = state.map_or_else(String::new, |state| {
                let number = state.program;
                format!(" (number {number}; `bpftool prog show id {number}` says what it is)")
            });
            // Without its mode, `xdp off` leaves a generic program where it is.
            let mode = match state {
                Some(state) if state.is_generic => "xdpgeneric",
                _ => "xdp",
            };
            format!(
                "; another XDP program is attached{number}: `exitmark detach` takes an exitmark's \
                 off, `ip link set dev {interface} {mode} off` another one's"
            )
        }
        Some(libc::EPERM) => "; it takes CAP_NET_ADMIN and CAP_BPF".to_owned(),
        Some(libc::ERANGE | libc::EINVAL | libc::EOPNOTSUPP) => {
            "; the driver may not take this MTU or number of queues with XDP".to_owned()
        }
        _ => String::new(),
    }
}
