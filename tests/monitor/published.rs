//! Tier: any machine. What is published of exact counts.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

mod noise;
mod properties;
mod reread;

use crate::says;
use exitmark_monitor::cell::{Cell, Counts, Directions, Place};
use exitmark_monitor::clock::{Length, Period};
use exitmark_monitor::ledger::{Ledger, Spilled};
use exitmark_monitor::publish::{Origin, PublishSettings, publish};
use exitmark_monitor::row::{Dimension, Row};
use exitmark_monitor::services;
use exitmark_policy::packet::Version;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

pub(crate) const CROSS: [Dimension; 3] = [
    Dimension::PortCountry,
    Dimension::PortSystem,
    Dimension::SystemCountry,
];

pub(super) fn origin() -> Origin {
    Origin {
        exit: "berlin-1".to_owned(),
        countries: "made up".to_owned(),
        systems: "synthetic".to_owned(),
        names: Arc::new(|asn| (asn == 1).then(|| "One".to_owned())),
    }
}

pub(super) const fn counts(flows: u64, bytes: u64, packets: u64) -> Counts {
    Counts {
        flows,
        bytes,
        packets,
        down_bytes: 0,
        down_packets: 0,
    }
}

pub(super) fn cell(port: u16, asn: u32, country: &str, version: Version) -> Cell {
    let country = country.parse().unwrap();
    Cell {
        port,
        place: Place { country, asn },
        version,
    }
}

pub(super) fn of_cells<const N: usize>(cells: [(Cell, Counts); N]) -> Ledger {
    Ledger {
        cells: cells.into(),
        ..Ledger::default()
    }
}

fn period() -> Period {
    let start: Timestamp = "2026-11-22T00:00:00Z".parse().unwrap();
    Period::at(start, Length::DAY)
}

/// Settings without rounding.
pub(crate) fn plain(threshold_flows: u64, top: u32) -> PublishSettings {
    PublishSettings {
        top,
        threshold_flows,
        bins: [NonZeroU64::MIN; 5].into(),
        cross: Vec::new(),
        noise: None,
        directions: Directions::Out,
    }
}

pub(crate) fn rows(ledger: &Ledger, settings: &PublishSettings) -> Vec<Row> {
    settings.check().unwrap();
    publish(ledger, &period(), &origin(), settings, None)
}

/// A row's key and numbers on one line.
fn text(row: &Row) -> String {
    let columns = [
        row.port.map(|port| port.to_string()),
        row.asn.map(|asn| format!("AS{asn}")),
        row.country.map(|country| country.to_string()),
        row.ip_version.map(|version| format!("IPv{version}")),
        row.encryption.map(|encryption| format!("{encryption:?}")),
        row.other.then(|| "other".to_owned()),
    ];
    let columns: Vec<_> = columns.into_iter().flatten().collect();
    let (dimension, columns) = (row.dimension, columns.join(" "));
    let [flows, bytes, packets, ..]: [u64; 5] = row.counts.into();
    format!("{dimension:?} {columns} {flows} {bytes} {packets}")
}

fn texts_of(rows: &[Row], dimension: Dimension) -> Vec<String> {
    let rows = rows.iter().filter(|row| row.dimension == dimension);
    rows.map(text).collect()
}

fn day() -> Ledger {
    use Version::{V4, V6};
    Ledger {
        cells: vec![
            (cell(443, 1, "US", V4), counts(400, 3_000_000, 3000)),
            (cell(443, 2, "DE", V6), counts(200, 1_500_000, 1500)),
            (cell(80, 1, "US", V4), counts(150, 100_000, 200)),
            (cell(22, 3, "FR", V4), counts(99, 50_000, 100)),
            (cell(50_001, 3, "FR", V4), counts(5, 999, 7)),
        ],
        lost: 3,
        watched_seconds: 86_000,
        ..Ledger::default()
    }
}

