//! The end of a run: counts, comparison and report.

use crate::client::Download;
use crate::exit::{Binding, Exit};
use crate::flows::{Flow, Flows};
use crate::ground::OR_PORT;
use crate::monitor::Monitor;
use crate::network::{self, Tor, wait};
use crate::truth::Dials;
use crate::web::{self, WEB_PORTS, Web};
use exitmark_lab::{Netns, results};
use serde::Serialize;
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// One line of `tor.json`.
#[derive(Clone, Debug, Serialize)]
struct Row {
    binding: String,
    /// Exit connections by tor's count.
    tor_exit: u64,
    /// Flows that left by the uplink, marked.
    marked: u64,
    /// Connections to relays and directories by tor's count.
    tor_or_dir: u64,
    /// Flows that left by the network that carries Tor traffic.
    steered: u64,
    /// Queries to the resolver on the uplink, unmarked.
    resolver: u64,
    /// Frames on the network that carries Tor traffic, marked.
    mismarked_incoming: u64,
    /// TCP frames on the uplink that are neither marked nor an answer of the relay.
    unmarked_exit: u64,
    pages_ok: u64,
    pages: u64,
}

/// Waits for the pages, reads both sides at rest, writes the rows, and fails with all differences.
pub(crate) fn pronounce(
    world: &Netns,
    exits: Vec<Exit<'_>>,
    pages: Vec<Vec<Download>>,
    newcomer: &Tor,
    web: &Web,
    monitor: Monitor,
) {
    let mut complaints = Vec::new();
    let mut rows = Vec::new();
    let mut repeated = Vec::new();
    let ours = exits.iter().flat_map(|exit| exit.lot.first.at(OR_PORT));
    let relays: BTreeSet<_> = network::endpoints().chain(ours).collect();
    for (exit, pages) in exits.into_iter().zip(pages) {
        let name = exit.name();
        let mut complain = |words: String| complaints.push(format!("{name}: {words}"));
        let all = pages.len();
        let mut whole = 0;
        for page in pages {
            match page.join().unwrap() {
                Ok(()) => whole += 1,
                Err(error) => complain(format!("a page: {error}")),
            }
        }
        let lot = exit.lot;
        let (dials, flows) = settle(exit, &mut complain);
        if lot.has_two_providers() && lot.dropped(world) != [0; 2] {
            let dropped = lot.dropped(world);
            complain(format!(
                "the providers dropped foreign sources: {dropped:?}"
            ));
        }
        check_flows(&flows, &relays, &mut complain);
        let row = Row {
            binding: name.clone(),
            tor_exit: dials.exit,
            marked: count(&flows.marked),
            tor_or_dir: dials.or + dials.directory,
            steered: count(&flows.steered),
            resolver: flows.queries,
            mismarked_incoming: flows.marked_incoming,
            unmarked_exit: u64::try_from(flows.unmarked_uplink.len()).unwrap(),
            pages_ok: whole,
            pages: u64::try_from(all).unwrap(),
        };
        check_row(&row, dials, &flows, &mut complain);
        println!("{}", serde_json::to_string(&row).unwrap());
        rows.push(row);
        repeated.extend(flows.repeated);
    }
    let marked = rows.iter().map(|row| row.marked).sum();
    monitor.check(web, marked, &repeated, &mut |words| {
        complaints.push(format!("the monitor: {words}"))
    });
    let path = results::write_beside(env!("CARGO_TARGET_TMPDIR"), "tor.json", &rows);
    println!("{}", path.unwrap().display());
    assert!(
        complaints.is_empty(),
        "{} things do not hold:\n{}\n{}",
        complaints.len(),
        complaints.join("\n"),
        newcomer.log_tail()
    );
}

fn count(flows: &BTreeSet<Flow>) -> u64 {
    u64::try_from(flows.len()).unwrap()
}

