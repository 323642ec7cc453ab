//! Compares two configurations, and finds the changes that need a restart.

use super::{Settings, raw};

/// Keys, or tables of keys, that only a restart changes.
const FIXED: [&str; 11] = [
    "control",
    "datapath",
    "engine",
    "metrics",
    "pin",
    "ports",
    "relays.state",
    "relays.user",
    "tor.cgroups",
    "user",
    "wire",
];

/// The difference between two configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Every key that differs, in order.
    pub keys: Vec<String>,
    /// The keys of these that only a restart changes.
    pub fixed: Vec<String>,
}

/// Every key with its value, including defaults.
pub(super) fn keys(raw: &raw::Raw) -> toml::Table {
    // Cannot fail: the value was read from TOML.
    toml::Table::try_from(raw).unwrap_or_default()
}

impl Settings {
    /// The changes from this configuration to another one.
    pub fn change_to(&self, other: &Self) -> Change {
        let mut keys = Vec::new();
        compare(&self.keys, &other.keys, "", &mut keys);
        let is_fixed = |key: &&String| {
            let within = |fixed: &&str| {
                key.strip_prefix(*fixed)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            FIXED.iter().any(within)
        };
        let fixed = keys.iter().filter(is_fixed).cloned().collect();
        Change { keys, fixed }
    }
}

fn compare(ours: &toml::Table, theirs: &toml::Table, prefix: &str, found: &mut Vec<String>) {
    let mut names: Vec<_> = ours.keys().chain(theirs.keys()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let key = format!("{prefix}{name}");
        match (ours.get(name), theirs.get(name)) {
            (Some(toml::Value::Table(a)), Some(toml::Value::Table(b))) => {
                compare(a, b, &format!("{key}."), found);
            }
            (Some(toml::Value::Array(a)), Some(toml::Value::Array(b))) if a != b => {
                match (named(a), named(b)) {
                    // Equal names and tables: the order differs.
                    (Some(ours), Some(theirs)) if ours == theirs => found.push(key),
                    (Some(ours), Some(theirs)) => {
                        compare(&ours, &theirs, &format!("{key}."), found);
                    }
                    _ => found.push(key),
                }
            }
            (a, b) if a != b => found.push(key),
            _ => {}
        }
    }
}

/// The tables of an array by their names: `[[host]]` and `[[wire]]`. `None` for any other array.
fn named(tables: &[toml::Value]) -> Option<toml::Table> {
    let table = |value: &toml::Value| {
        let name = value.get("name")?.as_str()?;
        Some((name.to_owned(), value.clone()))
    };
    tables.iter().map(table).collect()
}
