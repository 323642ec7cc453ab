//! Consensus documents that no authority ever signed: full size, valid syntax, made up.
//!
//! For tests, benchmarks and the demo on machines without a tor. Deterministic: the same order
//! gives the same bytes, and the two flavours of one order list the same endpoints. All
//! addresses come from ranges that belong to nobody: 198.18.0.0/15 (RFC 2544), 192.0.2.0/24
//! (RFC 5737) and 2001:db8::/32 (RFC 3849). Never a stand-in for a signed document: the
//! signatures are random bytes.

use super::Random;
use crate::policy::Endpoint;
use crate::relays::{Flavor, Validity, utc};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the document shall look like.
#[derive(Clone, Debug)]
pub struct Order {
    /// Its flavour.
    pub flavor: Flavor,
    /// Its three times; fractions of a second are lost.
    pub validity: Validity,
    /// Another seed makes another network.
    pub seed: u32,
    /// How many relays to invent. 131,072 have different addresses, then they repeat.
    pub relays: u32,
    /// How many authorities to invent; each signs. An address repeats after 256.
    pub authorities: u8,
    /// Endpoints to be listed beside the invented ones: IPv4 on an `r` line, IPv6 on an `a`
    /// line, each of a relay of its own.
    pub listed: Vec<Endpoint>,
}

impl Order {
    /// A network of the size that Tor had in the 2020s: 7,000 relays and 9 authorities.
    pub fn full_size(flavor: Flavor, validity: Validity) -> Self {
        Self {
            flavor,
            validity,
            seed: 1,
            relays: 7_000,
            authorities: 9,
            listed: Vec::new(),
        }
    }

    /// Writes the document: dir-spec, "Consensus formats".
    pub fn write(&self) -> String {
        let mut draw = Draw(Random::new(u64::from(self.seed)));
        let mut out = String::new();
        self.preamble(&mut out);
        let identities: Vec<[u8; 20]> = (0..self.authorities).map(|_| draw.bytes()).collect();
        for (number, identity) in (0..self.authorities).zip(&identities) {
            let address = Ipv4Addr::new(192, 0, 2, number.wrapping_add(1));
            line(
                &mut out,
                format_args!(
                    "dir-source labauth{number} {} {address} {address} 9030 9001\n\
                 contact nobody\n\
                 vote-digest {}",
                    hex(identity),
                    hex(&draw.bytes::<20>()),
                ),
            );
        }
        self.entries(&mut out, &mut draw);
        out.push_str("directory-footer\nbandwidth-weights Wbd=0 Wbe=0 Wbg=4000 Wbm=10000\n");
        let algorithm = match self.flavor {
            Flavor::Ns => "",
            Flavor::Microdesc => "sha256 ",
        };
        for identity in &identities {
            line(
                &mut out,
                format_args!(
                    "directory-signature {algorithm}{} {}",
                    hex(identity),
                    hex(&draw.bytes::<20>()),
                ),
            );
            pem(&mut out, &draw.bytes::<256>());
        }
        out
    }

    fn preamble(&self, out: &mut String) {
        let header = match self.flavor {
            Flavor::Ns => "network-status-version 3",
            Flavor::Microdesc => "network-status-version 3 microdesc",
        };
        let Validity {
            valid_after,
            fresh_until,
            valid_until,
        } = self.validity;
        line(
            out,
            format_args!(
                "{header}\n\
             vote-status consensus\n\
             consensus-method 33\n\
             valid-after {}\n\
             fresh-until {}\n\
             valid-until {}\n\
             voting-delay 300 300\n\
             client-versions 0.4.8.12,0.4.8.13\n\
             server-versions 0.4.8.12,0.4.8.13\n\
             known-flags Authority Exit Fast Guard HSDir Running Stable V2Dir Valid\n\
             recommended-client-protocols Cons=2 Desc=2 DirCache=2 Link=4-5 Microdesc=2 Relay=2\n\
             recommended-relay-protocols Cons=2 Desc=2 DirCache=2 Link=4-5 Microdesc=2 Relay=2\n\
             required-client-protocols Cons=2 Desc=2 Link=4 Microdesc=2 Relay=2\n\
             required-relay-protocols Cons=2 Desc=2 DirCache=2 Link=4-5 Microdesc=2 Relay=2\n\
             params circwindow=1000",
                utc(valid_after),
                utc(fresh_until),
                utc(valid_until),
            ),
        );
    }

    fn entries(&self, out: &mut String, draw: &mut Draw) {
        let first_address = draw.number();
        let invented = (0..self.relays).map(|number| (number, None));
        let listed = (self.relays..).zip(self.listed.iter().copied().map(Some));
        for (number, listed) in invented.chain(listed) {
            // An odd step visits each of the 2^17 addresses of 198.18.0.0/15 before any twice.
            let step = u64::from(number).wrapping_mul(0x9e37_79b1);
            let host = u32::try_from(first_address.wrapping_add(step) & 0x1_ffff).unwrap_or(0);
            let mut relay = Relay {
                number,
                address: Ipv4Addr::from(0xc612_0000 | host),
                orport: draw.pick([443, 443, 9001, 9001, 9001, 8443, 9090, 20_001]),
                dirport: draw.pick([0, 0, 0, 80, 9030, 9030, 9030, 9030]),
                further: None,
            };
            let interface = u128::from(draw.number());
            // Drawn whether it is used or not, so that listing one relay more shifts no other.
            let moved = draw.pick([0, 0, 0, 0, 0, 0, 0, 1]);
            match listed.map(|endpoint| (endpoint.address, endpoint.port)) {
                None if number % 3 == 0 => {
                    let address = Ipv6Addr::from(0x2001_0db8_u128 << 96 | interface);
                    relay.further = Some((address, relay.orport + moved));
                }
                None => {}
                Some((IpAddr::V4(address), port)) => {
                    (relay.address, relay.orport, relay.dirport) = (address, port, 0);
                }
                Some((IpAddr::V6(address), port)) => relay.further = Some((address, port)),
            }
            relay.write(out, self.flavor, draw);
        }
    }
}

