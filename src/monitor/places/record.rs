//! Reads country, AS number and AS name from an MMDB record of any vendor.
//!
//! Vendors differ in names and types: an AS number is a number of any width, or text with an `AS`
//! prefix, or is in a map beside the system's name. So values of any type are accepted, and unknown
//! ones are ignored.

use crate::cell::Country;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;

/// Depth of nested maps that are read. Maps can point to shared maps, so a small file could
/// otherwise expand without bound.
const MAX_DEPTH: u8 = 3;

/// A record of an MMDB file: what its database says about a range of addresses.
pub(super) struct Record<'a>(Value<'a>);

/// A value of a record, as far as it is read.
enum Value<'a> {
    /// A value of another type, or nested too deeply.
    Nothing,
    Number(u64),
    Text(&'a str),
    Map(Box<Fields<'a>>),
}

/// The fields of a map that are read. Several keys have the same meaning; the first usable one
/// counts.
#[derive(Default)]
struct Fields<'a> {
    /// `country_code`, `iso_code`, `code`
    code: Option<Country>,
    /// `country`: text, or a map with a code
    country: Option<Country>,
    /// `autonomous_system_number`, `asn`, `as_number`, `number`, or a map under these names
    asn: Option<u32>,
    /// `autonomous_system_organization`, `as_name`, `name`, `organization`
    name: Option<&'a str>,
    /// The name in the map that had the AS number
    inner_name: Option<&'a str>,
}

impl<'a> Record<'a> {
    pub(super) fn country(&self) -> Country {
        self.0.country().unwrap_or_default()
    }

    /// The AS number; 0 if the record has no AS number.
    pub(super) fn asn(&self) -> u32 {
        self.0.asn().unwrap_or(0)
    }

    pub(super) fn as_name(&self) -> Option<&'a str> {
        self.0.name()
    }
}

impl<'a> Value<'a> {
    fn country(&self) -> Option<Country> {
        match self {
            Self::Text(text) => text.parse().ok(),
            Self::Map(fields) => fields.code.or(fields.country),
            Self::Nothing | Self::Number(_) => None,
        }
    }

    fn asn(&self) -> Option<u32> {
        match self {
            Self::Number(number) => u32::try_from(*number).ok(),
            Self::Text(text) => in_text(text),
            Self::Map(fields) => fields.asn,
            Self::Nothing => None,
        }
    }

    fn name(&self) -> Option<&'a str> {
        match self {
            Self::Map(fields) => fields.name.or(fields.inner_name),
            _ => None,
        }
    }
}

/// Parses `AS64496` or `64496`, optionally followed by a name.
fn in_text(text: &str) -> Option<u32> {
    let number = text.split_ascii_whitespace().next()?;
    let (prefix, digits) = number.split_at_checked(2).unwrap_or(("", number));
    let digits = if prefix.eq_ignore_ascii_case("as") {
        digits
    } else {
        number
    };
    digits.parse().ok()
}

impl<'a> Fields<'a> {
    fn read<A: MapAccess<'a>>(mut map: A, depth: u8) -> Result<Self, A::Error> {
        let mut fields = Self::default();
        while let Some(key) = map.next_key::<&str>()? {
            let mut value = || map.next_value_seed(Reading { depth });
            match key {
                "country_code" | "iso_code" | "code" => {
                    fields.code = fields.code.or(value()?.country());
                }
                "country" => fields.country = fields.country.or(value()?.country()),
                "autonomous_system_number"
                | "asn"
                | "as_number"
                | "number"
                | "as"
                | "autonomous_system"
                | "traits" => {
                    let value = value()?;
                    fields.asn = fields.asn.or(value.asn());
                    fields.inner_name = fields.inner_name.or(value.name());
                }
                "autonomous_system_organization" | "as_name" | "name" | "organization" => {
                    if let Value::Text(name) = value()? {
                        fields.name = fields.name.or(Some(name));
                    }
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(fields)
    }
}

impl<'a> Deserialize<'a> for Record<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        Reading { depth: 0 }.deserialize(deserializer).map(Self)
    }
}

/// Reads a value at this depth of nested maps.
#[derive(Clone, Copy)]
struct Reading {
    depth: u8,
}

impl<'a> DeserializeSeed<'a> for Reading {
    type Value = Value<'a>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Value<'a>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Reading {
    type Value = Value<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value<'a>, E> {
        Ok(Value::Number(number))
    }

    fn visit_u128<E>(self, number: u128) -> Result<Value<'a>, E> {
        Ok(u64::try_from(number).map_or(Value::Nothing, Value::Number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value<'a>, E> {
        Ok(u64::try_from(number).map_or(Value::Nothing, Value::Number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value<'a>, E> {
        // A whole number's digits parse exactly.
        Ok(format!("{number}")
            .parse()
            .map_or(Value::Nothing, Value::Number))
    }

    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Value<'a>, E> {
        Ok(Value::Text(text))
    }

    fn visit_borrowed_bytes<E>(self, _: &'a [u8]) -> Result<Value<'a>, E> {
        Ok(Value::Nothing)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value<'a>, E> {
        Ok(Value::Nothing)
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut list: A) -> Result<Value<'a>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Nothing)
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Value<'a>, A::Error> {
        if self.depth < MAX_DEPTH {
            return Ok(Value::Map(Box::new(Fields::read(map, self.depth + 1)?)));
        }
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Nothing)
    }
}
