//! An exit host: its tor, with one of the three configurations of source addresses, and its box, or
//! engine connect on the host itself.

use crate::flows::FlowCapture;
use crate::ground::{Dual, FWMARK, Lot, RESOLVER};
use crate::network::{DOCUMENTS, Network, TIMEOUT, Tor, avoid_newcomer, listening};
use crate::truth;
use exitmark_box::control::{Client, DEFAULT_SOCKET};
use exitmark_lab::{Config, Netns, RunningBox};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

const EXITMARK: &str = env!("CARGO_BIN_EXE_exitmark");

/// The configuration of tor's source addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binding {
    /// One address, without an option in the torrc.
    None,
    /// Two addresses: clients connect to the first one, all connections use the second one.
    All,
    /// Two addresses: relay traffic uses the first one, exit traffic the second one.
    OrAndExit,
}

impl Binding {
    pub(crate) const ALL: [Self; 3] = [Self::None, Self::All, Self::OrAndExit];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::All => "OutboundBindAddress",
            Self::OrAndExit => "OutboundBindAddressOR+Exit",
        }
    }

    pub(crate) fn nickname(self) -> String {
        match self {
            Self::None => "exitNone",
            Self::All => "exitAll",
            Self::OrAndExit => "exitOrAndExit",
        }
        .to_owned()
    }

    pub(crate) fn clearnet(self, lot: &Lot) -> Dual {
        match self {
            Self::None => lot.first,
            Self::All | Self::OrAndExit => lot.second,
        }
    }

    fn torrc(self, lot: &Lot) -> String {
        let bind = |option: &str, [v4, v6]: [IpAddr; 2]| {
            format!("OutboundBindAddress{option} {v4}\nOutboundBindAddress{option} [{v6}]\n")
        };
        match self {
            Self::None => String::new(),
            Self::All => bind("", lot.second.both()),
            Self::OrAndExit => bind("OR", lot.first.both()) + &bind("Exit", lot.second.both()),
        }
    }

    /// The configuration of engine connect, for tor as this user. Relay connections get another
    /// source address, or where tor chooses that itself, a fwmark.
    fn configure_host(self, lot: &Lot, user: u32, relays: &str) -> String {
        let third = lot.third.unwrap().both().map(|address| address.to_string());
        let steer = match self {
            Self::None => format!("source = {third:?}"),
            Self::All | Self::OrAndExit => format!("fwmark = {FWMARK}"),
        };
        format!(
            "engine = \"connect\"\n[tor]\nusers = [{user}]\n[host]\nresolvers = [\"{RESOLVER}\"]\n\
             [steer]\n{steer}\n[metrics]\nlisten = \"off\"\n[relays]\n{relays}"
        )
    }

    /// The box's configuration, as the documentation describes it.
    fn configure(self, lot: &Lot) -> Config {
        let (first, second) = (lot.first.both(), lot.second.both());
        let config = Config::default().next_hop(&lot.hop_mac);
        let config = config.host(format_args!("resolvers = [\"{RESOLVER}\"]"));
        match (self, lot.third) {
            (Self::None, Some(third)) => {
                let source = third.both().map(|address| address.to_string());
                config
                    .addresses(first)
                    .steer(format_args!("source = {source:?}"))
            }
            (Self::None, None) => config.addresses(first),
            (Self::All, _) => config.addresses([first, second].concat()),
            (Self::OrAndExit, _) => config.addresses(second).host(format_args!(
                "relay_addresses = {:?}",
                first.map(|one| one.to_string())
            )),
        }
    }
}

/// An exit host with its tor and its box, captured since before tor started.
pub(crate) struct Exit<'a> {
    pub(crate) binding: Binding,
    pub(crate) lot: &'a Lot,
    pub(crate) tor: Tor,
    pub(crate) running: RunningBox,
    pub(crate) watch: FlowCapture,
    /// The size of the relay set at the start.
    endpoints: u64,
}

