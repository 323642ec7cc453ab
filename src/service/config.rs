//! The common part of both programs' configuration files: errors, and values that both have.
//!
//! This module does not access the machine, except to read the file.

use exitmark_policy::packet::Dscp;
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;

/// The longest alternative name of a NIC in bytes (ALTIFNAMSIZ without its NUL).
const MAX_ALTERNATIVE_NAME: usize = 127;

/// The remedy for a file that cannot be read.
fn remedy(error: &std::io::Error, example: &str) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!(
                "; {example} documents every key: copy it there, and set your NICs and addresses"
            )
        }
        std::io::ErrorKind::PermissionDenied => {
            "; run this as root, or let this user read the file and enter its directory".to_owned()
        }
        std::io::ErrorKind::InvalidData => "; a configuration is text in UTF-8".to_owned(),
        _ => String::new(),
    }
}

/// Reads a configuration. `example` is the file that documents its keys, for the error.
///
/// # Errors
/// [`ConfigError::Read`]: the file is missing, unreadable for this user, or not UTF-8.
pub fn read(path: &Path, example: &'static str) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| ConfigError::Read(error, example))
}

/// An error in a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read: it is missing, unreadable for this user, or not UTF-8.
    /// The second field is the file that documents every key.
    #[error("cannot be read: {0}{hint}", hint = remedy(.0, .1))]
    Read(#[source] std::io::Error, &'static str),
    /// Not TOML, an unknown key, a missing key, or a value of the wrong type.
    #[error("the configuration cannot be understood: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A key has a value that is out of range, contradicts another key, or cannot be parsed.
    #[error("{key} = {value}: {reason}")]
    Value {
        /// The key with its table, such as `mark.dscp`.
        key: &'static str,
        /// The value as in the file; text is in quotation marks.
        value: String,
        /// The fault, and the accepted values.
        reason: String,
    },
}

/// Makes a [`ConfigError::Value`]. `value` is shown as it is, so text needs its quotation marks.
pub fn value(key: &'static str, value: impl Display, reason: impl Display) -> ConfigError {
    ConfigError::Value {
        key,
        value: value.to_string(),
        reason: reason.to_string(),
    }
}

/// Parses a value by its [`FromStr`].
///
/// # Errors
/// [`ConfigError::Value`] with the key, the text, and the error of [`FromStr`] as the reason.
pub fn parsed<T: FromStr<Err: Display>>(key: &'static str, text: &str) -> Result<T, ConfigError> {
    text.parse()
        .map_err(|reason| value(key, format_args!("\"{text}\""), reason))
}

/// Checks the name of a NIC by the rules of Linux (`dev_valid_name` in net/core/dev.c).
///
/// # Errors
/// [`ConfigError::Value`]: the name is empty, `.` or `..`, longer than 127 bytes, or has a space,
/// `/`, `:` or NUL.
pub fn interface(key: &'static str, name: &str) -> Result<String, ConfigError> {
    let legal = |c: char| !c.is_whitespace() && c != '/' && c != ':' && c != '\0';
    let reason = if name.is_empty() {
        "the name of a NIC is missing"
    } else if name == "." || name == ".." {
        "this is a directory, not the name of a NIC"
    } else if !name.chars().all(legal) {
        "the name of a NIC has no spaces, `/` and `:`"
    } else if name.len() > MAX_ALTERNATIVE_NAME {
        "the name of a NIC has at most 15 bytes, and an alternative one at most 127"
    } else {
        return Ok(name.to_owned());
    };
    let reason = format!("{reason} (`ip link` lists the names)");
    Err(value(key, format_args!("\"{name}\""), reason))
}

/// A DSCP as written in a file.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(
    untagged,
    expecting = "a DSCP is a name such as \"af11\", or a number 0 to 63"
)]
pub enum RawDscp {
    /// A number, valid from 0 to 63.
    Number(i64),
    /// A name such as `af11`, ignoring case.
    Name(String),
}

/// The mark, given as a DSCP or as a ToS byte under the respective key; AF11 if neither is set.
///
/// # Errors
/// [`ConfigError::Value`]: both keys are set, the value is not a DSCP (a name, or 0 to 63) or not a
/// ToS byte without ECN bits, or it is 0, the DSCP of unmarked traffic.
pub fn code_point(
    [dscp_key, tos_key]: [&'static str; 2],
    dscp: Option<&RawDscp>,
    tos: Option<i64>,
) -> Result<Dscp, ConfigError> {
    let mark = match (dscp, tos) {
        (None, None) => Dscp::AF11,
        (Some(_), Some(tos)) => {
            let reason = format!("{dscp_key} says the same; keep one of the two");
            return Err(value(tos_key, format_args!("{tos:#04x}"), reason));
        }
        (Some(RawDscp::Name(name)), None) => parsed(dscp_key, name)?,
        (Some(RawDscp::Number(number)), None) => {
            let bits = u64::try_from(*number).unwrap_or(u64::MAX);
            Dscp::new(bits).map_err(|_| {
                let reason = format!(
                    "is not a DSCP, which has six bits, 0 to 63 (for a ToS byte use {tos_key})"
                );
                value(dscp_key, number, reason)
            })?
        }
        (None, Some(tos)) => {
            let byte = u8::try_from(tos)
                .map_err(|_| value(tos_key, tos, "is not a byte, 0x04 to 0xfc"))?;
            Dscp::from_tos(byte)
                .map_err(|reason| value(tos_key, format_args!("{tos:#04x}"), reason))?
        }
    };
    if mark == Dscp::DEFAULT {
        let key = if tos.is_some() { tos_key } else { dscp_key };
        let reason = "is the DSCP of unmarked traffic; a mark must differ from it";
        return Err(value(key, "0", reason));
    }
    Ok(mark)
}

/// Checks the `user` that the process becomes, but not whether that user exists.
///
/// # Errors
/// [`ConfigError::Value`]: the name is empty or `root`.
pub fn user(name: Option<String>) -> Result<Option<String>, ConfigError> {
    match name {
        Some(name) if name.is_empty() || name == "root" => Err(value(
            "user",
            format_args!("\"{name}\""),
            "is not an unprivileged user; leave the key out, or name a user of exitmark's own",
        )),
        name => Ok(name),
    }
}

/// Parses `metrics.listen`: a loopback address with a port, such as `example`, or "off" (`None`).
///
/// # Errors
/// [`ConfigError::Value`]: the value is neither, its address is not a loopback address, or its port
/// is 0.
pub fn metrics(listen: &str, example: &str) -> Result<Option<SocketAddr>, ConfigError> {
    const KEY: &str = "metrics.listen";
    if listen == "off" {
        return Ok(None);
    }
    let quoted = format!("\"{listen}\"");
    let address: SocketAddr = listen.parse().map_err(|_| {
        let reason = format!("is neither \"off\" nor an address with a port, such as {example}");
        value(KEY, &quoted, reason)
    })?;
    if !address.ip().is_loopback() || address.port() == 0 {
        let reason = format!(
            "is not a port of the loopback interface, such as {example} or [::1]:{}; to serve \
             metrics elsewhere, use a proxy with a password",
            address.port()
        );
        return Err(value(KEY, quoted, reason));
    }
    Ok(Some(address))
}
