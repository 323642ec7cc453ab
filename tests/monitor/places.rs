//! Look-ups in every database format, compared with other readers, and errors of broken databases.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

use crate::says;
use exitmark_lab::Random;
use exitmark_monitor::cell::{Country, Place};
use exitmark_monitor::places::{Countries, Places, PlacesSettings};
use proptest::prelude::*;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::LazyLock;
use tor_geoip::GeoipDb;

/// Three IPv4 ranges with gaps around them, and two IPv6 ranges, with systems.
pub(crate) const CSV: &str = "\
# 1.2.3.0 to 1.2.3.255, 1.2.4.0 to 1.2.5.255, 198.51.100.0 to 198.51.100.127
16909056,16909311,GB,64500
16909312,16909823,DE,64501
3325256704,3325256831,US,0
2001:db8:1::,2001:db8:1:ffff:ffff:ffff:ffff:ffff,FR,64502
2001:db8:2::,2001:db8:2::ff,??,64503
";

static EMBEDDED: LazyLock<Places> =
    LazyLock::new(|| Places::load(&PlacesSettings::default()).unwrap());

fn load(countries: &Path, systems: Option<&Path>) -> Result<Places, String> {
    Places::load(&PlacesSettings {
        countries: Countries::At(countries.to_owned()),
        systems: systems.map(Path::to_owned),
    })
    .map_err(|error| error.to_string())
}

fn place(country: &str, asn: u32) -> Place {
    Place {
        country: country.parse().unwrap(),
        asn,
    }
}

fn at(places: &Places, address: &str) -> Place {
    places.place(address.parse().unwrap())
}

/// The places of a database with this content, which may have systems or not.
pub(crate) fn load_bytes(name: &str, content: &[u8], with_systems: bool) -> Result<Places, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, content).unwrap();
    load(&path, with_systems.then_some(&*path))
}

#[track_caller]
fn are_at(places: &Places, expected: &[(&str, Place)]) {
    for (address, place) in expected {
        assert_eq!(at(places, address), *place, "{address}");
    }
}

fn same_as_tor(address: impl Into<IpAddr>) {
    let address = address.into();
    let country = GeoipDb::new_embedded()
        .lookup_country_code(address)
        .map_or(Country::UNKNOWN, |code| code.as_ref().parse().unwrap());
    let expected = Place { country, asn: 0 };
    assert_eq!(EMBEDDED.place(address), expected, "{address}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn any_ipv4_address_is_where_tor_says(bits: u32) {
        same_as_tor(Ipv4Addr::from(bits));
    }

    #[test]
    fn any_ipv6_address_is_where_tor_says(bits: u128, global: bool) {
        let bits = if global { bits >> 3 | 1 << 125 } else { bits };
        same_as_tor(Ipv6Addr::from(bits));
    }
}

#[test]
fn the_first_and_last_addresses_of_ranges_are_where_tor_says() {
    let tor = GeoipDb::new_embedded();
    let raw = tor.export_raw();
    let mut random = Random::new(3);
    for _ in 0..20_000 {
        let start = random.pick(raw.ipv4_starts).unwrap();
        for bits in [start, start.saturating_sub(1)] {
            same_as_tor(Ipv4Addr::from(bits));
        }
        let start = random.pick(raw.ipv6_starts).unwrap();
        for bits in [start, start.saturating_sub(1)] {
            same_as_tor(Ipv6Addr::from(bits));
        }
    }
    for bits in [0, 1, u32::MAX - 1, u32::MAX] {
        same_as_tor(Ipv4Addr::from(bits));
    }
    for bits in [0, 1, u128::MAX - 1, u128::MAX] {
        same_as_tor(Ipv6Addr::from(bits));
    }
}

#[test]
fn private_and_mapped_addresses_are_unknown() {
    for unknown in [
        "10.0.0.1",
        "127.0.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fd00::1",
        "::ffff:8.8.8.8",
    ] {
        assert_eq!(at(&EMBEDDED, unknown), Place::UNKNOWN, "{unknown}");
    }
    assert_eq!(at(&EMBEDDED, "8.8.8.8"), place("US", 0));
}

