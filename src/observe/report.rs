//! A box at one moment, as plain data: JSON is its form outside.
//!
//! Counts begin with the first start after an attachment and go on over restarts, unless said
//! otherwise. Times are seconds; sizes are bytes from the Ethernet header to the end of the
//! packet, without the frame check sequence.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Everything that can be asked of a running box.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The version of the program.
    pub version: String,
    /// Since when this process is there, in seconds since 1970.
    pub started_at: u64,
    /// For how long this process has run.
    pub uptime_seconds: f64,
    /// `enforce` or `audit`.
    pub mode: String,
    /// `relay-set` or `host-mark`.
    pub classify_by: String,
    /// The mark, by name.
    pub mark: String,
    /// Counts up with every change of rules or relay set.
    pub generation: u64,
    /// Where ordinary frames are decided.
    pub engine: EngineReport,
    /// The NICs in their roles.
    pub ports: Vec<PortReport>,
    /// Outbound frames, by class: every class there is. Their sum is what `host` received.
    pub classes: Vec<ClassCount>,
    /// Malformed frames, by what is wrong with them.
    pub malformed: Vec<MalformedCount>,
    /// What was done to frames, and what was noticed of them.
    pub frames: FrameCount,
    /// Frames that were not forwarded, by reason: every reason there is.
    pub drops: Vec<DropCount>,
    /// The way out for relay traffic.
    pub steering: SteeringReport,
    /// What tells relays from other destinations.
    pub relay_set: RelaySetReport,
    /// Where each worker's frames are.
    pub workers: Vec<WorkerReport>,
    /// Frames in no known place; anything but 0 is a fault.
    pub unaccounted_frames: u64,
    /// For how long sampled frames were in the box, by engine. Since this process began.
    pub residence: Vec<Residence>,
    /// Frames that left, held against the policy. Since this process began.
    pub audit: AuditReport,
    /// How often the configuration was read anew and came into force. Since this process began.
    pub reloads: u64,
    /// How often that was refused.
    pub reloads_refused: u64,
    /// What somebody should look at, the gravest first. Empty where all is well.
    pub warnings: Vec<Warning>,
}

impl Report {
    /// How long the box had run when it reported.
    pub fn uptime(&self) -> Duration {
        Duration::try_from_secs_f64(self.uptime_seconds).unwrap_or_default()
    }

    /// How long ago this was when the box reported.
    pub fn since(&self, time: u64) -> Duration {
        let now = self.started_at.saturating_add(self.uptime().as_secs());
        Duration::from_secs(now.saturating_sub(time))
    }

    /// Whether what the box is for does not happen.
    pub fn has_alarm(&self) -> bool {
        self.warnings.iter().any(|warning| warning.is_alarm)
    }
}

/// Where ordinary frames are decided.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineReport {
    /// What the configuration asks for: `auto`, `xdp` or `af_xdp`.
    pub asked: String,
    /// What it came to: `xdp` or `af_xdp`.
    pub chosen: String,
    /// Why.
    pub reason: String,
    /// Frames that the XDP program decided.
    pub xdp_frames: u64,
    /// Frames that workers decided.
    pub af_xdp_frames: u64,
}

/// A NIC in its role.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortReport {
    /// `host`, `uplink` or `incoming`.
    pub role: String,
    /// The NIC's name.
    pub interface: String,
    /// Who decides what arrives here: `xdp` or `af_xdp`.
    pub engine: String,
    /// Why.
    pub reason: String,
    /// How the XDP program is attached: `native` or `generic`.
    pub xdp: String,
    /// `zero-copy` or `copy`.
    pub sockets: String,
    /// The driver, if it is known.
    pub driver: Option<String>,
    /// Packets are at most this long.
    pub mtu: u32,
    /// Receive queues.
    pub queues: u32,
    /// Whether there is a link.
    pub has_carrier: bool,
    /// Frames that arrived for the box to decide, as often as they were decided.
    pub received_frames: u64,
    /// Their size.
    pub received_bytes: u64,
    /// Frames handed to this port to leave.
    pub forwarded_frames: u64,
    /// Frames left to the box's own network stack.
    pub to_stack_frames: u64,
    /// Frames that the XDP program gave to a worker.
    pub handed_frames: u64,
    /// Frames meant for a worker that the XDP program decided itself.
    pub spilled_frames: u64,
    /// Frames given to a worker that its socket did not take. Since this process began.
    pub missed_frames: u64,
    /// Frames to send that the kernel refused. Since this process began.
    pub tx_invalid_frames: u64,
    /// Frames that arrived zero-copy, shorter than their IP packet and as long as a receive buffer
    /// may be: cut by the NIC, or sent so. Since this process began.
    pub cut_frames: u64,
}

