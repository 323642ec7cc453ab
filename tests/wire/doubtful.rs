//! Relay sets that an operator should look at: one that a reload would nearly empty.

use crate::reload::{Prober, REPLACED, Tor, Treatment, listing, relay, said, servers};
use crate::rig::{Config, Rig, needs_root};
use exitmark::lab::site::Plan;
use nix::sys::signal::Signal;
use std::fs;

#[test]
fn a_reload_that_empties_the_relay_set_is_refused() {
    needs_root!();
    let [first, _] = servers();
    let tor = Tor::with(&listing(relay(first)));
    let rig = Rig::silent(Plan::default(), &tor.config(""));
    let mut prober = Prober::new(&rig);
    prober.expect(first, Treatment::Steered, "at the start");

    let text = fs::read_to_string(&rig.configuration).unwrap();
    let consensus = text
        .lines()
        .find(|line| line.starts_with("consensus = "))
        .unwrap();
    let extra = "extra = [\"198.51.100.1:9001\", \"198.51.100.2:9001\"]";
    fs::write(&rig.configuration, text.replace(consensus, extra)).unwrap();
    rig.running.signal(Signal::SIGHUP).unwrap();
    said(
        &rig,
        "the configuration stays as it was: relays: 2 endpoints would be listed",
        1,
    );
    prober.expect(first, Treatment::Steered, "with the set of before");

    // Where it is the same set, sources may change.
    let more = format!("{consensus}\n{extra}");
    fs::write(&rig.configuration, text.replace(consensus, &more)).unwrap();
    rig.running.signal(Signal::SIGHUP).unwrap();
    said(&rig, "configuration replaced", 1);
    prober.expect(first, Treatment::Steered, "with two extras");
    assert_eq!(rig.running.log().matches(REPLACED).count(), 0);
    prober.check();

    // With a restart it is intended.
    let rig = rig.restart(&Config {
        relays: extra.to_owned(),
        ..Config::default()
    });
    let log = rig.running.log();
    assert!(log.contains("relays.consensus = []"), "{log}");
    let mut prober = Prober::new(&rig);
    prober.expect(first, Treatment::Marked, "with the extras alone");
    prober.check();
}
