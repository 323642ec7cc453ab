//! Properties of published rows, for any counts.

use super::{CROSS, cell, origin, period, plain, rows, text};
use exitmark_monitor::cell::{Counts, Directions};
use exitmark_monitor::ledger::{Ledger, Spilled};
use exitmark_monitor::publish::{Epsilon, Noise, NoiseSettings, PublishSettings, publish};
use exitmark_monitor::row::{Dimension, Row};
use exitmark_monitor::services;
use exitmark_policy::packet::Version;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;

const SINGLE: [Dimension; 5] = [
    Dimension::Port,
    Dimension::System,
    Dimension::Country,
    Dimension::IpVersion,
    Dimension::Encryption,
];

/// Columns by name: an oracle that is independent of the publishing code.
type Columns = BTreeMap<&'static str, String>;

#[derive(Clone, Debug)]
struct Packet {
    columns: Columns,
    counts: Counts,
    /// Whether the pairs of its columns are known, as they are unless it spilled.
    is_whole: bool,
}

fn amounts() -> impl Strategy<Value = Counts> {
    let flows = prop_oneof![Just(0_u64), 1_u64..5, 5_u64..500];
    let volume = || (0_u64..100_000, 0_u64..300);
    (flows, volume(), volume()).prop_map(|(flows, (bytes, packets), (down, down_packets))| {
        [flows, bytes, packets, down, down_packets].into()
    })
}

/// Spilled counts have a connection, or belong to one.
fn spilled_amounts() -> impl Strategy<Value = Counts> {
    (amounts(), 1_u64..500).prop_map(|(amount, flows)| Counts { flows, ..amount })
}

prop_compose! {
    fn ledgers()(
        cells in prop::collection::btree_map((0_usize..7, 0_u32..4, 0_usize..3, any::<bool>()), amounts(), 0..40),
        spilled in prop::collection::vec((0_usize..7, 0_u32..4, 0_usize..3, any::<bool>(), spilled_amounts()), 0..4),
    ) -> (Ledger, Vec<Packet>) {
        let ports = [443, 80, 22, 25, 993, 6667, 50_001];
        let countries = ["US", "DE", "??"];
        let version = |six| if six { Version::V6 } else { Version::V4 };
        let packet = |port: usize, asn: u32, country: usize, six: bool, counts, is_whole| Packet {
            columns: Columns::from([
                ("port", ports[port].to_string()),
                ("asn", asn.to_string()),
                ("country", countries[country].to_owned()),
                ("version", if six { "6" } else { "4" }.to_owned()),
                ("encryption", format!("{:?}", services::encryption(ports[port]))),
            ]),
            counts,
            is_whole,
        };
        let mut ledger = Ledger::default();
        let mut packets = Vec::new();
        for ((port, asn, country, six), counts) in cells {
            ledger.cells.push((cell(ports[port], asn, countries[country], version(six)), counts));
            // Cells without a connection are only in the total.
            if counts.flows > 0 {
                packets.push(packet(port, asn, country, six, counts, true));
            }
        }
        for (port, asn, country, six, counts) in spilled {
            let Spilled { ports: by_port, systems, countries: by_country, versions } = &mut ledger.spilled;
            by_port.push((ports[port], counts));
            systems.push((asn, counts));
            by_country.push((countries[country].parse().unwrap(), counts));
            versions.push((version(six), counts));
            packets.push(packet(port, asn, country, six, counts, false));
        }
        (ledger, packets)
    }
}

const fn names(dimension: Dimension) -> &'static [&'static str] {
    match dimension {
        Dimension::Total => &[],
        Dimension::Port => &["port"],
        Dimension::System => &["asn"],
        Dimension::Country => &["country"],
        Dimension::IpVersion => &["version"],
        Dimension::Encryption => &["encryption"],
        Dimension::PortCountry => &["port", "country"],
        Dimension::PortSystem => &["port", "asn"],
        Dimension::SystemCountry => &["asn", "country"],
    }
}

