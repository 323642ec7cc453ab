//! The faults of a port while the box runs, found by comparing its current state with what its
//! sockets and the program were set up for.

use super::bound::{BoundPort, BoundState};
use super::detach::Setting;
use exitmark_datapath::{PerRole, Role};
use exitmark_nic::{LinkState, Relative};
use ipnet::IpNet;

/// A fault of one port, reported as a warning or an alarm while it lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PortFault {
    /// No NIC in this namespace has the port's interface index.
    Gone,
    /// The NIC was removed or moved, and is back: the kernel does not redirect frames to it.
    NotInDevmap,
    /// The NIC has this name, which is not the configured one.
    Renamed(String),
    /// The NIC has no carrier, or is set down.
    NoLink { is_up: bool },
    /// The box has set the NIC down, because the other side of the wire has no link.
    Held,
    /// The NIC's MTU differs from the other ports'.
    Mtu { is: u32, others: u32 },
    /// The number of receive queues differs from when the sockets were bound.
    Queues { is: u32, was: u32 },
    /// Promiscuous mode is off: the NIC drops frames for other addresses than its own.
    NotPromiscuous,
    /// The NIC was made a port of this interface, such as a bridge.
    Member(Box<Relative>),
    /// This interface was created on top of the NIC.
    Upper(Box<Relative>),
    /// This machine has an address on the NIC.
    Address(IpNet),
}

impl PortFault {
    /// The warning's kind, for alerts.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Gone | Self::NotInDevmap => "port_lost",
            Self::Renamed(_) => "renamed",
            Self::NoLink { .. } => "no_carrier",
            Self::Held => "link_loss",
            Self::Mtu { .. } => "mtu",
            Self::Queues { .. } => "queues_changed",
            Self::NotPromiscuous => "promiscuous",
            Self::Member(_) => "member",
            Self::Upper(_) => "upper",
            Self::Address(_) => "address",
        }
    }

    pub(super) const fn is_loss(&self) -> bool {
        matches!(self, Self::Gone | Self::NotInDevmap)
    }

    /// Whether no frame arrives by the NIC.
    pub(super) const fn is_without_link(&self) -> bool {
        self.is_loss() || matches!(self, Self::NoLink { .. } | Self::Held)
    }

    /// Whether the fault is found in the machine's other interfaces and addresses.
    pub(super) const fn is_by_others(&self) -> bool {
        matches!(self, Self::Member(_) | Self::Upper(_) | Self::Address(_))
    }

    /// The fault, its consequence and its remedy. Workers are stopped while a port is lost, so a
    /// wire that needs one then forwards nothing. `table` has the keys of the NICs.
    pub(super) fn text(&self, port: &BoundPort, bound: &BoundState, table: &str) -> String {
        let (nic, role) = (&port.nic.name, port.role);
        let loss = match role {
            Role::Incoming if !self.is_loss() || !bound.is_dead_without_workers() => {
                "relay traffic is not steered"
            }
            _ => "the wire forwards nothing",
        };
        match self {
            Self::Gone => format!(
                "{nic} ({role}) is gone: {loss} until a NIC named {} is back; the box then attaches \
                 to it by itself",
                port.configured
            ),
            Self::NotInDevmap => format!(
                "{nic} ({role}) was removed or moved and is back: {loss} until the box has \
                 attached to it again, which it tries by itself"
            ),
            Self::Renamed(name) => format!(
                "{nic} ({role}) is called {name} now: frames are forwarded, but the next start \
                 will not find {}; `ip link set dev {name} name {}`, or set {table}.{role} to \
                 {name}",
                port.configured, port.configured
            ),
            Self::NoLink { is_up: false } => {
                format!("{nic} ({role}) is set down: {loss} until `ip link set dev {nic} up`")
            }
            Self::Held => format!(
                "{nic} ({role}) is set down until the other side of the wire has a link again \
                 (wire.link_loss = \"propagate\")"
            ),
            Self::NoLink { is_up: true } => {
                format!("{nic} ({role}) has no link: {loss}; check the cable and the other end")
            }
            Self::Mtu { is, others } => format!(
                "{nic} ({role}) has an MTU of {is} and another port one of {others}: longer \
                 packets are lost; `ip link set dev {nic} mtu {others}`"
            ),
            Self::Queues { is, was } => format!(
                "{nic} ({role}) has {is} receive queues, and had {was} when its sockets were bound; \
                 set {was} again with `ethtool -L`, or restart exitmark"
            ),
            Self::Member(bundle) => format!(
                "{nic} ({role}) was made a port of {} ({}), which sends and receives by it, and the \
                 next start is refused: `ip link set dev {nic} nomaster`",
                bundle.name, bundle.kind
            ),
            Self::Upper(upper) => format!(
                "{nic} ({role}) has {} ({}) on top of it now, which sends by it, and the next start \
                 is refused: `ip link set dev {0} down`",
                upper.name, upper.kind
            ),
            Self::Address(address) => format!(
                "{nic} ({role}) was given the address {address}, so this machine sends on the wire, \
                 and the next start is refused: `ip address del {address} dev {nic}`"
            ),
            Self::NotPromiscuous => format!(
                "promiscuous mode was turned off at {nic} ({role}), and is turned on again: without \
                 it frames for other MAC addresses are lost"
            ),
        }
    }
}

