//! The table of cases by the kernel's engine.

use crate::rig::{Rig, in_namespace};
use exitmark::datapath::{Counter, Role};
use exitmark::lab::cases::{Case, Table, tables};
use exitmark::lab::differential::{Odd, odd};
use exitmark::packet::{Dscp, Version, set_dscp};
use exitmark::policy::{Class, ClassifyBy};

/// What must become of a case's frame: its class, egress and bytes.
fn expected(case: &Case, marks: &[Dscp]) -> (Class, Role, Vec<u8>) {
    let Some(odd) = odd(&case.before) else {
        return (case.class, case.egress, case.after.clone());
    };
    // Nobody is in user space: it crosses, and is not taken for exit traffic by its mark.
    let mut after = case.before.clone();
    if let Odd::Ip(at, version) = odd {
        let tos = match version {
            Version::V4 => after[at + 1],
            Version::V6 => after[at] << 4 | after[at + 1] >> 4,
        };
        if marks.contains(&Dscp::of(tos)) {
            set_dscp(&mut after, at, version, Dscp::DEFAULT);
        }
    }
    (Class::Host, Role::Uplink, after)
}

fn try_table(table: &Table) {
    let settings = table.settings().unwrap();
    let mark = settings.rules.actions.mark();
    let marks = match settings.rules.classify_by {
        ClassifyBy::RelaySet => vec![mark],
        ClassifyBy::HostMark(of_host) => vec![mark, of_host],
    };
    let snapshot = table.snapshot(&settings);
    let mut rig = Rig::new(&snapshot, settings.host_mac, table.incoming(&settings));
    for case in &table.cases {
        let title = format!("{}: {}", table.name, case.name);
        if case.before.len() < 14 {
            // No NIC hands a runt to XDP, and the kernel does not run one.
            assert!(rig.kernel.run(Role::Host, &case.before).is_err(), "{title}");
            continue;
        }
        let (class, egress, after) = expected(case, &marks);
        let (ran, counted) = rig.run(Role::Host, &case.before);
        assert!(ran.redirected, "{title}");
        assert!(ran.frame == after, "{title}");
        counted.assert_forwarded(Role::Host, egress, &title);
        for other in Class::ALL {
            let count = counted.of(Counter::Class(other));
            assert_eq!(
                count,
                u64::from(other == class),
                "{title}: {}",
                other.name()
            );
        }
        let is_odd = u64::from(odd(&case.before).is_some());
        assert_eq!(counted.of(Counter::NoUserSpace), is_odd, "{title}");
        assert_eq!(counted.spilled(Role::Host), is_odd, "{title}");
    }
}

#[test]
fn every_case_by_the_kernel() {
    in_namespace(|| {
        for table in tables() {
            try_table(&table);
        }
    });
}
