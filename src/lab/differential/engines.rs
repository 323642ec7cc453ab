//! Sends each frame through both engines and compares the results.

use super::Scenario;
use super::copies::Copies;
use crate::kernel::{self, because};
use crate::{LabError, Random};
use exitmark_datapath::{
    Buffers, Counter, DropReason, Forwarder, Kernel, KernelCounts, Links, Outcome, PerRole, Role,
    Tally,
};
use exitmark_policy::packet::{self, Dscp, MacAddr, Version};
use exitmark_policy::{Class, Egress, Mode, Snapshot, image};
use std::sync::Arc;
use std::time::Duration;

/// The Rust engine and the kernel's BPF program.
pub struct Engines {
    /// The kernel's loaded program.
    pub kernel: Kernel,
    kernel_links: Arc<Links>,
    rust: Forwarder,
    rust_links: Arc<Links>,
    scenario: Rules,
    /// What the Rust engine did since the last comparison of counters, besides its own tally.
    expected: Expected,
    counted: KernelCounts,
    frame: Vec<u8>,
    copies: Copies,
}

/// The part of a scenario that is needed for every frame.
#[derive(Default)]
struct Rules {
    /// The marks to be cleared from frames that must leave unmarked.
    clears: Vec<Dscp>,
    longest: usize,
    hand_over: PerRole<bool>,
}

#[derive(Default)]
struct Expected {
    received: PerRole<u64>,
    forwarded: PerRole<u64>,
    to_stack: PerRole<u64>,
    spilled: PerRole<u64>,
    host_mac_unknown: u64,
    steer_unavailable: u64,
    no_user_space: u64,
    /// The bytes of frames that the kernel's program decided alone.
    no_user_space_bytes: u64,
    inbound_bytes: PerRole<u64>,
    cleared: u64,
}

/// A slow-path frame, which the kernel's program passes to user space, as parsed by this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowPath {
    /// A frame with more than two VLAN tags.
    DeeplyTagged,
    /// An IP packet whose header is at this offset.
    Ip(usize, Version),
}

/// Whether a frame takes the slow path: more than two VLAN tags, a valid IPv4 header of a fragment,
/// or a valid IPv6 header followed by an extension header.
pub fn slow_path(frame: &[u8]) -> Option<SlowPath> {
    let word = |at: usize| match frame.get(at..at + 2) {
        Some(&[high, low]) => Some(usize::from(high) << 8 | usize::from(low)),
        _ => None,
    };
    let tags = (0..3)
        .take_while(|tag| matches!(word(12 + tag * 4), Some(0x8100 | 0x88a8 | 0x9100)))
        .count();
    if tags == 3 {
        return Some(SlowPath::DeeplyTagged);
    }
    let ethertype = word(12 + tags * 4)?;
    let at = 14 + tags * 4;
    let header = frame.get(at..)?;
    let room = header.len();
    let version = header.first()? >> 4;
    if ethertype == 0x0800 && room >= 20 && version == 4 {
        let words = usize::from(header[0] % 16);
        let total = word(at + 2)?;
        let flags = word(at + 6)?;
        let is_sound = words >= 5 && total >= words * 4 && total <= room;
        // More fragments, or an offset; neither the reserved bit nor DF.
        let is_fragment = flags % 0x4000 != 0;
        return (is_sound && is_fragment).then_some(SlowPath::Ip(at, Version::V4));
    }
    if ethertype == 0x86dd && room >= 40 && version == 6 {
        let is_sound = word(at + 4)? <= room - 40;
        // Hop-by-hop, routing, fragment, destination options.
        let is_extended = [0, 43, 44, 60].contains(&header[6]);
        return (is_sound && is_extended).then_some(SlowPath::Ip(at, Version::V6));
    }
    None
}

/// The ToS or traffic-class byte of the IP header at `at`.
fn tos(frame: &[u8], at: usize, version: Version) -> u8 {
    match version {
        Version::V4 => frame[at + 1],
        Version::V6 => frame[at] << 4 | frame[at + 1] >> 4,
    }
}

