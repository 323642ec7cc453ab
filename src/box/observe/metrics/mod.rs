//! The report as metrics, in the OpenMetrics text format. A test compares them with
//! `docs/metrics.md`, which lists them all.

mod connections;
mod site;

use super::{FrameCount, PortReport, Report, SourceState, WorkerReport, tap};
use exitmark_service::prometheus::{Labels, Metrics, expose, labels, single};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use std::collections::BTreeSet;
use std::fmt;

pub(super) use connections::{SocketCount, socket_counts};
pub(super) use site::group_counts;

/// The ages of a relay set, as in [`crate::observe::RelaySetReport::age`].
const AGES: [&str; 5] = ["early", "fresh", "old", "expired", "stale"];

/// Encodes a report as metrics.
///
/// # Errors
///
/// If the encoder fails.
pub fn metrics(report: &Report) -> Result<String, fmt::Error> {
    expose("exitmark", Collected(report.clone()))
}

#[derive(Debug)]
struct Collected(Report);

impl Collector for Collected {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Metrics(encoder);
        let report = &self.0;
        process(&mut out, report)?;
        relay_set(&mut out, report)?;
        match &report.connections {
            Some(connections) => connections::connections(&mut out, connections)?,
            None => {
                ports(&mut out, &report.ports)?;
                frames(&mut out, report)?;
                tap::metrics(&mut out, &report.taps)?;
                site::site(&mut out, report)?;
                workers(&mut out, report)?;
                samples(&mut out, report)?;
            }
        }
        // Several of one kind are one series.
        let kinds = report.warnings.iter().map(|warning| {
            let severity = if warning.is_alarm { "alarm" } else { "warning" };
            (warning.kind.as_str(), severity)
        });
        let kinds: BTreeSet<_> = kinds.collect();
        out.gauge(
            "warning",
            "1 for each current warning or alarm; exitmark status names the remedy",
            kinds
                .into_iter()
                .map(|(kind, severity)| (labels([("kind", kind), ("severity", severity)]), 1)),
        )
    }
}

fn process(out: &mut Metrics<'_>, report: &Report) -> fmt::Result {
    let engine = &report.engine;
    out.info(
        "build",
        "The version of the program",
        [labels([("version", &report.version)])],
    )?;
    out.info(
        "box",
        "The configuration of the box, and the engine in use",
        [labels([
            ("mode", &report.mode),
            ("classify_by", &report.classify_by),
            ("mark", &report.mark),
            ("engine_asked", &engine.asked),
            ("engine", &engine.chosen),
        ])],
    )?;
    out.timestamp(
        "start",
        "Start of this process, in seconds since 1970",
        single(report.started_at),
    )?;
    out.gauge(
        "generation",
        "Incremented by every change of rules or relay set; 1 at the start",
        single(report.generation),
    )?;
    out.counter(
        "reloads",
        "Reloads of the configuration that took effect, in this process",
        single(report.reloads),
    )?;
    out.counter(
        "reloads_refused",
        "Reloads of the configuration that were refused, in this process",
        single(report.reloads_refused),
    )
}

/// A number of each port: its name, its help text, and how to read it from the report.
type OfPort = (&'static str, &'static str, fn(&PortReport) -> u64);

const PORT_FRAMES: [OfPort; 8] = [
    (
        "port_received_frames",
        "Frames received on the port and decided by an engine",
        |port| port.received_frames,
    ),
    (
        "port_forwarded_frames",
        "Frames forwarded to the port for transmission",
        |port| port.forwarded_frames,
    ),
    (
        "port_to_stack_frames",
        "Frames passed to the box's own network stack",
        |port| port.to_stack_frames,
    ),
    (
        "port_handed_frames",
        "Frames that the XDP program handed to a worker",
        |port| port.handed_frames,
    ),
    (
        "port_spilled_frames",
        "Frames meant for a worker that the XDP program decided itself",
        |port| port.spilled_frames,
    ),
    (
        "port_missed_frames",
        "Frames handed to a worker and dropped because its socket was full, in this process",
        |port| port.missed_frames,
    ),
    (
        "port_tx_invalid_frames",
        "Frames that the kernel refused to transmit, in this process",
        |port| port.tx_invalid_frames,
    ),
    (
        "port_cut_frames",
        "Frames received zero-copy that the NIC seems to have truncated, in this process",
        |port| port.cut_frames,
    ),
];

