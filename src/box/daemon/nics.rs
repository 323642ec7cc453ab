//! The NICs that the settings name, checked against what a wire needs, and what is set on them.

use super::DaemonError;
use super::zero_copy::Lossy;
use crate::settings::{Frags, Settings};
use exitmark_datapath::{Buffers, PerRole, Role, xdp_state};
use exitmark_nic::{LocalNic, NextHop, Nic, is_link_local, possible_cpus};

const ETHERNET_HEADER: u32 = 14;
const TAG: u32 = 4;

/// The NICs in their roles. Where one NIC is both `uplink` and `incoming`, `incoming` has no port
/// of its own.
#[derive(Default)]
pub(super) struct Nics {
    pub(super) ports: PerRole<Option<Nic>>,
    pub(super) incoming_role: Option<Role>,
    /// The program of another wire is attached to `incoming`, and passes on the frames for the
    /// hosts of this wire.
    pub(super) shares_incoming: bool,
    /// The box has other wires.
    pub(super) has_siblings: bool,
}

impl Nics {
    pub(super) fn look(settings: &Settings) -> Result<Self, DaemonError> {
        Self::look_by(&configured(settings), settings)
    }

    /// Reads and checks the NICs of these names.
    pub(super) fn look_by(
        names: &PerRole<Option<String>>,
        settings: &Settings,
    ) -> Result<Self, DaemonError> {
        let look = |name: &String| Nic::look(name);
        let mut nics = Self::default();
        for (role, name) in names.iter() {
            nics.ports[role] = name.as_ref().map(look).transpose()?;
        }
        nics.check_distinct(names)?;
        if let Some(incoming) = settings.incoming() {
            let role = match nics.ports[Role::Incoming] {
                Some(_) => Role::Incoming,
                None => Role::Uplink,
            };
            nics.incoming_role = Some(role);
            let mut hops = incoming.next_hops.iter();
            if let Some(nic) = &nics.ports[role]
                && hops.any(|hop| hop.next_hop == NextHop::Mac(nic.mac))
            {
                return Err(DaemonError::NextHopIsSelf(nic.name.clone()));
            }
        }
        nics.check()?;
        if settings.datapath.frags == Frags::Off
            && let Some(nic) = nics.of_several_buffers()
        {
            return Err(DaemonError::Unmet(format!(
                "{0} has MTU {1}, but with datapath.frags = \"off\" a frame must fit one buffer: \
                 `ip link set dev {0} mtu {2}` on every port, or datapath.frags = \"auto\"",
                nic.name,
                nic.mtu,
                nic.one_buffer_mtu()
            )));
        }
        let cpus = possible_cpus();
        let has_program = |nic: &Nic| Ok(xdp_state(nic.index)?.is_native());
        for nic in nics.ports.iter_mut().filter_map(|(_, nic)| nic.as_mut()) {
            if has_program(nic)? {
                nic.queues = nic.own_queues(cpus);
            }
        }
        nics.check_queues(settings.engine, cpus, has_program)?;
        Ok(nics)
    }

    /// Logs a warning for each deviation that the box tolerates.
    pub(super) fn remark(&self, settings: &Settings) {
        for (role, nic) in self.present() {
            if self.is_wire(role) && !nic.addresses.is_empty() {
                tracing::warn!(
                    "{} ({role}) has an IPv6 link-local address: the box announces itself on the \
                     wire; remove it with `sysctl -w net.ipv6.conf.{}.disable_ipv6=1`",
                    nic.name,
                    nic.sysctl_name(),
                );
            }
        }
        for remark in self.remarks_on_queues(settings.engine, possible_cpus()) {
            tracing::warn!("{remark}");
        }
    }

    /// Refuses one NIC in two roles: alternative names can name it twice.
    fn check_distinct(&self, names: &PerRole<Option<String>>) -> Result<(), DaemonError> {
        let mut known: Vec<(Role, &Nic)> = Vec::new();
        for (role, nic) in self.present() {
            if let Some(&(other, _)) = known.iter().find(|(_, one)| one.index == nic.index) {
                let name = |role: Role| names[role].as_deref().unwrap_or_default();
                return Err(DaemonError::Unmet(format!(
                    "ports.{other} = \"{}\" and ports.{role} = \"{}\" are two names of one NIC, \
                     {}: name another one; uplink and incoming alone can be one NIC, and then both \
                     keys have the same name",
                    name(other),
                    name(role),
                    nic.name
                )));
            }
            known.push((role, nic));
        }
        Ok(())
    }