#[test]
fn a_day_is_published_as_computed_by_hand() {
    const MIB: u64 = 1 << 20;
    let published = rows(&day(), &PublishSettings::default());
    let expected = [
        (Dimension::Total, "", 856, 5, 5),
        (Dimension::Port, "443", 600, 5, 5),
        (Dimension::Port, "80", 152, 1, 1),
        (Dimension::Port, "other", 104, 1, 1),
        (Dimension::System, "AS1", 552, 3, 4),
        (Dimension::System, "AS2", 200, 2, 2),
        (Dimension::System, "AS3", 104, 1, 1),
        (Dimension::Country, "US", 552, 3, 4),
        (Dimension::Country, "DE", 200, 2, 2),
        (Dimension::Country, "FR", 104, 1, 1),
        (Dimension::IpVersion, "IPv4", 656, 4, 4),
        (Dimension::IpVersion, "IPv6", 200, 2, 2),
    ];
    let expected = expected.map(|(dimension, what, flows, mib, kilopackets)| {
        let (bytes, packets) = (mib * MIB, kilopackets * 1024);
        format!("{dimension:?} {what} {flows} {bytes} {packets}")
    });
    let mut singles = published.clone();
    singles.retain(|row| row.dimension != Dimension::Encryption);
    assert_eq!(singles.iter().map(text).collect::<Vec<_>>(), expected);

    let total = &published[0];
    let about = total.about.as_ref().unwrap();
    assert_eq!(total.period_start.to_string(), "2026-11-22T00:00:00Z");
    assert_eq!(total.period_end.to_string(), "2026-11-23T00:00:00Z");
    let texts = [
        &total.exit,
        &about.monitor,
        &about.countries,
        &about.systems,
    ];
    let version = exitmark_service::VERSION;
    assert_eq!(texts, ["berlin-1", version, "made up", "synthetic"]);
    let settings = PublishSettings::default();
    assert_eq!((about.top, about.threshold_flows), (settings.top, 100));
    let bins = [about.bin_flows, about.bin_bytes, about.bin_packets];
    assert_eq!(bins, [8, MIB, 1024]);
    let down_bins = [about.bin_down_bytes, about.bin_down_packets];
    assert_eq!(down_bins, [8 * MIB, 8192]);
    assert_eq!((about.format, about.directions), (2, Directions::Out));
    assert_eq!((about.lost_packets, about.watched_seconds), (1024, 86_000));
    assert_eq!((about.part, about.epsilon, about.spilled), (1, 0.0, false));
    assert!(published[1..].iter().all(|row| row.about.is_none()));
    let named = published.iter().filter_map(|row| row.as_name.as_deref());
    assert_eq!(named.collect::<Vec<_>>(), ["One"]);
}

#[test]
fn what_comes_down_is_published_on_request_and_decides_no_row() {
    let cells = |down: u64| {
        [
            (443, [400, 3_000_000, 3000, 9_000_000, 6000]),
            (22, [200, 1_000_000, 1000, 2_000_000, 2000]),
            // Few connections, and most of the volume.
            (80, [10, 1000, 10, 1 << 40, 1 << 20]),
        ]
        .map(|(port, counts)| {
            let [flows, bytes, packets, down_bytes, down_packets] = counts;
            let counts = [
                flows,
                bytes,
                packets,
                down * down_bytes,
                down * down_packets,
            ];
            (cell(port, 1, "US", Version::V4), counts.into())
        })
    };
    let ledger = |down| Ledger {
        unattributed: vec![(Version::V4, [0, 700, 7, 5000 * down, 5 * down].into())],
        ..of_cells(cells(down))
    };
    let settings = |directions| PublishSettings {
        directions,
        ..plain(100, 50)
    };
    let both = rows(&ledger(1), &settings(Directions::Both));
    let out = rows(&ledger(1), &settings(Directions::Out));
    let without = rows(&ledger(0), &settings(Directions::Out));
    // The same rows with the same numbers up.
    let up = |rows: &[Row]| rows.iter().map(text).collect::<Vec<_>>();
    assert_eq!(up(&both), up(&without));
    assert_eq!(out, without);
    assert!(!both.iter().any(|row| row.port == Some(80)));
    let port = |port| both.iter().find(|row| row.port == Some(port)).unwrap();
    let down = |row: &Row| (row.counts.down_bytes, row.counts.down_packets);
    assert_eq!(down(port(443)), (9_000_000, 6000));
    let sum = (11_000_000 + (1 << 40) + 5000, 8000 + (1 << 20) + 5);
    assert_eq!(down(&both[0]), sum);
    let about = both[0].about.as_ref().unwrap();
    let unattributed = (
        about.unattributed_down_bytes,
        about.unattributed_down_packets,
    );
    assert_eq!(
        (unattributed, about.directions),
        ((5000, 5), Directions::Both)
    );
    // In the file, too: nothing of what came down.
    let line = serde_json::to_string(&out[1]).unwrap();
    assert!(!line.contains("down"), "{line}");
}

