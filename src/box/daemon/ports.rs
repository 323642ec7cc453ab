//! Port changes while the box runs: a port is removed and created again, renamed, moved to another
//! network namespace, or gets another MAC address, MTU or number of queues.
//!
//! The ports are checked on every rtnetlink link message, and once a second in any case. A check
//! compares each port with what the sockets and the program were set up for, whatever triggered
//! it. While a port is lost, the workers are stopped and the program decides by itself for the
//! other ports. When the port is back, it is set up as by a start that takes a box over.

use super::bound::{BoundPort, BoundState};
use super::faults::{KernelView, PortFault, compare_mtus, faults};
use super::nics::{self, Nics, configured};
use super::parts::Assembly;
use super::wire::Wire;
use super::workers::Base;
use super::{DaemonError, Event, capabilities, detach, steering};
use crate::settings::Engine;
use crossbeam::channel::Sender;
use exitmark_datapath::{Attachment, Buffers, PerRole, Pins, Role};
use exitmark_nic::{LinkState, LinkWatch, Nic, NicError, Overview, index_of};
use exitmark_service::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How many times a port that is back is set up before the box exits, for the service manager to
/// restart it; and the pause between two tries.
const TRIES: u32 = 30;
const PAUSE: Duration = Duration::from_secs(1);

/// The ports' faults, and how their repair stands.
#[derive(Default)]
pub(super) struct Following {
    pub(super) faults: PerRole<Vec<PortFault>>,
    /// The workers are stopped, because a port is lost.
    is_suspended: bool,
    /// The next hop is not yet monitored on the NIC that is `incoming` now.
    must_move: bool,
    pub(super) retry: Retry,
    /// The interface indexes of the NICs that this process set up after their return, and whether
    /// one of the ports took no redirected frames the last time.
    set_up: PerRole<Option<u32>>,
    is_blocked: bool,
}

impl Following {
    /// Records that the ports are set up again. A NIC that this process set up may take no
    /// redirected frames because its other end was not ready: it is retried as often as any other
    /// port, a second apart, while a worker forwards.
    fn settle(&mut self, bound: &BoundState, now: Instant) {
        let is_own = self.set_up.iter().any(|(_, own)| own.is_some());
        let needs_worker = bound.requested != Engine::AfXdp && bound.is_dead_without_workers();
        let tries = self.retry.tries + 1;
        self.is_blocked = is_own && needs_worker && tries < TRIES;
        self.retry = Retry::default();
        if self.is_blocked {
            self.retry.tries = tries;
            self.retry.next = Some(now + PAUSE);
        } else {
            self.set_up = PerRole::default();
        }
    }
}

#[derive(Default)]
pub(super) struct Retry {
    tries: u32,
    next: Option<Instant>,
    /// Why the ports were not set up again the last time.
    pub(super) reason: Option<String>,
}

impl Retry {
    fn is_due(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| now >= next)
    }

    /// Records why the ports could not be set up; returns whether the reason is new. Waiting for a
    /// NIC does not count as a try.
    fn failed(&mut self, reason: String, is_waiting: bool, now: Instant) -> bool {
        if is_waiting {
            self.next = None;
        } else {
            self.tries += 1;
            self.next = Some(now + PAUSE);
        }
        let is_news = self.reason.as_ref() != Some(&reason);
        self.reason = Some(reason);
        is_news
    }

    const fn is_over(&self) -> bool {
        self.tries >= TRIES
    }
}

/// Makes the main thread check the ports whenever a link changes.
pub(super) fn watch(
    events: Sender<Event>,
    is_pending: Arc<AtomicBool>,
) -> Result<LinkWatch, NicError> {
    LinkWatch::start(
        || process::keep_or_say(capabilities::NONE),
        move || {
            if !is_pending.swap(true, Ordering::AcqRel) {
                let _ = events.send(Event::Links);
            }
        },
    )
}

