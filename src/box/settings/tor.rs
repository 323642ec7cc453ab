//! Checks `[tor]`, and the keys of `[steer]` and `[mark]` that change tor's sockets on the Tor host
//! itself.

use super::check::{names_a_host, quoted, unmapped};
use super::forms::Sources;
use super::{SettingsError, raw};
use exitmark_policy::packet::Version;
use exitmark_policy::{SocketRules, Steer};
use exitmark_service::config::{self, value};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Component, Path, PathBuf};

const USERS: &str = "tor.users";
const CGROUPS: &str = "tor.cgroups";
const SOURCE: &str = "steer.source";
/// The user ID that means "none" to the kernel (`uid_valid` in include/linux/uidgid.h).
const NO_USER: u32 = u32::MAX;

/// Whose connections engine `connect` judges. Either `users` or `cgroups` is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TorHost {
    /// The users that tor runs as.
    pub users: Vec<UserPattern>,
    /// The cgroups that tor runs in: absolute paths below the mount of cgroup2, without `.` and
    /// `..`. None is within another one.
    pub cgroups: Vec<PathBuf>,
    /// The name of the NIC by which relay connections leave (`steer.interface`); whether it exists
    /// is not checked.
    pub interface: Option<String>,
}

impl TorHost {
    /// Whose connections are judged: users or cgroups.
    pub(super) fn owners(&self) -> String {
        let users = self.users.iter().map(UserPattern::to_string);
        let cgroups = self.cgroups.iter().map(|path| path.display().to_string());
        users.chain(cgroups).collect::<Vec<_>>().join(", ")
    }

    /// Whose connections are judged, and how relay connections are steered, for a summary.
    pub(super) fn summary(&self, sockets: &SocketRules) -> String {
        let names_source = sockets.source_v4.is_some() || sockets.source_v6.is_some();
        let ways = [
            names_source.then(|| SOURCE.to_owned()),
            (sockets.fwmark != 0).then(|| format!("fwmark {:#x}", sockets.fwmark)),
            self.interface.clone(),
        ];
        let ways: Vec<_> = ways.into_iter().flatten().collect();
        let steering = match ways.as_slice() {
            [] => "are not steered".to_owned(),
            ways => format!("are steered by {}", ways.join(" and ")),
        };
        let owners = self.owners();
        format!("connections of {owners}, relay connections {steering}")
    }
}

/// Users of the Tor host, as an entry of `tor.users`. None matches the name `root`; whether another
/// name is one of user ID 0 is not checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserPattern {
    /// A user ID in the initial user namespace; neither 0 nor 4,294,967,295.
    Id(u32),
    /// The name of one user.
    Name(String),
    /// Names of users, with `*` for any characters and `?` for one.
    Glob(String),
}

impl UserPattern {
    /// Whether a user of this name is meant; never for [`UserPattern::Id`].
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Id(_) => false,
            Self::Name(own) => own == name,
            Self::Glob(glob) => is_match(glob, name),
        }
    }

    /// Parses an entry; an error is the reason.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let is_glob = |c: char| matches!(c, '*' | '?');
        let is_illegal = |c: char| c.is_whitespace() || c.is_control() || ":,/[]{}".contains(c);
        if let Ok(number) = text.parse::<i64>() {
            return match u32::try_from(number) {
                Ok(0) => Err(
                    "is root, whose connections are those of the whole machine; name the user that \
                     tor runs as (`ps -C tor -o user:32=`)",
                ),
                Ok(id) if id != NO_USER => Ok(Self::Id(id)),
                _ => Err("is not the ID of a user: 1 to 4294967294"),
            };
        }
        if text.is_empty() || text.contains(is_illegal) {
            return Err(
                "is neither the name of a user, such as \"debian-tor\", nor a user ID, nor \
                        a glob with `*` and `?`, such as \"_tor-*\"",
            );
        }
        if text.chars().all(is_glob) {
            return Err(
                "matches the users of the whole machine; give the common part of tor's \
                        users too, such as \"_tor-*\"",
            );
        }
        let pattern = match text.contains(is_glob) {
            true => Self::Glob(text.to_owned()),
            false => Self::Name(text.to_owned()),
        };
        match pattern.matches("root") {
            true => Err(
                "matches root, whose connections are those of the whole machine; name the user \
                 that tor runs as (`ps -C tor -o user:32=`)",
            ),
            false => Ok(pattern),
        }
    }
}

impl fmt::Display for UserPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(text) | Self::Glob(text) => text.fmt(f),
        }
    }
}

/// Whether a name matches a glob. Takes at most (length of the glob) × (length of the name) steps.
fn is_match(glob: &str, name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    // Whether the glob up to here matches the first `length` characters.
    let mut matched = vec![false; name.len() + 1];
    matched[0] = true;
    for part in glob.chars() {
        if part == '*' {
            let shortest = matched.iter().position(|is| *is).unwrap_or(matched.len());
            matched[shortest..].fill(true);
        } else {
            for (length, character) in name.iter().enumerate().rev() {
                matched[length + 1] = matched[length] && (part == '?' || part == *character);
            }
            matched[0] = false;
        }
    }
    matched[name.len()]
}

