//! Maps an address to its country and autonomous system, with local databases.
//!
//! A database of any format is read once and converted to two tables, one for each IP version, in
//! which a look-up touches a few cache lines. No server is queried. Addresses that no database has
//! are [`Place::UNKNOWN`], as are private ones. IPv6 addresses that embed IPv4 ones (mapped, 6to4)
//! have the value of their own range, usually unknown, and not that of the embedded address;
//! packets on an uplink do not go to them.

mod cover;
mod csv;
mod embedded;
mod error;
mod file;
mod mmdb;
mod names;
mod record;
mod tree;

pub use error::PlacesError;

use super::cell::{Country, Place};
pub(super) use cover::Address;
use cover::{Cover, join};
use names::Names;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
pub(super) use tree::Tree;

/// The database of countries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Countries {
    /// Tor's database, as of the build of this program.
    #[default]
    Embedded,
    /// A file in Tor's CSV format, with an optional fourth column for the AS number, or in MMDB
    /// format; or a directory with the files `geoip` and `geoip6`.
    At(PathBuf),
}

/// Paths of the databases, which are read once, at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlacesSettings {
    /// The database of countries.
    pub countries: Countries,
    /// The database of autonomous systems, in the same formats; `None` uses the AS numbers of the
    /// other database, if it has any.
    pub systems: Option<PathBuf>,
}

/// Descriptions of the databases: name, version, date.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// The database of countries.
    pub countries: String,
    /// The database of autonomous systems; empty without one.
    pub systems: String,
}

/// The look-up tables, one for each IP version, and the names of autonomous systems.
#[derive(Debug)]
pub struct Places {
    pub(super) v4: Tree<u32, 16, 8>,
    pub(super) v6: Tree<u128, 8, 5>,
    /// Places by number; number 0 is [`Place::UNKNOWN`].
    places: Vec<Place>,
    names: Names,
    described: Described,
}

struct Database {
    v4: Known<u32>,
    v6: Known<u128>,
    names: Names,
    description: String,
}

/// The values of one IP version's addresses.
#[derive(Default)]
struct Known<A> {
    countries: Cover<A, Country>,
    systems: Cover<A, u32>,
}

/// Distinct places at most; the Internet has about a hundred thousand.
const MAX_PLACES: usize = 1 << 21;

impl Database {
    /// A database without names.
    fn new(v4: Known<u32>, v6: Known<u128>, description: String) -> Self {
        Self {
            v4,
            v6,
            names: Names::default(),
            description,
        }
    }

    fn knows_countries(&self) -> bool {
        self.v4.countries.is_any_known() || self.v6.countries.is_any_known()
    }

    fn knows_systems(&self) -> bool {
        self.v4.systems.is_any_known() || self.v6.systems.is_any_known()
    }

    fn open(path: &Path) -> Result<Self, PlacesError> {
        let is_directory = std::fs::metadata(path)
            .map_err(|error| PlacesError::unreadable(path, &error))?
            .is_dir();
        if is_directory {
            return csv::read_directory(path);
        }
        let file = file::Content::read(path)?;
        if mmdb::is_one(&file.bytes) {
            mmdb::read(path, &file)
        } else {
            csv::read(path, &file)
        }
    }
}

impl Places {
    /// Reads the databases.
    ///
    /// # Errors
    /// A database is missing or invalid; the error says where and what to do.
    pub fn load(settings: &PlacesSettings) -> Result<Self, PlacesError> {
        let mut countries = match &settings.countries {
            Countries::Embedded => embedded::read(),
            Countries::At(path) => {
                let database = Database::open(path)?;
                if !database.knows_countries() {
                    return Err(PlacesError::new(
                        path,
                        "has no country for any address",
                        "if it is a database of autonomous systems, name it in `places.systems`",
                    ));
                }
                database
            }
        };
        let mut described = Described {
            countries: countries.description.clone(),
            systems: String::new(),
        };
        if let Some(path) = &settings.systems {
            let systems = Database::open(path)?;
            if !systems.knows_systems() {
                return Err(PlacesError::new(
                    path,
                    "has no autonomous system for any address",
                    "use a CSV with a fourth column, or an MMDB with autonomous_system_number",
                ));
            }
            described.systems.clone_from(&systems.description);
            countries.v4.systems = systems.v4.systems;
            countries.v6.systems = systems.v6.systems;
            countries.names = systems.names;
        } else if countries.knows_systems() {
            described.systems.clone_from(&countries.description);
        }
        let Database { v4, v6, names, .. } = countries;
        let mut numbers = Numbers::new();
        let v4 = Tree::new(join(v4.countries, v4.systems, |place| numbers.of(place)));
        let v6 = Tree::new(join(v6.countries, v6.systems, |place| numbers.of(place)));
        let mut places = numbers.places;
        places.shrink_to_fit();
        Ok(Self {
            v4,
            v6,
            places,
            names,
            described,
        })
    }

    /// Country and autonomous system of an address; [`Place::UNKNOWN`] if no database has it.
    pub fn place(&self, address: IpAddr) -> Place {
        let mut number = [0];
        match address {
            IpAddr::V4(address) => self.v4.find(&[address.to_bits()], &mut number),
            IpAddr::V6(address) => self.v6.find(&[address.to_bits()], &mut number),
        }
        let place = self.places.get(number[0] as usize);
        place.copied().unwrap_or(Place::UNKNOWN)
    }

    /// The databases' descriptions.
    pub const fn described(&self) -> &Described {
        &self.described
    }

    /// The name of an autonomous system, if the database has one.
    pub fn as_name(&self, asn: u32) -> Option<&str> {
        self.names.find(asn)
    }

    /// Number of address ranges in the IPv4 and in the IPv6 table.
    pub const fn ranges(&self) -> (usize, usize) {
        (self.v4.len(), self.v6.len())
    }

    /// All places, indexed by number.
    pub(super) fn all(&self) -> &[Place] {
        &self.places
    }
}

struct Numbers {
    places: Vec<Place>,
    numbers: HashMap<Place, u32>,
}

impl Numbers {
    fn new() -> Self {
        Self {
            places: vec![Place::UNKNOWN],
            numbers: HashMap::from([(Place::UNKNOWN, 0)]),
        }
    }

    /// Beyond [`MAX_PLACES`], new places count as unknown.
    fn of(&mut self, place: Place) -> u32 {
        let next = self.places.len();
        if let Some(&number) = self.numbers.get(&place) {
            return number;
        }
        let Ok(number) = u32::try_from(next) else {
            return 0;
        };
        if next >= MAX_PLACES {
            return 0;
        }
        self.places.push(place);
        self.numbers.insert(place, number);
        number
    }
}
