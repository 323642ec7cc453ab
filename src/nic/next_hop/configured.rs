//! The configured next hop of steered frames.

use exitmark_policy::packet::{MacAddr, MacAddrError};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// The source of the next hop's MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// The configured MAC address.
    Mac(MacAddr),
    /// The configured IP address, which the box's own network stack resolves.
    Address(IpAddr),
}

/// Why a text is not a next hop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NextHopError {
    /// The text is neither a MAC address nor an IP address.
    #[error(
        "`{0}` is not a next hop: give the router's MAC address (02:00:5e:10:00:01) or its IP \
         address on that network (203.0.113.1 or fe80::1)"
    )]
    Syntax(String),
    /// The address is multicast, broadcast, loopback or zero.
    #[error(
        "{0} is not the address of a single router: give the router's MAC address \
         (02:00:5e:10:00:01) or its IP address on that network (203.0.113.1 or fe80::1), not one \
         that is multicast, broadcast, loopback or zero"
    )]
    NotOne(String),
}

impl FromStr for NextHop {
    type Err = NextHopError;

    fn from_str(text: &str) -> Result<Self, NextHopError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            let address = address.to_canonical();
            let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
            let is_of_one = !address.is_unspecified() && !address.is_loopback();
            return match is_of_one && !address.is_multicast() && !is_broadcast {
                true => Ok(Self::Address(address)),
                false => Err(NextHopError::NotOne(text.to_owned())),
            };
        }
        match text.parse::<MacAddr>() {
            Ok(mac) => Ok(Self::Mac(mac)),
            Err(MacAddrError::NotUnicast(_)) => Err(NextHopError::NotOne(text.to_owned())),
            Err(MacAddrError::Syntax(_)) => Err(NextHopError::Syntax(text.to_owned())),
        }
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => mac.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_written() {
        for (text, written) in [
            ("02:00:5e:10:00:01", "02:00:5e:10:00:01"),
            ("203.0.113.1", "203.0.113.1"),
            ("fe80::1", "fe80::1"),
            ("2001:DB8::0:1", "2001:db8::1"),
            ("::ffff:203.0.113.1", "203.0.113.1"),
        ] {
            let hop: NextHop = text.parse().unwrap();
            assert_eq!(hop.to_string(), written);
        }
    }

    #[test]
    fn refuses_invalid_next_hops_and_names_both_forms() {
        for text in [
            "",
            "router",
            "203.0.113.1/24",
            "203.0.113",
            "fe80::1%eth0",
            "02:00:5e:10:00",
            "0.0.0.0",
            "::",
            "127.0.0.1",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            "01:00:5e:00:00:01",
        ] {
            let error = text.parse::<NextHop>().unwrap_err().to_string();
            for form in ["02:00:5e:10:00:01", "203.0.113.1", "fe80::1"] {
                assert!(error.contains(form), "{text}: {error}");
            }
        }
    }
}