/// Outbound frames of a class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClassCount {
    /// The class.
    pub class: String,
    /// How many.
    pub frames: u64,
    /// Their size.
    pub bytes: u64,
}

/// Malformed frames of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MalformedCount {
    /// What is wrong with them.
    pub reason: String,
    /// How many.
    pub frames: u64,
}

/// What was done to outbound frames, and what was noticed of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FrameCount {
    /// Their DSCP was set to the mark.
    pub marked: u64,
    /// A mark that meant nothing was cleared.
    pub cleared: u64,
    /// Relay frames that left by the uplink, because `incoming` could not be used.
    pub unsteered: u64,
    /// Relay frames that were not steered, because they have a VLAN tag.
    pub unrouted_vlan: u64,
    /// Relay frames that were not steered, because the next hop is of the other IP version.
    pub unrouted_family: u64,
    /// Frames that arrived by `uplink` from an address of the host; counted while none arrives by
    /// `host`.
    pub host_by_uplink: u64,
    /// Relay set and source address tell different stories.
    pub disagreement: u64,
    /// Frames that accept a connection (SYN and ACK) at a port that `host.listeners` does not name.
    pub unnamed_listener: u64,
    /// Later fragments whose first one was not seen.
    pub unseen_fragment: u64,
    /// Frames that only user space understands, decided without it.
    pub no_user_space: u64,
}

/// Frames that were not forwarded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DropCount {
    /// Why.
    pub reason: String,
    /// By which port they would have left, where that is the reason.
    pub port: Option<String>,
    /// How many.
    pub frames: u64,
}

/// Whether relay traffic can leave by `incoming`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SteeringState {
    /// There is no `incoming`.
    #[default]
    Off,
    /// It does.
    Steering,
    /// The NIC has no link.
    NoCarrier,
    /// The next hop's MAC address is not known.
    Unresolved,
}

impl SteeringState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Off, Self::Steering, Self::NoCarrier, Self::Unresolved];

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Steering => "steering",
            Self::NoCarrier => "no-carrier",
            Self::Unresolved => "unresolved",
        }
    }
}

/// The way out for relay traffic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SteeringReport {
    /// Whether it can be used.
    pub state: SteeringState,
    /// What happens while it cannot: `uplink` or `drop`.
    pub on_unavailable: String,
    /// The next hop as it was configured: an address or a MAC address.
    pub next_hop: Option<String>,
    /// The MAC address that steered frames are sent to now.
    pub next_hop_mac: Option<String>,
    /// How often that, or whether it can be used, has changed since this process began.
    pub changes: u64,
}

/// What tells relays from other destinations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RelaySetReport {
    /// Endpoints that count as relays now.
    pub endpoints: u64,
    /// Of these, listed in the documents in force.
    pub listed: u64,
    /// Of these, departed and remembered.
    pub departed: u64,
    /// Of these, named in the configuration.
    pub extra: u64,
    /// `early`, `fresh`, `old`, `expired` or `stale`; none where there is nothing to follow.
    pub age: Option<String>,
    /// All is let pass, because the set is stale or missing.
    pub is_passing: bool,
    /// There are documents to follow, and none has been accepted yet.
    pub is_missing: bool,
    /// The documents in force.
    pub sources: Vec<RelaySource>,
    /// When the set in force was accepted, in seconds since 1970.
    pub accepted_at: Option<u64>,
    /// Sets that were accepted.
    pub accepted: u64,
    /// Sets that were refused.
    pub refused: u64,
    /// Why, the last time.
    pub last_refusal: Option<String>,
    /// Why the files as they are now are not in force; none where they are.
    pub failure: Option<String>,
    /// Why the set in force is not in the state file; none where it is.
    pub unsaved: Option<String>,
}

