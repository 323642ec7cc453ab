//! Assembles a box: maps, sockets, workers, and at the end the attachment, which replaces what
//! another process left attached. A failed attachment is reverted.

use super::audit::AuditHandle;
use super::bound::{BoundPort, BoundState};
use super::nics::{Nics, configured};
use super::record::Record;
use super::steering::Steering;
use super::tap::Tap;
use super::workers::{self, Base, Sockets, Workers};
use super::zero_copy::Lossy;
use super::{DaemonError, Event, detach};
use crate::settings::{Engine, Settings};
use crossbeam::channel::Sender;
use exitmark_datapath::{
    AttachMode, Attachment, DropCounters, Form, IncomingLink, Kernel, Links, PerRole, Pins, Role,
    TakeoverLimits, XdpState, xdp_state,
};
use exitmark_nic::Nic;
use exitmark_policy::Snapshot;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Timeout of a worker's heartbeat. With the frames then in flight to it, less than 10 ms of
/// traffic is lost. A much shorter timeout gives false alarms on a busy machine.
const TIMEOUT: Duration = Duration::from_millis(8);

/// The parts of a box, assembled and attached.
pub(super) struct Parts {
    pub(super) assembly: Assembly,
    pub(super) kernel: Kernel,
    pub(super) steering: Steering,
    pub(super) links: Arc<Links>,
    pub(super) audit: AuditHandle,
    pub(super) drop_counters: DropCounters,
    pub(super) tap: Option<Tap>,
}

/// The parts that depend on the NICs; made again when a removed NIC is back.
pub(super) struct Assembly {
    pub(super) bound: BoundState,
    pub(super) workers: Workers,
    pub(super) attachments: Vec<Attachment>,
    lossy: PerRole<Option<Lossy>>,
}

/// The program and its maps, with a policy, and attached to no NIC yet.
pub(super) struct Loaded {
    pub(super) kernel: Kernel,
    /// Whether it counts on from the counters of an earlier process.
    counts_on: bool,
}

impl Loaded {
    pub(super) fn load(
        settings: &Settings,
        nics: &Nics,
        snapshot: &Snapshot,
        pins: &Pins,
    ) -> Result<Self, DaemonError> {
        let form = Form {
            buffers: nics.buffers(settings.datapath.frags),
            has_siblings: nics.has_siblings,
            has_tap: settings.tap().is_some(),
        };
        let (kernel, counts_on) = Kernel::load_pinned(pins, form)?;
        kernel.publish(snapshot)?;
        Ok(Self { kernel, counts_on })
    }
}

impl Parts {
    /// Sets a wire up. `due` is how long to wait for the next hops.
    pub(super) fn assemble(
        settings: &Settings,
        nics: &Nics,
        snapshot: &Arc<Snapshot>,
        kept: (&Pins, &Record),
        events: &Sender<Event>,
        loaded: Loaded,
        due: Instant,
    ) -> Result<Self, DaemonError> {
        let (pins, _) = kept;
        let Loaded { kernel, counts_on } = loaded;
        let incoming = nics.incoming_role.zip(nics.incoming());
        let incoming = incoming.map(|(port, nic)| IncomingLink {
            port,
            own: nic.mac,
            // Set when the next hops have been resolved.
            next_hop: None,
        });
        let links = Links::over(kernel.links()?, incoming);
        // Other configurations may have had other hosts.
        let known = kernel.learned_hosts(pins, detach::netns()?).into_iter();
        links.remember_hosts(known.filter(|host| snapshot.rules.is_host(host.address)));
        if nics.has_siblings {
            // An unknown address may be that of a host behind another wire.
            links.settle_hosts(None);
        }
        let links = Arc::new(links);
        workers::keep_memory_in_place();
        let base = Base {
            settings,
            kernel: &kernel,
            links: &links,
            snapshot,
            events,
        };
        let mut assembly = Assembly::prepare(base, nics)?;
        let of_workers = assembly.workers.samples();
        let (samples, one_in) = (kernel.samples()?, settings.datapath.sample);
        let audit = AuditHandle::start(Arc::clone(&links), snapshot, samples, of_workers, one_in)?;
        let tap = Tap::start(base, &assembly.workers)?;
        let steering = Steering::start(settings, nics, &links, &audit, events, due)?;
        assembly.attach(base, nics, kept)?;
        let drop_counters = match count_drops(&kernel, pins) {
            Ok(drop_counters) => drop_counters,
            Err(error) => {
                assembly.put_back(pins);
                return Err(error);
            }
        };
        let attachments = &mut assembly.attachments;
        let taken_over = attachments.iter().any(Attachment::is_taken_over);
        attachments.iter_mut().for_each(Attachment::keep);
        if taken_over && !counts_on {
            tracing::info!(
                "the attached box of another build is taken over; the counters start at 0"
            );
        } else if taken_over {
            tracing::info!("the attached box is taken over");
        }
        Ok(Self {
            assembly,
            kernel,
            steering,
            links,
            audit,
            drop_counters,
            tap,
        })
    }