impl Wire {
    /// Checks every port, logs what has changed, and repairs what can be repaired. `ports` are the
    /// interface indexes of all wires' ports.
    ///
    /// # Errors
    /// A port is back and cannot be set up: the box must be restarted.
    pub(super) fn look_at_links(
        &mut self,
        overview: &Result<Overview, NicError>,
        ports: &[u32],
        due: Instant,
    ) -> Result<(), DaemonError> {
        self.carry_link_loss();
        if let Some(tap) = &mut self.tap {
            tap.follow(overview.as_ref().ok(), ports);
        }
        let mut states = PerRole::<Option<LinkState>>::default();
        let mut found = PerRole::<Vec<PortFault>>::default();
        for port in &self.bound.ports {
            // A failed query is repeated in a second; until then the earlier faults stay.
            let before = &self.following.faults[port.role];
            let Ok((now, view)) =
                self.query(port, overview.as_ref().unwrap_or(&Overview::default()))
            else {
                found[port.role].clone_from(before);
                continue;
            };
            found[port.role] = faults(port, now.as_ref(), view);
            if overview.is_err() {
                let by_others = before.iter().filter(|fault| fault.is_by_others());
                found[port.role].extend(by_others.cloned());
            }
            states[port.role] = now;
        }
        let bound = self.bound.mtu();
        let mtus = PerRole::from_fn(|role| states[role].as_ref().map(|state| state.mtu));
        let mut has_changed = false;
        match compare_mtus(&mtus, bound) {
            Ok(mtu) => has_changed = mtu.is_some_and(|mtu| mtu != bound),
            Err(of_ports) => {
                for (role, fault) in of_ports.iter() {
                    found[role].extend(fault.clone());
                }
            }
        }
        let all = || found.iter().flat_map(|(_, faults)| faults);
        let is_lost = all().any(PortFault::is_loss);
        has_changed |= all().any(|fault| matches!(fault, PortFault::Queues { .. }));
        self.log_changes(found);
        self.detach_lost();
        self.follow_addresses(&states);
        self.keep_promiscuous();
        self.repair(is_lost, has_changed, due)
    }

    fn query(
        &self,
        port: &BoundPort,
        overview: &Overview,
    ) -> Result<(Option<LinkState>, KernelView), DaemonError> {
        let index = port.nic.index;
        let now = LinkState::of_index(index)?;
        // On the network of the next hop the box may have interfaces of its own.
        let is_wire = self.links.incoming_port() != Some(port.role);
        let master = now.as_ref().and_then(|now| now.master);
        let mut view = KernelView {
            is_redirected_to: self.kernel.port(port.role)? == Some(index),
            named: Some(index),
            is_held: (self.carrying.as_ref()).is_some_and(|carrying| carrying.holds(port.role)),
            queues: port.nic.queues,
            bundle: master.and_then(|master| overview.bundle(master)).cloned(),
            upper: overview.upper_of(index).filter(|_| is_wire).cloned(),
            address: overview.address_of(index).filter(|_| is_wire),
        };
        if let Some(now) = &now {
            if now.name != port.configured {
                view.named = index_of(&port.configured)?;
            }
            let queues = port.nic.queues_now(&now.name)?;
            view.queues = queues.unwrap_or(port.nic.queues);
        }
        Ok((now, view))
    }

    fn log_changes(&mut self, found: PerRole<Vec<PortFault>>) {
        for port in &self.bound.ports {
            let (nic, role) = (&port.nic.name, port.role);
            let before = &self.following.faults[role];
            for fault in found[role].iter().filter(|fault| !before.contains(fault)) {
                // For the port that is `incoming`, the next-hop monitor logs it.
                let is_logged_elsewhere = matches!(fault, PortFault::NoLink { .. })
                    && self.links.incoming_port() == Some(role);
                if !is_logged_elsewhere {
                    let table = self.settings.table_of_nics();
                    tracing::error!("ALARM: {}", fault.text(port, &self.bound, table));
                }
            }
            let is_over = |fault: &&PortFault| {
                let same = |now: &PortFault| now.kind() == fault.kind();
                !fault.is_loss() && !found[role].iter().any(same)
            };
            let is_there = found[role] != [PortFault::Gone];
            for fault in before.iter().filter(is_over).filter(|_| is_there) {
                tracing::info!("{nic} ({role}): fault cleared: {}", fault.kind());
            }
        }
        self.following.faults = found;
    }

    /// Detaches the programs from NICs that are gone. One that was moved to another network
    /// namespace would keep its program.
    fn detach_lost(&mut self) {
        let faults = &self.following.faults;
        let is_gone = |one: &Attachment| faults[one.role] == [PortFault::Gone];
        for attachment in self.attachments.extract_if(.., |one| is_gone(one)) {
            if let Err(error) = self.pins.remove_link(attachment.role) {
                tracing::warn!("{error}");
            }
        }
    }

