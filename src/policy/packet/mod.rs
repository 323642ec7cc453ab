//! Parses packet headers in place, and rewrites the few bytes that exitmark may change.
//!
//! Imports no other module of exitmark, and knows no policy. A header is never cast to a struct:
//! fields are read at their offsets, each read bounds-checked once. The parser is independent of
//! etherparse, which serves as the oracle of the property tests.

mod checksum;
mod dscp;
mod ethernet;
mod fast_path;
mod headers;
mod ipv4;
mod ipv6;
mod parse;
mod readdress;
mod rewrite;
mod vlan;

pub use checksum::{internet_checksum, ipv4_header_checksum_is_good, replace_word};
pub use dscp::{Dscp, DscpError, Ecn};
pub use ethernet::{
    ETHERNET_HEADER_BYTES, MAX_VLAN_TAGS, MacAddr, MacAddrError, MacPair, tag_bytes,
};
pub use fast_path::{fast_path_v4, fast_path_v6};
pub use headers::{Address, Fragment, Headers, Malformed, Packet, Ports, Tcp, Version, protocol};
pub use ipv6::MAX_EXTENSION_HEADERS;
pub use parse::{destination, headers_end, parse, source, tags, transport};
pub(crate) use readdress::is_plain;
pub use readdress::{End, PrefixChange, Readdressing};
pub use rewrite::{set_destination_mac, set_dscp, set_macs};
pub use vlan::{Retagged, VlanTags};

/// Two bytes at `offset`, in network order, if they are there.
#[inline]
fn be16(bytes: &[u8], offset: usize) -> Option<u16> {
    let pair = bytes.get(offset..offset + 2)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}