    /// Stops the workers and leaves forwarding to the XDP program.
    pub(super) fn leave(mut self) -> Result<(), DaemonError> {
        let dismissed = self.assembly.workers.dismiss(&self.kernel);
        self.assembly.workers.end();
        self.steering.end();
        self.audit.end();
        if let Some(tap) = &mut self.tap {
            tap.end();
        }
        dismissed
    }
}

/// Counts what the NICs drop, and removes the maps that other builds left.
fn count_drops(kernel: &Kernel, pins: &Pins) -> Result<DropCounters, DaemonError> {
    let drop_counters = kernel.count_drops(pins)?;
    for layout in kernel.tidy(pins)? {
        tracing::info!("the maps that a build with layout {layout} left are removed");
    }
    Ok(drop_counters)
}

impl Assembly {
    /// Writes the NICs' indexes to the port map, binds their sockets and starts the workers. No
    /// frame reaches the workers yet.
    pub(super) fn prepare(base: Base<'_>, nics: &Nics) -> Result<Self, DaemonError> {
        let (settings, kernel, links) = (base.settings, base.kernel, base.links);
        for (role, nic) in nics.ports.iter() {
            kernel.set_port(role, nic.as_ref().map(|nic| nic.index))?;
        }
        let needs_process = Redirects::look(nics, &nics.lossy())?.needs_process;
        let sockets = Sockets::bind(settings, nics, needs_process)?;
        let is_zero_copy = sockets.are_zero_copy();
        let (engine, reason) = match settings.engine {
            Engine::Auto if is_zero_copy => (Engine::AfXdp, "every port is bound zero-copy"),
            Engine::Auto => (Engine::Xdp, "not every port is bound zero-copy"),
            chosen => (chosen, "as configured"),
        };
        let lossy = sockets.lossy.clone();
        let (mut all, limits) = handover(settings, engine, &sockets);
        // Without a socket there, the program forwards by itself.
        all[Role::Incoming] &= !nics.shares_incoming;
        links.hand_over(all, limits);
        links.name_nics(detach::netns()?, nics.numbers());
        let workers = Workers::start(base, sockets)?;
        let names = configured(settings);
        let ports = nics.present().map(|(role, nic)| BoundPort {
            role,
            configured: names[role].as_ref().unwrap_or(&nic.name).clone(),
            nic: nic.clone(),
            // Until it is attached.
            mode: AttachMode::Native,
            is_zero_copy,
            hands_over: all[role],
            reason: match (role, settings.datapath.inbound) {
                (Role::Host, _) => reason,
                (_, Engine::Auto) if all[role] => "user space receives its frames without a copy",
                (_, Engine::Auto) => {
                    "inbound frames need no decision, and a copy to user space would cost more"
                }
                _ => "as configured",
            },
            is_shared: nics.is_shared(role),
            needs_process: false,
            lossy: lossy[role].clone(),
        });
        Ok(Self {
            bound: BoundState {
                requested: settings.engine,
                engine,
                reason,
                ports: ports.collect(),
                afterwards: None,
            },
            workers,
            attachments: Vec::new(),
            lossy,
        })
    }

    /// Attaches the programs. On failure, reverts the NICs to their earlier programs and stops the
    /// workers.
    pub(super) fn attach(
        &mut self,
        base: Base<'_>,
        nics: &Nics,
        kept: (&Pins, &Record),
    ) -> Result<(), DaemonError> {
        let attached = self.try_to_attach(base, nics, kept);
        if attached.is_err() {
            self.put_back(kept.0);
        }
        attached
    }