/// The kernel's data on a port besides its [`LinkState`].
#[derive(Clone, Debug)]
pub(super) struct KernelView {
    /// The port is in the devmap.
    pub(super) is_redirected_to: bool,
    /// The interface index of the NIC that has the configured name.
    pub(super) named: Option<u32>,
    /// The box has set the NIC down.
    pub(super) is_held: bool,
    pub(super) queues: u32,
    /// The interface that it is a port of.
    pub(super) bundle: Option<Relative>,
    /// The interface on top of a wire port, and this machine's address on it: neither is allowed.
    pub(super) upper: Option<Relative>,
    pub(super) address: Option<IpNet>,
}

pub(super) fn faults(
    port: &BoundPort,
    now: Option<&LinkState>,
    view: KernelView,
) -> Vec<PortFault> {
    let Some(now) = now else {
        return vec![PortFault::Gone];
    };
    let mut faults = Vec::new();
    if !view.is_redirected_to {
        faults.push(PortFault::NotInDevmap);
    }
    if view.named != Some(now.index) {
        faults.push(PortFault::Renamed(now.name.clone()));
    }
    if view.is_held {
        faults.push(PortFault::Held);
    } else if !now.is_up || !now.has_carrier {
        faults.push(PortFault::NoLink { is_up: now.is_up });
    }
    if view.queues != port.nic.queues {
        faults.push(PortFault::Queues {
            is: view.queues,
            was: port.nic.queues,
        });
    }
    let boxed = |relative: Option<Relative>| relative.map(Box::new);
    faults.extend(boxed(view.bundle).map(PortFault::Member));
    faults.extend(boxed(view.upper).map(PortFault::Upper));
    faults.extend(view.address.map(PortFault::Address));
    if Setting::Promiscuous.is_needed(port.role) && !now.is_promiscuous {
        faults.push(PortFault::NotPromiscuous);
    }
    faults
}