fn columns(row: &Row) -> Columns {
    let columns = [
        ("port", row.port.map(|port| port.to_string())),
        ("asn", row.asn.map(|asn| asn.to_string())),
        ("country", row.country.map(|country| country.to_string())),
        ("version", row.ip_version.map(|version| version.to_string())),
        ("encryption", row.encryption.map(|one| format!("{one:?}"))),
    ];
    let columns = columns.into_iter();
    columns
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
}

/// The counts of packets that have these columns.
fn exact(packets: &[Packet], of: &Columns) -> Counts {
    let has = |packet: &&Packet| {
        of.iter()
            .all(|(name, value)| packet.columns[name] == *value)
    };
    let known = packets
        .iter()
        .filter(|packet| packet.is_whole || of.len() < 2);
    known.filter(has).map(|packet| packet.counts).sum()
}

fn crossed(threshold: u64, top: u32) -> PublishSettings {
    PublishSettings {
        cross: CROSS.into(),
        directions: Directions::Both,
        ..plain(threshold, top)
    }
}

fn sum<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Counts {
    rows.into_iter().map(|row| row.counts).sum()
}

fn less(all: Counts, part: Counts) -> Counts {
    let less = |all: u64, part: u64| all.checked_sub(part).expect("a part is no more than all");
    all.zip(part).map(|(all, part)| less(all, part))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_row_is_below_the_threshold_or_derivable_by_subtraction(
        (ledger, packets) in ledgers(),
        threshold in 1_u64..400,
        top in 1_u32..8,
    ) {
        let published = rows(&ledger, &crossed(threshold, top));
        let total = exact(&packets, &Columns::new());
        if total.flows < threshold {
            prop_assert_eq!(published.len(), 1);
            prop_assert_eq!(published[0].counts, Counts::default());
            return Ok(());
        }
        let mut everything = total;
        everything += ledger.all_unattributed();
        prop_assert_eq!(published[0].counts, everything);
        let is_hidden = |rest: Counts| rest == Counts::default() || rest.flows >= threshold;
        for dimension in SINGLE.into_iter().chain(CROSS) {
            let of: Vec<_> = published.iter().filter(|row| row.dimension == dimension).collect();
            let (other, shown): (Vec<_>, Vec<_>) = of.iter().copied().partition(|row| row.other);
            prop_assert!(shown.len() <= top as usize && other.len() <= 1);
            for row in &shown {
                let keys: Vec<_> = columns(row).into_keys().collect();
                let expected: BTreeSet<_> = names(dimension).iter().copied().collect();
                prop_assert_eq!(keys.into_iter().collect::<BTreeSet<_>>(), expected);
                prop_assert_eq!(row.counts, exact(&packets, &columns(row)), "{}", text(row));
                prop_assert!(row.counts.flows >= threshold, "{}", text(row));
            }
            prop_assert_eq!(sum(of.iter().copied()), total);
            // The largest rows that may be shown, in order.
            prop_assert!(shown.is_sorted_by(|a, b| a.counts.all_bytes() >= b.counts.all_bytes()));
            // What the rows leave of any row of another table that contains them.
            let mut coarser: BTreeSet<Columns> = BTreeSet::from([Columns::new()]);
            for packet in &packets {
                for &name in names(dimension).iter().filter(|_| names(dimension).len() == 2) {
                    coarser.insert(Columns::from([(name, packet.columns[name].clone())]));
                }
            }
            for coarse in coarser {
                let within = shown.iter().copied().filter(|row| coarse.iter().all(|(name, value)| columns(row).get(name) == Some(value)));
                let within: Vec<_> = within.collect();
                let rest = less(exact(&packets, &coarse), sum(within.iter().copied()));
                prop_assert!(is_hidden(rest) || within.is_empty(), "{dimension:?} leaves {rest:?} of {coarse:?}");
            }
        }
        // Ports within encryption.
        let ports: Vec<_> = published.iter().filter(|row| row.port.is_some() && row.dimension == Dimension::Port).collect();
        let class = |row: &Row| format!("{:?}", services::encryption(row.port.unwrap()));
        let shown: Vec<_> = published.iter().filter(|row| row.dimension == Dimension::Encryption).collect();
        let named: BTreeSet<_> = shown.iter().filter_map(|row| row.encryption).map(|one| format!("{one:?}")).collect();
        for row in shown {
            let is_within = |port: &&&Row| match row.encryption {
                Some(one) => class(port) == format!("{one:?}"),
                None => !named.contains(&class(port)),
            };
            let rest = less(row.counts, sum(ports.iter().filter(is_within).copied()));
            prop_assert!(is_hidden(rest), "{} leaves {rest:?}", text(row));
        }
    }

    #[test]
    fn no_row_is_derivable_from_a_row_of_another_table(
        (ledger, packets) in ledgers(),
        threshold in 1_u64..400,
        top in 1_u32..8,
        cross in prop::sample::subsequence(CROSS.to_vec(), 0..=3),
    ) {
        let settings = PublishSettings { cross, ..crossed(threshold, top) };
        let published = rows(&ledger, &settings);
        // The row of a dimension that contains packets with these columns.
        let row_of = |dimension: Dimension, of: &Columns| {
            let of: Columns = names(dimension).iter().map(|&name| (name, of[name].clone())).collect();
            let mut of_dimension = published.iter().enumerate().filter(|(_, row)| row.dimension == dimension);
            let own = of_dimension.clone().find(|(_, row)| !row.other && columns(row) == of);
            own.or_else(|| of_dimension.find(|(_, row)| row.other)).map(|(index, _)| index)
        };
        // What the rows of a dimension leave of a row of another one.
        let mut rests = Vec::new();
        for (outer, inner, place, elsewhere) in [
            (Dimension::Country, Dimension::System, "asn", "country"),
            (Dimension::System, Dimension::Country, "country", "asn"),
            (Dimension::Country, Dimension::PortSystem, "asn", "country"),
            (Dimension::System, Dimension::PortCountry, "country", "asn"),
            (Dimension::PortCountry, Dimension::PortSystem, "asn", "country"),
            (Dimension::PortSystem, Dimension::PortCountry, "country", "asn"),
        ] {
            let mut left: BTreeMap<usize, Counts> = BTreeMap::new();
            for row in published.iter().filter(|row| row.dimension == inner && !row.other) {
                let columns = columns(row);
                // The places of a value over all packets, as databases would tell.
                let there: Vec<_> = packets.iter().filter(|packet| packet.columns[place] == columns[place]).collect();
                if !there.iter().any(|packet| packet.is_whole) {
                    continue;
                }
                let around: BTreeSet<_> = there.iter().map(|packet| {
                    let mut of = columns.clone();
                    of.insert(elsewhere, packet.columns[elsewhere].clone());
                    row_of(outer, &of)
                }).collect();
                if let [Some(alone)] = around.into_iter().collect::<Vec<_>>()[..] {
                    let left = left.entry(alone).or_insert(published[alone].counts);
                    *left = less(*left, row.counts);
                }
            }
            rests.extend(left.into_iter().map(|(row, rest)| (inner, row, rest)));
        }
        // By their own columns; `other` is a row as well.
        for (outer, inner) in [
            (Dimension::Port, Dimension::PortCountry),
            (Dimension::Country, Dimension::PortCountry),
            (Dimension::Encryption, Dimension::PortCountry),
            (Dimension::Port, Dimension::PortSystem),
            (Dimension::System, Dimension::PortSystem),
            (Dimension::Encryption, Dimension::PortSystem),
            (Dimension::System, Dimension::SystemCountry),
            (Dimension::Country, Dimension::SystemCountry),
        ] {
            let mut left: BTreeMap<usize, Counts> = BTreeMap::new();
            for row in published.iter().filter(|row| row.dimension == inner && !row.other) {
                let of = columns(row);
                let is_of = |packet: &&Packet| packet.is_whole && of.iter().all(|(name, value)| packet.columns[name] == *value);
                let around = row_of(outer, &packets.iter().find(is_of).unwrap().columns).unwrap();
                let left = left.entry(around).or_insert(published[around].counts);
                *left = less(*left, row.counts);
            }
            rests.extend(left.into_iter().map(|(row, rest)| (inner, row, rest)));
        }
        for (inner, row, rest) in rests {
            let is_hidden = rest == Counts::default() || rest.flows >= threshold;
            prop_assert!(is_hidden, "{inner:?} leaves {rest:?} of {}", text(&published[row]));
        }
    }

    #[test]
    fn noise_shows_no_row_that_is_hidden_without_it(
        (ledger, packets) in ledgers(),
        threshold in 2_u64..400,
        thousandths in 1_u32..=100_000,
        seed in any::<u64>(),
    ) {
        let exact = crossed(threshold, 5);
        let epsilon = Epsilon::try_from(f64::from(thousandths) / 1000.0).unwrap();
        let user = [threshold - 1, 5000, 100, 9000, 200].into();
        let settings = PublishSettings {
            noise: Some(NoiseSettings { epsilon, user, seed: Some(seed) }),
            ..exact.clone()
        };
        let of = |row: &Row| (row.dimension, columns(row));
        let without_noise: BTreeSet<_> = rows(&ledger, &exact).iter().map(of).collect();
        settings.check().unwrap();
        let mut noise = Noise::new(settings.noise.as_ref().unwrap(), settings.tables(), settings.directions).unwrap();
        let published = publish(&ledger, &period(), &origin(), &settings, Some(&mut noise));
        for row in published.iter().filter(|row| !row.other) {
            let is_enough = self::exact(&packets, &columns(row)).flows >= threshold;
            prop_assert!(is_enough || published.len() == 1, "{}", text(row));
            prop_assert!(without_noise.contains(&of(row)), "{}", text(row));
            prop_assert!(row.counts.flows >= threshold || published.len() == 1, "{}", text(row));
        }
    }

    #[test]
    fn rows_do_not_depend_on_the_order_of_cells(
        ((ledger, _), shuffled) in ledgers().prop_flat_map(|(ledger, packets)| {
            let shuffled = Just(ledger.cells.clone()).prop_shuffle();
            (Just((ledger, packets)), shuffled)
        }),
        threshold in 1_u64..100,
    ) {
        let settings = crossed(threshold, 3);
        let mut other = ledger.clone();
        other.cells = shuffled;
        other.spilled.ports.reverse();
        prop_assert_eq!(rows(&ledger, &settings), rows(&other, &settings));
    }

    #[test]
    fn every_number_is_rounded_up_to_its_bin_and_no_further(
        (ledger, _) in ledgers(),
        threshold in 1_u64..100,
        bins in prop::array::uniform5(1_u64..5000),
    ) {
        let exact = crossed(threshold, 5);
        let sizes = bins.map(|bin| NonZeroU64::new(bin).unwrap());
        let rounding = PublishSettings { bins: sizes.into(), ..exact.clone() };
        let key = |row: &Row| (row.dimension, row.other, columns(row));
        let exact: BTreeMap<_, _> = rows(&ledger, &exact).iter().map(|row| (key(row), row.counts)).collect();
        let rounded = rows(&ledger, &rounding);
        prop_assert_eq!(rounded.len(), exact.len());
        for row in &rounded {
            let exact = exact[&key(row)];
            let pairs: [_; 5] = row.counts.zip(exact).into();
            for ((shown, exact), bin) in pairs.into_iter().zip(bins) {
                prop_assert!(shown % bin == 0 && shown >= exact && shown - exact < bin);
            }
        }
        for pair in rounded.windows(2) {
            let [first, second] = pair else { unreachable!() };
            if first.dimension == second.dimension && !second.other {
                let order = second.counts.all_bytes().cmp(&first.counts.all_bytes());
                prop_assert!(order.is_le(), "by the bytes shown");
            }
        }
    }
}
