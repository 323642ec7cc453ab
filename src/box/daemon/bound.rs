//! The ports' state and the decisions taken when the sockets were bound. The running box compares
//! the ports with it and reports it.

use super::zero_copy::Lossy;
use crate::settings::Engine;
use exitmark_datapath::{AttachMode, PerRole, Role};
use exitmark_nic::Nic;
use std::fmt;

/// The ports' state, and the decisions made, when the sockets were bound.
pub(super) struct BoundState {
    pub(super) requested: Engine,
    /// The engine in use, `AfXdp` or `Xdp`; never `Auto`.
    pub(super) engine: Engine,
    pub(super) reason: &'static str,
    pub(super) ports: Vec<BoundPort>,
    /// Where only zero-copy keeps the program from redirecting: from which ports, and up to which
    /// length in bytes, it may redirect once every socket is closed.
    pub(super) afterwards: Option<(PerRole<bool>, u32)>,
}

#[derive(Clone)]
pub(super) struct BoundPort {
    pub(super) role: Role,
    /// The NIC's name in the configuration.
    pub(super) configured: String,
    pub(super) nic: Nic,
    pub(super) mode: AttachMode,
    pub(super) is_zero_copy: bool,
    /// Whether all of its frames go to user space, and why or why not.
    pub(super) hands_over: bool,
    pub(super) reason: &'static str,
    /// The program and the sockets of another wire are on this NIC.
    pub(super) is_shared: bool,
    /// Its frames cannot be redirected, so a worker must forward them.
    pub(super) needs_process: bool,
    /// The NIC that would lose the redirects, if they fail because the port is zero-copy.
    pub(super) lossy: Option<Lossy>,
}

impl fmt::Display for BoundPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.nic.name, self.role)
    }
}

impl BoundPort {
    #[cfg(test)]
    pub(super) fn example(role: Role, name: &str) -> Self {
        Self {
            role,
            configured: name.to_owned(),
            nic: Nic::example(name, Some("igb")),
            mode: AttachMode::Native,
            is_zero_copy: false,
            hands_over: false,
            reason: "",
            is_shared: false,
            needs_process: false,
            lossy: None,
        }
    }

    /// The consequence of [`Self::needs_process`].
    pub(super) fn alone(&self) -> String {
        let role = self.role;
        match &self.lossy {
            Some(lossy) => format!(
                "frames from {role} are forwarded by this process alone: they are lost while the \
                 process hangs or is behind, and after it is killed until the next start, because \
                 {lossy}; datapath.zero_copy = \"auto\" uses copy mode here"
            ),
            None => format!(
                "frames from {role} are forwarded by this process alone, and are lost when it \
                 ends, because not every NIC by which they leave takes redirected ones; use another \
                 NIC, or on a veth pair `ethtool -K PEER gro on`"
            ),
        }
    }
}

impl BoundState {
    #[cfg(test)]
    pub(super) fn example(ports: Vec<BoundPort>) -> Self {
        Self {
            requested: Engine::Auto,
            engine: Engine::Xdp,
            reason: "",
            ports,
            afterwards: None,
        }
    }

    /// Whether some port cannot forward without a worker. Ports that are blocked by zero-copy alone
    /// do not count: they leave that mode when their sockets are closed.
    pub(super) fn is_dead_without_workers(&self) -> bool {
        let mut ports = self.ports.iter();
        ports.any(|port| port.needs_process && port.lossy.is_none())
    }

    /// The MTU of all ports, in bytes.
    pub(super) fn mtu(&self) -> u32 {
        let mtus = self.ports.iter().map(|port| port.nic.mtu);
        mtus.max().unwrap_or(0)
    }

    pub(super) fn of(&self, role: Role) -> Option<&BoundPort> {
        self.ports.iter().find(|port| port.role == role)
    }

    /// The name of a port's NIC; the role's if the port does not exist.
    pub(super) fn nic_name(&self, role: Role) -> &str {
        self.of(role).map_or(role.name(), |port| &port.nic.name)
    }

    pub(super) fn port(&mut self, role: Role) -> Option<&mut BoundPort> {
        self.ports.iter_mut().find(|port| port.role == role)
    }
}
