//! Doubtful relay sets: one that a reload would nearly empty, and one with a narrow margin of
//! signatures.

use crate::reload::{
    AUTHORITIES, Prober, REPLACED, Tor, Treatment, listing, relay, replace, servers,
};
use crate::rig::{Config, Rig, assert_says, needs_root};
use exitmark_lab::site::Plan;
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
    let mut lines = text.lines();
    let consensus = lines.find(|line| line.starts_with("consensus = "));
    let consensus = consensus.unwrap();
    let extra = "extra = [\"203.0.113.201:9001\", \"203.0.113.202:9001\"]";
    fs::write(&rig.configuration, text.replace(consensus, extra)).unwrap();
    rig.running.signal(Signal::SIGHUP).unwrap();
    let refused = "the configuration stays as it was: relays: 2 endpoints would be listed";
    rig.said(refused, 1..=1);
    prober.expect(first, Treatment::Steered, "with the set of before");

    // Sources may change if the set stays the same.
    let more = format!("{consensus}\n{extra}");
    fs::write(&rig.configuration, text.replace(consensus, &more)).unwrap();
    rig.running.signal(Signal::SIGHUP).unwrap();
    rig.said("configuration replaced", 1..=1);
    prober.expect(first, Treatment::Steered, "with two extras");
    assert_eq!(rig.running.log().matches(REPLACED).count(), 0);
    prober.check();

    // A restart accepts it.
    let rig = rig.restart(&Config::default().relays(extra));
    rig.running.wait_log(&["relays.consensus = []"]);
    let mut prober = Prober::new(&rig);
    prober.expect(first, Treatment::Marked, "with the extras alone");
    prober.check();
}

#[test]
fn a_narrow_margin_of_signatures_is_a_warning() {
    needs_root!();
    let [first, _] = servers();
    let builder = listing(relay(first));
    let tor = Tor::with(&builder);
    // Two of three sign, and two are required.
    let text = builder.sign_by(&AUTHORITIES, [0, 2]);
    replace(&tor.consensus(), text.as_bytes());
    let rig = Rig::silent(Plan::default(), &tor.config(""));
    let signed = "signed by 2 of 3 known authorities, 2 are needed";
    rig.said(signed, 1..=1);
    let (report, metrics) = (rig.status(), rig.site.metrics().unwrap());
    let warning = report.warnings.iter().find(|one| one.kind == "authorities");
    let warning = warning.unwrap_or_else(|| panic!("{:?}", report.warnings));
    assert!(!warning.is_alarm);
    let words = [signed, "upgrade exitmark", "cached-microdesc-consensus"];
    assert_says(&warning.text, &words);
    for (count, value) in [("good", 2), ("needed", 2), ("unknown", 0), ("known", 3)] {
        let is_it = |line: &&str| {
            line.starts_with("exitmark_relay_document_signatures{")
                && line.contains(&format!("count=\"{count}\""))
                && line.ends_with(&format!(" {value}"))
        };
        let lines = metrics.lines().filter(is_it).count();
        assert_eq!(lines, 1, "{count}:\n{metrics}");
    }

    // All three sign again.
    replace(&tor.consensus(), builder.sign(&AUTHORITIES).as_bytes());
    rig.running.signal(Signal::SIGHUP).unwrap();
    rig.said("relay set confirmed", 1..=1);
    assert_eq!(rig.status().warnings, []);
    assert_eq!(rig.running.log().matches(signed).count(), 1);
}
