//! Tor's CSV: `first,last,country[,asn]`, IPv4 addresses as numbers, IPv6 ones as text.

use super::cover::{Address, Cover, MAX_RANGES, Refused};
use super::file::Content;
use super::{Database, Known, PlacesError};
use crate::cell::Country;
use std::num::NonZeroU32;
use std::path::Path;
use tor_geoip::{CountryCode, GeoipDb};

/// File names in a directory, as Tor's Debian package installs them.
const DIRECTORY: [&str; 2] = ["geoip", "geoip6"];

/// Converts Tor's tables, which give the start of each range and the value up to the next start.
pub(super) fn known<A: Address>(
    starts: &[A],
    countries: &[Option<CountryCode>],
    systems: Option<&[Option<NonZeroU32>]>,
) -> Result<Known<A>, Refused> {
    let mut known = Known {
        countries: Cover::with_room(starts.len()),
        systems: Cover::with_room(systems.map_or(0, <[_]>::len)),
    };
    for (index, &start) in starts.iter().enumerate() {
        let next = starts.get(index + 1).and_then(|next| next.before());
        let end = next.unwrap_or(A::MAX);
        let country = countries.get(index).copied().flatten();
        // Two characters that are not a country code are unknown.
        let country: Option<Country> = country.and_then(|code| code.as_ref().parse().ok());
        known
            .countries
            .push(start, end, country.unwrap_or_default())?;
        if let Some(systems) = systems {
            let asn = systems.get(index).copied().flatten();
            known
                .systems
                .push(start, end, asn.map_or(0, NonZeroU32::get))?;
        }
    }
    Ok(known)
}

/// Reads one file, which may have lines of both IP versions.
pub(super) fn read(path: &Path, file: &Content) -> Result<Database, PlacesError> {
    let (v4, v6) = tables(path, file)?;
    if v4.countries.is_empty() && v6.countries.is_empty() {
        return Err(PlacesError::is_empty(path));
    }
    Ok(Database::new(v4, v6, file.describe(path)))
}

/// Reads the two files of a directory, one for each IP version.
pub(super) fn read_directory(directory: &Path) -> Result<Database, PlacesError> {
    let paths = DIRECTORY.map(|name| directory.join(name));
    let [v4_file, v6_file] = [Content::read(&paths[0])?, Content::read(&paths[1])?];
    let (v4, _) = tables(&paths[0], &v4_file)?;
    if v4.countries.is_empty() {
        return Err(PlacesError::is_empty(&paths[0]));
    }
    let (_, v6) = tables(&paths[1], &v6_file)?;
    if v6.countries.is_empty() {
        return Err(PlacesError::is_empty(&paths[1]));
    }
    let [of_v4, of_v6] = [v4_file.describe(&paths[0]), v6_file.describe(&paths[1])];
    Ok(Database::new(v4, v6, format!("{of_v4}; {of_v6}")))
}

fn tables(path: &Path, file: &Content) -> Result<(Known<u32>, Known<u128>), PlacesError> {
    let text = std::str::from_utf8(&file.bytes).map_err(|_| PlacesError::is_binary(path))?;
    if text.contains('\0') {
        return Err(PlacesError::is_binary(path));
    }
    let (mut v4, mut v6) = (String::new(), String::new());
    for line in text.lines() {
        let family = if is_v6(line) { &mut v6 } else { &mut v4 };
        family.push_str(line);
        family.push('\n');
    }
    let database = GeoipDb::new_from_legacy_format(&v4, &v6, true).map_err(|error| {
        let line = first_bad_line(text);
        PlacesError::at_line(path, line, error)
    })?;
    drop((v4, v6));
    let raw = database.export_raw();
    let refused = |refused| match refused {
        Refused::TooMany => PlacesError::too_many_ranges(path, MAX_RANGES),
        Refused::NotInOrder => PlacesError::at_line(path, None, "its ranges are not in order"),
    };
    Ok((
        known(raw.ipv4_starts, raw.ipv4_ccs, raw.ipv4_asns).map_err(refused)?,
        known(raw.ipv6_starts, raw.ipv6_ccs, raw.ipv6_asns).map_err(refused)?,
    ))
}

/// Comments may contain anything; of addresses, only IPv6 ones have a colon.
fn is_v6(line: &str) -> bool {
    let (first, _) = line.split_once(',').unwrap_or((line, ""));
    first.contains(':')
}

/// Finds the faulty line, which the parser does not report: the first line that fails on its own or
/// behind the previous range.
fn first_bad_line(text: &str) -> Option<usize> {
    let (mut last_v4, mut last_v6) = ("", "");
    for (index, line) in text.lines().enumerate() {
        let is_v6 = is_v6(line);
        let last = if is_v6 { &mut last_v6 } else { &mut last_v4 };
        let pair = format!("{last}\n{line}");
        let read = |text: &str| {
            let (v4, v6) = if is_v6 { ("", text) } else { (text, "") };
            GeoipDb::new_from_legacy_format(v4, v6, true)
        };
        if read(&pair).is_err() {
            return Some(index + 1);
        }
        let says_something = read(line).is_ok_and(|database| {
            let raw = database.export_raw();
            !raw.ipv4_starts.is_empty() || !raw.ipv6_starts.is_empty()
        });
        if says_something {
            *last = line;
        }
    }
    None
}