impl<'a> Exit<'a> {
    /// Starts the captures, the box, and then tor with a cached consensus, as after a restart.
    /// `fleet` are the exit hosts of this operator.
    pub(crate) fn start(
        binding: Binding,
        lot: &'a Lot,
        world: &Netns,
        network: &Network,
        fleet: &[SocketAddr],
    ) -> Self {
        let name = match lot.middle {
            Some(_) if lot.has_two_providers() => binding.nickname() + "Two",
            Some(_) => binding.nickname(),
            None => binding.nickname() + "Host",
        };
        let directory = network.directory_of(&name);
        let newest = &network.authorities()[0].directory;
        for file in DOCUMENTS.iter().chain(&["cached-certs"]) {
            fs::copy(newest.join(file), directory.join(file)).unwrap();
        }
        let watch = FlowCapture::start(world, lot);
        let configuration = network.path(&format!("{name}.toml"));
        let relays = relays(network, &directory, fleet);
        let user = lot.middle.is_none().then(user);
        let text = match user {
            None => binding.configure(lot).relays(relays).text(),
            Some(user) => binding.configure_host(lot, user, &relays),
        };
        fs::write(&configuration, text).unwrap();
        let place = lot.middle.as_ref().unwrap_or(&lot.host);
        let running = RunningBox::start(place, EXITMARK, &configuration).unwrap();

        let lines = format!(
            "{}{}{}{}{}",
            listening(&name, lot.first),
            binding.torrc(lot),
            network.door(),
            avoid_newcomer(),
            truth::torrc()
        );
        let tor = network.tor_of(&lot.host, &name, &lines, user);
        Self {
            binding,
            lot,
            tor,
            running,
            watch,
            endpoints: endpoints(place),
        }
    }

    /// The name of its row.
    pub(crate) fn name(&self) -> String {
        if self.lot.has_two_providers() {
            return "two-providers".to_owned();
        }
        let engine = if self.lot.middle.is_some() {
            ""
        } else {
            "connect/"
        };
        format!("{engine}{}", self.binding.name())
    }

    /// Whether the box treats this endpoint as a relay's now.
    pub(crate) fn knows(&mut self, endpoint: SocketAddr) -> bool {
        if self.lot.middle.is_none() {
            // A connection would be counted. A relay has an endpoint of each IP version, and no
            // other one joins.
            return endpoints(&self.lot.host) >= self.endpoints + 2;
        }
        // From a relay address, all TCP would be steered.
        let from = self.binding.clearnet(self.lot);
        self.watch.is_steered(self.lot, from, endpoint)
    }

    /// Waits until the box steers to the relay at this endpoint, which its tor's consensus lists.
    pub(crate) fn takes_on(&mut self, endpoint: SocketAddr) {
        let deadline = Instant::now() + TIMEOUT;
        while !self.knows(endpoint) {
            assert!(
                Instant::now() < deadline,
                "waited for {TIMEOUT:?} in vain: the box steers to {endpoint}\n{}{}",
                self.running.log(),
                self.tor.log_tail()
            );
        }
    }
}

/// A user ID that hardly another process has.
fn user() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    0x4800_0000 + (std::process::id() % 0x10_0000) * 8 + number
}

/// The size of the relay set in force.
fn endpoints(place: &Netns) -> u64 {
    let status = place.run(|| Client::new(DEFAULT_SOCKET).status());
    status.unwrap().relay_set.endpoints
}

/// The lines of the table `[relays]`: the documents of the exit's own tor.
fn relays(network: &Network, directory: &Path, fleet: &[SocketAddr]) -> String {
    let quoted = |words: Vec<String>| format!("{words:?}");
    let documents = DOCUMENTS.map(|name| directory.join(name).display().to_string());
    let state = directory.with_extension("state");
    format!(
        "consensus = {}\nextra = {}\nauthorities = {}\nstate = {:?}\n",
        quoted(documents.into()),
        quoted(fleet.iter().map(SocketAddr::to_string).collect()),
        quoted(network.identities.clone()),
        state.display().to_string()
    )
}