    /// Whether a port is an end of the wire only: not on the network of the next hop.
    fn is_wire(&self, role: Role) -> bool {
        role != Role::Incoming && self.incoming_role != Some(role)
    }

    fn check(&self) -> Result<(), DaemonError> {
        let mut first: Option<&Nic> = None;
        for (role, nic) in self.present() {
            // On the network of the next hop the box may have interfaces and addresses of its own.
            let is_wire = self.is_wire(role);
            nic.refuse_bundles()?;
            if is_wire {
                nic.refuse_uppers()?;
            }
            if !nic.is_up {
                return Err(DaemonError::Down(nic.name.clone(), role));
            }
            nic.offloads.to_turn_off(&nic.name)?;
            // Packets to an address of this machine would be forwarded.
            let address = nic.addresses.iter().find(|one| !is_link_local(one));
            if let (Some(address), true) = (address, is_wire) {
                return Err(DaemonError::Unmet(format!(
                    "{0} ({role}) has the address {address}, but the box is a wire there: nothing \
                     that is sent to that address would reach it; remove it with `ip addr del \
                     {address} dev {0}`",
                    nic.name
                )));
            }
            let first = *first.get_or_insert(nic);
            if nic.mtu != first.mtu {
                return Err(DaemonError::Unmet(format!(
                    "{0} has MTU {1} but {2} has MTU {3}; a wire needs the same on every port: \
                     `ip link set dev {2} mtu {1}`",
                    first.name, first.mtu, nic.name, nic.mtu
                )));
            }
        }
        Ok(())
    }

    /// The NIC by which steered frames leave.
    pub(super) fn incoming(&self) -> Option<&Nic> {
        self.ports[self.incoming_role?].as_ref()
    }

    pub(super) fn present(&self) -> impl Iterator<Item = (Role, &Nic)> {
        self.ports
            .iter()
            .filter_map(|(role, nic)| Some((role, nic.as_ref()?)))
    }

    /// The ports to which this wire attaches its programs, and its sockets.
    pub(super) fn own(&self) -> impl Iterator<Item = (Role, &Nic)> {
        self.present().filter(|&(role, _)| !self.is_shared(role))
    }

    /// Whether the program of another wire is attached to the port.
    pub(super) fn is_shared(&self, role: Role) -> bool {
        self.shares_incoming && role == Role::Incoming
    }

    /// The maximum of a number over all ports.
    pub(super) fn common(&self, number: impl Fn(&Nic) -> u32) -> u32 {
        self.present()
            .map(|(_, nic)| number(nic))
            .max()
            .unwrap_or(0)
    }

    /// Each port's interface index; 0 for a port that is missing.
    pub(super) fn numbers(&self) -> PerRole<u32> {
        PerRole::from_fn(|role| self.ports[role].as_ref().map_or(0, |nic| nic.index))
    }

    /// The longest frame, in bytes, that XDP can redirect to every port: the kernel allows one VLAN
    /// tag on top of the MTU, veth none. Not every driver takes multi-buffer frames.
    pub(super) fn longest_redirect(&self, in_several_buffers: bool) -> u32 {
        let limit = |nic: &Nic| {
            let mtu = match in_several_buffers {
                true => nic.mtu,
                false => nic.mtu.min(nic.one_buffer_mtu()),
            };
            mtu + ETHERNET_HEADER + if nic.is_veth { 0 } else { TAG }
        };
        self.present().map(|(_, nic)| limit(nic)).min().unwrap_or(0)
    }

    /// The first NIC with an MTU at which a packet takes several buffers.
    pub(super) fn of_several_buffers(&self) -> Option<&Nic> {
        let mut nics = self.present().map(|(_, nic)| nic);
        nics.find(|nic| nic.mtu > nic.one_buffer_mtu())
    }

    /// Whether the XDP program is loaded for multi-buffer frames.
    pub(super) fn buffers(&self, frags: Frags) -> Buffers {
        let mut ports = self.present().map(|(_, nic)| nic);
        match frags {
            Frags::On => Buffers::Several,
            Frags::Auto if ports.any(Nic::may_need_several_buffers) => Buffers::Several,
            Frags::Auto | Frags::Off => Buffers::One,
        }
    }