#[test]
fn encryption_is_summed_up_by_port() {
    let mut expected = BTreeMap::<_, u64>::new();
    for (cell, counts) in day().cells {
        *expected.entry(services::encryption(cell.port)).or_default() += counts.bytes;
    }
    let published = rows(&day(), &plain(0, 50)).into_iter();
    let encryption = published.filter_map(|row| Some((row.encryption?, row.counts.bytes)));
    assert_eq!(encryption.collect::<BTreeMap<_, _>>(), expected);
}

#[test]
fn a_row_of_encryption_is_shown_beside_a_large_rest() {
    let ledger = Ledger {
        cells: vec![
            (cell(443, 1, "US", Version::V4), counts(400, 3, 3)),
            (cell(80, 1, "US", Version::V4), counts(150, 2, 2)),
        ],
        ..Ledger::default()
    };
    // One row a dimension: the other port, and the other kind of encryption, are the rest.
    let rows = rows(&ledger, &plain(100, 1));
    let mut shown = texts_of(&rows, Dimension::Encryption);
    shown.retain(|row| !row.contains("other"));
    assert_eq!(shown.len(), 1, "{shown:?}");
}

#[test]
fn too_small_a_rest_withdraws_another_row() {
    use Version::V4;
    let ledger = of_cells([
        (cell(443, 0, "??", V4), counts(500, 9000, 90)),
        (cell(80, 0, "??", V4), counts(300, 1000, 10)),
        (cell(81, 0, "??", V4), counts(200, 3000, 30)),
        (cell(22, 0, "??", V4), counts(1, 40, 1)),
    ]);
    let published = rows(&ledger, &plain(100, 50));
    // The row with the fewest flows is withdrawn, not the one with the fewest bytes.
    let expected = [
        "Port 443 500 9000 90",
        "Port 80 300 1000 10",
        "Port other 201 3040 31",
    ];
    assert_eq!(texts_of(&published, Dimension::Port), expected);
    // A dimension with a single cell has no `other`.
    let countries = texts_of(&published, Dimension::Country);
    assert_eq!(countries, ["Country ?? 1001 13040 131"]);

    let top = rows(&ledger, &plain(100, 1));
    let expected = ["Port 443 500 9000 90", "Port other 501 4040 41"];
    assert_eq!(texts_of(&top, Dimension::Port), expected);
}

#[test]
fn packets_without_a_connection_are_only_in_the_total() {
    use Version::{V4, V6};
    let mut ledger = day();
    let before = rows(&ledger, &PublishSettings::default());
    // As in an older state file, and as they are counted now.
    let unopened = (cell(50_000, 9, "SE", V6), counts(0, 40, 1));
    ledger.cells.push(unopened);
    ledger.unattributed = vec![(V4, counts(0, 2 << 20, 2000)), (V6, counts(0, 80, 2))];
    let after = rows(&ledger, &PublishSettings::default());
    assert_eq!(after[1..], before[1..]);
    let total = format!("Total  856 {} {}", 7 << 20, 7 << 10);
    assert_eq!(text(&after[0]), total);
    let about = after[0].about.as_ref().unwrap();
    assert_eq!(about.unattributed_bytes, 3 << 20);
    assert_eq!(about.unattributed_packets, 2 << 10);
    // If the total is not shown, neither is what is unattributed.
    ledger.cells.clear();
    let about = rows(&ledger, &PublishSettings::default())[0].about.clone();
    assert_eq!(about.unwrap().unattributed_packets, 0);
}