impl Engines {
    /// Loads the kernel's program in the calling thread's namespace, without attaching it.
    ///
    /// # Errors
    /// Fails without privilege, or if the kernel rejects the program.
    pub fn new() -> Result<Self, LabError> {
        let kernel = kernel::load(Buffers::Several)?;
        let kernel_links = Links::over(kernel.links().map_err(because)?, None);
        let kernel_links = Arc::new(kernel_links);
        let rust_links = Arc::new(Links::new(None));
        let mut scenario = Scenario::some(&mut Random::new(0));
        scenario.relays.clear();
        let snapshot = Arc::new(scenario.snapshot()?);
        let copies = Copies::new(&kernel)?;
        let mut engines = Self {
            kernel,
            kernel_links,
            rust: Forwarder::new(Arc::clone(&snapshot), Arc::clone(&rust_links)),
            rust_links,
            scenario: Rules::default(),
            expected: Expected::default(),
            counted: KernelCounts::default(),
            frame: Vec::new(),
            copies,
        };
        engines.set(&scenario)?;
        Ok(engines)
    }

    /// Sets the same rules, relay set and links in both engines, and resets learned state.
    ///
    /// # Errors
    /// Fails if the kernel rejects them.
    pub fn set(&mut self, scenario: &Scenario) -> Result<(), LabError> {
        let snapshot = scenario.snapshot()?;
        let bytes = image(&snapshot).map_err(because)?;
        self.set_apart(scenario, snapshot, &bytes)
    }

    /// Like [`Engines::set`], with a snapshot for the Rust engine and an image for the kernel's,
    /// which may differ.
    pub(super) fn set_apart(
        &mut self,
        scenario: &Scenario,
        snapshot: Snapshot,
        image: &[u8],
    ) -> Result<(), LabError> {
        self.kernel.publish_image(image).map_err(because)?;
        let cells = self.kernel.links().map_err(because)?;
        for cell in cells.iter() {
            cell.store(0, std::sync::atomic::Ordering::Relaxed);
        }
        let links = Links::over(cells, scenario.incoming);
        scenario.configure(&links);
        self.kernel_links = Arc::new(links);
        self.rust_links = Arc::new(Links::new(scenario.incoming));
        self.rust_links.drop_unsteered(scenario.drops_unsteered);
        scenario.steer(&self.rust_links);
        self.rust_links.seek_host(scenario.seeks_host);
        let snapshot = Arc::new(snapshot);
        self.rust = Forwarder::new(Arc::clone(&snapshot), Arc::clone(&self.rust_links))
            .tapped_into(self.copies.begin(&snapshot));
        self.scenario = Rules {
            clears: match scenario.mode {
                Mode::Enforce => {
                    let marks = scenario.groups.iter().map(|group| group.mark);
                    marks.chain(scenario.host_mark).collect()
                }
                Mode::Audit => Vec::new(),
            },
            longest: usize::try_from(scenario.longest).unwrap_or(usize::MAX),
            hand_over: scenario.hand_over,
        };
        self.expected = Expected::default();
        self.counted = self.kernel.counts().map_err(because)?;
        Ok(())
    }

    /// The links of the kernel's program.
    pub const fn links(&self) -> &Arc<Links> {
        &self.kernel_links
    }

    /// What the Rust engine has learned of a frame's sender.
    pub fn lesson(&self, frame: &[u8]) -> [u64; 4] {
        self.rust_links.lesson(packet::source(frame))
    }

    /// The counters of the kernel's program since it was loaded.
    ///
    /// # Errors
    /// Fails if the counters cannot be read.
    pub fn tally(&self) -> Result<Tally, LabError> {
        Ok(self.kernel.counts().map_err(because)?.tally)
    }

