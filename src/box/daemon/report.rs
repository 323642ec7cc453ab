//! Builds the report on the running box from all of its parts.

use super::relays::FEW_SIGNATURES;
use super::topology::Misfit;
use super::workers::Sums;
use super::zero_copy::CUT;
use super::{Daemon, detach, topology};
use crate::observe::{
    ClassCount, DocumentSignatures, DropCount, EngineReport, FrameCount, MalformedCount,
    OWN_RESOLVER, PortReport, RelaySetReport, Report, SteeringReport, SteeringState, Warning,
};
use crate::settings::OnStop;
use exitmark_datapath::{AttachMode, Counter, KernelCounts, Role, Tally};
use exitmark_nic::Nic;
use exitmark_policy::Class;
use exitmark_policy::packet::Malformed;
use std::time::UNIX_EPOCH;

const UNNAMED_LISTENER: &str = "unnamed_listener";
const RECURSION: &str = "most DNS queries of the host go to many servers that host.resolvers does \
                         not name: a recursive resolver on the host, whose TCP queries are marked \
                         as exit traffic; set host.resolvers = \"any\", or give the resolver a \
                         source address of its own";

impl Daemon {
    pub(super) fn report(&mut self) -> Report {
        let sums = self.workers.sums();
        // If reading fails, the earlier counts stay: no counter may decrease.
        match self.kernel.counts() {
            Ok(counts) => self.counts = counts,
            Err(error) => tracing::error!(
                "the kernel's counters cannot be read, the last values are reported: {error}"
            ),
        }
        let kernel = self.counts.clone();
        let mut tally = sums.tally.clone();
        tally.add(&kernel.tally);
        // The program counts a frame as forwarded, and takes that back if the NIC refuses it: the
        // reported count must not decrease.
        for role in Role::ALL {
            let most = &mut self.forwarded[role];
            *most = tally.of(Counter::Forwarded(role)).max(*most);
        }
        let (since, started) = self.started;
        let settings = &self.settings;
        let audited = self.audit.report();
        let mut report = Report {
            version: exitmark_service::VERSION.to_owned(),
            started_at: since
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
            uptime_seconds: started.elapsed().as_secs_f64(),
            mode: settings.rules.actions.mode().name().to_owned(),
            classify_by: settings.rules.classify_by.name().to_owned(),
            mark: settings.rules.actions.mark().to_string(),
            generation: self.snapshot.generation,
            engine: EngineReport {
                asked: self.bound.requested.name().to_owned(),
                chosen: self.bound.engine.name().to_owned(),
                reason: self.bound.reason.to_owned(),
                xdp_frames: kernel.tally.decided(),
                af_xdp_frames: sums.tally.decided(),
            },
            ports: self.ports(&tally, &sums, &kernel),
            classes: Class::ALL
                .map(|class| ClassCount {
                    class: class.name().to_owned(),
                    frames: tally.of(Counter::Class(class)),
                    bytes: tally.of(Counter::ClassBytes(class)),
                })
                .into(),
            malformed: Malformed::ALL
                .map(|reason| MalformedCount {
                    reason: reason.name().to_owned(),
                    frames: tally.of(Counter::Malformed(reason)),
                })
                .into(),
            frames: FrameCount {
                marked: tally.of(Counter::Marked),
                cleared: tally.of(Counter::Cleared),
                unsteered: tally.of(Counter::Unsteered),
                unrouted_vlan: tally.of(Counter::UnroutedVlan),
                unrouted_family: tally.of(Counter::UnroutedFamily),
                host_by_uplink: tally.of(Counter::HostByUplink),
                unnamed_listener: tally.of(Counter::UnnamedListener),
                disagreement: tally.of(Counter::Disagreement),
                unseen_fragment: tally.of(Counter::UnseenFragment),
                no_user_space: tally.of(Counter::NoUserSpace),
            },
            drops: drops(&tally),
            steering: self.steering.report(),
            relay_set: self.relay_service.numbers.report().clone(),
            workers: self.workers.balances(),
            unaccounted_frames: sums.unaccounted,
            residence: audited.latencies,
            audit: audited.audit,
            reloads: self.reloads.0,
            reloads_refused: self.reloads.1,
            ..Report::default()
        };
        report.relay_set.is_passing |= self.is_passing;
        report.warnings = self.warnings(&report, audited.has_recursion);
        report
    }