#[test]
fn too_few_flows_in_a_period_publish_a_zero_total() {
    let silent = Ledger {
        watched_seconds: 5,
        ..Ledger::default()
    };
    let mut few = silent.clone();
    let many_bytes = counts(99, 5_000_000_000, 9_000_000);
    few.cells = vec![(cell(443, 1, "US", Version::V4), many_bytes)];
    let [silent, few] = [silent, few].map(|ledger| rows(&ledger, &PublishSettings::default()));
    assert_eq!(text(&silent[0]), "Total  0 0 0");
    assert_eq!(silent, few, "no flows look like a few");
    assert_eq!(few.len(), 1);

    // Every row of a dimension is below the threshold, but the total is not.
    let number: [u16; 50] = std::array::from_fn(|index| u16::try_from(index).unwrap() + 1);
    let spread = of_cells(number.map(|port| {
        let cell = cell(port, port.into(), "US", Version::V4);
        (cell, counts(3, 100, 4))
    }));
    let published = rows(&spread, &plain(100, 50));
    let ports = texts_of(&published, Dimension::Port);
    assert_eq!(ports, ["Port other 150 5000 200"]);
    let systems = texts_of(&published, Dimension::System);
    assert_eq!(systems, ["System other 150 5000 200"]);
}

#[test]
fn spilled_counts_are_only_in_single_tables() {
    let mut ledger = day();
    let spilled = counts(300, 7_000_000, 7000);
    ledger.spilled = Spilled {
        ports: vec![(443, spilled)],
        systems: vec![(9, spilled)],
        countries: vec![("DE".parse().unwrap(), spilled)],
        versions: vec![(Version::V6, spilled)],
    };
    let settings = PublishSettings {
        cross: vec![Dimension::PortCountry],
        ..plain(100, 50)
    };
    let published = rows(&ledger, &settings);
    assert_eq!(text(&published[0]), "Total  1154 11650999 11807");
    assert!(published[0].about.as_ref().unwrap().spilled);
    let ports = texts_of(&published, Dimension::Port);
    assert_eq!(ports[0], "Port 443 900 11500000 11500");
    assert!(
        texts_of(&published, Dimension::System).contains(&"System AS9 300 7000000 7000".into())
    );
    let countries = texts_of(&published, Dimension::Country);
    assert_eq!(countries[0], "Country DE 500 8500000 8500");
    let versions = texts_of(&published, Dimension::IpVersion);
    assert_eq!(versions[0], "IpVersion IPv6 500 8500000 8500");
    let expected = [
        "PortCountry 443 US 400 3000000 3000",
        "PortCountry 443 DE 200 1500000 1500",
        "PortCountry 80 US 150 100000 200",
        "PortCountry other 404 7050999 7107",
    ];
    assert_eq!(texts_of(&published, Dimension::PortCountry), expected);
}

#[test]
fn a_cross_table_leaves_nothing_to_subtract_from_a_single_one() {
    use Version::V4;
    let ledger = of_cells([
        (cell(443, 1, "US", V4), counts(900, 9000, 90)),
        (cell(443, 2, "DE", V4), counts(400, 4000, 40)),
        // Port 443's total minus the two rows above would reveal these three flows.
        (cell(443, 3, "FR", V4), counts(3, 30, 3)),
        (cell(80, 3, "FR", V4), counts(700, 7000, 70)),
        (cell(22, 4, "FR", V4), counts(200, 200, 20)),
    ]);
    let settings = PublishSettings {
        cross: vec![Dimension::PortCountry],
        ..plain(100, 50)
    };
    let mut crossed = texts_of(&rows(&ledger, &settings), Dimension::PortCountry);
    assert!(crossed.contains(&"PortCountry 443 US 900 9000 90".to_owned()));
    crossed.retain(|row| row.contains("443 DE"));
    assert_eq!(crossed, [""; 0]);
}

