//! The state of a box at one moment, as plain data that is served as JSON.
//!
//! Counts begin with the first start after an attachment and continue over restarts, unless stated
//! otherwise. Times are in seconds. Sizes are in bytes, from the Ethernet header to the end of the
//! packet, without the frame check sequence.

use super::{GroupReport, HostReport, SteeringReport, TapReport};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// The answer to `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The version of the program.
    pub version: String,
    /// The start of this process, in seconds since 1970.
    pub started_at: u64,
    /// The age of this process, in seconds.
    pub uptime_seconds: f64,
    /// Whether verdicts are applied: `enforce` or `audit`.
    pub mode: String,
    /// `relay-set` or `host-mark`.
    pub classify_by: String,
    /// The name of the DSCP mark.
    pub mark: String,
    /// Counts the changes of rules or relay set; 1 at the start.
    pub generation: u64,
    /// The engine that decides fast-path frames.
    pub engine: EngineReport,
    /// The state of each port, in the order `host`, `uplink`, `incoming`.
    pub ports: Vec<PortReport>,
    /// Outbound frames of every class. Their sum is what `host` received.
    pub classes: Vec<ClassCount>,
    /// Malformed frames, by reason.
    pub malformed: Vec<MalformedCount>,
    /// Counts of marked, cleared and unsteered frames, and of other properties.
    pub frames: FrameCount,
    /// Frames of each group of hosts, in the order of the configuration; empty with one group, of
    /// which `classes` and `frames` are the counts.
    pub groups: Vec<GroupReport>,
    /// Connections of tor and what was done with their sockets; with engine `connect` only.
    pub connections: Option<ConnectionsReport>,
    /// Frames that were not forwarded, for every drop reason.
    pub drops: Vec<DropCount>,
    /// The taps, each NIC once; empty without one.
    pub taps: Vec<TapReport>,
    /// The state of the next hops for relay traffic.
    pub steering: SteeringReport,
    /// The addresses of the hosts that have sent frames, each with its MAC address; in the order of
    /// the addresses.
    pub hosts: Vec<HostReport>,
    /// The state of the relay set.
    pub relay_set: RelaySetReport,
    /// Where each worker's buffers are.
    pub workers: Vec<WorkerReport>,
    /// Frames that are not accounted for; anything but 0 is a fault.
    pub unaccounted_frames: u64,
    /// Latency of sampled frames, by engine, since this process began.
    pub residence: Vec<LatencyReport>,
    /// Sampled frames checked against the policy, since this process began.
    pub audit: AuditReport,
    /// Successful reloads since this process began.
    pub reloads: u64,
    /// Refused reloads since this process began.
    pub reloads_refused: u64,
    /// The warnings, the most severe first; empty without a warning.
    pub warnings: Vec<Warning>,
}

impl Report {
    /// The age of the process when it reported.
    pub fn uptime(&self) -> Duration {
        Duration::try_from_secs_f64(self.uptime_seconds).unwrap_or_default()
    }

    /// The age of `time`, in seconds since 1970, when the box reported; 0 if it was in the future.
    pub fn since(&self, time: u64) -> Duration {
        let now = self.started_at.saturating_add(self.uptime().as_secs());
        Duration::from_secs(now.saturating_sub(time))
    }

    /// The role of a port; with several wires, the name of its NIC.
    pub(super) fn port_name<'r>(&self, port: &'r PortReport) -> &'r str {
        let mut of_role = self.ports.iter().filter(|one| one.role == port.role);
        match of_role.nth(1) {
            Some(_) => &port.interface,
            None => &port.role,
        }
    }

    /// Whether a warning is an alarm.
    pub fn has_alarm(&self) -> bool {
        self.warnings.iter().any(|warning| warning.is_alarm)
    }
}

