//! Reads MMDB files (MaxMind's format) of MaxMind, DB-IP and IPinfo.

use super::cover::{Address, MAX_RANGES, Refused};
use super::file::{Content, describe};
use super::record::Record;
use super::{Database, Known, Names, PlacesError};
use crate::cell::Country;
use jiff::Timestamp;
use maxminddb::{Reader, WithinOptions};
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

/// Marks the metadata, which is in the last 128 KiB of an MMDB file.
const MARKER: &[u8] = b"\xab\xcd\xefMaxMind.com";
const LAST_BYTES: usize = 128 << 10;
/// Networks that are read at most: a small file can describe far more than could be read in useful
/// time. The largest databases have twenty million.
const MAX_NETWORKS: usize = 1 << 26;
/// Distinct records at most.
const MAX_RECORDS: usize = 1 << 22;

pub(super) fn is_one(bytes: &[u8]) -> bool {
    let last = &bytes[bytes.len().saturating_sub(LAST_BYTES)..];
    last.windows(MARKER.len()).any(|window| window == MARKER)
}

pub(super) fn read(path: &Path, file: &Content) -> Result<Database, PlacesError> {
    let broken = |error: maxminddb::MaxMindDbError| PlacesError::broken_mmdb(path, error);
    let reader = Reader::from_source(file.bytes.as_slice()).map_err(broken)?;
    let (mut v4, mut v6) = (Known::default(), Known::default());
    let mut records = HashMap::new();
    let mut names = HashMap::new();
    // Skips the IPv6 aliases of IPv4 networks.
    let networks = reader.networks(WithinOptions::default()).map_err(broken)?;
    for (index, found) in networks.enumerate() {
        let found = found.map_err(broken)?;
        if index >= MAX_NETWORKS {
            return Err(PlacesError::too_many_ranges(path, MAX_NETWORKS));
        }
        let Some(offset) = found.offset() else {
            continue;
        };
        let known = match records.get(&offset) {
            Some(known) => *known,
            None if records.len() >= MAX_RECORDS => {
                return Err(PlacesError::too_many_ranges(path, MAX_RECORDS));
            }
            None => {
                let Some(record) = found.decode::<Record<'_>>().map_err(broken)? else {
                    continue;
                };
                let known = (record.country(), record.asn());
                if let (1.., Some(name)) = (known.1, record.as_name()) {
                    names.entry(known.1).or_insert_with(|| name.to_owned());
                }
                records.insert(offset, known);
                known
            }
        };
        let network = found.network().map_err(broken)?;
        let added = match (network.network(), network.broadcast()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                add(&mut v4, first.to_bits(), last.to_bits(), known)
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                add(&mut v6, first.to_bits(), last.to_bits(), known)
            }
            _ => Ok(()),
        };
        added.map_err(|refused| match refused {
            Refused::TooMany => PlacesError::too_many_ranges(path, MAX_RANGES),
            Refused::NotInOrder => PlacesError::broken_mmdb(path, "its networks overlap"),
        })?;
    }
    if v4.countries.is_empty() && v6.countries.is_empty() {
        return Err(PlacesError::is_empty(path));
    }
    let metadata = reader.metadata();
    let built = i64::try_from(metadata.build_epoch).ok();
    let built = built.and_then(|second| Timestamp::from_second(second).ok());
    Ok(Database {
        v4,
        v6,
        names: Names::new(names.into_iter().collect()),
        description: describe(path, built, "built", &file.bytes),
    })
}

fn add<A: Address>(
    known: &mut Known<A>,
    first: A,
    last: A,
    (country, asn): (Country, u32),
) -> Result<(), Refused> {
    known.countries.push(first, last, country)?;
    known.systems.push(first, last, asn)
}