#[test]
fn describes_the_embedded_database() {
    let lock = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).unwrap();
    let (_, rest) = lock
        .split_once("name = \"tor-geoip-db\"\nversion = \"")
        .unwrap();
    let (version, _) = rest.split_once('"').unwrap();
    let described = EMBEDDED.described();
    let name = format!("tor-geoip-db {version} ");
    assert!(described.countries.starts_with(&name), "{described:?}");
    assert_eq!(described.systems, "");
}

#[test]
fn a_csv_is_read_to_its_boundaries() {
    let places = load_bytes("own.csv", CSV.as_bytes(), false).unwrap();
    let expected = [
        ("1.2.2.255", Place::UNKNOWN),
        ("1.2.3.0", place("GB", 64500)),
        ("1.2.3.255", place("GB", 64500)),
        ("1.2.4.0", place("DE", 64501)),
        ("1.2.5.255", place("DE", 64501)),
        ("1.2.6.0", Place::UNKNOWN),
        ("198.51.100.127", place("US", 0)),
        ("198.51.100.128", Place::UNKNOWN),
        ("2001:db8:0:ffff:ffff:ffff:ffff:ffff", Place::UNKNOWN),
        ("2001:db8:1::", place("FR", 64502)),
        ("2001:db8:1:ffff:ffff:ffff:ffff:ffff", place("FR", 64502)),
        ("2001:db8:2::ff", place("??", 64503)),
        ("2001:db8:2::100", Place::UNKNOWN),
    ];
    are_at(&places, &expected);
    let described = places.described();
    let countries = &described.countries;
    assert!(countries.starts_with("own.csv, modified 2"), "{countries}");
    // The first four bytes of the text's SHA-256.
    let alike = "own.csv, modified 2026-01-01, sha256 01234567";
    assert_eq!(countries.len(), alike.len());
    assert_eq!(*countries, described.systems);
    assert!(!countries.contains('/'), "{countries}");
}

#[test]
fn combines_tables_of_systems_and_countries() {
    let directory = tempfile::tempdir().unwrap();
    let systems = directory.path().join("systems.csv");
    // The second half of 8.8.8.0/24 and the first half of 8.8.9.0/24.
    fs::write(&systems, "134744192,134744447,??,64510\n").unwrap();
    let places = Places::load(&PlacesSettings {
        countries: Countries::Embedded,
        systems: Some(systems),
    })
    .unwrap();
    assert_eq!(at(&places, "8.8.8.127"), place("US", 0));
    assert_eq!(at(&places, "8.8.8.128"), place("US", 64510));
    assert_eq!(at(&places, "8.8.9.127"), place("US", 64510));
    assert_eq!(at(&places, "8.8.9.128"), place("US", 0));
    assert!(places.described().systems.starts_with("systems.csv, "));
}

#[test]
fn a_directory_has_two_files() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("geoip"), "16909056,16909311,GB\n").unwrap();
    let error = load(directory.path(), None).unwrap_err();
    says(&error, "geoip6 cannot be read");
    let v6 = "2001:db8::,2001:db8::ffff,FR\n";
    fs::write(directory.path().join("geoip6"), v6).unwrap();
    let places = load(directory.path(), None).unwrap();
    assert_eq!(at(&places, "1.2.3.4"), place("GB", 0));
    assert_eq!(at(&places, "2001:db8::ffff"), place("FR", 0));
}