    fn follow_addresses(&mut self, states: &PerRole<Option<LinkState>>) {
        for port in &mut self.bound.ports {
            let Some(now) = &states[port.role] else {
                continue;
            };
            // Ethtool requests go by name.
            port.nic.name.clone_from(&now.name);
            let Some(mac) = now
                .mac
                .filter(|mac| mac.is_unicast() && *mac != port.nic.mac)
            else {
                continue;
            };
            port.nic.mac = mac;
            if self.links.incoming_port() == Some(port.role) {
                self.links.set_incoming_mac(mac);
                self.steering.set_own(mac);
                tracing::warn!(
                    "{} ({}) has the MAC address {mac} now: steered frames leave with it, and \
                     frames sent to it for the host are delivered",
                    now.name,
                    port.role
                );
            }
        }
    }

    fn keep_promiscuous(&self) {
        for port in &self.bound.ports {
            if self.following.faults[port.role].contains(&PortFault::NotPromiscuous)
                && let Err(error) =
                    detach::set_promiscuous((&self.pins, &self.record), port.role, &port.nic)
            {
                tracing::error!("ALARM: {error}");
            }
        }
    }

    /// Sets the ports up again if one was lost, or if its MTU or number of queues has changed.
    fn repair(
        &mut self,
        is_lost: bool,
        has_changed: bool,
        due: Instant,
    ) -> Result<(), DaemonError> {
        if is_lost {
            self.suspend();
        }
        let is_settled =
            !self.following.is_suspended && !self.following.must_move && !self.following.is_blocked;
        if is_settled && !has_changed {
            self.following.retry = Retry::default();
            return Ok(());
        }
        let now = Instant::now();
        if !self.following.retry.is_due(now) {
            return Ok(());
        }
        self.stop_holding();
        let Err(error) = self.set_up_again(due) else {
            self.following.settle(&self.bound, now);
            return Ok(());
        };
        self.following.is_blocked = matches!(error, DaemonError::NoRedirect(_));
        if matches!(error, DaemonError::OtherBuffers(_)) {
            return Err(error);
        }
        let is_waiting = matches!(
            error,
            DaemonError::Nic(NicError::Missing(_)) | DaemonError::Down(..)
        );
        let retry = &mut self.following.retry;
        let reason = error.to_string();
        if retry.failed(reason, is_waiting, now)
            && !matches!(error, DaemonError::Nic(NicError::Missing(_)))
        {
            tracing::error!(
                "ALARM: the ports are not set up again yet, and this is retried: {error}"
            );
        }
        let is_broken = self.following.is_suspended || self.following.must_move;
        match is_broken && self.following.retry.is_over() {
            true => Err(DaemonError::PortLost(TRIES, Box::new(error))),
            false => Ok(()),
        }
    }

    /// Stops the workers: the program decides by itself, and drops and counts what would leave by
    /// a lost port.
    fn suspend(&mut self) {
        if std::mem::replace(&mut self.following.is_suspended, true) {
            return;
        }
        // Tries from before the loss do not count.
        self.following.retry = Retry::default();
        if let Err(error) = self.workers.dismiss(&self.kernel) {
            tracing::warn!("{error}");
        }
        for (worker, report) in self.workers.end().into_iter().enumerate() {
            let missing = report.map(|report| report.balance.unaccounted());
            if missing != Some(0) {
                tracing::error!("worker {worker} did not account for all of its frames");
            }
        }
        self.workers.close();
        self.leave_to_kernel();
    }