    /// Reattaches the earlier programs, then stops the workers.
    fn put_back(&mut self, pins: &Pins) {
        for attachment in self.attachments.drain(..).rev() {
            if let Err(error) = attachment.revert(pins) {
                tracing::error!("the previous program cannot be attached again: {error}");
            }
        }
        self.workers.end();
    }

    /// Attaches the programs: from here on the box forwards, with or without this process.
    fn try_to_attach(
        &mut self,
        base: Base<'_>,
        nics: &Nics,
        (pins, record): (&Pins, &Record),
    ) -> Result<(), DaemonError> {
        let (kernel, links) = (base.kernel, base.links);
        self.workers.admit(kernel)?;
        // Set before attaching, as far as it is known, so that it holds from the first frame on.
        let redirects = Redirects::look(nics, &self.lossy)?;
        links.allow_redirects(redirects.unblocked, nics.longest_redirect(redirects.long));
        // Before any earlier program is removed, because this can fail.
        let leftover = detach::prepare(pins, record, nics)?;
        for remark in kernel.clear(pins, nics.numbers())? {
            tracing::warn!("{remark}");
        }
        leftover.set_back(record);
        for (role, nic) in nics.own() {
            let attachment = kernel.attach(pins, role, &nic.name, nic.index)?;
            if attachment.mode == AttachMode::Generic {
                tracing::warn!(
                    "{} ({role}) supports XDP in generic mode only, which is several times slower; \
                     after a change of its driver or settings, `exitmark detach` before the next \
                     start",
                    nic.name
                );
            }
            if let Some(port) = self.bound.port(role) {
                port.mode = attachment.mode;
            }
            self.attachments.push(attachment);
        }
        if nics.shares_incoming {
            kernel.pin_incoming(pins)?;
        }
        let redirects = self.redirects(kernel, nics, pins)?;
        for port in &mut self.bound.ports {
            // A veth has no more queues for the program: a change is a user's, and is noticed later.
            let now = match port.nic.is_veth {
                true => None,
                false => port.nic.queues_now(&port.nic.name)?,
            };
            let now = now.unwrap_or(port.nic.queues);
            if now > port.nic.queues {
                tracing::warn!("{}", unserved(&port.nic, now));
            }
            port.nic.queues = now;
        }
        self.settle_engine(nics, redirects.unblocked)?;
        links.allow_redirects(redirects.unblocked, nics.longest_redirect(redirects.long));
        if self.lossy.iter().any(|(_, lossy)| lossy.is_some()) {
            let redirects = Redirects::look(nics, &PerRole::default())?;
            let longest = nics.longest_redirect(redirects.long);
            self.bound.afterwards = Some((redirects.unblocked, longest));
        }
        Ok(kernel.pin_maps(pins)?)
    }

    /// Finds which ports can redirect. Where an egress NIC takes no redirects, the program of the
    /// ingress port is attached in generic mode, which sends to any NIC, so that the kernel can
    /// forward without this process. Not with engine af_xdp, not with zero-copy sockets, and not
    /// for an attachment that was taken over: a refused start must leave that as it was.
    fn redirects(
        &mut self,
        kernel: &Kernel,
        nics: &Nics,
        pins: &Pins,
    ) -> Result<Redirects, DaemonError> {
        loop {
            let redirects = Redirects::look(nics, &self.lossy)?;
            let bound = &mut self.bound;
            let may = bound.requested != Engine::AfXdp
                && bound.ports.iter().all(|port| !port.is_zero_copy);
            let mut blocked = self
                .attachments
                .iter_mut()
                .filter(|one| may && !one.is_taken_over() && one.mode == AttachMode::Native);
            let Some(attachment) = blocked.find(|one| !redirects.unblocked[one.role]) else {
                return Ok(redirects);
            };
            let role = attachment.role;
            let (Some(nic), Some(port)) = (&nics.ports[role], bound.port(role)) else {
                return Ok(redirects);
            };
            kernel.make_generic(pins, attachment, &nic.name, nic.index)?;
            port.mode = AttachMode::Generic;
            // A driver may take redirects only while it has a native program itself: the loop may
            // make further ports generic, in the end all of them.
            tracing::warn!(
                "not every NIC by which frames from {role} leave takes redirected ones: {} has XDP \
                 in generic mode, which sends to any NIC but is several times slower",
                nic.name
            );
        }
    }

