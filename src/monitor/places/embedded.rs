//! Tor's database, which is part of this program.

use super::csv::known;
use super::{Database, Names};
use tor_geoip::GeoipDb;

/// The version of the crate that holds the data, and the day on which its data was made, which
/// the crate tells in a text beside it. A test holds both against the crate.
const VERSION: &str = "0.1.1";
const DATE: &str = "2026-09-23";

pub(super) fn read() -> Database {
    let database = GeoipDb::new_embedded();
    let raw = database.export_raw();
    // It is in order and knows only countries.
    let v4 = known(raw.ipv4_starts, raw.ipv4_ccs, raw.ipv4_asns);
    let v6 = known(raw.ipv6_starts, raw.ipv6_ccs, raw.ipv6_asns);
    Database {
        v4: v4.unwrap_or_default(),
        v6: v6.unwrap_or_default(),
        names: Names::default(),
        description: format!("tor-geoip-db {VERSION} (IPFire Location), generated {DATE}"),
    }
}
