//! Engine connect on the Tor host: start order, events, stop order.
//!
//! Start: find the users and addresses, load the relay set, open the pins, load the programs,
//! publish the policy, and only then attach, replacing what another process left attached. Stop:
//! the programs stay attached unless `pin.on_stop` is `detach`.

mod report;

use super::in_force::{Engine, InForce};
use super::requests::Request;
use super::wire::own_pins;
use super::{
    DaemonError, Event, TICK, begin, capabilities, confine, detach, ports, print_line, serve,
};
use crate::control::Server;
use crate::daemon::record::Record;
use crate::machine::{self, Machine, Users};
use crate::settings::{OnStop, Settings, TorHost};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use exitmark_datapath::{Cgroup, Connect, ConnectError, ConnectLinks, Connections, Pins};
use exitmark_nic::LinkWatch;
use exitmark_policy::{Rules, Snapshot};
use exitmark_service::process::Service;
use report::Trouble;
use signal_hook::consts::{SIGHUP, SIGUSR1};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// How often the users, the pins, the links and the counters are checked.
const LOOK: Duration = Duration::from_secs(1);

/// The programs, and what is known of this machine.
struct Sockets {
    connect: Connect,
    machine: Machine,
    users: Users,
}

impl Engine for Sockets {
    fn rules(&self, settings: &Settings) -> Arc<Rules> {
        Arc::new(self.machine.rules(settings))
    }

    fn check(&self, _: &Settings) -> Result<(), DaemonError> {
        Ok(())
    }

    fn change(&mut self, settings: &Settings) -> Result<(), DaemonError> {
        let Some(tor) = &settings.tor else {
            return Ok(());
        };
        let users = self.users.changed_to(&tor.users);
        let mut machine = self.machine.clone();
        machine.follow(tor)?;
        self.connect.set_users(users.ids())?;
        (self.users, self.machine) = (users, machine);
        Ok(())
    }

    fn publish(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), DaemonError> {
        Ok(self.connect.publish(snapshot)?)
    }

    fn changed(&mut self, _: &Settings) {}
}

/// The state of the main thread.
struct TorHostDaemon {
    in_force: InForce,
    sockets: Sockets,
    started: (SystemTime, Instant),
    pins: Pins,
    record: Record,
    links: ConnectLinks,
    /// Why the kernel does not have the users of the last look.
    unset_users: Option<String>,
    /// Why pins that were removed cannot be made again.
    unpinned: Option<String>,
    /// Why the programs are not attached to every cgroup.
    unattached: Option<String>,
    /// Connections from before the programs were attached are still to be looked for.
    seeks_earlier: bool,
    /// They could not be found.
    misses_earlier: bool,
    counts: Connections,
    trouble: Trouble,
    link_watch: Option<LinkWatch>,
    links_changed: Arc<AtomicBool>,
    service: Service,
    /// The control server; dropped before everything else stops.
    control: Option<Server>,
}

/// Runs engine connect until SIGTERM or SIGINT. SIGHUP reads the configuration at `path` again,
/// SIGUSR1 prints the counters.
///
/// # Errors
/// A precondition of the settings is not met on this machine.
pub(super) fn run(
    settings: Settings,
    path: &Path,
    events: Sender<Event>,
    happening: &Receiver<Event>,
    service: Service,
) -> Result<(), DaemonError> {
    let mut running = TorHostDaemon::start(settings, path, events, service)?;
    running.follow(happening);
    running.stop()
}

/// The cgroups whose connections are judged, and why another one of them cannot be opened.
fn cgroups(tor: &TorHost) -> Result<(Vec<Cgroup>, Option<ConnectError>), ConnectError> {
    let (mut cgroups, mut trouble) = (Vec::new(), None);
    for path in machine::cgroups(tor)? {
        match Cgroup::open(&path) {
            Ok(cgroup) => cgroups.push(cgroup),
            Err(error) => trouble = trouble.or(Some(error)),
        }
    }
    Ok((cgroups, trouble))
}

