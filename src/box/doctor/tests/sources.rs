//! Addresses of `steer.source` on a box.

use super::super::sources::SourceFacts;
use super::*;

const V4: &str = "203.0.113.10/32";
const V6: &str = "2001:db8:3::/64";

fn unused(network: &str) -> SourceFacts {
    SourceFacts {
        network: network.parse().unwrap(),
        misplaced: None,
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
    let misplaced = |facts: &mut SourceFacts| {
        facts.misplaced = Some(("lo".to_owned(), "incoming0".to_owned()));
    };
    let v4 = "warning 203.0.113.10: ";
    finds(
        &format!("{v4}an address of lo, not of incoming0"),
        misplaced,
    );
    finds(&format!("{v4}02:00:00:00:00:77 answers"), |facts| {
        facts.other_user = Some("02:00:00:00:00:77".parse().unwrap());
    });
    finds(&format!("{v4}the box's own connections leave"), |facts| {
        facts.is_preferred = true;
    });
    finds(
        &format!("{v4}a program of the box listens here: port 22, 80"),
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