/// Checks `[tor]` and `steer.interface`.
pub(super) fn host(tor: &raw::Tor, steer: &raw::Steer) -> Result<TorHost, SettingsError> {
    let users = match (tor.users.as_slice(), tor.cgroups.as_slice()) {
        ([], []) => {
            let reason = "names no connections to judge; name the user that tor runs as, such as \
                          \"debian-tor\" (`ps -C tor -o user:32=`), or its cgroup in tor.cgroups";
            return Err(value(USERS, "[]", reason));
        }
        ([_, ..], [first, ..]) => {
            let reason = "is one of two ways to name tor's connections, and tor.users is the \
                          other: keep one of the two keys";
            return Err(quoted(CGROUPS, first, reason));
        }
        (users, _) => users,
    };
    let mut named = Vec::with_capacity(users.len());
    for user in users {
        let (text, shown) = match user {
            raw::User::Id(id) => (id.to_string(), id.to_string()),
            raw::User::Name(name) => (name.clone(), format!("{name:?}")),
        };
        let pattern = UserPattern::parse(&text).map_err(|reason| value(USERS, &shown, reason))?;
        if named.contains(&pattern) {
            return Err(value(USERS, shown, "is named twice; keep one of them"));
        }
        named.push(pattern);
    }
    let interface = steer.interface.as_deref();
    let interface = interface.map(|name| config::interface("steer.interface", name));
    Ok(TorHost {
        users: named,
        cgroups: cgroups(&tor.cgroups)?,
        interface: interface.transpose()?,
    })
}

fn cgroups(texts: &[String]) -> Result<Vec<PathBuf>, SettingsError> {
    let mut cgroups: Vec<PathBuf> = Vec::with_capacity(texts.len());
    for text in texts {
        let path = Path::new(text);
        let mounted = path.strip_prefix("/sys/fs/cgroup").ok();
        let has_parent = path.components().any(|part| part == Component::ParentDir);
        let reason = if let Some(below) = mounted {
            let below = below.strip_prefix("unified").unwrap_or(below);
            format!(
                "has the mount of cgroup2 in it; give the path below: \"/{}\"",
                below.display()
            )
        } else if !path.is_absolute() || has_parent || text.contains('\0') {
            "is not an absolute path below the mount of cgroup2 without `..`, such as \
             \"/system.slice/system-tor.slice/tor@default.service\" (the text behind `0::` in \
             /proc/PID/cgroup)"
                .to_owned()
        } else {
            // Without `.` and repeated slashes.
            let path: PathBuf = path.components().collect();
            let related = |other: &&PathBuf| other.starts_with(&path) || path.starts_with(other);
            if path.parent().is_none() {
                "has every process of the machine in it; name tor's cgroup (the text behind `0::` \
                 in /proc/PID/cgroup)"
                    .to_owned()
            } else if let Some(other) = cgroups.iter().find(related) {
                format!(
                    "is the same as \"{}\", or within it, or contains it, so that connections \
                     would count twice; keep one of the two",
                    other.display()
                )
            } else {
                cgroups.push(path);
                continue;
            }
        };
        return Err(value(CGROUPS, format_args!("{text:?}"), reason));
    }
    Ok(cgroups)
}

/// Checks the keys that change sockets; with the IP versions of relay connections that are steered.
pub(super) fn sockets(
    steer: &raw::Steer,
    mark: &raw::Mark,
) -> Result<(SocketRules, Steer), SettingsError> {
    let fwmark = match steer.fwmark {
        None => 0,
        Some(number) => u32::try_from(number)
            .ok()
            .filter(|fwmark| *fwmark != 0)
            .ok_or_else(|| {
                let reason =
                    "is not a mark of sockets: 1 to 0xffffffff, as in `ip rule add fwmark`";
                value("steer.fwmark", number, reason)
            })?,
    };
    let (source_v4, source_v6) = match &steer.source {
        None => (None, None),
        Some(Sources::One(text)) => sources(std::slice::from_ref(text))?,
        Some(Sources::List(texts)) => sources(texts)?,
        Some(table @ Sources::ByHost(_)) => {
            let reason = "is of the hosts behind a box; engine = \"connect\" has one host, this \
                          machine: give an address, or a list with one for each IP version";
            return Err(value(SOURCE, table, reason));
        }
    };
    let applies_to_both = fwmark != 0 || steer.interface.is_some();
    let steered = match (source_v4, source_v6) {
        _ if applies_to_both => Steer::Both,
        (Some(_), Some(_)) => Steer::Both,
        (Some(_), None) => Steer::Only(Version::V4),
        (None, Some(_)) => Steer::Only(Version::V6),
        (None, None) => Steer::Off,
    };
    let sockets = SocketRules {
        source_v4,
        source_v6,
        fwmark,
        interface: 0,
        overwrites: mark.overwrite,
    };
    Ok((sockets, steered))
}

fn sources(texts: &[String]) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), SettingsError> {
    let (mut v4, mut v6) = (None, None);
    for text in texts {
        let refuse = |reason: &str| Err(quoted(SOURCE, text, reason));
        let Ok(address) = text.parse::<IpAddr>() else {
            return refuse("is not an address such as 203.0.113.10 or 2001:db8:3::10");
        };
        unmapped(address).map_err(|reason| quoted(SOURCE, text, reason))?;
        let is_link_local = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        if !names_a_host(address) || is_link_local {
            return refuse(
                "is not an address from which relays can be reached; give an address of this \
                 machine on the network for relay traffic",
            );
        }
        let is_second = match address {
            IpAddr::V4(address) => v4.replace(address).is_some(),
            IpAddr::V6(address) => v6.replace(address).is_some(),
        };
        if is_second {
            return refuse("is the second address of its IP version; give one of each at most");
        }
    }
    Ok((v4, v6))
}