impl TorHostDaemon {
    fn start(
        settings: Settings,
        path: &Path,
        events: Sender<Event>,
        service: Service,
    ) -> Result<Self, DaemonError> {
        let Some(tor) = settings.tor.clone() else {
            return Err(DaemonError::Unmet(
                "engine = \"connect\" needs [tor]".to_owned(),
            ));
        };
        let (cgroups, mut unopened) = cgroups(&tor)?;
        if cgroups.is_empty()
            && let Some(error) = unopened.take()
        {
            return Err(error.into());
        }
        let mut machine = Machine::default();
        machine.follow(&tor)?;
        let mut users = Users::new(&tor.users);
        users.look();
        let pins = Pins::open(&settings.pin.directory)?;
        if pins.are_attached()? {
            return Err(DaemonError::Unmet(format!(
                "a box is attached to NICs by the pins in {}: `exitmark detach` first, or another \
                 pin.directory",
                settings.pin.directory.display()
            )));
        }
        let record = Record::of(&settings.control.socket, &settings.pin.directory);
        let (listeners, relay_service, first) = begin(&settings)?;
        let connect = Connect::load_pinned(&pins, tor.cgroups.is_empty())?;
        let rules = Arc::new(machine.rules(&settings));
        let in_force = InForce::new(settings, path, rules, relay_service.handle(), first);
        connect.set_users(users.ids())?;
        connect.publish(&in_force.snapshot)?;
        // What an earlier process counted must not raise an alarm.
        let counts = connect.counts()?;
        let seeks_earlier = connect.seeks_earlier(&pins)?;
        let links = connect.attach(&pins, &cgroups)?;
        connect.pin_maps(&pins)?;
        let mut daemon = Self {
            in_force,
            sockets: Sockets {
                connect,
                machine,
                users,
            },
            started: (SystemTime::now(), Instant::now()),
            pins,
            record,
            links,
            unset_users: None,
            unpinned: None,
            unattached: None,
            seeks_earlier,
            misses_earlier: false,
            counts,
            trouble: Trouble::default(),
            link_watch: None,
            links_changed: Arc::default(),
            service,
            control: None,
        };
        daemon.look_for_earlier();
        daemon.is_attached(unopened.map_or(Ok(()), Err));
        daemon.look_at_counters();
        own_pins(&daemon.in_force.settings, &daemon.pins)?;
        let changed = Arc::clone(&daemon.links_changed);
        daemon.link_watch = Some(ports::watch(events.clone(), changed)?);
        // What has changed before the watch, while the relay set was loaded.
        daemon.look_at_machine();
        daemon.control = Some(serve(relay_service, listeners, events)?);
        confine(capabilities::OF_MAIN, &[], &[])?;
        let ready = format!(
            "ready: engine=connect users={} cgroups={} relays={}",
            daemon.sockets.users.ids().len(),
            cgroups.len(),
            daemon.in_force.snapshot.relays.len()
        );
        print_line(&ready);
        daemon.service.is_ready(&ready);
        Ok(daemon)
    }

