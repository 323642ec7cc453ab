//! Values that the file may give in several forms.
//!
//! An error names the forms, and an error within a form keeps its place in the file, which
//! `#[serde(untagged)]` would lose.

use super::raw::{Host, Wire};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize as DeriveDeserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The groups of hosts.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Hosts {
    /// `[host]`: one group.
    One(Box<Host>),
    /// `[[host]]`, once for each group.
    Several(Vec<Host>),
}

impl Default for Hosts {
    fn default() -> Self {
        Self::One(Box::default())
    }
}

impl Hosts {
    /// The groups in the order of the file.
    pub(super) fn groups(&self) -> &[Host] {
        match self {
            Self::One(host) => std::slice::from_ref(host),
            Self::Several(hosts) => hosts,
        }
    }

    /// Whether errors and warnings name the group.
    pub(super) const fn are_several(&self) -> bool {
        matches!(self, Self::Several(_))
    }
}

impl<'de> Deserialize<'de> for Hosts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;

        impl<'de> Visitor<'de> for Form {
            type Value = Hosts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the table [host], or [[host]] once for each group of hosts")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Hosts, A::Error> {
                Host::deserialize(MapAccessDeserializer::new(map))
                    .map(|host| Hosts::One(Box::new(host)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Hosts, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Hosts::Several)
            }
        }

        deserializer.deserialize_any(Form)
    }
}

/// `[[wire]]`, once for each wire.
#[derive(Debug, Serialize)]
pub(super) struct Wires(pub(super) Vec<Wire>);

impl<'de> Deserialize<'de> for Wires {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;

        impl<'de> Visitor<'de> for Form {
            type Value = Wires;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("[[wire]] in two brackets, once for each wire")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Wires, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Wires)
            }
        }

        deserializer.deserialize_any(Form)
    }
}

/// The IDs of VLAN tags, the outer one first; a number is one tag.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Tags(pub(super) Vec<i64>);

impl fmt::Display for Tags {
    /// As in the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [id] => id.fmt(f),
            ids => write!(f, "{ids:?}"),
        }
    }
}

impl<'de> Deserialize<'de> for Tags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;

        impl<'de> Visitor<'de> for Form {
            type Value = Tags;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the ID of a VLAN such as 30, or [outer, inner] for two tags")
            }

            fn visit_i64<E: Error>(self, id: i64) -> Result<Tags, E> {
                Ok(Tags(vec![id]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Tags, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Tags)
            }
        }

        deserializer.deserialize_any(Form)
    }
}

/// Next hops as text: addresses and MAC addresses.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum NextHops {
    /// An address is for its IP version, a MAC address for both.
    One(String),
    /// The same, at most one for each IP version.
    List(Vec<String>),
    /// Each IP version with its own.
    ByVersion(HopByVersion),
}

/// The table form of next hops.
#[derive(Clone, Debug, DeriveDeserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HopByVersion {
    pub(super) v4: Option<String>,
    pub(super) v6: Option<String>,
}

impl<'de> Deserialize<'de> for NextHops {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;

        impl<'de> Visitor<'de> for Form {
            type Value = NextHops;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "the address or MAC address of a router, a list with one for each IP version, \
                     or a table such as { v4 = \"203.0.113.1\", v6 = \"fe80::1\" }",
                )
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<NextHops, E> {
                Ok(NextHops::One(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<NextHops, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(NextHops::List)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<NextHops, A::Error> {
                HopByVersion::deserialize(MapAccessDeserializer::new(map)).map(NextHops::ByVersion)
            }
        }

        deserializer.deserialize_any(Form)
    }
}

/// The source addresses of steered traffic, as text.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Sources {
    /// An address, or `keep`.
    One(String),
    /// At most one address for each IP version.
    List(Vec<String>),
    /// The address in place of each host's.
    ByHost(BTreeMap<String, String>),
}

impl fmt::Display for Sources {
    /// As in the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(text) => write!(f, "{text:?}"),
            Self::List(texts) => write!(f, "{texts:?}"),
            Self::ByHost(table) => write!(f, "a table of {} addresses", table.len()),
        }
    }
}

impl<'de> Deserialize<'de> for Sources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;

        impl<'de> Visitor<'de> for Form {
            type Value = Sources;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "\"keep\", an address, a list with one for each IP version, or a table such as \
                     { \"192.0.2.10\" = \"203.0.113.10\" }",
                )
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Sources, E> {
                Ok(Sources::One(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Sources, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Sources::List)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Sources, A::Error> {
                BTreeMap::deserialize(MapAccessDeserializer::new(map)).map(Sources::ByHost)
            }
        }

        deserializer.deserialize_any(Form)
    }
}