#[test]
fn systems_and_countries_leave_nothing_to_subtract_from_each_other() {
    use Version::V4;
    let mut ledger = of_cells([
        (cell(443, 1, "US", V4), counts(200, 2000, 20)),
        // The country minus the system above would reveal this one.
        (cell(443, 2, "US", V4), counts(10, 100, 1)),
        (cell(443, 3, "DE", V4), counts(300, 3000, 30)),
        (cell(443, 4, "FR", V4), counts(400, 4000, 40)),
    ]);
    let systems = |ledger: &Ledger| texts_of(&rows(ledger, &plain(100, 50)), Dimension::System);
    let expected = [
        "System AS4 400 4000 40",
        "System AS3 300 3000 30",
        "System other 210 2100 21",
    ];
    assert_eq!(systems(&ledger), expected);
    // A system in two countries cannot be subtracted from one.
    let elsewhere = (cell(443, 1, "DE", V4), counts(150, 1500, 15));
    ledger.cells.push(elsewhere);
    let expected = [
        "System AS4 400 4000 40",
        "System AS1 350 3500 35",
        "System other 310 3100 31",
    ];
    assert_eq!(systems(&ledger)[..3], expected);

    // Italy has one system only, which has one user's flows elsewhere.
    let ledger = of_cells([
        (cell(443, 1, "IT", V4), counts(200, 2000, 20)),
        (cell(443, 1, "US", V4), counts(10, 100, 1)),
        (cell(443, 2, "US", V4), counts(900, 9000, 90)),
        (cell(443, 3, "US", V4), counts(900, 8000, 80)),
    ]);
    let mut countries = texts_of(&rows(&ledger, &plain(100, 50)), Dimension::Country);
    countries.retain(|row| row.contains("IT"));
    assert_eq!(countries, [""; 0]);
}

#[test]
fn a_withdrawn_system_makes_another_one_be_withdrawn() {
    use Version::V4;
    let spilled = counts(400, 4000, 40);
    let ledger = Ledger {
        cells: vec![
            // Too few for a row; `other` has these flows and those of the USA, the smallest row.
            (cell(443, 9, "FR", V4), counts(10, 100, 1)),
            (cell(443, 3, "US", V4), counts(500, 5000, 50)),
            (cell(443, 1, "DE", V4), counts(400, 4000, 40)),
        ],
        spilled: Spilled {
            ports: vec![(443, spilled)],
            systems: vec![(9, spilled)],
            countries: vec![("DE".parse().unwrap(), spilled)],
            versions: vec![(V4, spilled)],
        },
        ..Ledger::default()
    };
    // AS9 and AS3 seem to lie in `other`, which is smaller than both together. Once AS9 is
    // withdrawn, `other` minus AS3 would reveal the ten flows.
    assert_eq!(
        texts_of(&rows(&ledger, &plain(100, 50)), Dimension::System),
        ["System AS1 400 4000 40", "System other 910 9100 91"]
    );
}

#[test]
fn rows_of_equal_numbers_are_ordered_by_their_keys() {
    // Port 2 has more exact bytes than port 1, which the order must not reveal.
    let cells = [(1, 10), (2, 20), (3, 30)];
    let ledger = of_cells(
        cells.map(|(port, bytes)| (cell(port, 0, "??", Version::V4), counts(200, bytes, 1))),
    );
    let rows = rows(&ledger, &PublishSettings::default());
    let ports: Vec<_> = rows.iter().filter_map(|row| row.port).collect();
    assert_eq!(ports, [1, 2, 3]);
}

#[test]
fn refuses_invalid_settings() {
    for cross in [
        vec![Dimension::Port],
        vec![Dimension::Total],
        vec![Dimension::PortSystem, Dimension::PortSystem],
    ] {
        let settings = PublishSettings {
            cross,
            ..PublishSettings::default()
        };
        says(&settings.check().unwrap_err(), "port_country");
    }
}