/// The common MTU of all ports; otherwise the fault of each port.
pub(super) fn compare_mtus(
    mtus: &PerRole<Option<u32>>,
    bound: u32,
) -> Result<Option<u32>, PerRole<Option<PortFault>>> {
    let mut present = mtus.iter().filter_map(|(_, mtu)| *mtu);
    let Some(first) = present.next() else {
        return Ok(None);
    };
    if present.all(|mtu| mtu == first) {
        return Ok(Some(first));
    }
    // Only ports whose MTU has changed get the fault.
    Err(PerRole::from_fn(|role| {
        let is = mtus[role].filter(|&mtu| mtu != bound)?;
        let others = mtus.iter().filter(|&(other, _)| other != role);
        let others = others.filter_map(|(_, mtu)| *mtu).max().unwrap_or(is);
        Some(PortFault::Mtu { is, others })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(role: Role) -> BoundPort {
        BoundPort::example(role, "up0")
    }

    fn state() -> LinkState {
        LinkState {
            index: 1,
            name: "up0".to_owned(),
            mac: None,
            mtu: 1500,
            is_up: true,
            has_carrier: true,
            is_promiscuous: true,
            master: None,
            received: 0,
        }
    }

    const VIEW: KernelView = KernelView {
        is_redirected_to: true,
        named: Some(1),
        is_held: false,
        queues: 1,
        bundle: None,
        upper: None,
        address: None,
    };

    #[test]
    fn each_change_of_a_port_is_a_fault_of_its_own() {
        let of = |role, change: &dyn Fn(&mut LinkState, &mut KernelView)| {
            let (mut state, mut view) = (state(), VIEW);
            change(&mut state, &mut view);
            faults(&port(role), Some(&state), view)
        };
        let all = |change: &dyn Fn(&mut LinkState, &mut KernelView)| of(Role::Uplink, change);
        assert_eq!(all(&|_, _| ()), []);
        assert_eq!(faults(&port(Role::Uplink), None, VIEW), [PortFault::Gone]);
        let not_in_devmap = all(&|_, view| view.is_redirected_to = false);
        assert_eq!(not_in_devmap, [PortFault::NotInDevmap]);
        let renamed = |named| {
            all(&|state, view| {
                state.name = "eth7".to_owned();
                view.named = named;
            })
        };
        // An alternative name finds it.
        assert_eq!(renamed(VIEW.named), []);
        for named in [None, Some(2)] {
            assert_eq!(renamed(named), [PortFault::Renamed("eth7".to_owned())]);
        }
        for is_up in [false, true] {
            let off = all(&|state, _| (state.is_up, state.has_carrier) = (is_up, false));
            assert_eq!(off, [PortFault::NoLink { is_up }]);
        }
        let queues = all(&|_, view| view.queues = 2);
        assert_eq!(queues, [PortFault::Queues { is: 2, was: 1 }]);
        let deaf = |state: &mut LinkState, _: &mut KernelView| state.is_promiscuous = false;
        assert_eq!(all(&deaf), [PortFault::NotPromiscuous]);
        // `incoming` needs only frames for its own MAC address.
        assert_eq!(of(Role::Incoming, &deaf), []);
        let relative = |name: &str, kind: &str| Relative {
            name: name.to_owned(),
            kind: kind.to_owned(),
        };
        let (bridge, upper) = (relative("br0", "bridge"), relative("mv0", "macvlan"));
        let address: IpNet = "192.0.2.1/24".parse().unwrap();
        let by_others = all(&|_, view| {
            view.bundle = Some(bridge.clone());
            view.upper = Some(upper.clone());
            view.address = Some(address);
        });
        assert!(by_others.iter().all(PortFault::is_by_others));
        let expected = [
            PortFault::Member(Box::new(bridge)),
            PortFault::Upper(Box::new(upper)),
            PortFault::Address(address),
        ];
        assert_eq!(by_others, expected);
    }

    #[test]
    fn without_incoming_the_wire_is_dead_only_where_it_needs_a_worker() {
        let text = |needs_process, fault: PortFault| {
            let mut host = port(Role::Host);
            host.needs_process = needs_process;
            let bound = BoundState::example(vec![host]);
            fault.text(&port(Role::Incoming), &bound, "ports")
        };
        let steered = "relay traffic is not steered";
        assert!(text(false, PortFault::Gone).contains(steered));
        assert!(text(true, PortFault::Gone).contains("the wire forwards nothing"));
        assert!(text(true, PortFault::NoLink { is_up: false }).contains(steered));
    }

    #[test]
    fn a_renamed_nic_names_the_key_of_the_file() {
        let bound = BoundState::example(Vec::new());
        for (table, key) in [("ports", "set ports.uplink"), ("wire", "set wire.uplink")] {
            let renamed = PortFault::Renamed("wan0".to_owned());
            let text = renamed.text(&port(Role::Uplink), &bound, table);
            assert!(text.contains(key), "{text}");
        }
    }

    #[test]
    fn only_different_mtus_are_a_fault() {
        let mtus = |mtus: [Option<u32>; 3]| compare_mtus(&PerRole::new(mtus), 1500);
        assert_eq!(mtus([Some(1500), Some(1500), None]), Ok(Some(1500)));
        assert_eq!(mtus([Some(9000), Some(9000), Some(9000)]), Ok(Some(9000)));
        assert_eq!(mtus([None, None, None]), Ok(None));
        let lowered = mtus([Some(1500), Some(1400), Some(1500)]).unwrap_err();
        let fault = PortFault::Mtu {
            is: 1400,
            others: 1500,
        };
        assert_eq!(lowered, PerRole::new([None, Some(fault), None]));
    }
}