#[test]
fn reports_the_line_of_a_broken_database() {
    let unsorted_v6 = b"1,2,DE\n2001:db8::5,2001:db8::6,DE\n2001:db8::,2001:db8::1,FR\n";
    let table: [(&str, &[u8], &str); 12] = [
        ("empty", b"", "has no range"),
        ("comments", b"# nothing\n\n", "has no range"),
        ("binary", b"1,2,DE\n\0\0", "neither MMDB nor text"),
        ("no-utf8", b"1,2,DE\n\xff\xfe", "neither MMDB nor text"),
        ("cut", b"1,2,DE\n3,4,FR\n5", "line 3: "),
        ("word", b"1,2,DE\n# x\nthree,4,FR\n", "line 3: "),
        ("unsorted", b"10,20,DE\n1,2,FR\n", "line 2: "),
        ("overlap", b"1,20,DE\n# x\n20,30,FR\n", "line 3: "),
        ("backwards", b"1,2,DE\n9,5,FR\n", "line 2: "),
        ("asn", b"1,2,DE,AS5\n", "line 1: "),
        ("unsorted6", unsorted_v6, "line 3: "),
        ("systems-alone", b"1,2,??,64500\n", "has no country"),
    ];
    for (name, content, expected) in table {
        let error = load_bytes(name, content, false).unwrap_err();
        for words in [expected, name, "; "] {
            says(&error, words);
        }
    }
    let error = load(Path::new("/dev/zero"), None).unwrap_err();
    says(&error, "is not a regular file");
    let error = load_bytes("fine", b"1,2,DE\n", true).unwrap_err();
    says(&error, "has no autonomous system");
    let directory = tempfile::tempdir().unwrap();
    let error = load(&directory.path().join("missing"), None).unwrap_err();
    says(&error, "missing cannot be read");
    let huge = directory.path().join("huge");
    fs::File::create(&huge).unwrap().set_len(257 << 20).unwrap();
    let error = load(&huge, None).unwrap_err();
    says(&error, "more than 256 MiB");
}

