//! The database that is compiled in.

use super::Database;
use super::csv::known;
use tor_geoip::GeoipDb;

/// Version of the crate with the data, and the day on which the data was generated, from a text in
/// the crate. A test compares both with the crate.
const VERSION: &str = "0.1.1";
const DATE: &str = "2026-09-23";

pub(super) fn read() -> Database {
    let database = GeoipDb::new_embedded();
    let raw = database.export_raw();
    // The data is sorted and has countries only.
    let v4 = known(raw.ipv4_starts, raw.ipv4_ccs, raw.ipv4_asns);
    let v6 = known(raw.ipv6_starts, raw.ipv6_ccs, raw.ipv6_asns);
    let description = format!("tor-geoip-db {VERSION} (IPFire Location), generated {DATE}");
    Database::new(v4.unwrap_or_default(), v6.unwrap_or_default(), description)
}