/// A document in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RelaySource {
    /// The file.
    pub path: String,
    /// From when on it holds, in seconds since 1970.
    pub valid_after: u64,
    /// When the next one is due.
    pub fresh_until: u64,
    /// Until when it holds.
    pub valid_until: u64,
    /// Who signed it, where that was checked.
    pub signatures: Option<DocumentSignatures>,
}

/// How many authorities signed a document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DocumentSignatures {
    /// Good signatures of authorities that are known here.
    pub good: u64,
    /// As many of these are needed.
    pub needed: u64,
    /// Good signatures of other authorities.
    pub unknown: u64,
    /// How many authorities are known here.
    pub known: u64,
}

impl DocumentSignatures {
    /// Whether one signature less is one too few, or nearly, and known authorities are missing: the
    /// list of authorities gets old. Where all have signed, there are no more to be had.
    pub const fn is_scarce(&self) -> bool {
        self.good < self.known && self.good <= self.needed + 1
    }
}

impl fmt::Display for DocumentSignatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            good,
            needed,
            unknown,
            known,
        } = self;
        write!(
            f,
            "signed by {good} of {known} known authorities, {needed} are needed"
        )?;
        match unknown {
            0 => Ok(()),
            _ => write!(f, ", and by {unknown} that are not known here"),
        }
    }
}

/// Where one worker's frames are: the five places sum up to all that there are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerReport {
    /// The queue that it serves.
    pub queue: u32,
    /// How many frames it has.
    pub total: u64,
    /// Unused.
    pub pool: u64,
    /// Received and not handed on.
    pub in_hand: u64,
    /// With the NICs to receive into.
    pub receiving: u64,
    /// With the NICs to be sent.
    pub sending: u64,
    /// In none of these places, or in two.
    pub unaccounted: u64,
}

/// For how long sampled frames were in the box.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Residence {
    /// `xdp` or `af_xdp`.
    pub engine: String,
    /// How many were sampled.
    pub samples: u64,
    /// Their sum, in seconds.
    pub sum_seconds: f64,
    /// Pairs of a quantile, 0 to 1, and the time in seconds that so large a part took at most.
    pub quantiles: Vec<(f64, f64)>,
    /// Pairs of a time in seconds and how many took at most that, ascending.
    pub buckets: Vec<(f64, u64)>,
}

/// Frames that left, held against the policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuditReport {
    /// One frame in so many is sampled; 0 is none.
    pub one_in: u64,
    /// How many were held against the policy.
    pub checked: u64,
    /// How many cannot be judged by themselves: later fragments, frames cut within their headers.
    pub skipped: u64,
    /// Samples for which there was no room.
    pub lost: u64,
    /// How many were not as the policy says, by what was wrong; anything but 0 is a fault.
    pub mismatches: Vec<FrameAudit>,
}

/// Sampled frames that were not as the policy says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FrameAudit {
    /// What was wrong: `mark`, `egress`, `mac`, `bytes` or `class`.
    pub kind: String,
    /// How many.
    pub frames: u64,
}

/// The kind of the warning that the host has a recursive resolver of its own.
pub const OWN_RESOLVER: &str = "own_resolver";

/// What somebody should look at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Warning {
    /// A word for it, for alerts.
    pub kind: String,
    /// It is an alarm: what the box is for does not happen.
    pub is_alarm: bool,
    /// What, and what to do.
    pub text: String,
}