/// Reads both sides of one exit at rest. Ends its box, which must end well.
fn settle(mut exit: Exit<'_>, complain: &mut impl FnMut(String)) -> (Dials, Flows) {
    let mut settled = None;
    wait("tor opens no connection for a moment", &[&exit.tor], || {
        let before = Dials::read(&exit.lot.host, &exit.tor);
        let line = exit.watch.draw_line(exit.lot);
        let after = Dials::read(&exit.lot.host, &exit.tor);
        settled = (before == after).then_some((after, line));
        settled.is_some()
    });
    let (dials, line) = settled.unwrap();
    let flows = exit.watch.finish(exit.lot, line);
    exit.tor.stop();
    let is_connect = exit.lot.middle.is_none();
    let last = exit.running.stop().unwrap();
    if !last.status.success() {
        complain(format!("the box ended with {}:\n{}", last.status, last.log));
    }
    for (counter, &number) in &last.counters {
        // With two kinds of address the relay set is a cross-check, and must agree, except for the
        // one probe from an exit address to a relay.
        let (is_fault, expected) = match counter.as_str() {
            "disagreement" => (true, u64::from(exit.binding == Binding::OrAndExit)),
            "marked" if is_connect => (true, count(&flows.marked)),
            "steered" if is_connect => (true, count(&flows.steered)),
            "unmarked" | "unsteered" | "own_tos" | "own_source" | "no_policy" => (is_connect, 0),
            other => (other.starts_with("dropped_"), 0),
        };
        if is_fault && number != expected {
            complain(format!("the box counts {counter}={number}"));
        }
    }
    (dials, flows)
}

/// Checks the flows by their addresses, which the test knows.
fn check_flows(flows: &Flows, relays: &BTreeSet<SocketAddr>, complain: &mut impl FnMut(String)) {
    let webs: BTreeSet<_> = WEB_PORTS.into_iter().flat_map(web::endpoints).collect();
    for (what, flows, known) in [
        ("marked, but to no web server", &flows.marked, &webs),
        ("steered, but to no relay", &flows.steered, relays),
    ] {
        let is_wrong = |flow: &&Flow| !known.contains(&flow.destination);
        for flow in flows.iter().filter(is_wrong) {
            complain(format!("{what}: {flow:?}"));
        }
    }
    for web in webs {
        if !flows.marked.iter().any(|flow| flow.destination == web) {
            complain(format!("no flow to {web} was marked"));
        }
    }
    let newcomer = network::newcomer().at(OR_PORT);
    let is_to_newcomer = |flow: &Flow| newcomer.contains(&flow.destination);
    if !flows.steered.iter().any(is_to_newcomer) {
        complain("no connection to the relay that joined was steered".to_owned());
    }
    let unmarked: BTreeSet<_> = flows.unmarked_uplink.iter().collect();
    for (source, destination) in unmarked {
        complain(format!("unmarked on the uplink: {source} to {destination}"));
    }
    if flows.wrong_queries != 0 {
        let number = flows.wrong_queries;
        complain(format!("{number} queries were marked or steered"));
    }
}

fn check_row(row: &Row, dials: Dials, flows: &Flows, complain: &mut impl FnMut(String)) {
    #[rustfmt::skip]
    let table = [
        ("exit connections are marked flows", row.tor_exit == row.marked),
        ("dials are steered flows", row.tor_or_dir == row.steered),
        ("something was marked", row.marked > 0),
        ("relays and directories were dialled", dials.or > 0 && dials.directory > 0),
        ("the resolver was queried", row.resolver > 0),
        ("no mark is steered", row.mismarked_incoming == 0),
        ("no exit frame is unmarked", row.unmarked_exit == 0),
        ("every page is whole", row.pages_ok == row.pages),
    ];
    for (what, holds) in table {
        if !holds {
            complain(format!("not so: {what}: {row:?}, {dials:?}"));
        }
    }
    if row.tor_or_dir != row.steered {
        let mut by_destination = std::collections::BTreeMap::new();
        for flow in &flows.steered {
            *by_destination.entry(flow.destination).or_insert(0) += 1;
        }
        complain(format!("steered flows went to {by_destination:?}"));
    }
}