fn ports(out: &mut Metrics<'_>, ports: &[PortReport]) -> fmt::Result {
    let of = |port: &PortReport| labels([("port", &port.role), ("interface", &port.interface)]);
    out.info(
        "port",
        "How the box is attached to each NIC",
        ports.iter().map(|port| {
            let mut labels = of(port);
            let driver = port.driver.as_deref().unwrap_or_default();
            labels.extend([
                ("engine", port.engine.clone()),
                ("xdp", port.xdp.clone()),
                ("sockets", port.sockets.clone()),
                ("driver", driver.to_owned()),
            ]);
            labels
        }),
    )?;
    let each =
        |value: fn(&PortReport) -> u64| ports.iter().map(move |port| (of(port), value(port)));
    out.gauge(
        "port_carrier",
        "1 if the NIC has a link, else 0",
        each(|port| port.has_carrier.into()),
    )?;
    out.gauge(
        "port_mtu_bytes",
        "The MTU of the NIC",
        each(|port| port.mtu.into()),
    )?;
    out.gauge(
        "port_queues",
        "Receive queues of the NIC",
        each(|port| port.queues.into()),
    )?;
    out.bytes(
        "port_received",
        "Bytes of frames received on the port and decided by an engine",
        each(|port| port.received_bytes),
    )?;
    for (name, help, value) in PORT_FRAMES {
        out.counter(name, help, each(value))?;
    }
    Ok(())
}

/// A count of frames with a property: its name, as in the metric `exitmark_NAME_frames`, its help
/// text and its value.
type Counted = (&'static str, &'static str, u64);

/// Each count of frames with a property.
pub(super) fn frame_counts(frames: &FrameCount) -> [Counted; 14] {
    [
        (
            "marked",
            "Frames whose DSCP was set to the mark",
            frames.marked,
        ),
        (
            "cleared",
            "Frames of classes other than exit whose mark was cleared",
            frames.cleared,
        ),
        (
            "unsteered",
            "Relay frames that left by the uplink, because incoming could not be used",
            frames.unsteered,
        ),
        (
            "unrouted_vlan",
            "Relay frames that were not steered, because their VLAN tags are not those of host.vlan",
            frames.unrouted_vlan,
        ),
        (
            "unrouted_family",
            "Relay frames that were not steered, because there is no next hop for their IP version",
            frames.unrouted_family,
        ),
        (
            "unrouted_source",
            "Relay frames that were not steered, because no answer would be translated back",
            frames.unrouted_source,
        ),
        (
            "translated",
            "Relay frames that left with an address of steer.source in place of the host's",
            frames.translated,
        ),
        (
            "translated_back",
            "Frames that arrived for an address of steer.source and got the host's again",
            frames.translated_back,
        ),
        (
            "host_by_uplink",
            "Frames that arrived by uplink from an address of the host, while none arrives by host",
            frames.host_by_uplink,
        ),
        (
            "hosts_full",
            "Frames from a host address for which the table of MAC addresses was full, in this process",
            frames.hosts_full,
        ),
        (
            "disagreement",
            "Frames on which relay set and source address disagree",
            frames.disagreement,
        ),
        (
            "unnamed_listener",
            "Frames that accept a connection at a port that host.listeners does not name",
            frames.unnamed_listener,
        ),
        (
            "unseen_fragment",
            "Later fragments whose first fragment was not seen",
            frames.unseen_fragment,
        ),
        (
            "no_user_space",
            "Slow-path frames forwarded unmarked because no worker took them",
            frames.no_user_space,
        ),
    ]
}