/// A value in MaxMind's format.
enum Value {
    Map(Vec<(&'static str, Value)>),
    Text(&'static str),
    Short(u16),
    Number(u32),
    Long(u64),
    Longer(u128),
    Signed(i32),
    Double(f64),
    List(Vec<Value>),
    Truth,
    /// Nested maps: each has these keys, and all of them point to the same next map.
    Braid(&'static [&'static str], usize),
}

impl Value {
    fn encode(&self, into: &mut Vec<u8>) {
        // The type is in the upper three bits, the size in the lower five.
        let control = |kind: u8, size: usize| kind << 5 | u8::try_from(size).unwrap();
        let mut number_of = |front: &[u8], bytes: &[u8]| into.extend([front, bytes].concat());
        match self {
            Self::Text(text) => {
                // From 29 on, the size is in the next byte.
                let more = text.len().checked_sub(29);
                into.push(control(2, text.len().min(29)));
                into.extend(more.map(|more| u8::try_from(more).unwrap()));
                into.extend(text.bytes());
            }
            // A type above 7 is encoded as 0, with its number minus 7 in the next byte.
            Self::Short(number) => number_of(&[control(5, 2)], &number.to_be_bytes()),
            Self::Long(number) => number_of(&[control(0, 8), 9 - 7], &number.to_be_bytes()),
            Self::Number(number) => number_of(&[control(6, 4)], &number.to_be_bytes()),
            Self::Longer(number) => number_of(&[control(0, 16), 10 - 7], &number.to_be_bytes()),
            Self::Signed(number) => number_of(&[control(0, 4), 8 - 7], &number.to_be_bytes()),
            Self::Double(number) => number_of(&[control(3, 8)], &number.to_be_bytes()),
            Self::List(values) => {
                into.extend([control(0, values.len()), 11 - 7]);
                values.iter().for_each(|value| value.encode(into));
            }
            Self::Truth => into.extend([control(0, 1), 14 - 7]),
            Self::Braid(keys, levels) => {
                let pointed: usize = keys.iter().map(|key| 1 + key.len() + 5).sum();
                for _ in 0..*levels {
                    into.push(control(7, keys.len()));
                    let next = into.len() + pointed;
                    for key in *keys {
                        Self::Text(key).encode(into);
                        // A four-byte pointer, relative to the start of the data.
                        into.push(1 << 5 | 3 << 3);
                        into.extend(u32::try_from(next).unwrap().to_be_bytes());
                    }
                }
                Self::Text("AS1").encode(into);
            }
            Self::Map(pairs) => {
                into.push(control(7, pairs.len()));
                for (key, value) in pairs {
                    Self::Text(key).encode(into);
                    value.encode(into);
                }
            }
        }
    }
}

/// A database of prefixes: a tree of nodes with two 32-bit records each.
fn mmdb(version: u16, prefixes: &[(u128, usize, Value)]) -> Vec<u8> {
    const NOTHING: usize = usize::MAX;
    let mut nodes: Vec<[usize; 2]> = vec![[NOTHING; 2]];
    let mut data = Vec::new();
    let mut leaves = Vec::new();
    for (bits, length, value) in prefixes {
        let mut node = 0;
        for depth in 0..*length {
            let side = usize::from(bits >> (127 - depth) & 1 == 1);
            if depth + 1 == *length {
                leaves.push((node, side, data.len()));
            } else {
                if nodes[node][side] == NOTHING {
                    nodes[node][side] = nodes.len();
                    nodes.push([NOTHING; 2]);
                }
                node = nodes[node][side];
            }
        }
        value.encode(&mut data);
    }
    let count = nodes.len();
    for (node, side, offset) in leaves {
        nodes[node][side] = count + 16 + offset;
    }
    let mut file = Vec::new();
    for record in nodes.as_flattened() {
        let record = if *record == NOTHING { count } else { *record };
        file.extend(u32::try_from(record).unwrap().to_be_bytes());
    }
    file.extend([0; 16]);
    file.extend(data);
    file.extend(b"\xab\xcd\xefMaxMind.com");
    let mut about = Vec::new();
    Value::Map(vec![
        ("binary_format_major_version", Value::Short(2)),
        ("binary_format_minor_version", Value::Short(0)),
        // 2026-01-02
        ("build_epoch", Value::Long(1_767_312_000)),
        ("database_type", Value::Text("Made-up")),
        ("description", Value::Map(vec![])),
        ("ip_version", Value::Short(version)),
        ("languages", Value::List(vec![])),
        ("node_count", Value::Number(u32::try_from(count).unwrap())),
        ("record_size", Value::Short(32)),
    ])
    .encode(&mut about);
    file.extend(about);
    file
}

fn v4(address: &str, length: usize, value: Value) -> (u128, usize, Value) {
    let address: Ipv4Addr = address.parse().unwrap();
    (u128::from(address.to_bits()), 96 + length, value)
}

fn v6(address: &str, length: usize, value: Value) -> (u128, usize, Value) {
    let address: Ipv6Addr = address.parse().unwrap();
    (address.to_bits(), length, value)
}

fn maxmind(code: &'static str) -> Value {
    let country = Value::Map(vec![("iso_code", Value::Text(code))]);
    Value::Map(vec![("country", country)])
}

#[test]
fn reads_mmdb_of_each_vendor() {
    let directory = tempfile::tempdir().unwrap();
    let countries = directory.path().join("countries.mmdb");
    let systems = directory.path().join("systems.mmdb");
    let ipinfo = Value::Map(vec![
        ("country", Value::Text("Germany")),
        ("country_code", Value::Text("DE")),
        ("asn", Value::Text("AS64501")),
        ("as_name", Value::Text("Example GmbH")),
    ]);
    let older = Value::Map(vec![("country", Value::Text("FR"))]);
    let prefixes = [
        v4("1.2.3.0", 24, maxmind("GB")),
        v4("1.2.4.0", 23, ipinfo),
        v6("2001:db8:1::", 48, older),
        v6("2001:db8:2::", 47, maxmind("US")),
    ];
    fs::write(&countries, mmdb(6, &prefixes)).unwrap();
    let asn = |number, name| {
        Value::Map(vec![
            ("autonomous_system_number", Value::Number(number)),
            ("autonomous_system_organization", Value::Text(name)),
        ])
    };
    let prefixes = [
        v4("1.2.3.128", 25, asn(64500, "One\u{1b}[2J")),
        v6("2001:db8::", 32, asn(64502, "Two")),
    ];
    fs::write(&systems, mmdb(6, &prefixes)).unwrap();
    let alone = load(&countries, None).unwrap();
    let expected = [
        ("1.2.2.255", Place::UNKNOWN),
        ("1.2.3.0", place("GB", 0)),
        ("1.2.3.255", place("GB", 0)),
        ("1.2.5.255", place("DE", 64501)),
        ("1.2.6.0", Place::UNKNOWN),
        ("2001:db8:1::", place("FR", 0)),
        ("2001:db8:3:ffff::", place("US", 0)),
        ("::ffff:1.2.3.4", Place::UNKNOWN),
        ("2002:102:304::", Place::UNKNOWN),
    ];
    are_at(&alone, &expected);
    assert_eq!(alone.as_name(64501), Some("Example GmbH"));
    let described = &alone.described().countries;
    assert!(described.starts_with("countries.mmdb, built 2026-01-02, sha256 "));
    let both = load(&countries, Some(&systems)).unwrap();
    assert_eq!(at(&both, "1.2.3.127"), place("GB", 0));
    assert_eq!(at(&both, "1.2.3.128"), place("GB", 64500));
    assert_eq!(at(&both, "2001:db8:1::1"), place("FR", 64502));
    assert_eq!(at(&both, "2001:db8:9::1"), place("??", 64502));
    assert_eq!(both.as_name(64500), Some("One[2J"), "no control characters");
    assert_eq!(both.as_name(64501), None, "the other database's names");
}

/// Each vendor has its own type for the number, and some have several.
#[test]
fn reads_a_system_number_of_any_type() {
    let text = |text| Value::Text(text);
    let inner = |key, value| Value::Map(vec![(key, value), ("name", Value::Text("Inner"))]);
    let number = "autonomous_system_number";
    #[rustfmt::skip]
    let cases = vec![
        (number, Value::Short(13_335), 13_335),
        (number, Value::Number(4_200_000_000), 4_200_000_000),
        (number, Value::Long(13_335), 13_335),
        (number, Value::Long(1 << 40), 0),
        (number, Value::Longer(4_200_000_000), 4_200_000_000),
        (number, Value::Longer(1 << 100), 0),
        (number, Value::Signed(13_335), 13_335),
        (number, Value::Signed(-13_335), 0),
        (number, Value::Double(13_335.0), 13_335),
        (number, Value::Double(0.5), 0),
        (number, text("13335"), 13_335),
        (number, text("AS13335"), 13_335),
        ("asn", text("as4200000000"), 4_200_000_000),
        ("asn", text("AS13335 Example Inc."), 13_335),
        ("asn", Value::Long(13_335), 13_335),
        ("as_number", text("13335"), 13_335),
        ("asn", text("unknown"), 0),
        ("asn", text(""), 0),
        ("asn", text("\u{e9}"), 0),
        ("asn", inner("number", Value::Long(13_335)), 13_335),
        ("asn", inner("asn", text("AS13335")), 13_335),
        ("as", inner("number", text("13335")), 13_335),
        ("autonomous_system", inner("asn", Value::Number(13_335)), 13_335),
        ("traits", inner(number, Value::Long(13_335)), 13_335),
        ("asn", Value::Map(vec![]), 0),
        ("asn", Value::List(vec![Value::Number(13_335)]), 0),
        ("asn", Value::Truth, 0),
    ];
    for (index, (key, value, expected)) in cases.into_iter().enumerate() {
        let is_inner = matches!(value, Value::Map(_)) && expected > 0;
        let record = Value::Map(vec![
            (key, value),
            // Of unexpected types, which do not make the file invalid.
            ("country", Value::List(vec![text("US")])),
            ("organization", Value::Number(1)),
        ]);
        let known = Value::Map(vec![(number, Value::Short(1))]);
        let prefixes = [
            v4("1.2.3.0", 24, record),
            v4("1.2.4.0", 24, maxmind("GB")),
            v4("1.2.5.0", 24, known),
        ];
        let places = load_bytes("systems.mmdb", &mmdb(6, &prefixes), true).unwrap();
        let system = place("??", expected);
        assert_eq!(at(&places, "1.2.3.4"), system, "case {index}: {key}");
        assert_eq!(at(&places, "1.2.4.4"), place("GB", 0), "case {index}");
        let name = is_inner.then_some("Inner");
        assert_eq!(places.as_name(expected), name, "case {index}: {key}");
    }
    // A record may be the number itself.
    for (value, expected) in [(Value::Long(13_335), 13_335), (text("AS13335"), 13_335)] {
        let known = (0x0102_0400 << 96, 24, maxmind("GB"));
        let file = mmdb(4, &[(0x0102_0300 << 96, 24, value), known]);
        let places = load_bytes("systems.mmdb", &file, true).unwrap();
        assert_eq!(at(&places, "1.2.3.4"), place("??", expected));
    }
}

/// Nested maps: each level has all keys, which point to the same value.
#[test]
fn does_not_follow_nested_maps_without_bound() {
    const KEYS: [&str; 6] = ["asn", "as", "number", "traits", "country", "code"];
    let braid = Value::Braid(&KEYS, 60);
    let known = v4("1.2.4.0", 24, maxmind("GB"));
    let file = mmdb(6, &[v4("1.2.3.0", 24, braid), known]);
    let places = load_bytes("deep.mmdb", &file, false).unwrap();
    assert_eq!(at(&places, "1.2.3.4"), Place::UNKNOWN);
    assert_eq!(at(&places, "1.2.4.4"), place("GB", 0));
}

#[test]
fn aliases_of_ipv4_networks_do_not_count_twice() {
    let prefixes = [
        v4("8.8.8.0", 24, maxmind("US")),
        v6("2002::", 16, maxmind("FR")),
    ];
    let mut file = mmdb(6, &prefixes);
    // The record of 2002::/16 points to the same node as that of ::/96.
    let word = |file: &[u8], node: usize, side: usize| {
        let at = node * 8 + side * 4;
        u32::from_be_bytes(file[at..at + 4].try_into().unwrap())
    };
    let walk = |file: &[u8], bits: u128, length: usize| {
        (0..length).fold((0, 0, 0), |(_, _, node), depth| {
            let side = usize::from(bits >> (127 - depth) & 1 == 1);
            (node, side, word(file, node, side) as usize)
        })
    };
    let (_, _, v4_start) = walk(&file, 0, 96);
    let (node, side, _) = walk(&file, 0x2002 << 112, 16);
    let at_record = node * 8 + side * 4;
    file[at_record..at_record + 4].copy_from_slice(&u32::try_from(v4_start).unwrap().to_be_bytes());
    let places = load_bytes("aliased.mmdb", &file, false).unwrap();
    assert_eq!(at(&places, "8.8.8.8"), place("US", 0));
    assert_eq!(at(&places, "2002:808:808::1"), Place::UNKNOWN);
    assert_eq!(places.ranges().1, 1, "the alias made no ranges");
}

#[test]
fn reports_a_broken_mmdb_without_panic() {
    let prefixes = [
        v4("8.8.8.0", 24, maxmind("US")),
        v6("2001:db8::", 32, maxmind("FR")),
    ];
    let whole = mmdb(6, &prefixes);
    let mut random = Random::new(5);
    for _ in 0..2_000 {
        let mut file = whole.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(file.len());
            file[at] = random.byte();
        }
        if random.percent(30) {
            file.drain(..random.below(200));
        }
        if let Err(error) = load_bytes("broken.mmdb", &file, false) {
            says(&error, "broken.mmdb");
        }
    }
    let end = &whole[whole.len() - 200..];
    let error = load_bytes("broken.mmdb", end, false).unwrap_err();
    says(&error, "is a broken MMDB");
}
