//! Tier: tor (root, and the `tor` of the distribution). A Tor network of stock programs, with a box
//! behind each of three exit hosts and without one on three others, compared with tor's own counters.
//!
//! ```text
//!  exit host ── eth0 ─── host0 ┌─────┐ uplink0 ─── up0 ┌──────────────────────────────────────┐
//!                              │ box │                 │ world: authorities, relays, clients, │
//!  (three of these)            └─────┘ incoming0 ─ in0 │ web server, resolver                 │
//!                                                      └──────────────────────────────────────┘
//! ```
//!
//! Three more hosts have no box: engine connect runs on the host itself, which has both links. Tor
//! is a user of its own there. A seventh host has a box between two providers, each of which drops the
//! other's addresses: `steer.source` translates its relay traffic.
//!
//! The three hosts of the first two kinds have tor's three configurations of source addresses: one address,
//! `OutboundBindAddress`, and `OutboundBindAddressOR` with `OutboundBindAddressExit`. Each is
//! captured from before its tor starts: pages are fetched through it, circuits are extended by it,
//! and during a slow download a relay joins the network, is listed by the next consensus, added to
//! the box's relay set, and connected to.
//!
//! Then the flows on both links behind the box must exactly equal the counts of tor's MetricsPort:
//! marked flows are its exit connections, steered ones its connections to relays and directories.
//! `truth.rs` and `flows.rs` explain why these can be equal; the conditions here are:
//!
//! - The box's relay set lists every relay that its tor can connect to, from before tor starts: the
//!   box reads the documents of that tor, which starts with a cached consensus, as after a restart.
//!   The exits of the same operator, itself among them, are in `relays.extra` until the consensus
//!   lists them, which also tells the box the host's own ORPorts.
//! - No circuit uses the joining relay before the test builds one. During a relay's self-test other
//!   tors connect to it before any consensus lists it, and those with the newest consensus use it
//!   first: at that time an exit's connection to it looks like exit traffic to any reader of the
//!   consensus.
//! - Both sides are read at rest: tor's counters are the same before and after a marker is sent on
//!   both links, and frames are counted up to the markers.
//!
//! A monitor receives copies of all frames from the three uplinks. Its counts must equal the
//! connections that the web servers have accepted, port by port, and all marked flows.
//!
//! Rows are written to `tor.json` in the target directory, passed or failed.
#![allow(
    clippy::unwrap_used,
    reason = "a test's ground that is missing is the test's failure"
)]

mod client;
mod exit;
mod flows;
mod ground;
mod keys;
mod monitor;
mod network;
mod socks;
mod truth;
mod verdict;
mod web;

use client::{Circuit, Client, Download, Place};
use exit::{Binding, Exit};
use ground::{Ground, OR_PORT, WEB};
use monitor::Monitor;
use network::{Network, Tor, wait};
use std::sync::LazyLock;
use std::time::Instant;
use web::{Page, WEB_PORTS, Web};

/// The sizes of the pages in bytes; each is fetched from every place.
const SIZES: [usize; 7] = [0, 1, 1_000, 16_384, 100_000, 300_000, 1_000_000];
static START: LazyLock<Instant> = LazyLock::new(Instant::now);
/// How often each exit is the first hop.
const ENTRIES: usize = 3;

/// Skips the test without root or tor.
macro_rules! needs_tor {
    () => {
        if !exitmark_lab::is_root() || !exitmark_lab::is_installed("tor") {
            return;
        }
    };
}