    /// Binds sockets, starts workers and attaches programs as a start does. Attached programs are
    /// taken over without losing a frame.
    fn set_up_again(&mut self, due: Instant) -> Result<(), DaemonError> {
        let began = Instant::now();
        let mut names = configured(&self.settings);
        for port in &self.bound.ports {
            let is_lost = self.following.faults[port.role]
                .iter()
                .any(PortFault::is_loss);
            // A port that is still there may have been renamed.
            if !is_lost {
                names[port.role] = Some(port.nic.name.clone());
            }
            let own = self.following.set_up[port.role];
            // The network of `incoming`, of which the box is a member, may be the uplink's.
            let incoming = self.settings.incoming();
            let may_send = incoming
                .is_some_and(|incoming| names[port.role].as_ref() == Some(&incoming.interface));
            if (is_lost || own.is_some())
                && let Some(name) = &names[port.role]
                && let Ok(nic) = Nic::look(name)
            {
                // A NIC that was created anew is down, and no network configuration may know of it.
                if is_lost && !nic.is_up {
                    nic.set_up(may_send)?;
                    self.following.set_up[port.role] = Some(nic.index);
                } else if own == Some(nic.index) && nic.is_veth && self.following.is_blocked {
                    // Its other end was not ready when it was set up.
                    nic.set_up_anew(may_send)?;
                }
            }
        }
        let mut nics = Nics::look_by(&names, &self.settings)?;
        nics::object(&self.settings)?;
        nics.shares_incoming = self.bound.ports.iter().any(|port| port.is_shared);
        let needed = nics.buffers(self.settings.datapath.frags);
        if needed == Buffers::Several && self.kernel.buffers() == Buffers::One {
            return Err(DaemonError::OtherBuffers(nics.common(|nic| nic.mtu)));
        }
        self.suspend();
        if let Some(carrying) = &mut self.carrying {
            carrying.expect_reset();
        }
        let base = Base {
            settings: &self.settings,
            kernel: &self.kernel,
            links: &self.links,
            snapshot: &self.snapshot,
            events: &self.events,
        };
        let mut assembly = Assembly::prepare(base, &nics)?;
        if let Some(nic) = nics.incoming() {
            self.links.set_incoming_mac(nic.mac);
        }
        nics.remark(&self.settings);
        self.audit.fetch_from(assembly.workers.samples());
        assembly.attach(base, &nics, (&self.pins, &self.record))?;
        assembly.attachments.iter_mut().for_each(Attachment::keep);
        assembly.workers.succeed(&self.workers);
        self.workers = assembly.workers;
        if let Some(tap) = &self.tap {
            tap.serve(&self.workers);
        }
        self.bound = assembly.bound;
        self.attachments = assembly.attachments;
        self.sights = PerRole::default();
        self.following.is_suspended = false;
        self.following.faults = PerRole::default();
        let ports = self.bound.ports.iter();
        let ports: Vec<_> = ports
            .map(|port| format!("{} ({}, {})", port.nic.name, port.role, port.nic.mac))
            .collect();
        tracing::warn!(
            milliseconds = began.elapsed().as_millis(),
            engine = self.bound.engine.name(),
            workers = self.workers.count(),
            "the ports are set up again: {}",
            ports.join(", ")
        );
        let moved = self.steering.move_to(&self.settings, &nics);
        self.steering.settle(due);
        self.following.must_move = moved.is_err();
        if moved.is_err() {
            self.links.stop_steering();
        }
        moved
    }

    /// Attaches the program of this wire to `incoming`, which another wire was to do. `from` has the
    /// link there, if an earlier process has left one. After a failure, the looks at the links try
    /// again.
    pub(super) fn inherit_incoming(&mut self, from: Option<&Pins>) {
        for port in &mut self.bound.ports {
            port.is_shared = false;
        }
        self.suspend();
        let handed_over = from.map_or(Ok(None), |from| from.hand_over(Role::Incoming, &self.pins));
        let done = handed_over
            .map_err(DaemonError::from)
            .and_then(|_| self.set_up_again(Instant::now() + steering::TIMEOUT));
        if let Err(error) = done {
            tracing::error!("ALARM: {error}");
        }
    }

    /// Restores pins that were removed while the box runs.
    pub(super) fn look_at_pins(&mut self) {
        let directory = self.settings.pin.directory.display();
        let (pins, attachments) = (&mut self.pins, &self.attachments);
        match (self.kernel).pin_again(pins, attachments, &self.drop_counters) {
            Ok(false) => self.unpinned = None,
            Ok(true) => tracing::error!(
                "ALARM: pins in {directory} were removed under the running box; everything is \
                 pinned again, and no frame was lost"
            ),
            Err(error) => {
                let reason = format!(
                    "the pins in {directory} are gone and cannot be made again, so the box ends \
                     with this process: {error}"
                );
                if self.unpinned.as_ref() != Some(&reason) {
                    tracing::error!("ALARM: {reason}");
                }
                self.unpinned = Some(reason);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_a_missing_nic_does_not_count_as_a_try() {
        let now = Instant::now();
        let mut retry = Retry::default();
        for _ in 0..2 * TRIES {
            assert!(retry.is_due(now));
            retry.failed("there is no up0".to_owned(), true, now);
        }
        assert!(!retry.is_over());
        assert!(retry.failed("up0 is busy".to_owned(), false, now));
        assert!(!retry.is_due(now) && retry.is_due(now + PAUSE));
        for _ in 1..TRIES {
            assert!(!retry.is_over());
            assert!(!retry.failed("up0 is busy".to_owned(), false, now));
        }
        assert!(retry.is_over());
    }
}