    fn ports(&self, tally: &Tally, sums: &Sums, kernel: &KernelCounts) -> Vec<PortReport> {
        let ports = self.bound.ports.iter();
        ports
            .map(|port| {
                let (role, nic, is_zero_copy) = (port.role, &port.nic, port.is_zero_copy);
                // The current state; if the NIC is gone, the last known one is reported.
                let now = Nic::of_index(nic.index).ok().flatten();
                PortReport {
                    role: role.name().to_owned(),
                    interface: now.as_ref().unwrap_or(nic).name.clone(),
                    engine: if port.hands_over { "af_xdp" } else { "xdp" }.to_owned(),
                    reason: port.reason.to_owned(),
                    xdp: port.mode.to_string(),
                    sockets: if is_zero_copy { "zero-copy" } else { "copy" }.to_owned(),
                    driver: nic.driver.clone(),
                    mtu: now.as_ref().unwrap_or(nic).mtu,
                    queues: nic.queues,
                    has_carrier: now.is_some_and(|nic| nic.has_carrier),
                    received_frames: tally.of(Counter::Received(role)),
                    received_bytes: tally.of(Counter::ReceivedBytes(role)),
                    forwarded_frames: self.forwarded[role],
                    to_stack_frames: kernel.to_stack[role],
                    handed_frames: kernel.handed[role],
                    spilled_frames: kernel.spilled[role],
                    missed_frames: sums.missed[role],
                    tx_invalid_frames: sums.invalid[role],
                    cut_frames: sums.cut[role],
                }
            })
            .collect()
    }

    /// The warnings, the most severe first.
    fn warnings(&self, report: &Report, has_recursion: bool) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let mut warn = |kind: &str, is_alarm: bool, text: String| {
            warnings.push(Warning {
                kind: kind.to_owned(),
                is_alarm,
                text,
            });
        };
        if report.unaccounted_frames > 0 {
            let text = "frames are not accounted for, a fault of exitmark: report it, then restart";
            warn("unaccounted", true, text.to_owned());
        }
        for port in &self.bound.ports {
            if self.sights[port.role].is_blind() {
                let text = format!(
                    "{port} receives packets that its XDP program does not see: frames received \
                     there are not forwarded; if this lasts, stop exitmark, `exitmark detach`, set \
                     the NIC down and up, start"
                );
                warn("blind", true, text);
            }
        }
        if let Some(finding) = self.sides.finding {
            warn("wrong_side", true, self.wrong_side(finding));
        }
        for port in &self.bound.ports {
            for fault in &self.following.faults[port.role] {
                if fault.kind() != "no_carrier" {
                    warn(fault.kind(), true, fault.text(port, &self.bound));
                }
            }
        }
        if let Some(reason) = &self.following.retry.reason {
            let text = format!("the ports are not set up again yet: {reason}");
            warn("port_lost", true, text);
        }
        if let Some(reason) = &self.unpinned {
            warn("unpinned", true, reason.clone());
        }
        for port in report.ports.iter().filter(|port| !port.has_carrier) {
            let text = format!(
                "{} ({}) has no link; check the cable and the other end",
                port.interface, port.role
            );
            warn("no_carrier", true, text);
        }
        for (is_alarm, text) in self.rising.now(&self.bound).into_values() {
            warn("drops", is_alarm, text);
        }
        if let Some(text) = unsteered(&report.steering) {
            warn("steering", true, text);
        }
        if self.topology.has_unnamed_listener() {
            warn(
                UNNAMED_LISTENER,
                false,
                topology::unnamed(self.settings.rules.classify_by),
            );
        }
        if let Some(incoming) = self.settings.incoming() {
            let observed = Misfit::ALL.into_iter();
            for misfit in observed.filter(|&misfit| self.topology.has(misfit)) {
                warn(
                    misfit.kind(),
                    true,
                    misfit.text(incoming, self.settings.host_mac),
                );
            }
        }
        let decides = self.settings.decides_by_relays();
        if let Some((is_alarm, text)) = aged(&report.relay_set, decides, self.is_orphaned) {
            warn("relay_set", is_alarm, text);
        }
        let set = &report.relay_set;
        if let (Some(reason), false) = (&set.failure, set.is_missing) {
            let text = format!(
                "the current relay files were refused, the previous set stays in force: {reason}"
            );
            warn("relay_set_refused", false, text);
        }
        if let Some(reason) = &set.unsaved {
            let text =
                format!("the relay set cannot be saved, and a restart would lose it: {reason}");
            warn("state", false, text);
        }
        if self.has_no_relay_service {
            let text = "the relay files are no longer watched; restart exitmark".to_owned();
            warn("relay_files", false, text);
        }
        if let Some(reason) = &self.refused_reload {
            let text = format!(
                "the file's configuration was refused, the previous one stays in force: {reason}"
            );
            warn("reload", false, text);
        }
        for source in &report.relay_set.sources {
            if let Some(signed) = source.signatures.filter(DocumentSignatures::is_scarce) {
                let text = format!("{} is {signed}; {FEW_SIGNATURES}", source.path);
                warn("authorities", false, text);
            }
        }
        let mismatches: u64 = report.audit.mismatches.iter().map(|one| one.frames).sum();
        if mismatches > 0 {
            let text = format!(
                "{mismatches} sampled frames left in violation of the policy, a fault of exitmark: \
                 report it"
            );
            warn("audit", true, text);
        }
        for port in report.ports.iter().filter(|port| port.cut_frames > 0) {
            let (nic, role, frames) = (&port.interface, &port.role, port.cut_frames);
            warn(
                "cut",
                false,
                format!("{nic} ({role}), {frames} frames: {CUT}"),
            );
        }
        for doubt in self.settings.doubts() {
            warn("configuration", false, doubt.what.to_string());
        }
        if self.unpublished.is_some() {
            let text =
                "the kernel refused the newest relay set; the update is retried every minute";
            warn("unpublished", false, text.to_owned());
        }
        for port in &self.bound.ports {
            let now = Nic::of_index(port.nic.index).ok().flatten();
            if let Some(offload) = now.as_ref().and_then(detach::misplaced_offload) {
                let text = format!(
                    "{port} has {offload} on again, which alters frames: `ethtool -K {} {offload} \
                     off`",
                    port.nic.name
                );
                warn("offload", true, text);
            }
            if port.mode == AttachMode::Generic {
                let text = format!(
                    "{port} has XDP in generic mode, several times slower, and frames longer than \
                     its MTU are lost: turn TSO and GSO off at the sender"
                );
                warn("generic_xdp", false, text);
            }
            let workers = self.workers.count();
            if port.nic.queues as usize > workers {
                let text = format!(
                    "{port} has {} receive queues and {workers} of them have a worker: slow-path \
                     frames from the others are forwarded unmarked",
                    port.nic.queues
                );
                warn("queues", false, text);
            }
        }
        for port in self.bound.ports.iter().filter(|port| port.needs_process) {
            // With on_stop = "detach", traffic ends with the process in any case.
            if port.lossy.is_some() || self.settings.pin.on_stop == OnStop::Keep {
                warn("needs_process", false, port.alone());
            }
        }
        if has_recursion {
            warn(OWN_RESOLVER, false, RECURSION.to_owned());
        }
        warnings
    }
}