fn frames(out: &mut Metrics<'_>, report: &Report) -> fmt::Result {
    let engine = &report.engine;
    out.counter(
        "engine_frames",
        "Frames decided by each engine",
        [
            (labels([("engine", "xdp")]), engine.xdp_frames),
            (labels([("engine", "af_xdp")]), engine.af_xdp_frames),
        ],
    )?;
    let class = |class: &str| labels([("class", class)]);
    let classes = report.classes.iter();
    out.counter(
        "class_frames",
        "Outbound frames of each class",
        classes.clone().map(|of| (class(&of.class), of.frames)),
    )?;
    out.bytes(
        "class",
        "Bytes of outbound frames of each class",
        classes.map(|of| (class(&of.class), of.bytes)),
    )?;
    let malformed = report.malformed.iter();
    out.counter(
        "malformed_frames",
        "Outbound IP frames with invalid headers, by fault",
        malformed.map(|of| (labels([("reason", &of.reason)]), of.frames)),
    )?;
    for (name, help, value) in frame_counts(&report.frames) {
        out.counter(&format!("{name}_frames"), help, single(value))?;
    }
    out.counter(
        "dropped_frames",
        "Frames that were not forwarded, by reason, and by egress port if the reason concerns one",
        report.drops.iter().map(|of| {
            let port = of.port.as_deref().unwrap_or_default();
            (labels([("reason", &of.reason), ("port", port)]), of.frames)
        }),
    )
}

fn relay_set(out: &mut Metrics<'_>, report: &Report) -> fmt::Result {
    let set = &report.relay_set;
    for (name, help, value) in [
        (
            "relay_set_endpoints",
            "Endpoints that count as relays now",
            set.endpoints,
        ),
        (
            "relay_set_listed_endpoints",
            "Endpoints listed in the documents in force",
            set.listed,
        ),
        (
            "relay_set_departed_endpoints",
            "Endpoints that left the documents and are retained (relays.retain)",
            set.departed,
        ),
        (
            "relay_set_extra_endpoints",
            "Endpoints named in the configuration",
            set.extra,
        ),
    ] {
        out.gauge(name, help, single(value))?;
    }
    out.gauge(
        "relay_set_age",
        "1 for the current age of the relay set, 0 for the others; all 0 without a document",
        AGES.map(|age| {
            let is = (set.age.as_deref() == Some(age)).into();
            (labels([("age", age)]), is)
        }),
    )?;
    out.gauge(
        "relay_set_passing",
        "1 if nothing is marked or steered because the relay set is stale or missing, else 0",
        single(set.is_passing.into()),
    )?;
    out.timestamp(
        "relay_set_accepted",
        "When the relay set in force was accepted, in seconds since 1970",
        set.accepted_at.map(|at| (Vec::new(), at)),
    )?;
    out.counter(
        "relay_sets_accepted",
        "Relay sets that were accepted",
        single(set.accepted),
    )?;
    out.counter(
        "relay_sets_refused",
        "Relay sets that were refused: loads without an accepted document",
        single(set.refused),
    )?;
    let path = |path: &str| labels([("path", path)]);
    out.gauge(
        "relay_document_state",
        "1 for the current state of a source of the relay set, 0 for the others: in-force, older \
         (endpoints are remembered), refused",
        set.sources.iter().flat_map(|of| {
            let state = |state: SourceState| {
                let labels = labels([("path", &of.path), ("state", state.name())]);
                (labels, (of.state == state).into())
            };
            SourceState::ALL.map(state)
        }),
    )?;
    let sources = set.sources.iter().filter(|of| of.valid_until != 0);
    out.timestamp(
        "relay_document_valid_after",
        "When an accepted document becomes valid, in seconds since 1970",
        sources.clone().map(|of| (path(&of.path), of.valid_after)),
    )?;
    out.timestamp(
        "relay_document_fresh_until",
        "When the successor of an accepted document is due, in seconds since 1970",
        sources.clone().map(|of| (path(&of.path), of.fresh_until)),
    )?;
    out.timestamp(
        "relay_document_valid_until",
        "When an accepted document expires, in seconds since 1970",
        sources.clone().map(|of| (path(&of.path), of.valid_until)),
    )?;
    out.gauge(
        "relay_document_signatures",
        "Signatures of an accepted document by count: good ones of known (good) and of unknown \
         (unknown) authorities, good ones that are needed, known authorities",
        sources
            .filter_map(|of| Some((&of.path, of.signatures?)))
            .flat_map(|(path, signed)| {
                [
                    ("good", signed.good),
                    ("needed", signed.needed),
                    ("unknown", signed.unknown),
                    ("known", signed.known),
                ]
                .map(|(count, value)| (labels([("path", path), ("count", count)]), value))
            }),
    )
}