    /// Sends a frame of at least 14 bytes through both engines. Returns a description of the
    /// difference, if there is one; counters are not compared.
    ///
    /// # Errors
    /// Fails if the kernel cannot run the frame.
    pub fn compare(&mut self, ingress: Role, frame: &[u8]) -> Result<Option<String>, LabError> {
        let ran = self.kernel.run(ingress, frame).map_err(because)?;
        let mut after = std::mem::take(&mut self.frame);
        after.clear();
        after.extend_from_slice(frame);
        let outcome = self.by_rust(ingress, &mut after);
        let kernel = match (ran.redirected, ran.passed) {
            (true, _) => "forwards",
            (_, true) => "leaves to the stack",
            _ => "drops",
        };
        let rust = match outcome {
            Outcome::Forward(_) => "forwards",
            Outcome::Stack => "leaves to the stack",
            Outcome::Drop(_) => "drops",
        };
        let source = packet::source(frame);
        let same = self.kernel_links.lesson(source) == self.rust_links.lesson(source);
        let difference = if kernel != rust {
            Some(format!("Rust {rust} ({outcome:?}), the kernel {kernel}"))
        } else if ran.frame != after {
            let at = ran.frame.iter().zip(&after).position(|(a, b)| a != b);
            let lengths = (after.len(), ran.frame.len());
            Some(match at.map(|at| (at, after[at], ran.frame[at])) {
                Some((at, rust, kernel)) => {
                    format!("byte {at}: Rust {rust:#04x}, the kernel {kernel:#04x}")
                }
                None => format!("length: Rust {}, the kernel {}", lengths.0, lengths.1),
            })
        } else if !same {
            Some("the MAC addresses of the host's addresses".to_owned())
        } else {
            self.copies.compare()
        };
        self.frame = after;
        Ok(difference)
    }

    /// By how many bytes the tags of a frame grow, if it is steered, and if it was steered to the
    /// box.
    fn group_of(&self, ingress: Role, frame: &[u8]) -> (usize, usize) {
        let rules = &self.rust.snapshot().rules;
        let address = match ingress {
            Role::Host => packet::source(frame),
            Role::Uplink | Role::Incoming => packet::destination(frame).filter(|_| {
                let own = self.rust_links.incoming_mac();
                let port = self.rust_links.incoming_port();
                port.is_some_and(|port| ingress == Role::Incoming || port == ingress)
                    && MacAddr::destination_of(frame) == own
            }),
        };
        let number = address.and_then(|address| match rules.owner(address) {
            Some(owner) => Some(owner.group()),
            None if ingress == Role::Incoming => rules.translated(address),
            None => None,
        });
        let Some(group) = number.and_then(|number| rules.group(number)) else {
            return (0, 0);
        };
        let (host, steer) = (group.vlan.bytes(), group.path.vlan.bytes());
        (steer.saturating_sub(host), host.saturating_sub(steer))
    }

    /// Whether a frame is a fragment to a translated address, of which a worker remembers the ports.
    fn is_for_a_worker(&self, frame: &[u8]) -> bool {
        let rules = &self.rust.snapshot().rules;
        let to = packet::destination(frame).filter(|address| rules.owner(*address).is_none());
        matches!(slow_path(frame), Some(SlowPath::Ip(..)))
            && to.is_some_and(|address| rules.translated(address).is_some())
    }