struct Relay {
    number: u32,
    address: Ipv4Addr,
    orport: u16,
    dirport: u16,
    further: Option<(Ipv6Addr, u16)>,
}

impl Relay {
    fn write(&self, out: &mut String, flavor: Flavor, draw: &mut Draw) {
        let Self {
            number,
            address,
            orport,
            dirport,
            ..
        } = self;
        // Entries stand in the order of their identities.
        let mut identity: [u8; 20] = draw.bytes();
        identity[..4].copy_from_slice(&number.to_be_bytes());
        let identity = base64(&identity);
        let digest: [u8; 32] = draw.bytes();
        let in_entry = match flavor {
            Flavor::Ns => format!(" {}", base64(&digest[..20])),
            Flavor::Microdesc => String::new(),
        };
        line(
            out,
            format_args!(
                "r lab{number:06} {identity}{in_entry} 2038-01-01 00:00:00 {address} {orport} {dirport}"
            ),
        );
        if let Some((address, port)) = self.further {
            line(out, format_args!("a [{address}]:{port}"));
        }
        if flavor == Flavor::Microdesc {
            line(out, format_args!("m {}", base64(&digest)));
        }
        out.push_str(
            "s Exit Fast Guard Running Stable V2Dir Valid\n\
             v Tor 0.4.8.13\n\
             pr Cons=1-2 Desc=1-2 DirCache=2 FlowCtrl=1-2 HSDir=2 HSIntro=4-5 HSRend=1-2 \
             Link=1-5 LinkAuth=1,3 Microdesc=1-2 Padding=2 Relay=1-4\n\
             w Bandwidth=7800\n",
        );
        if flavor == Flavor::Ns {
            out.push_str("p accept 80,443\n");
        }
    }
}

/// All the chance that a made-up network needs.
struct Draw(Random);

impl Draw {
    fn number(&mut self) -> u64 {
        self.0.word()
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.number().to_be_bytes()[0])
    }

    fn pick(&mut self, from: [u16; 8]) -> u16 {
        from[usize::from(self.number().to_be_bytes()[0] >> 5)]
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02X}");
        out
    })
}

/// Base64 without padding, as entries have it.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let part = |index| usize::from(chunk.get(index).copied().unwrap_or(0));
        let bits = part(0) << 16 | part(1) << 8 | part(2);
        for position in 0..=chunk.len() {
            out.push(char::from(ALPHABET[bits >> (18 - 6 * position) & 0x3f]));
        }
    }
    out
}

/// A signature object: padded base64 in lines of 64 between its two marks.
fn pem(out: &mut String, bytes: &[u8]) {
    let mut text = base64(bytes);
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    out.push_str("-----BEGIN SIGNATURE-----");
    for (position, character) in text.chars().enumerate() {
        if position % 64 == 0 {
            out.push('\n');
        }
        out.push(character);
    }
    out.push_str("\n-----END SIGNATURE-----\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::EndpointSet;
    use crate::relays::UncheckedDocument;
    use std::collections::BTreeSet;
    use std::time::{Duration, UNIX_EPOCH};

    fn order(flavor: Flavor) -> Order {
        let at = |hour: u64| UNIX_EPOCH + Duration::from_secs(1_700_000_000 + 3_600 * hour);
        let validity = Validity {
            valid_after: at(0),
            fresh_until: at(1),
            valid_until: at(3),
        };
        Order {
            listed: vec![
                "203.0.113.9:22".parse().unwrap(),
                "[2001:db8:9::9]:25".parse().unwrap(),
            ],
            ..Order::full_size(flavor, validity)
        }
    }

    #[test]
    fn base64_agrees_with_rfc_4648() {
        for (bytes, text) in [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn is_accepted_in_both_flavours_and_they_list_the_same() {
        let sets = [Flavor::Ns, Flavor::Microdesc].map(|flavor| {
            let order = order(flavor);
            let text = order.write();
            assert_eq!(text, order.write(), "the same order, the same bytes");
            let document = UncheckedDocument::parse(text.as_bytes())
                .unwrap()
                .accept_unchecked();
            assert_eq!(document.flavor, flavor);
            assert_eq!(document.validity, order.validity);
            let counts = document.counts();
            assert_eq!(counts.orports, 7_002);
            assert_eq!(counts.further, 2_335);
            assert_eq!(counts.authorities, 18);
            assert!((4_000..5_000).contains(&counts.dirports), "{counts:?}");
            let set = EndpointSet::new(document.endpoints()).unwrap();
            for Endpoint { address, port } in order.listed {
                assert!(set.contains(address, port));
            }
            set.iter().collect::<BTreeSet<_>>()
        });
        assert_eq!(sets[0], sets[1]);
    }

    #[test]
    fn another_seed_is_another_network() {
        let one = order(Flavor::Ns);
        let other = Order {
            seed: 2,
            ..one.clone()
        };
        assert_ne!(one.write(), other.write());
    }
}
