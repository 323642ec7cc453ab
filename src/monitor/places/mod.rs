//! In which country and autonomous system an address is, out of databases that lie on this
//! machine.
//!
//! Whatever a database looks like, it is read once, and made into two tables, one for each IP
//! version, in which a look-up touches a handful of cache lines. It asks nobody. What no database
//! knows is [`Place::UNKNOWN`]; so are private addresses, and the IPv6 addresses that stand for
//! IPv4 ones (mapped, 6to4), which no packet on an uplink goes to: they are what the database says
//! of their own range, mostly nothing, and never the place of the IPv4 address within.

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

/// Where the country of an address is looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Countries {
    /// In Tor's database, as it was when this program was built.
    #[default]
    Embedded,
    /// In a file: Tor's CSV (which may have a fourth column with the number of the autonomous
    /// system) or MMDB. Or in the files `geoip` and `geoip6` of a directory.
    At(PathBuf),
}

/// Which databases are to be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlacesSettings {
    /// That of countries.
    pub countries: Countries,
    /// That of autonomous systems, in the formats that the other has; without it, the other is
    /// asked.
    pub systems: Option<PathBuf>,
}

/// The names of the databases, with their versions and dates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// Of that of countries.
    pub countries: String,
    /// Of that of autonomous systems; empty where there is none.
    pub systems: String,
}

/// Both databases, as tables.
#[derive(Debug)]
pub struct Places {
    v4: Tree<u32, 16>,
    v6: Tree<u128, 8>,
    /// By their numbers; [`Place::UNKNOWN`] is the first.
    places: Vec<Place>,
    names: Names,
    described: Described,
}

/// What a database has told, before it is made into tables.
struct Database {
    v4: Known<u32>,
    v6: Known<u128>,
    names: Names,
    description: String,
}

/// What it knows of the addresses of one family.
struct Known<A> {
    countries: Cover<A, Country>,
    systems: Cover<A, u32>,
}

impl<A: Address> Default for Known<A> {
    fn default() -> Self {
        Self {
            countries: Cover::new(),
            systems: Cover::new(),
        }
    }
}

/// How many different places there may be; the whole internet has about a hundred thousand.
const MAX_PLACES: usize = 1 << 21;

impl Database {
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
    /// One of them is missing, or not as it must be; the error says where and what to do.
    pub fn load(settings: &PlacesSettings) -> Result<Self, PlacesError> {
        let mut countries = match &settings.countries {
            Countries::Embedded => embedded::read(),
            Countries::At(path) => {
                let database = Database::open(path)?;
                if !database.knows_countries() {
                    return Err(PlacesError::lacks_countries(path));
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
                return Err(PlacesError::lacks_systems(path));
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

    /// Where an address is.
    pub fn place(&self, address: IpAddr) -> Place {
        let mut number = [0];
        match address {
            IpAddr::V4(address) => self.v4.find(&[address.to_bits()], &mut number),
            IpAddr::V6(address) => self.v6.find(&[address.to_bits()], &mut number),
        }
        self.numbered(number[0])
    }

    /// What the databases are.
    pub const fn described(&self) -> &Described {
        &self.described
    }

    /// The name of an autonomous system, where a database has it.
    pub fn as_name(&self, asn: u32) -> Option<&str> {
        self.names.find(asn)
    }

    /// How many ranges of addresses the tables have, of IPv4 and of IPv6.
    pub const fn ranges(&self) -> (usize, usize) {
        (self.v4.len(), self.v6.len())
    }

    /// The place with this number.
    pub(super) fn numbered(&self, number: u32) -> Place {
        let place = self.places.get(number as usize);
        place.copied().unwrap_or(Place::UNKNOWN)
    }

    /// All places, each at its number.
    pub(super) fn all(&self) -> &[Place] {
        &self.places
    }

    pub(super) const fn v4(&self) -> &Tree<u32, 16> {
        &self.v4
    }

    pub(super) const fn v6(&self) -> &Tree<u128, 8> {
        &self.v6
    }
}

/// Gives each place a number.
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

    /// Past the bound every new place is the unknown one.
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