/// The labels of a worker's series: also its wire, if there are several.
fn of_worker(worker: &WorkerReport, more: &[(&'static str, &str)]) -> Labels {
    let mut labels = labels([("queue", &worker.queue.to_string())]);
    let wire = [("wire", worker.wire.as_str())];
    let wire = wire.iter().filter(|(_, name)| !name.is_empty());
    let more = wire
        .chain(more)
        .map(|(name, value)| (*name, (*value).to_owned()));
    labels.extend(more);
    labels
}

fn workers(out: &mut Metrics<'_>, report: &Report) -> fmt::Result {
    let workers = report.workers.iter();
    out.gauge(
        "worker_memory_frames",
        "All packet buffers of a worker",
        workers
            .clone()
            .map(|worker| (of_worker(worker, &[]), worker.total)),
    )?;
    out.gauge(
        "worker_frames",
        "Packet buffers of a worker, by place: pool, in_hand, receiving, sending, unaccounted",
        workers.flat_map(|worker| {
            [
                ("pool", worker.pool),
                ("in_hand", worker.in_hand),
                ("receiving", worker.receiving),
                ("sending", worker.sending),
                ("unaccounted", worker.unaccounted),
            ]
            .map(|(place, frames)| (of_worker(worker, &[("place", place)]), frames))
        }),
    )?;
    out.gauge(
        "unaccounted_frames",
        "Frames that are not accounted for; anything but 0 is a fault of exitmark",
        single(report.unaccounted_frames),
    )
}

fn samples(out: &mut Metrics<'_>, report: &Report) -> fmt::Result {
    let mut encoder = out.0.encode_descriptor(
        "residence",
        "Time that sampled frames spent in the box, in seconds, in this process",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    for latency in &report.residence {
        let labels = labels([("engine", &latency.engine)]);
        // The encoder takes the count of each bucket and accumulates them itself.
        let mut before = 0;
        let mut buckets = Vec::with_capacity(latency.buckets.len() + 1);
        let last = (f64::INFINITY, latency.samples);
        for &(bound, at_most) in latency.buckets.iter().chain([&last]) {
            let at_most = at_most.clamp(before, latency.samples.max(before));
            buckets.push((bound, at_most - before));
            before = at_most;
        }
        encoder
            .encode_family(&labels)?
            .encode_histogram::<NoLabelSet>(latency.sum_seconds, before, &buckets, None)?;
    }
    let audit = &report.audit;
    out.gauge(
        "audit_one_in",
        "One frame in this many is checked against the policy; 0 turns the audit off",
        single(audit.one_in),
    )?;
    out.counter(
        "audit_checked_frames",
        "Frames that left and were checked against the policy, in this process",
        single(audit.checked),
    )?;
    out.counter(
        "audit_skipped_frames",
        "Sampled frames that cannot be judged by themselves, such as later fragments, in this process",
        single(audit.skipped),
    )?;
    out.counter(
        "audit_lost_frames",
        "Sampled frames lost because a buffer was full, in this process",
        single(audit.lost),
    )?;
    let mismatches = audit.mismatches.iter();
    out.counter(
        "audit_mismatched_frames",
        "Frames that left in violation of the policy, by kind of mismatch, in this process; a fault of exitmark",
        mismatches.map(|of| (labels([("kind", &of.kind)]), of.frames)),
    )
}