    /// Hands all frames of ports that cannot redirect to the workers; the box then depends on this
    /// process. Fails with engine xdp.
    fn settle_engine(&mut self, nics: &Nics, unblocked: PerRole<bool>) -> Result<(), DaemonError> {
        for (role, _) in nics.present().filter(|&(role, _)| !unblocked[role]) {
            if self.bound.requested == Engine::Xdp || nics.is_shared(role) {
                return Err(DaemonError::NoRedirect(role));
            }
            let ports = self.bound.ports.iter_mut();
            for port in ports.filter(|port| port.role == role) {
                let reason = match &port.lossy {
                    Some(_) => "zero-copy frames cannot be redirected",
                    None => "not every NIC takes redirected frames",
                };
                tracing::warn!("{}", port.alone());
                (self.bound.engine, self.bound.reason) = (Engine::AfXdp, reason);
                (port.hands_over, port.reason, port.needs_process) = (true, reason, true);
            }
        }
        Ok(())
    }
}

/// The warning for a driver that has added receive queues for the program.
fn unserved(nic: &Nic, now: u32) -> String {
    format!(
        "{} has {} receive queues, and its driver made {now} of them for XDP: slow-path \
         frames (IP fragments, IPv6 extension headers) from the added queues are forwarded unmarked \
         and counted as no_user_space; give the virtual machine's NIC as many queues as CPUs, then \
         the driver adds none",
        nic.name, nic.queues
    )
}

/// What the XDP program can redirect on these NICs.
struct Redirects {
    /// From which ports the program may redirect: every egress NIC takes redirects, or the port has
    /// the program in generic mode, which sends to any NIC. False where a zero-copy port's
    /// redirects would be lost.
    unblocked: PerRole<bool>,
    /// Whether every port takes redirected multi-buffer frames.
    long: bool,
    /// Whether a port that cannot redirect has a native program already, which stays.
    needs_process: bool,
}

impl Redirects {
    fn look(nics: &Nics, lossy: &PerRole<Option<Lossy>>) -> Result<Self, DaemonError> {
        let mut states = PerRole::<Option<XdpState>>::default();
        for (role, nic) in nics.present() {
            states[role] = Some(xdp_state(nic.index)?);
        }
        let unblocked = PerRole::from_fn(|from| {
            lossy[from].is_none()
                && (states[from].is_some_and(|state| state.is_generic)
                    || nics
                        .egresses(from)
                        .all(|to| states[to].is_some_and(|state| state.takes_redirects)))
        });
        let is_native = |role: Role| {
            let state = states[role].filter(|state| !state.is_generic);
            state.is_some_and(|state| state.program != 0)
        };
        let needs_process = nics
            .present()
            .any(|(role, _)| !unblocked[role] && is_native(role));
        let mut present = states.iter().filter_map(|(_, state)| *state);
        Ok(Self {
            needs_process,
            unblocked,
            long: present.all(|state| state.takes_long_redirects),
        })
    }
}

/// Which ports hand all frames to user space, and at which backlog the XDP program takes over.
fn handover(
    settings: &Settings,
    engine: Engine,
    sockets: &Sockets,
) -> (PerRole<bool>, TakeoverLimits) {
    let inbound = match settings.datapath.inbound {
        // Copying a frame costs more than forwarding it in the kernel.
        Engine::Auto => engine == Engine::AfXdp && sockets.are_zero_copy(),
        Engine::AfXdp => true,
        Engine::Xdp | Engine::Connect => false,
    };
    let all = PerRole::from_fn(|role| match role {
        Role::Host => engine == Engine::AfXdp,
        Role::Uplink | Role::Incoming => inbound,
    });
    // The ring's capacity in packets of the greatest length.
    let packets = u64::from(sockets.rings.ring / sockets.buffers_per_packet);
    let (soft_watermark, hard_watermark) = if settings.datapath.spill {
        (packets / 2, packets * 3 / 4)
    } else {
        (i64::MAX.unsigned_abs(), i64::MAX.unsigned_abs())
    };
    let limits = TakeoverLimits {
        heartbeat_timeout: TIMEOUT,
        soft_watermark,
        hard_watermark,
    };
    (all, limits)
}