    /// The event loop; returns when the engine is to stop.
    fn follow(&mut self, happening: &Receiver<Event>) {
        let (mut ticked, mut looked) = (Instant::now(), Instant::now());
        loop {
            self.service.beat(|| true);
            let rest = LOOK.saturating_sub(looked.elapsed());
            let due = self.service.until_watchdog();
            let event = happening.recv_timeout(due.map_or(rest, |due| due.min(rest)));
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                self.in_force.look_around(&mut self.sockets);
                self.sockets.users.look_again();
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                self.look_at_users();
                self.look_at_links();
                self.look_at_pins();
                self.look_at_counters();
            }
            let (in_force, sockets) = (&mut self.in_force, &mut self.sockets);
            match event {
                Ok(Event::Signal(SIGUSR1)) => self.print_counters(),
                Ok(Event::Signal(SIGHUP)) => in_force.reload(sockets, None),
                Ok(Event::Signal(_)) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Event::Relays(update)) => in_force.publish_relays(sockets, update),
                Ok(Event::Reconfigured(number, outcome)) => {
                    in_force.reconfigured(sockets, number, outcome);
                }
                Ok(Event::RelayServiceEnded) => in_force.without_relay_service(),
                Ok(Event::Links) => {
                    // Before the check: a change during it sends another event.
                    self.links_changed.store(false, Ordering::Release);
                    self.look_at_machine();
                }
                Ok(Event::Request(request)) => self.answer(request),
                // There are no workers and no next hop.
                Ok(Event::WorkerEnded(_) | Event::NextHop) | Err(RecvTimeoutError::Timeout) => {}
            }
            self.look_for_earlier();
        }
    }

    /// Answers a request; the answer is dropped if the client has disconnected.
    fn answer(&mut self, request: Request) {
        match request {
            Request::Report(answer) => {
                let _ = answer.send(self.report());
            }
            Request::Reload(answer) => self.in_force.reload(&mut self.sockets, Some(answer)),
            Request::Capture(_, answer) => {
                let reason = "engine connect sees no packets, so there is nothing to capture";
                let _ = answer.send(Err(reason.to_owned()));
            }
        }
    }

    /// Publishes the rules anew if an address or a NIC of this machine has changed.
    fn look_at_machine(&mut self) {
        let Some(tor) = self.in_force.settings.tor.clone() else {
            return;
        };
        let before = self.sockets.machine.clone();
        if let Err(error) = self.sockets.machine.follow(&tor) {
            tracing::warn!("the addresses of this machine cannot be read: {error}");
            return;
        }
        if self.sockets.machine == before {
            return;
        }
        match self.in_force.follow_machine(&mut self.sockets) {
            Ok(()) => tracing::info!("the addresses or NICs of this machine have changed"),
            Err(error) => tracing::error!("the change of this machine is retried: {error}"),
        }
    }

    /// Looks for the connections from before the programs were attached, once there is a relay set:
    /// without one they would all count as exit, and none would be marked.
    fn look_for_earlier(&mut self) {
        if !self.seeks_earlier || self.in_force.is_passing {
            return;
        }
        self.seeks_earlier = false;
        let tor = self.in_force.settings.tor.as_ref();
        // With cgroups the owner of a socket is not known: any socket would count as tor's.
        let found = match tor.is_some_and(|tor| tor.cgroups.is_empty()) {
            true => self.sockets.connect.look_through_earlier(),
            false => Ok(false),
        };
        self.misses_earlier = !found.unwrap_or_else(|error| {
            tracing::warn!("{error}");
            false
        });
        if let Err(error) = self.sockets.connect.has_looked(&self.pins) {
            tracing::warn!("the next start looks for open connections once more: {error}");
        }
    }

    /// Follows users that come and go.
    fn look_at_users(&mut self) {
        if !self.sockets.users.look() && self.unset_users.is_none() {
            return;
        }
        let users = self.sockets.users.ids();
        match self.sockets.connect.set_users(users) {
            Ok(()) => {
                tracing::info!(users = users.len(), "the users of tor have changed");
                self.unset_users = None;
            }
            Err(error) => {
                if self.unset_users.is_none() {
                    tracing::error!("ALARM: the users of tor cannot be followed: {error}");
                }
                self.unset_users = Some(error.to_string());
            }
        }
    }

    /// Attaches to cgroups that were removed and are back, whether or not others are missing.
    fn look_at_links(&mut self) {
        let Some(tor) = &self.in_force.settings.tor else {
            return;
        };
        let looked = cgroups(tor).and_then(|(cgroups, unopened)| {
            if !self.links.are_at(&cgroups) {
                self.links = self.sockets.connect.attach(&self.pins, &cgroups)?;
                tracing::info!(
                    cgroups = cgroups.len(),
                    "attached again, because a cgroup was removed or made"
                );
            }
            unopened.map_or(Ok(()), Err)
        });
        self.is_attached(looked);
    }

    /// Records whether the programs are attached to every cgroup.
    fn is_attached(&mut self, attached: Result<(), ConnectError>) {
        let reason = attached.err().map(|error| error.to_string());
        if let (Some(reason), None) = (&reason, &self.unattached) {
            tracing::error!("ALARM: a cgroup is not attached to: {reason}");
        }
        self.unattached = reason;
    }

    /// Restores pins that were removed.
    fn look_at_pins(&mut self) {
        match self.sockets.connect.pin_again(&mut self.pins, &self.links) {
            Ok(was_missing) => {
                if was_missing {
                    tracing::warn!("pins of engine connect were removed; they are made again");
                }
                self.unpinned = None;
            }
            Err(error) => {
                if self.unpinned.is_none() {
                    tracing::error!("ALARM: the pins cannot be made again: {error}");
                }
                self.unpinned = Some(format!(
                    "the pins cannot be made again, so the programs end with this process: {error}"
                ));
            }
        }
    }

    fn look_at_counters(&mut self) {
        match self.sockets.connect.counts() {
            Ok(counts) => {
                self.trouble.look(&self.counts, &counts);
                self.counts = counts;
            }
            Err(error) => tracing::error!(
                "the counters cannot be read, the last values are reported: {error}"
            ),
        }
    }

    fn stop(mut self) -> Result<(), DaemonError> {
        self.service.is_stopping();
        self.in_force.stop();
        self.control = None;
        self.link_watch = None;
        self.look_at_counters();
        self.print_counters();
        if self.in_force.settings.pin.on_stop == OnStop::Detach {
            drop(self.links);
            detach::take_off(self.pins, &self.record)?;
        }
        Ok(())
    }
}