    pub(super) fn egresses(&self, from: Role) -> impl Iterator<Item = Role> {
        match from {
            Role::Host => [Some(Role::Uplink), self.incoming_role],
            Role::Uplink | Role::Incoming => [Some(Role::Host), None],
        }
        .into_iter()
        .flatten()
    }

    /// For each port, the NIC that would lose the frames redirected from it if the port were bound
    /// zero-copy.
    pub(super) fn lossy(&self) -> PerRole<Option<Lossy>> {
        PerRole::from_fn(|from| {
            self.ports[from].as_ref()?;
            self.egresses(from).find_map(|to| {
                let nic = self.ports[to].as_ref()?;
                (!nic.takes_zero_copy_redirects()).then(|| Lossy {
                    from,
                    nic: nic.name.clone(),
                    driver: nic.driver.clone().unwrap_or_default(),
                })
            })
        })
    }

    /// The NICs to which sockets are bound.
    pub(super) fn names(&self) -> PerRole<Option<String>> {
        let mut names = PerRole::default();
        for (role, nic) in self.own() {
            names[role] = Some(nic.name.clone());
        }
        names
    }
}

/// The name of each role's NIC in the configuration; none for an `incoming` that is the uplink, and
/// with engine `connect`.
pub(super) fn configured(settings: &Settings) -> PerRole<Option<String>> {
    let Some(ports) = &settings.ports else {
        return PerRole::default();
    };
    let incoming = ports.incoming.as_ref().map(|incoming| &incoming.interface);
    PerRole::new([
        Some(ports.host.clone()),
        Some(ports.uplink.clone()),
        incoming.filter(|name| **name != ports.uplink).cloned(),
    ])
}

/// Logs the objections to a configuration on this machine.
///
/// # Errors
/// The first fatal objection.
pub(super) fn object(settings: &Settings) -> Result<(), DaemonError> {
    for objection in settings.objections(&LocalNic::all()?) {
        if objection.is_fatal {
            return Err(DaemonError::Configuration(objection.what));
        }
        tracing::warn!("{}", objection.what);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(name: &str, driver: &str) -> Nic {
        Nic::example(name, Some(driver))
    }

    #[test]
    fn a_port_is_lossy_by_the_drivers_of_its_egress_nics() {
        let (igb, virtio) = ("igb", "virtio_net");
        let [to_host, to_uplink, to_incoming] = ["host0", "uplink0", "incoming0"].map(Some);
        for (host, uplink, incoming, expected) in [
            (igb, igb, Some(igb), [None, None, None]),
            (igb, virtio, None, [to_uplink, None, None]),
            (igb, igb, Some(virtio), [to_incoming, None, None]),
            (virtio, igb, Some(igb), [None, to_host, to_host]),
            (virtio, virtio, Some(virtio), [to_uplink, to_host, to_host]),
        ] {
            let mut nics = Nics {
                incoming_role: incoming.map(|_| Role::Incoming),
                ..Nics::default()
            };
            nics.ports[Role::Host] = Some(nic("host0", host));
            nics.ports[Role::Uplink] = Some(nic("uplink0", uplink));
            nics.ports[Role::Incoming] = incoming.map(|driver| nic("incoming0", driver));
            let lossy = nics.lossy();
            let found = Role::ALL.map(|role| lossy[role].as_ref().map(|lossy| lossy.nic.as_str()));
            assert_eq!(found, expected, "{host} {uplink} {incoming:?}");
        }
    }

    #[test]
    fn the_program_is_for_single_buffers_where_mtu_and_driver_allow() {
        let igb = |mtu| Nic {
            mtu,
            ..nic("enp1s0", "igb")
        };
        let veth = Nic {
            is_veth: true,
            ..nic("host0", "veth")
        };
        for (frags, uplink, buffers) in [
            (Frags::Auto, igb(1500), Buffers::One),
            (Frags::Auto, igb(1501), Buffers::Several),
            (Frags::Auto, veth.clone(), Buffers::Several),
            (Frags::On, igb(1500), Buffers::Several),
            (Frags::Off, veth, Buffers::One),
        ] {
            let mut nics = Nics::default();
            nics.ports[Role::Host] = Some(igb(1500));
            nics.ports[Role::Uplink] = Some(uplink.clone());
            assert_eq!(nics.buffers(frags), buffers, "{frags:?} {uplink:?}");
        }
    }
}