/// The engine that decides fast-path frames.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineReport {
    /// The configured engine: `auto`, `xdp` or `af_xdp`.
    pub asked: String,
    /// The engine in use: `xdp` or `af_xdp`.
    pub chosen: String,
    /// Why this engine was chosen.
    pub reason: String,
    /// Frames that the XDP program decided.
    pub xdp_frames: u64,
    /// Frames that workers decided.
    pub af_xdp_frames: u64,
}

/// A NIC in its role: how the box is attached to it, and what it received and forwarded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortReport {
    /// `host`, `uplink` or `incoming`.
    pub role: String,
    /// The NIC's current name; the last known one if it is gone.
    pub interface: String,
    /// The engine that decides frames received here: `xdp` or `af_xdp`.
    pub engine: String,
    /// Why this engine decides them.
    pub reason: String,
    /// How the XDP program is attached: `native` or `generic`.
    pub xdp: String,
    /// How the sockets are bound: `zero-copy` or `copy`.
    pub sockets: String,
    /// The driver, if it is known.
    pub driver: Option<String>,
    /// The MTU: the longest packet in bytes, without the Ethernet header.
    pub mtu: u32,
    /// The number of receive queues.
    pub queues: u32,
    /// Whether the NIC has carrier.
    pub has_carrier: bool,
    /// Frames received here, counted each time an engine decides one.
    pub received_frames: u64,
    /// Bytes of the frames in `received_frames`.
    pub received_bytes: u64,
    /// Frames forwarded to this port.
    pub forwarded_frames: u64,
    /// Frames passed to the box's own network stack (`XDP_PASS`).
    pub to_stack_frames: u64,
    /// Frames that the XDP program handed to a worker.
    pub handed_frames: u64,
    /// Frames meant for a worker that the XDP program handled itself.
    pub spilled_frames: u64,
    /// Frames handed to a worker that its socket did not take, since this process began.
    pub missed_frames: u64,
    /// TX descriptors that the kernel refused, since this process began.
    pub tx_invalid_frames: u64,
    /// Frames received zero-copy that are shorter than their IP packet and end where a receive
    /// buffer may end: truncated by the NIC, or sent truncated. Since this process began.
    pub cut_frames: u64,
}

/// Outbound frames of a class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClassCount {
    /// The class, such as `exit` or `relay`.
    pub class: String,
    /// The number of frames that matched a rule of this class.
    pub frames: u64,
    /// The size of these frames, in bytes.
    pub bytes: u64,
}

/// Malformed frames of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MalformedCount {
    /// Why they are malformed, such as `bad_length`.
    pub reason: String,
    /// The number of frames that are malformed in this way.
    pub frames: u64,
}

/// Outbound frames that were modified, or that have one of these properties.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FrameCount {
    /// Frames whose DSCP was set to the mark.
    pub marked: u64,
    /// Frames of another class that carried the mark, which was cleared.
    pub cleared: u64,
    /// Relay frames that left by the uplink, because `incoming` could not be used.
    pub unsteered: u64,
    /// Relay frames that were not steered, because their VLAN tags are not those of `host.vlan`.
    pub unrouted_vlan: u64,
    /// Relay frames that were not steered, because their group has no next hop for their IP version.
    pub unrouted_family: u64,
    /// Relay frames that were not steered, because no answer would be translated back.
    pub unrouted_source: u64,
    /// Relay frames that left with an address of `steer.source` in place of the host's.
    pub translated: u64,
    /// Frames that arrived for such an address and got the host's again.
    pub translated_back: u64,
    /// Frames that arrived by `uplink` from an address of the host; counted while none arrives by
    /// `host`.
    pub host_by_uplink: u64,
    /// Frames from an address of a host for which the table of MAC addresses had no room, since
    /// this process began.
    pub hosts_full: u64,
    /// Frames on which relay set and source address disagree.
    pub disagreement: u64,
    /// Frames that accept a connection (SYN and ACK) at a port that `host.listeners` does not name.
    pub unnamed_listener: u64,
    /// Later fragments whose first one was not seen.
    pub unseen_fragment: u64,
    /// Frames that only user space can parse, decided without it.
    pub no_user_space: u64,
}

