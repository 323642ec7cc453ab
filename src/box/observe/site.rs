//! The parts of the report on the site: its groups of hosts, the next hops of relay traffic, and the
//! MAC address of each host address.

use super::ClassCount;
use serde::{Deserialize, Serialize};

/// Frames of a group of hosts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupReport {
    /// The configured name, or the default one, such as `host-1`.
    pub name: String,
    /// Frames of each class from the addresses of the group.
    pub classes: Vec<ClassCount>,
    /// Frames whose DSCP was set to the mark.
    pub marked: u64,
    /// Frames of another class that carried a mark, which was cleared.
    pub cleared: u64,
    /// Relay frames that left by the uplink, because their next hop could not be used.
    pub unsteered: u64,
    /// Relay frames that were not steered, because their VLAN tags are not those of `host.vlan`.
    pub unrouted_vlan: u64,
    /// Relay frames that were not steered, because the group has no next hop for their IP version.
    pub unrouted_family: u64,
    /// Relay frames that were not steered, because no answer would be translated back.
    pub unrouted_source: u64,
}

/// Whether relay traffic can leave by `incoming`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SteeringState {
    /// No `incoming` port is configured.
    #[default]
    Off,
    /// Relay traffic is steered.
    Steering,
    /// The NIC or the VLAN interface has no carrier, or was removed.
    NoCarrier,
    /// The next hop's MAC address is not resolved.
    Unresolved,
}

impl SteeringState {
    /// Every state, in the order of declaration.
    pub const ALL: [Self; 4] = [Self::Off, Self::Steering, Self::NoCarrier, Self::Unresolved];

    /// The state's name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Steering => "steering",
            Self::NoCarrier => "no-carrier",
            Self::Unresolved => "unresolved",
        }
    }

    /// How bad the state is, in comparison with the others.
    pub(super) const fn rank(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Steering => 1,
            Self::Unresolved => 2,
            Self::NoCarrier => 3,
        }
    }
}

/// The state of the next hops for relay traffic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SteeringReport {
    /// Whether relay traffic can be steered; with several next hops, the worst of their states.
    pub state: SteeringState,
    /// The treatment of relay traffic while it cannot be steered: `uplink` or `drop`.
    pub on_unavailable: String,
    /// The first configured next hop: an IP address or a MAC address.
    pub next_hop: Option<String>,
    /// The MAC address that frames for the first next hop are sent to now.
    pub next_hop_mac: Option<String>,
    /// Changes of a next hop's MAC address or state since this process began.
    pub changes: u64,
    /// Every next hop, in the order of the configuration.
    pub next_hops: Vec<NextHopReport>,
}

/// The state of one next hop.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NextHopReport {
    /// The configured next hop: an IP address or a MAC address.
    pub next_hop: String,
    /// The VLAN tags of its network: `untagged`, `VLAN 30`, or `VLAN 200.30` with the outer one
    /// first.
    pub vlan: String,
    /// The names of the groups whose relay traffic is sent to it.
    pub groups: Vec<String>,
    /// The IP versions of that traffic: `IPv4`, `IPv6`.
    pub families: Vec<String>,
    /// Whether it can be used: never `off`.
    pub state: SteeringState,
    /// The MAC address that frames are sent to now; `None` if it cannot be used.
    pub mac: Option<String>,
}

impl SteeringReport {
    /// The report on these next hops; `off` without any.
    pub fn new(on_unavailable: &str, changes: u64, next_hops: Vec<NextHopReport>) -> Self {
        let states = next_hops.iter().map(|hop| hop.state);
        let first = next_hops.first();
        Self {
            state: states.max_by_key(|state| state.rank()).unwrap_or_default(),
            on_unavailable: on_unavailable.to_owned(),
            next_hop: first.map(|hop| hop.next_hop.clone()),
            next_hop_mac: first.and_then(|hop| hop.mac.clone()),
            changes,
            next_hops,
        }
    }
}

impl NextHopReport {
    /// Whether relay traffic can be sent to it.
    pub fn is_usable(&self) -> bool {
        self.state == SteeringState::Steering
    }

    /// The IDs of the VLAN tags, without the word: `30`, `200.30`, or `untagged`.
    pub(super) fn vlan_ids(&self) -> &str {
        self.vlan.strip_prefix("VLAN ").unwrap_or(&self.vlan)
    }
}

/// An address of a host that has sent frames.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostReport {
    /// The IP address, which is within the addresses of a group.
    pub address: String,
    /// The MAC address of the last frame from this address.
    pub mac: String,
    /// How often that MAC address has changed, modulo 65,536, since this process began.
    pub changes: u64,
}