#[test]
fn marked_and_steered_flows_equal_the_counts_of_tor() {
    needs_tor!();
    LazyLock::force(&START);
    let ground = Ground::build();
    let web = Web::open(&ground.world);
    let monitor = Monitor::start(&ground);
    let network = Network::start(&ground.world);
    let (door, relays) = network.relays();
    let listed = |names: &[String]| {
        let mut authorities = network.authorities().iter();
        authorities.all(|authority| authority.lists(names))
    };
    wait("a consensus lists every relay", &network.all(), || {
        listed(&network.names())
    });
    say("the network stands");

    let lots = ground.lots.iter();
    let fleet: Vec<_> = lots.flat_map(|lot| lot.first.at(OR_PORT)).collect();
    let mut exits: Vec<_> = Binding::ALL
        .into_iter()
        .cycle()
        .zip(&ground.lots)
        .map(|(binding, lot)| Exit::start(binding, lot, &ground.world, &network, &fleet))
        .collect();
    let names: Vec<_> = exits.iter().map(|exit| exit.tor.name.clone()).collect();
    {
        let mut tors = network.all();
        tors.extend(exits.iter().map(|exit| &exit.tor));
        wait("a consensus lists the exits", &tors, || listed(&names));
    }
    say("the exits are listed");

    // A new client for each part of the test, which has the newest consensus.
    let mut client = Client::start(&ground.world, &network, "client");
    let slow = Page {
        size: 2_000_000,
        seed: 1,
        slow: true,
        port: WEB_PORTS[0],
    };
    let mut pages = Vec::new();
    let mut in_flight = Vec::new();
    for exit in &exits {
        let circuit = client.circuit(&[&relays[0], &relays[1], &exit.tor]);
        in_flight.push(client.fetch(&circuit, &Place::Address(WEB.v4.into()), slow));
        pages.push(fetch_all(&mut client, &circuit));
        say(&format!("pages through {}", exit.tor.name));
    }
    // During these downloads a relay joins, which no box knows yet.
    for exit in &mut exits {
        assert!(!exit.knows(network::newcomer().at(OR_PORT)[0]));
    }
    let newcomer = network.join(&ground.world, "newcomer");
    for (exit, pages) in exits.iter().zip(&mut pages) {
        for middle in relays {
            let circuit = client.circuit(&[&exit.tor, middle, door]);
            pages.extend((0..ENTRIES).map(|number| {
                let place = Place::Name(format!("entry{number}.four.example"));
                client.fetch(&circuit, &place, quick(number, 10_000))
            }));
        }
    }
    say("the exits have been entries");
    let late = follow_a_change(&ground, &network, &mut exits, &newcomer, &mut pages, door);
    let is_over = in_flight.iter().any(Download::is_finished);
    assert!(!is_over, "a slow page ended before the change");
    web.let_go();
    for (pages, slow) in pages.iter_mut().zip(in_flight) {
        pages.push(slow);
    }
    verdict::pronounce(&ground.world, exits, pages, &newcomer, &web, monitor);
    client.tor.stop();
    late.tor.stop();
}

fn say(words: &str) {
    println!("{:4} s: {words}", START.elapsed().as_secs());
}

fn quick(number: usize, size: usize) -> Page {
    Page {
        size,
        seed: u64::try_from(number * 1_000_003 + size).unwrap(),
        slow: false,
        port: WEB_PORTS[number % WEB_PORTS.len()],
    }
}

/// Fetches pages of every size from every kind of place: the server's addresses, names of them,
/// and a web server at a relay's address, whose port is not in the relay set.
fn fetch_all(client: &mut Client, circuit: &Circuit) -> Vec<Download> {
    let mut downloads = Vec::new();
    for (number, size) in SIZES.into_iter().enumerate() {
        let [v4, v6] = WEB.both().map(Place::Address);
        let on_relay = Place::Address(web::on_relay());
        let names = ["four", "six"].map(|kind| Place::Name(format!("page{number}.{kind}.example")));
        for place in [v4, v6, on_relay].iter().chain(&names) {
            downloads.push(client.fetch(circuit, place, quick(number, size)));
        }
    }
    downloads
}

/// Waits until the boxes list the relay that joined, and makes the exits connect to it.
fn follow_a_change(
    ground: &Ground,
    network: &Network,
    exits: &mut [Exit<'_>],
    newcomer: &Tor,
    pages: &mut [Vec<Download>],
    door: &Tor,
) -> Client {
    let name = [newcomer.name.clone()];
    let mut tors = network.all();
    tors.push(newcomer);
    for exit in exits.iter_mut() {
        wait("an exit has a consensus with the newcomer", &tors, || {
            exit.tor.lists(&name)
        });
        exit.takes_on(network::newcomer().at(OR_PORT)[0]);
        say(&format!("the box of {} knows the newcomer", exit.tor.name));
    }
    let mut late = Client::start(&ground.world, network, "late");
    for (exit, pages) in exits.iter().zip(pages) {
        let circuit = late.circuit(&[&exit.tor, newcomer, door]);
        let download = late.fetch(&circuit, &Place::Address(WEB.v6.into()), quick(1, 50_000));
        pages.push(download);
    }
    say("the exits have dialled the newcomer");
    late
}