/// Connections of tor, as engine `connect` counts them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionsReport {
    /// The number of user IDs whose connections are judged.
    pub users: u64,
    /// Connections of each class.
    pub classes: Vec<ConnectionClass>,
    /// Exit connections whose DSCP was set.
    pub marked: u64,
    /// Exit connections left alone, because tor had set a ToS itself.
    pub own_tos: u64,
    /// Exit connections whose DSCP the kernel refused to set.
    pub unmarked: u64,
    /// Relay connections that were bound, or given the fwmark or the NIC.
    pub steered: u64,
    /// Relay connections left alone, because tor had bound the socket itself.
    pub own_source: u64,
    /// Relay connections that could not be steered.
    pub unsteered: u64,
    /// Exit connections open before the programs, whose DSCP was set.
    pub earlier_marked: u64,
    /// Exit connections open before the programs, whose DSCP the kernel refused to set.
    pub earlier_unmarked: u64,
    /// Connections before the first policy.
    pub no_policy: u64,
}

/// Connections of a class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionClass {
    /// The class: `exit`, `relay`, `resolver` or `exempt`.
    pub class: String,
    /// Connections judged when they were opened.
    pub opened: u64,
    /// Connections that were open before the programs were attached.
    pub earlier: u64,
}

/// Frames that were not forwarded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DropCount {
    /// The drop reason, such as `tx_full`.
    pub reason: String,
    /// The egress port, if the reason depends on it.
    pub port: Option<String>,
    /// The number of frames dropped for this reason, at this port if there is one.
    pub frames: u64,
}

/// The state of the relay set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RelaySetReport {
    /// Endpoints that count as relays now.
    pub endpoints: u64,
    /// Endpoints listed in the documents in force.
    pub listed: u64,
    /// Endpoints not listed any more and still retained.
    pub departed: u64,
    /// Endpoints named in the configuration.
    pub extra: u64,
    /// `early`, `fresh`, `old`, `expired` or `stale`; `None` without a document in force.
    pub age: Option<String>,
    /// Everything is forwarded unmarked, because the set is stale or missing.
    pub is_passing: bool,
    /// Documents are configured, and none has been accepted yet.
    pub is_missing: bool,
    /// The accepted documents, in the order of the configuration, then the sources that are refused.
    pub sources: Vec<RelaySource>,
    /// When the set in force was accepted, in seconds since 1970.
    pub accepted_at: Option<u64>,
    /// The number of sets accepted.
    pub accepted: u64,
    /// The number of sets refused: loads without an accepted document.
    pub refused: u64,
    /// Why the last one was refused.
    pub last_refusal: Option<String>,
    /// Why the files' current content, or a part of it, is not in force; `None` if it is.
    pub failure: Option<String>,
    /// Why the set in force could not be written to the state file; `None` if it was.
    pub unsaved: Option<String>,
}

/// What a source contributes to the relay set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceState {
    /// Its document is the newest, and decides; others of the same time do so as well.
    #[default]
    InForce,
    /// Its document is older: its endpoints are remembered like those that have departed.
    Older,
    /// It is refused, and contributes nothing.
    Refused,
}

impl SourceState {
    /// Every state, in the order of declaration.
    pub const ALL: [Self; 3] = [Self::InForce, Self::Older, Self::Refused];

    /// The state's name, as in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InForce => "in-force",
            Self::Older => "older",
            Self::Refused => "refused",
        }
    }
}

/// A source of the relay set: a document, or a pattern without one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RelaySource {
    /// The path of the consensus file, or the pattern.
    pub path: String,
    /// What the accepted document contributes to the relay set.
    pub state: SourceState,
    /// Why its current content is refused; `None` if it is not. With an earlier document it may still
    /// be in force. The times below are those of the accepted document, and 0 without one.
    pub refusal: Option<String>,
    /// `valid-after` of the consensus (dir-spec), in seconds since 1970.
    pub valid_after: u64,
    /// `fresh-until` of the consensus, in seconds since 1970.
    pub fresh_until: u64,
    /// `valid-until` of the consensus, in seconds since 1970.
    pub valid_until: u64,
    /// The counts of its signatures, if they were checked.
    pub signatures: Option<DocumentSignatures>,
}