    /// The Rust engine's outcome; for a slow-path frame, what the kernel must do without a process
    /// in user space.
    fn by_rust(&mut self, ingress: Role, frame: &mut Vec<u8>) -> Outcome {
        let bytes = frame.len();
        let expected_slow = slow_path(frame).filter(|_| ingress == Role::Host);
        let group = self.group_of(ingress, frame);
        if ingress == Role::Incoming && self.is_for_a_worker(frame) {
            self.expected.to_stack[ingress] += 1;
            return Outcome::Stack;
        }
        let (outcome, verdict) = if let Some(slow_path) = expected_slow {
            self.expected.no_user_space += 1;
            self.expected.no_user_space_bytes += bytes as u64;
            if let SlowPath::Ip(at, version) = slow_path
                && let carried = Dscp::of(tos(frame, at, version))
                && self.scenario.clears.contains(&carried)
            {
                packet::set_dscp(frame, at, version, Dscp::DEFAULT);
                self.expected.cleared += 1;
            }
            (Outcome::Forward(Role::Uplink), None)
        } else {
            self.rust.forward(ingress, frame, bytes, Duration::ZERO)
        };
        match outcome {
            Outcome::Stack => {
                self.expected.to_stack[ingress] += 1;
                return outcome;
            }
            Outcome::Forward(role) => self.expected.forwarded[role] += 1,
            Outcome::Drop(DropReason::SteerUnavailable) => self.expected.steer_unavailable += 1,
            Outcome::Drop(_) => self.expected.host_mac_unknown += 1,
        }
        if ingress != Role::Host {
            self.expected.inbound_bytes[ingress] += bytes as u64;
        }
        self.expected.received[ingress] += 1;
        let grown = match (ingress, outcome, verdict) {
            (Role::Host, _, Some(verdict)) if verdict.egress != Egress::Uplink => group.0,
            (Role::Uplink | Role::Incoming, ..) => group.1,
            _ => 0,
        };
        let meant = self.scenario.hand_over[ingress] || bytes + grown > self.scenario.longest;
        self.expected.spilled[ingress] += u64::from(meant || expected_slow.is_some());
        outcome
    }

    /// Compares the counters of both engines since the last call; returns a description of the
    /// difference, if there is one.
    ///
    /// # Errors
    /// Fails if the kernel's counters cannot be read.
    pub fn compare_counters(&mut self) -> Result<Option<String>, LabError> {
        let now = self.kernel.counts().map_err(because)?;
        let before = std::mem::replace(&mut self.counted, now.clone());
        let expected = std::mem::take(&mut self.expected);
        let tally = std::mem::take(self.rust.tally());
        let groups = self.rust.take_group_counts();
        let mut differences = Vec::new();
        let mut check = |name: String, rust: u64, kernel: u64| {
            if rust != kernel {
                differences.push(format!("{name}: Rust {rust}, the kernel {kernel}"));
            }
        };
        for counter in Counter::all() {
            let kernel = now.tally.of(counter) - before.tally.of(counter);
            check(counter.to_string(), expected.of(counter, &tally), kernel);
        }
        for (number, rust) in groups.iter().enumerate() {
            let kernel = now.groups[number].since(&before.groups[number]);
            if *rust != kernel {
                let of_group = format!("group {number}: Rust {rust:?}, the kernel {kernel:?}");
                differences.push(of_group);
            }
        }
        let mut check = |name: String, rust: u64, kernel: u64| {
            if rust != kernel {
                differences.push(format!("{name}: Rust {rust}, the kernel {kernel}"));
            }
        };
        for role in Role::ALL {
            let to_stack = now.to_stack[role] - before.to_stack[role];
            let handed = now.handed[role] - before.handed[role];
            let spilled = now.spilled[role] - before.spilled[role];
            for (what, rust, kernel) in [
                ("to stack", expected.to_stack[role], to_stack),
                ("handed over", 0, handed),
                ("spilled", expected.spilled[role], spilled),
            ] {
                check(format!("{role} {what}"), rust, kernel);
            }
        }
        if self.kernel_links.learned() != self.rust_links.learned() {
            differences.push("the MAC addresses of the hosts' addresses".to_owned());
        }
        Ok((!differences.is_empty()).then(|| differences.join("; ")))
    }
}

impl Expected {
    fn of(&self, counter: Counter, tally: &Tally) -> u64 {
        let more = match counter {
            Counter::Received(role) => self.received[role],
            Counter::Forwarded(role) => self.forwarded[role],
            Counter::Class(Class::Host) | Counter::NoUserSpace => self.no_user_space,
            Counter::ClassBytes(Class::Host) | Counter::ReceivedBytes(Role::Host) => {
                self.no_user_space_bytes
            }
            Counter::ReceivedBytes(role) => self.inbound_bytes[role],
            Counter::Cleared => self.cleared,
            Counter::Dropped(DropReason::SteerUnavailable) => self.steer_unavailable,
            Counter::Dropped(DropReason::HostMacUnknown) => self.host_mac_unknown,
            _ => 0,
        };
        tally.of(counter) + more
    }
}