fn unsteered(steering: &SteeringReport) -> Option<String> {
    let consequence = match steering.on_unavailable.as_str() {
        "drop" => "relay traffic is dropped",
        _ => "relay traffic leaves by the uplink, unmarked",
    };
    match steering.state {
        SteeringState::Off | SteeringState::Steering => None,
        SteeringState::NoCarrier => Some(format!(
            "incoming has no link: {consequence}; check the cable and the other end"
        )),
        SteeringState::Unresolved => Some(format!(
            "the next hop does not answer: {consequence}; check steer.next_hop, and that the box has \
             an address on that network"
        )),
    }
}

/// The warning on the set's age. `decides`: exit and relay traffic are classified by the set, not
/// only the host's own listeners.
fn aged(set: &RelaySetReport, decides: bool, is_orphaned: bool) -> Option<(bool, String)> {
    if set.is_missing {
        let text = match decides {
            true => "there is no relay set: everything leaves by the uplink, unmarked",
            false => "there is no relay set: the host's own ORPorts are not known as listeners",
        };
        let reason = set.failure.as_deref().unwrap_or("not read yet");
        return Some((decides, format!("{text}: {reason}")));
    }
    if set.is_passing || is_orphaned {
        let text = "the relay set is stale: nothing is marked or steered; find out why tor fetches \
                    no consensus";
        return Some((true, text.to_owned()));
    }
    match set.age.as_deref() {
        Some("stale") if decides => Some((
            true,
            "the relay set is stale: marking and steering continue with it, with more errors each \
             hour; find out why tor fetches no consensus"
                .to_owned(),
        )),
        Some("old" | "expired" | "stale") => Some((
            false,
            "the relay set is getting old; find out why tor fetches no consensus".to_owned(),
        )),
        Some("early") => Some((
            false,
            "the newest consensus is not valid yet; compare this machine's clock".to_owned(),
        )),
        _ => None,
    }
}

/// The count of every drop reason, also of those at 0.
fn drops(tally: &Tally) -> Vec<DropCount> {
    let reasons = Counter::all().filter_map(|counter| match counter {
        Counter::Dropped(reason) => Some(reason),
        _ => None,
    });
    reasons
        .map(|reason| DropCount {
            reason: reason.name().to_owned(),
            port: reason.port().map(|role| role.name().to_owned()),
            frames: tally.of(Counter::Dropped(reason)),
        })
        .collect()
}
