//! Runs the table of cases through the kernel engine.

use crate::rig::{Rig, in_namespace};
use exitmark_datapath::{Buffers, Counter, Role};
use exitmark_lab::cases::translated::arrivals;
use exitmark_lab::cases::{Case, CaseTable, tables, translated};
use exitmark_lab::differential::{SlowPath, slow_path};
use exitmark_policy::packet::{Dscp, Version, set_dscp};
use exitmark_policy::{Class, ClassifyBy};

/// The expected class, egress and bytes of a case's frame.
fn expected(case: &Case, marks: &[Dscp]) -> (Class, Role, Vec<u8>) {
    let Some(slow_path) = slow_path(&case.before) else {
        return (case.class, case.egress, case.after.clone());
    };
    // Without a worker the frame is forwarded, and a mark on it is cleared.
    let mut after = case.before.clone();
    if let SlowPath::Ip(at, version) = slow_path {
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

/// Bytes up to the end of the EtherType behind two tags, less that EtherType.
const TAGS_END: usize = 20;

/// Runs every case of a table, with the frame in one buffer or, for each of `firsts`, with that many
/// bytes in the first of several. The program is loaded once.
fn try_table(table: &CaseTable, buffers: Buffers, firsts: &[Option<usize>]) {
    let settings = table.settings().unwrap();
    let groups = settings.rules.groups().iter();
    let mut marks: Vec<_> = groups.map(|group| group.actions.mark()).collect();
    if let ClassifyBy::HostMark(of_host) = settings.rules.classify_by {
        marks.push(of_host);
    }
    let (mut rig, _) = Rig::of(table, buffers);
    let runs = firsts
        .iter()
        .flat_map(|first| table.cases.iter().map(move |case| (*first, case)));
    for (first, case) in runs {
        let length = case.before.len();
        let first = first.map_or(length, |bytes| bytes.min(length));
        let title = format!("{}: {}, {first} bytes in reach", table.name, case.name);
        if length < 14 {
            // NICs do not pass runts to XDP, and BPF_PROG_RUN refuses them.
            assert!(rig.kernel.run(Role::Host, &case.before).is_err(), "{title}");
            continue;
        }
        let (class, mut egress, mut after) = expected(case, &marks);
        let is_tagged = |frame: &[u8]| matches!(frame[12..14], [0x81, 0] | [0x88, 0xa8]);
        let has_tags = is_tagged(&case.before) || is_tagged(&case.after);
        let popped = if case.after.len() < length { 8 } else { 0 };
        if first < TAGS_END + popped && case.egress == Role::Incoming && has_tags {
            // Tags are replaced in the first buffer only.
            (egress, after) = (Role::Uplink, case.before.clone());
        }
        let (ran, counted) = rig.run_split(Role::Host, &case.before, first);
        assert!(ran.redirected, "{title}");
        assert!(ran.frame == after, "{title}");
        counted.assert_forwarded(Role::Host, egress, &title);
        for other in Class::ALL {
            let count = counted.of(Counter::Class(other));
            let (expected, name) = (u64::from(other == class), other.name());
            assert_eq!(count, expected, "{title}: {name}");
        }
        let is_slow = u64::from(slow_path(&case.before).is_some());
        assert_eq!(counted.of(Counter::NoUserSpace), is_slow, "{title}");
        assert_eq!(counted.spilled(Role::Host), is_slow, "{title}");
    }
}

fn try_tables(buffers: Buffers, firsts: &[Option<usize>]) {
    let firsts = firsts.to_vec();
    in_namespace(move || {
        for table in tables() {
            try_table(&table, buffers, &firsts);
        }
    });
}

#[test]
fn every_case_by_the_kernel() {
    try_tables(Buffers::Several, &[None]);
}

#[test]
fn every_case_by_the_program_for_single_buffers() {
    try_tables(Buffers::One, &[None]);
}

/// Some drivers put less than the headers into the first of several buffers: mlx5 with a striding
/// receive queue only the Ethernet header, or nothing. BPF_PROG_RUN requires an Ethernet header.
#[test]
fn every_case_with_headers_beyond_the_first_buffer() {
    const FIRSTS: [usize; 10] = [14, 15, 18, 22, 33, 34, 37, 40, 54, 60];
    try_tables(Buffers::Several, &FIRSTS.map(Some));
}

#[test]
fn every_answer_to_a_translated_frame_by_the_kernel() {
    in_namespace(|| {
        for (buffers, first) in [
            (Buffers::One, usize::MAX),
            (Buffers::Several, usize::MAX),
            (Buffers::Several, 14),
            (Buffers::Several, 40),
        ] {
            let table = translated::table();
            let (mut rig, _) = Rig::of(&table, buffers);
            for case in &table.cases {
                // The host's MAC address is learned.
                rig.run(Role::Host, &case.before);
            }
            for case in arrivals() {
                let title = format!("{}, {first} bytes in reach", case.name);
                let reach = first.min(case.before.len());
                let (ran, counted) = rig.run_split(Role::Incoming, &case.before, reach);
                // Fragments need a worker.
                let is_slow = slow_path(&case.before).is_some();
                let delivered = case.after.filter(|_| !is_slow);
                let back = u64::from(delivered.is_some());
                assert_eq!(ran.redirected, delivered.is_some(), "{title}");
                assert_eq!(ran.passed, delivered.is_none(), "{title}");
                assert!(ran.frame == delivered.unwrap_or(case.before), "{title}");
                assert_eq!(counted.of(Counter::TranslatedBack), back, "{title}");
                assert_eq!(counted.to_stack(Role::Incoming), 1 - back, "{title}");
            }
        }
    });
}

#[test]
fn in_audit_mode_all_answers_are_the_boxs_own() {
    in_namespace(|| {
        let mut table = translated::table();
        table.configuration.insert_str(0, "mode = \"audit\"\n");
        let (mut rig, _) = Rig::of(&table, Buffers::Several);
        for case in arrivals() {
            let (ran, _) = rig.run(Role::Incoming, &case.before);
            assert!(ran.passed && ran.frame == case.before, "{}", case.name);
        }
    });
}
