//! Addresses of `steer.source` on a box.

use super::super::sources::SourceFacts;
use super::*;
use crate::machine::Misplaced;

const V4: &str = "203.0.113.10/32";
const V6: &str = "2001:db8:3::/64";

fn unused(network: &str) -> SourceFacts {
    SourceFacts {
        network: network.parse().unwrap(),
        misplaced: Ok(None),
        other_user: None,
        is_preferred: false,
        listeners: BTreeSet::new(),
        connections: 0,
    }
}

fn translating() -> Facts {
    let sources = Ok(vec![unused(V4), unused(V6)]);
    Facts { sources, ..sound() }
}

#[test]
fn each_source_has_a_finding() {
    let said = render(&all_ok(&translating()));
    for subject in ["203.0.113.10", "2001:db8:3::/64"] {
        let line = format!("{subject:15}  for steered traffic alone: no program of the box uses");
        assert!(said.contains(&line), "{line}:\n{said}");
    }
}

#[test]
fn a_source_is_for_steered_traffic_alone() {
    #[track_caller]
    fn finds(expected: &str, spoil: fn(&mut SourceFacts)) {
        finds_in(translating(), expected, |facts| {
            spoil(&mut facts.sources.as_mut().unwrap()[0]);
        });
    }
    let v4 = "warning 203.0.113.10: ";
    let nowhere = |facts: &mut SourceFacts| {
        facts.misplaced = Ok(Some(Misplaced {
            interface: "incoming0".to_owned(),
            home: None,
        }));
    };
    finds(&format!("{v4}not an address of incoming0"), nowhere);
    let elsewhere = |facts: &mut SourceFacts| {
        facts.misplaced = Ok(Some(Misplaced {
            interface: "incoming0.30".to_owned(),
            home: Some("incoming0".to_owned()),
        }));
    };
    let what = "an address of incoming0, not of incoming0.30";
    finds(&format!("{v4}{what}"), elsewhere);
    let mut facts = translating();
    elsewhere(&mut facts.sources.as_mut().unwrap()[0]);
    let [found] = &amiss(&facts)[..] else {
        panic!("not one finding");
    };
    let fix = "`ip addr add 203.0.113.10/LENGTH dev incoming0.30`";
    assert!(found.why.contains(fix), "{found:?}");
    finds(&format!("{v4}there is no interface for VLAN 30"), |facts| {
        facts.misplaced = Err("there is no interface for VLAN 30 on incoming0".to_owned());
    });
    finds(&format!("{v4}02:00:00:00:00:77 answers"), |facts| {
        facts.other_user = Some("02:00:00:00:00:77".parse().unwrap());
    });
    finds(&format!("{v4}the box's own connections leave"), |facts| {
        facts.is_preferred = true;
    });
    finds(
        "fault 203.0.113.10: a program of the box listens here: port 22, 80",
        |facts| {
            facts.listeners = BTreeSet::from([80, 22]);
        },
    );
    finds(&format!("{v4}a TCP connection of the box has"), |facts| {
        facts.connections = 1;
    });
    finds(&format!("{v4}2 TCP connections of the box have"), |facts| {
        facts.connections = 2;
    });
}

#[test]
fn sources_that_cannot_be_read_are_a_fault() {
    finds(
        "fault steer.source: its addresses cannot be checked",
        |facts| {
            facts.sources = Err("its sockets cannot be read: permission denied".to_owned());
        },
    );
}
