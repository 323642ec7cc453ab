//! Merges the reports on the wires of a box into one.

use super::{
    ClassCount, DropCount, GroupReport, LatencyReport, NextHopReport, PortReport, Report,
    SteeringReport,
};

impl Report {
    /// Adds what another wire of the same box has counted. Parts that concern the whole box stay as
    /// they are.
    pub fn add_wire(&mut self, other: Self) {
        let engine = &mut self.engine;
        engine.xdp_frames += other.engine.xdp_frames;
        engine.af_xdp_frames += other.engine.af_xdp_frames;
        if engine.chosen != other.engine.chosen {
            // Of two engines, the one that needs this process.
            "af_xdp".clone_into(&mut engine.chosen);
            "not the same on every wire".clone_into(&mut engine.reason);
        }
        for port in other.ports {
            self.add_port(port);
        }
        add_classes(&mut self.classes, &other.classes);
        for (sum, more) in self.malformed.iter_mut().zip(&other.malformed) {
            sum.frames += more.frames;
        }
        let (sums, more) = (&mut self.frames, other.frames);
        sums.marked += more.marked;
        sums.cleared += more.cleared;
        sums.unsteered += more.unsteered;
        sums.unrouted_vlan += more.unrouted_vlan;
        sums.unrouted_family += more.unrouted_family;
        sums.unrouted_source += more.unrouted_source;
        sums.translated += more.translated;
        sums.translated_back += more.translated_back;
        sums.host_by_uplink += more.host_by_uplink;
        sums.hosts_full += more.hosts_full;
        sums.disagreement += more.disagreement;
        sums.unnamed_listener += more.unnamed_listener;
        sums.unseen_fragment += more.unseen_fragment;
        sums.no_user_space += more.no_user_space;
        for group in other.groups {
            match self.groups.iter_mut().find(|one| one.name == group.name) {
                Some(sum) => sum.add(&group),
                None => self.groups.push(group),
            }
        }
        for drop in other.drops {
            let is_same =
                |one: &&mut DropCount| (&one.reason, &one.port) == (&drop.reason, &drop.port);
            match self.drops.iter_mut().find(is_same) {
                Some(sum) => sum.frames += drop.frames,
                None => self.drops.push(drop),
            }
        }
        for tap in other.taps {
            match (self.taps.iter_mut()).find(|one| one.interface == tap.interface) {
                Some(sum) => sum.add(&tap),
                None => self.taps.push(tap),
            }
        }
        self.steering.add(other.steering);
        self.hosts.extend(other.hosts);
        self.hosts.sort_by_cached_key(|host| {
            let address: Option<std::net::IpAddr> = host.address.parse().ok();
            address
        });
        self.hosts
            .dedup_by(|one, other| (&one.address, &one.mac) == (&other.address, &other.mac));
        self.workers.extend(other.workers);
        self.unaccounted_frames += other.unaccounted_frames;
        for latency in other.residence {
            match self
                .residence
                .iter_mut()
                .find(|one| one.engine == latency.engine)
            {
                Some(sum) => sum.add(&latency),
                None => self.residence.push(latency),
            }
        }
        let (audit, more) = (&mut self.audit, other.audit);
        audit.checked += more.checked;
        audit.skipped += more.skipped;
        audit.lost += more.lost;
        for mismatch in more.mismatches {
            match audit
                .mismatches
                .iter_mut()
                .find(|one| one.kind == mismatch.kind)
            {
                Some(sum) => sum.frames += mismatch.frames,
                None => audit.mismatches.push(mismatch),
            }
        }
        for warning in other.warnings {
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
    }

    /// Several wires can have one NIC `incoming`.
    fn add_port(&mut self, port: PortReport) {
        let is_same =
            |one: &&mut PortReport| (&one.role, &one.interface) == (&port.role, &port.interface);
        let Some(sum) = self.ports.iter_mut().find(is_same) else {
            self.ports.push(port);
            return;
        };
        sum.received_frames += port.received_frames;
        sum.received_bytes += port.received_bytes;
        sum.forwarded_frames += port.forwarded_frames;
        sum.to_stack_frames += port.to_stack_frames;
        sum.handed_frames += port.handed_frames;
        sum.spilled_frames += port.spilled_frames;
        sum.missed_frames += port.missed_frames;
        sum.tx_invalid_frames += port.tx_invalid_frames;
        sum.cut_frames += port.cut_frames;
    }
}

fn add_classes(sums: &mut [ClassCount], more: &[ClassCount]) {
    for (sum, more) in sums.iter_mut().zip(more) {
        sum.frames += more.frames;
        sum.bytes += more.bytes;
    }
}

impl GroupReport {
    fn add(&mut self, more: &Self) {
        add_classes(&mut self.classes, &more.classes);
        self.marked += more.marked;
        self.cleared += more.cleared;
        self.unsteered += more.unsteered;
        self.unrouted_vlan += more.unrouted_vlan;
        self.unrouted_family += more.unrouted_family;
        self.unrouted_source += more.unrouted_source;
    }
}

impl SteeringReport {
    /// Each wire looks for the next hops by itself: of two states, the worse one is reported.
    fn add(&mut self, other: Self) {
        if self.next_hops.is_empty() {
            *self = other;
            return;
        }
        let hops = std::mem::take(&mut self.next_hops);
        let mut others = other.next_hops.into_iter();
        let worse = |one: NextHopReport| match others.next() {
            Some(other) if other.state.rank() > one.state.rank() => other,
            _ => one,
        };
        let hops = hops.into_iter().map(worse).collect();
        let changes = self.changes + other.changes;
        *self = Self::new(&self.on_unavailable, changes, hops);
    }
}

impl LatencyReport {
    /// The quantiles of both cannot be merged exactly: the higher one of each is kept.
    fn add(&mut self, more: &Self) {
        if self.samples == 0 {
            self.clone_from(more);
            return;
        }
        self.samples += more.samples;
        self.sum_seconds += more.sum_seconds;
        if more.samples > 0 {
            for ((_, sum), (_, more)) in self.quantiles.iter_mut().zip(&more.quantiles) {
                *sum = sum.max(*more);
            }
        }
        for ((_, sum), (_, more)) in self.buckets.iter_mut().zip(&more.buckets) {
            *sum += more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{MismatchCount, SteeringState, Warning};

    fn port(role: &str, interface: &str, frames: u64) -> PortReport {
        PortReport {
            role: role.to_owned(),
            interface: interface.to_owned(),
            received_frames: frames,
            ..PortReport::default()
        }
    }

    fn wire(host: &str, frames: u64) -> Report {
        let mut report = Report {
            ports: vec![port("host", host, frames), port("incoming", "in0", frames)],
            classes: vec![ClassCount {
                class: "exit".to_owned(),
                frames,
                bytes: 100 * frames,
            }],
            drops: vec![DropCount {
                reason: "tx_full".to_owned(),
                port: Some("uplink".to_owned()),
                frames,
            }],
            groups: vec![GroupReport {
                name: "a".to_owned(),
                marked: frames,
                ..GroupReport::default()
            }],
            residence: vec![LatencyReport {
                engine: "xdp".to_owned(),
                samples: frames,
                sum_seconds: 1.0,
                quantiles: vec![
                    (0.5, 1e-6),
                    (0.99, f64::from(u32::try_from(frames).unwrap())),
                ],
                buckets: vec![(1e-6, frames)],
            }],
            warnings: vec![Warning::new("steering", true, "one cause".to_owned())],
            unaccounted_frames: frames,
            ..Report::default()
        };
        report.audit.mismatches = vec![MismatchCount {
            kind: "mark".to_owned(),
            frames,
        }];
        report.frames.marked = frames;
        report
    }

    #[test]
    fn counts_of_wires_are_added_and_causes_named_once() {
        let mut report = wire("host0", 3);
        report.add_wire(wire("host1", 4));
        let ports = report.ports.iter();
        let ports: Vec<_> = ports
            .map(|port| (port.interface.as_str(), port.received_frames))
            .collect();
        assert_eq!(ports, [("host0", 3), ("in0", 7), ("host1", 4)]);
        assert_eq!(
            (report.classes[0].frames, report.classes[0].bytes),
            (7, 700)
        );
        assert_eq!(report.drops[0].frames, 7);
        assert_eq!((report.drops.len(), report.groups.len()), (1, 1));
        assert_eq!((report.groups[0].marked, report.frames.marked), (7, 7));
        assert_eq!(report.unaccounted_frames, 7);
        assert_eq!(report.audit.mismatches[0].frames, 7);
        assert_eq!(report.warnings.len(), 1);
        let latency = &report.residence[0];
        assert_eq!((latency.samples, latency.buckets[0].1), (7, 7));
        assert_eq!(latency.quantiles, [(0.5, 1e-6), (0.99, 4.0)]);
    }

    #[test]
    fn the_worst_state_of_a_next_hop_is_reported() {
        let hops = |states: [SteeringState; 2]| {
            let hops = states.map(|state| NextHopReport {
                state,
                ..NextHopReport::default()
            });
            SteeringReport::new("uplink", 1, hops.into())
        };
        use SteeringState::{NoCarrier, Steering, Unresolved};
        let mut report = Report {
            steering: hops([Steering, NoCarrier]),
            ..Report::default()
        };
        report.add_wire(Report {
            steering: hops([Unresolved, Steering]),
            ..Report::default()
        });
        let states = report.steering.next_hops.iter().map(|hop| hop.state);
        assert_eq!(states.collect::<Vec<_>>(), [Unresolved, NoCarrier]);
        assert_eq!(
            (report.steering.state, report.steering.changes),
            (NoCarrier, 2)
        );
        // A wire without steering.
        report.add_wire(Report::default());
        assert_eq!(report.steering.state, NoCarrier);
    }
}
