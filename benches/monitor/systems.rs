//! The databases for look-ups.

use exitmark_lab::Random;
use exitmark_monitor::places::{Countries, Places, PlacesSettings};
use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;
use tor_geoip::GeoipDb;

/// Prefixes of the table of autonomous systems, each with its own system.
const PREFIXES_V4: usize = 80_000;
const PREFIXES_V6: usize = 20_000;
const SYSTEMS: usize = 70_000;

/// The embedded database of countries, the generated one, and addresses in distinct ranges.
#[derive(Clone)]
pub(crate) struct Databases {
    pub(crate) places: Arc<Places>,
    /// Starts of ranges: each address is in another range.
    pub(crate) v4: Arc<Vec<u32>>,
    pub(crate) v6: Arc<Vec<u128>>,
}

impl Databases {
    pub(crate) fn load() -> Self {
        let places = Arc::new(places());
        let tor = GeoipDb::new_embedded();
        let raw = tor.export_raw();
        let unicast = |start: &u32| (0x0100_0000..0xe000_0000).contains(start);
        Self {
            places,
            v4: Arc::new(raw.ipv4_starts.iter().copied().filter(unicast).collect()),
            v6: Arc::new(raw.ipv6_starts.to_vec()),
        }
    }
}

/// Loads the embedded database, and the generated one from a file, as a real one would be.
fn places() -> Places {
    let file = tempfile::Builder::new().suffix(".csv").tempfile().unwrap();
    fs::write(file.path(), csv()).unwrap();
    Places::load(&PlacesSettings {
        countries: Countries::Embedded,
        systems: Some(file.path().to_owned()),
    })
    .unwrap()
}

/// The generated database of autonomous systems.
pub(crate) fn csv() -> String {
    let mut random = Random::new(1);
    let mut text = String::new();
    let mut v4: Vec<u32> = (0..PREFIXES_V4)
        .map(|_| (0x0100_0000 + random.wide() % 0xdf00_0000) & !0xff)
        .collect();
    v4.sort_unstable();
    v4.dedup();
    for pair in v4.windows(2) {
        let asn = 1 + random.below(SYSTEMS);
        writeln!(text, "{},{},??,{asn}", pair[0], pair[1] - 1).unwrap();
    }
    let mut v6: Vec<u128> = (0..PREFIXES_V6)
        .map(|_| 1 << 125 | (random.double() >> 3) & !((1 << 80) - 1))
        .collect();
    v6.sort_unstable();
    v6.dedup();
    for pair in v6.windows(2) {
        let asn = 1 + random.below(SYSTEMS);
        let [first, last] = [pair[0], pair[1] - 1].map(std::net::Ipv6Addr::from);
        writeln!(text, "{first},{last},??,{asn}").unwrap();
    }
    text
}
