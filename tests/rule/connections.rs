//! Judges the table of connections by the reference.

use exitmark_lab::cases::connections::{
    ConnectionCase, ConnectionTable, Owner, Treatment, snapshot, tables,
};
use exitmark_policy::{Snapshot, judge_connection};
use std::sync::Arc;

/// The cases that the reference judges, with their titles: it does not know the owner of a socket.
fn judged(table: &ConnectionTable) -> impl Iterator<Item = (String, &ConnectionCase)> {
    let cases = table.cases.iter().filter(|case| case.owner == Owner::Tor);
    cases.map(|case| (format!("{}: {}", table.name, case.name), case))
}

#[test]
fn every_connection_by_the_reference() {
    for table in tables() {
        let settings = table.settings().unwrap();
        let mark = settings.rules.groups()[0].actions.mark();
        let snapshot = snapshot(&settings);
        for (title, case) in judged(&table) {
            let verdict = judge_connection(case.destination.parse().unwrap(), &snapshot);
            assert_eq!(Some(verdict.class()), case.class, "{title}");
            // It does not know either what tor sets itself.
            let is_marked = matches!(case.treatment, Treatment::Marked | Treatment::OwnTos);
            assert_eq!(verdict.mark, is_marked.then_some(mark), "{title}");
            let is_steered = matches!(case.treatment, Treatment::Steered | Treatment::OwnSource);
            assert_eq!(verdict.is_steered, is_steered, "{title}");
            if case.treatment == Treatment::Marked {
                assert_eq!(mark.bits() << 2, case.after.tos, "{title}");
            }
        }
    }
}

/// As with a stale relay set, or without one.
#[test]
fn passing_rules_keep_the_class_and_change_no_socket() {
    for table in tables() {
        let snapshot = snapshot(&table.settings().unwrap());
        let passing = Snapshot::new(2, Arc::new(snapshot.rules.passing()), snapshot.relays);
        for (title, case) in judged(&table) {
            let verdict = judge_connection(case.destination.parse().unwrap(), &passing);
            assert_eq!(Some(verdict.class()), case.class, "{title}");
            assert_eq!((verdict.mark, verdict.is_steered), (None, false), "{title}");
        }
    }
}