/// How many authorities signed a document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DocumentSignatures {
    /// Good signatures of listed authorities.
    pub good: u64,
    /// The number of good signatures needed.
    pub needed: u64,
    /// Good signatures of authorities that are not listed.
    pub unknown: u64,
    /// The number of listed authorities.
    pub known: u64,
}

impl DocumentSignatures {
    /// Whether at most one more signature than needed is good although listed authorities are
    /// missing: the list of authorities is getting old. False if all of them have signed.
    pub const fn is_scarce(&self) -> bool {
        self.good < self.known && self.good <= self.needed + 1
    }
}

impl fmt::Display for DocumentSignatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (good, needed, known) = (self.good, self.needed, self.known);
        write!(
            f,
            "signed by {good} of {known} known authorities, {needed} are needed"
        )?;
        match self.unknown {
            0 => Ok(()),
            unknown => write!(f, ", and by {unknown} that are not known here"),
        }
    }
}

/// Where one worker's buffers are. `pool`, `in_hand`, `receiving` and `sending` sum up to `total`
/// unless `unaccounted` is not 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerReport {
    /// The name of its wire; empty with one wire.
    pub wire: String,
    /// The queue that the worker serves.
    pub queue: u32,
    /// The number of the worker's buffers.
    pub total: u64,
    /// Buffers that are free: in no ring, and with no frame.
    pub pool: u64,
    /// Buffers that hold a received frame not yet forwarded.
    pub in_hand: u64,
    /// Buffers given to the kernel to receive into.
    pub receiving: u64,
    /// Buffers to be sent, whose transmission is not completed yet.
    pub sending: u64,
    /// Buffers in none of these places, or in two.
    pub unaccounted: u64,
}

/// Latency of sampled frames in the box.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LatencyReport {
    /// The engine that decided the frames: `xdp` or `af_xdp`.
    pub engine: String,
    /// The number of sampled frames.
    pub samples: u64,
    /// The sum of their latencies, in seconds.
    pub sum_seconds: f64,
    /// Pairs of a quantile, 0 to 1, and its latency in seconds.
    pub quantiles: Vec<(f64, f64)>,
    /// Pairs of an upper bound in seconds and the number of frames up to it, ascending.
    pub buckets: Vec<(f64, u64)>,
}

/// Sampled frames checked against the policy after they left.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuditReport {
    /// One frame in this many is sampled; 0 turns the audit off.
    pub one_in: u64,
    /// Samples that were checked.
    pub checked: u64,
    /// Samples that cannot be checked alone: later fragments, frames cut within their headers.
    pub skipped: u64,
    /// Samples lost because a buffer was full.
    pub lost: u64,
    /// Samples that violate the policy, by kind; anything but 0 is a fault.
    pub mismatches: Vec<MismatchCount>,
}

/// Sampled frames that violate the policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MismatchCount {
    /// The mismatch: `mark`, `egress`, `mac`, `bytes` or `class`.
    pub kind: String,
    /// The number of sampled frames with this mismatch; not an estimate of all frames.
    pub frames: u64,
}

/// The kind of the warning that the host seems to run a recursive resolver.
pub const OWN_RESOLVER: &str = "own_resolver";

/// A warning or alarm, present while its cause lasts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Warning {
    /// The machine-readable kind, for alerts.
    pub kind: String,
    /// Whether this is an alarm: frames are lost, or not marked or steered as configured.
    pub is_alarm: bool,
    /// The cause and the remedy.
    pub text: String,
}

impl Warning {
    /// A warning of this kind.
    pub fn new(kind: &str, is_alarm: bool, text: String) -> Self {
        Self {
            kind: kind.to_owned(),
            is_alarm,
            text,
        }
    }
}
