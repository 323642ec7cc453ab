//! Builds the report on the running box from all of its parts.

mod site;

use super::tap::Tap;
use super::wire::Wire;
use super::workers::Sums;
use super::zero_copy::CUT;
use super::{Daemon, detach, topology};
use crate::observe::{
    ClassCount, DropCount, EngineReport, FrameCount, LostCopies, MalformedCount, OWN_RESOLVER,
    PortReport, Report, TapReport, Warning,
};
use crate::settings::{OnStop, UNROUTED_FAMILY};
use exitmark_datapath::{AttachMode, Counter, Direction, KernelCounts, KnownHost, Role, Tally};
use exitmark_nic::Nic;
use exitmark_policy::Class;
use exitmark_policy::packet::Malformed;
use std::time::UNIX_EPOCH;

pub(super) use site::marks;

const UNNAMED_LISTENER: &str = "unnamed_listener";
const RECURSION: &str = "most DNS queries of the host go to many servers that host.resolvers does \
                         not name: a recursive resolver on the host, whose TCP queries are marked \
                         as exit traffic; set host.resolvers = \"any\", or give the resolver a \
                         source address of its own";

impl Daemon {
    pub(super) fn report(&mut self) -> Report {
        let has_several = self.in_force.settings.wires.len() > 1;
        let mut reports = self.wires.all.iter_mut().map(|wire| {
            let mut report = wire.report();
            if has_several {
                for worker in &mut report.workers {
                    wire.name().clone_into(&mut worker.wire);
                }
            }
            report
        });
        let mut report = reports.next().unwrap_or_default();
        reports.for_each(|other| report.add_wire(other));
        let (since, started) = self.started;
        let settings = &self.in_force.settings;
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
        exitmark_service::VERSION.clone_into(&mut report.version);
        report.started_at = since.as_secs();
        report.uptime_seconds = started.elapsed().as_secs_f64();
        settings.rules.mode().name().clone_into(&mut report.mode);
        (settings.rules.classify_by.name()).clone_into(&mut report.classify_by);
        report.mark = marks(&settings.rules);
        report.generation = self.in_force.snapshot.generation;
        report.relay_set = self.in_force.relay_set();
        (report.reloads, report.reloads_refused) = self.in_force.reloads;
        let of_box = self.in_force.warnings(&report.relay_set).into_iter();
        report.warnings.extend(of_box.chain(self.wires.warnings()));
        let mut alarms = report.warnings.iter().filter(|one| one.is_alarm);
        if alarms.any(|one| one.kind == UNROUTED_FAMILY) {
            // The alarm says it.
            (report.warnings).retain(|one| one.is_alarm || one.kind != UNROUTED_FAMILY);
        }
        report.warnings.sort_by_key(|warning| !warning.is_alarm);
        report
    }
}

impl Wire {
    /// The parts of the report that concern this wire.
    fn report(&mut self) -> Report {
        let sums = self.workers.sums(self.counted_groups());
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
        let groups = self.groups(&kernel, &sums.groups);
        let settings = &self.settings;
        let audited = self.audit.report();
        let hosts = topology::known_hosts(&self.links, &settings.rules);
        let mut report = Report {
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
                unrouted_source: tally.of(Counter::UnroutedSource),
                translated: tally.of(Counter::Translated),
                translated_back: tally.of(Counter::TranslatedBack),
                host_by_uplink: tally.of(Counter::HostByUplink),
                hosts_full: self.links.hosts_full(),
                unnamed_listener: tally.of(Counter::UnnamedListener),
                disagreement: tally.of(Counter::Disagreement),
                unseen_fragment: tally.of(Counter::UnseenFragment),
                no_user_space: tally.of(Counter::NoUserSpace),
            },
            groups,
            drops: drops(&tally),
            taps: self.taps(&tally),
            steering: self.steering.report(settings),
            hosts: site::hosts(&hosts),
            workers: self.workers.balances(),
            unaccounted_frames: sums.unaccounted,
            residence: audited.latencies,
            audit: audited.audit,
            ..Report::default()
        };
        report.warnings = self.warnings(&report, &hosts, audited.has_recursion);
        report
    }

    fn taps(&self, tally: &Tally) -> Vec<TapReport> {
        let reason = |counter: Counter| {
            let name = counter.to_string();
            name.trim_start_matches("tap_").to_owned()
        };
        let tap = self.tap.iter().map(|tap| TapReport {
            interface: tap.name().to_owned(),
            is_up: tap.is_up(),
            copied_out: tally.of(Counter::Tapped(Direction::Out)),
            copied_in: tally.of(Counter::Tapped(Direction::In)),
            lost: Counter::LOST_COPIES
                .map(|counter| LostCopies {
                    reason: reason(counter),
                    copies: tally.of(counter),
                })
                .into(),
        });
        tap.collect()
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

    /// The warnings that concern this wire.
    fn warnings(&self, report: &Report, hosts: &[KnownHost], has_recursion: bool) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let mut warn = |kind: &str, is_alarm: bool, text: String| {
            warnings.push(Warning::new(kind, is_alarm, text));
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
                    let table = self.settings.table_of_nics();
                    warn(fault.kind(), true, fault.text(port, &self.bound, table));
                }
            }
        }
        if let Some(reason) = &self.following.retry.reason {
            let text = format!("the ports are not set up again yet: {reason}");
            warn("port_lost", true, text);
        }
        for (kind, text) in self.tap.iter().flat_map(Tap::faults) {
            warn(kind, true, text.to_owned());
        }
        if let Some(reason) = &self.unpinned {
            warn("unpinned", true, reason.clone());
        }
        let is_held = |port: &&PortReport| {
            let carrying = self.carrying.as_ref();
            let role = Role::ALL.into_iter().find(|role| role.name() == port.role);
            role.zip(carrying)
                .is_some_and(|(role, carrying)| carrying.holds(role))
        };
        let without = report.ports.iter().filter(|port| !port.has_carrier);
        for port in without.filter(|port| !is_held(port)) {
            let text = format!(
                "{} ({}) has no link; check the cable and the other end",
                port.interface, port.role
            );
            warn("no_carrier", true, text);
        }
        for (is_alarm, text) in self.rising.now(&self.bound).into_values() {
            warn("drops", is_alarm, text);
        }
        if self.topology.has_unnamed_listener() {
            warn(
                UNNAMED_LISTENER,
                false,
                topology::unnamed(self.settings.rules.classify_by),
            );
        }
        warnings.extend(self.site_warnings(report, hosts));
        let mut warn = |kind: &str, is_alarm: bool, text: String| {
            warnings.push(Warning::new(kind, is_alarm, text));
        };
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
