//! The table of cells: full, restored, and without traces of the last packet.

use super::{
    ACK, PLACES, SYN, addresses, cell, count, counter, counts, filter, many, segment, whole,
};
use exitmark_monitor::cell::{Cell, Country, Counts};
use exitmark_monitor::filter::Filter;
use exitmark_monitor::ledger::{Ledger, Spilled};
use exitmark_monitor::tally::{Counter, DEFAULT_CELLS, Tally};
use exitmark_policy::packet::Version;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The sums of a dimension, over cells and spilled counts.
fn sums<K: Copy + Ord>(
    ledger: &Ledger,
    of: impl Fn(&Cell) -> K,
    spilled: &[(K, Counts)],
) -> BTreeMap<K, Counts> {
    let mut sums = BTreeMap::<K, Counts>::new();
    let cells = ledger.cells.iter();
    let cells = cells.map(|(cell, counts)| (of(cell), *counts));
    for (key, counts) in cells.chain(spilled.iter().copied()) {
        *sums.entry(key).or_default() += counts;
    }
    sums
}

type Dimensions = (
    BTreeMap<u16, Counts>,
    BTreeMap<u32, Counts>,
    BTreeMap<Country, Counts>,
    BTreeMap<Version, Counts>,
);

fn dimensions(ledger: &Ledger) -> Dimensions {
    let spilled = &ledger.spilled;
    (
        sums(ledger, |cell| cell.port, &spilled.ports),
        sums(ledger, |cell| cell.place.asn, &spilled.systems),
        sums(ledger, |cell| cell.place.country, &spilled.countries),
        sums(ledger, |cell| cell.version, &spilled.versions),
    )
}

/// Asserts the same keys and flows, and no fewer bytes and packets in `some` than in `all`.
fn has_all_of<K: Ord + std::fmt::Debug>(some: &BTreeMap<K, Counts>, all: &BTreeMap<K, Counts>) {
    assert!(some.keys().eq(all.keys()));
    for (some, (key, all)) in some.values().zip(all) {
        assert_eq!(some.flows, all.flows, "{key:?}");
        let is_no_less = some.bytes >= all.bytes && some.packets >= all.packets;
        assert!(is_no_less, "{key:?}");
    }
}

#[test]
fn a_full_table_keeps_sums_of_single_dimensions() {
    let frames = many(500);
    let (mut large, mut small, mut least) = (counter(DEFAULT_CELLS), counter(37), counter(1));
    for counter in [&mut large, &mut small, &mut least] {
        count(counter, &frames);
    }
    let exact = dimensions(&large.tally().ledger());
    assert_eq!(large.tally().ledger().spilled, Spilled::default());
    assert!(large.tally().occupancy().used > 500);
    for (counter, cells) in [(&small, 37), (&least, 1)] {
        let ledger = counter.tally().ledger();
        assert_eq!(ledger.cells.len(), cells);
        let (ports, systems, countries, versions) = dimensions(&ledger);
        has_all_of(&ports, &exact.0);
        has_all_of(&systems, &exact.1);
        has_all_of(&countries, &exact.2);
        has_all_of(&versions, &exact.3);
        assert_eq!(counter.tally().totals(), large.tally().totals());
        let in_cells: u64 = ledger.cells.iter().map(|(_, counts)| counts.packets).sum();
        let unattributed = ledger.all_unattributed().packets;
        let spilled = counter.tally().occupancy().spilled;
        assert_eq!(in_cells + spilled + unattributed, 4000);
    }
}

/// A packet without a connection has no cell until a connection with its values begins.
#[test]
fn only_connections_open_cells() {
    let [ack, syn] = [ACK, SYN].map(|control| segment("1.2.3.4:443", control).build());
    let mut all = counter(64);
    count(&mut all, &[ack.clone(), ack.clone()]);
    assert_eq!(all.tally().occupancy().used, 0);
    count(&mut all, &[syn, ack.clone()]);
    let ledger = all.tally().ledger();
    assert_eq!(ledger.unattributed, [(Version::V4, counts(2, 120, 0))]);
    let cell = cell(443, "GB", 64500, Version::V4);
    assert_eq!(ledger.cells, [(cell, counts(2, 120, 1))]);
    // More others than the table has cells.
    let others: Vec<_> = (1..200)
        .map(|port| segment(&format!("1.2.3.4:{port}"), ACK).build())
        .collect();
    count(&mut all, &others);
    assert_eq!(all.tally().occupancy().used, 1);
    assert_eq!(all.tally().occupancy().spilled, 0);
    // A table that is passed on soon keeps half of its cells for connections.
    let mut turn = Counter::of(filter(), Tally::of_a_turn(Arc::clone(&PLACES), 64));
    count(&mut turn, &others);
    assert_eq!(turn.tally().occupancy().used, 32);
    all.tally_mut().absorb(turn.tally_mut());
    assert_eq!(all.tally().occupancy().used, 1);
    assert_eq!(all.tally().totals()[0].1.packets, 4 + 2 * 199);
}

#[test]
fn restores_the_same_counts() {
    let frames = many(300);
    for cells in [DEFAULT_CELLS, 37] {
        let mut before = counter(cells);
        count(&mut before, &frames);
        before.tally_mut().note_lost(3);
        before.tally_mut().note_watched(60);
        let ledger = before.tally().ledger();
        let mut after = counter(cells);
        after.tally_mut().restore(&ledger);
        assert_eq!(after.tally().ledger(), ledger);
        assert_eq!(after.tally().totals(), before.tally().totals());
        // Counting continues.
        count(&mut before, &frames);
        count(&mut after, &frames);
        let taken = after.tally_mut().take();
        assert_eq!(dimensions(&taken), dimensions(&before.tally().ledger()));
        // And begins anew.
        assert_eq!(after.tally().ledger(), Ledger::default());
        assert_eq!(after.tally().occupancy().used, 0);
        after.tally_mut().restore(&ledger);
        count(&mut after, &frames);
        assert_eq!(after.tally().ledger(), taken);
    }
}

#[test]
fn a_ledger_of_other_databases_and_of_a_larger_table_is_kept() {
    let foreign = |number| (cell(443, "ZZ", number, Version::V4), counts(1, 100, 1));
    let ledger = Ledger {
        cells: (1..=100).map(foreign).collect(),
        ..Ledger::default()
    };
    let mut large = counter(1000);
    large.tally_mut().restore(&ledger);
    assert_eq!(large.tally().ledger(), ledger);
    let mut small = counter(10);
    small.tally_mut().restore(&ledger);
    assert_eq!(small.tally().ledger().cells.len(), 10);
    assert_eq!(dimensions(&small.tally().ledger()), dimensions(&ledger));
}

#[test]
fn a_rinse_counts_nothing() {
    let v4_alone = Filter {
        clearnet: addresses(["192.0.2.10"]),
        ..filter()
    };
    for filter in [filter(), v4_alone] {
        let mut counter = Counter::new(filter, Arc::clone(&PLACES), 64);
        count(&mut counter, &many(10));
        let state = |counter: &Counter| (counter.tally().ledger(), *counter.refusals());
        let before = state(&counter);
        counter.rinse();
        assert_eq!(state(&counter), before);
    }
}

#[test]
fn counting_packets_does_not_allocate() {
    let frames = many(500);
    let arrived: Vec<_> = frames.iter().map(|frame| whole(frame)).collect();
    for cells in [DEFAULT_CELLS, 37] {
        let mut counter = counter(cells);
        // The first spill allocates its arrays.
        counter.count(&arrived);
        let allocated = allocation_counter::measure(|| counter.count(&arrived));
        assert_eq!(allocated.count_total, 0);
    }
}
