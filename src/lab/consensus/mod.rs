//! Synthetic consensus documents of full size and valid syntax.
//!
//! For tests, benchmarks and the demo on machines without tor. Deterministic: the same order gives
//! the same bytes, and its two flavours list the same endpoints, independent of the signers. All
//! addresses come from reserved ranges: 198.18.0.0/15 (RFC 2544), 192.0.2.0/24 (RFC 5737) and
//! 2001:db8::/32 (RFC 3849). Signatures are random bytes, or those of the lab's [`Authorities`].

mod relay;

use super::Random;
use super::authorities::{Authorities, address};
use super::netdoc::{hex, object};
use exitmark_policy::Endpoint;
use exitmark_relays::{Flavor, Validity, utc};
use relay::{Draw, Relay};
use sha1::{Digest, Sha1};
use sha2::Sha256;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};

/// The parameters of a document.
#[derive(Clone, Debug)]
pub struct ConsensusBuilder {
    /// The consensus flavour, `ns` or `microdesc` (dir-spec).
    pub flavor: Flavor,
    /// `valid-after`, `fresh-until` and `valid-until`, in whole seconds.
    pub validity: Validity,
    /// The seed of all random fields.
    pub seed: u32,
    /// The number of generated relays. Addresses repeat after 131,072.
    pub relays: u32,
    /// The number of authorities that [`write`](Self::write) generates; each signs.
    pub authorities: u8,
    /// Whether to write a `params` line; tor omits it if no authority votes for a parameter.
    pub has_params: bool,
    /// Endpoints to list in addition: IPv4 on an `r` line, IPv6 on an `a` line, each of a relay of
    /// its own.
    pub listed: Vec<Endpoint>,
}

impl ConsensusBuilder {
    /// A network of the size of Tor in the 2020s: 7,000 relays and 9 authorities.
    pub fn full_size(flavor: Flavor, validity: Validity) -> Self {
        Self {
            flavor,
            validity,
            seed: 1,
            relays: 7_000,
            authorities: 9,
            has_params: true,
            listed: Vec::new(),
        }
    }

    /// Writes the document (dir-spec, "Consensus formats") with generated authorities whose
    /// signatures are random bytes.
    pub fn write(&self) -> String {
        let mut draw = Draw(Random::new(!u64::from(self.seed)));
        let mut digest = || hex(&draw.bytes::<20>());
        let identities: Vec<String> = (0..self.authorities).map(|_| digest()).collect();
        let keys: Vec<String> = (0..self.authorities).map(|_| digest()).collect();
        let mut out = self.unsigned(&identities);
        let algorithm = self.algorithm();
        for (identity, key) in identities.iter().zip(keys) {
            out += &format!("directory-signature {algorithm}{identity} {key}\n");
            object(&mut out, "SIGNATURE", &draw.bytes::<256>());
        }
        out
    }

    /// Writes the document with these authorities, signed by all of them.
    pub fn sign(&self, authorities: &Authorities) -> String {
        self.sign_by(authorities, 0..authorities.count())
    }

    /// Writes the document with these authorities, signed by those with these numbers, in this
    /// order. A number may repeat.
    ///
    /// # Panics
    /// If a number is out of range.
    pub fn sign_by(
        &self,
        authorities: &Authorities,
        signers: impl IntoIterator<Item = u8>,
    ) -> String {
        let mut out = self.unsigned(&authorities.identities());
        // The signed part ends with the first `directory-signature` keyword and its space.
        let signed = [out.as_str(), "directory-signature "];
        let digest = match self.flavor {
            Flavor::Ns => digest::<Sha1>(signed),
            Flavor::Microdesc => digest::<Sha256>(signed),
        };
        for number in signers {
            out.push_str(&authorities.signature(number, self.algorithm(), &digest));
        }
        out
    }

    /// The algorithm field of a `directory-signature` line, with a space behind it.
    const fn algorithm(&self) -> &'static str {
        match self.flavor {
            Flavor::Ns => "",
            Flavor::Microdesc => "sha256 ",
        }
    }

    /// Everything before the signatures.
    fn unsigned(&self, identities: &[String]) -> String {
        let mut draw = Draw(Random::new(u64::from(self.seed)));
        let mut out = String::new();
        self.preamble(&mut out);
        for (number, identity) in (0..=u8::MAX).zip(identities) {
            let address = address(number);
            // Votes are not published, so any digest will do.
            let vote = hex(&Sha1::digest(identity));
            out += &format!(
                "dir-source labauth{number} {identity} {address} {address} 9030 9001\n\
                 contact nobody\n\
                 vote-digest {vote}\n",
            );
        }
        self.entries(&mut out, &mut draw);
        out.push_str("directory-footer\nbandwidth-weights Wbd=0 Wbe=0 Wbg=4000 Wbm=10000\n");
        out
    }

    fn preamble(&self, out: &mut String) {
        let header = match self.flavor {
            Flavor::Ns => "network-status-version 3",
            Flavor::Microdesc => "network-status-version 3 microdesc",
        };
        let validity = self.validity;
        *out += &format!(
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
             required-relay-protocols Cons=2 Desc=2 DirCache=2 Link=4-5 Microdesc=2 Relay=2\n",
            utc(validity.valid_after),
            utc(validity.fresh_until),
            utc(validity.valid_until),
        );
        if self.has_params {
            out.push_str("params circwindow=1000\n");
        }
    }

    fn entries(&self, out: &mut String, draw: &mut Draw) {
        let first_address = draw.number();
        let invented = (0..self.relays).map(|number| (number, None));
        let listed = (self.relays..).zip(self.listed.iter().copied().map(Some));
        for (number, listed) in invented.chain(listed) {
            // An odd step visits each of the 2^17 addresses of 198.18.0.0/15 once.
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
            // Drawn even if unused, so that one more listed relay does not change the others.
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

/// The validity from, fresh until and valid until these numbers of hours after `begin`.
pub fn hours_from(begin: SystemTime, hours: [u64; 3]) -> Validity {
    let times = hours.map(|hours| begin + Duration::from_secs(3600 * hours));
    let [valid_after, fresh_until, valid_until] = times;
    Validity {
        valid_after,
        fresh_until,
        valid_until,
    }
}

fn digest<D: Digest>(parts: [&str; 2]) -> Vec<u8> {
    let all = |digest: D, part| digest.chain_update(part);
    parts.into_iter().fold(D::new(), all).finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use exitmark_policy::EndpointSet;
    use exitmark_relays::UncheckedDocument;
    use std::collections::BTreeSet;
    use std::time::UNIX_EPOCH;

    fn builder(flavor: Flavor) -> ConsensusBuilder {
        let begin = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let validity = hours_from(begin, [0, 1, 3]);
        ConsensusBuilder {
            listed: vec![
                "203.0.113.9:22".parse().unwrap(),
                "[2001:db8:9::9]:25".parse().unwrap(),
            ],
            ..ConsensusBuilder::full_size(flavor, validity)
        }
    }

    #[test]
    fn both_flavours_are_accepted_and_list_the_same_endpoints() {
        let sets = [Flavor::Ns, Flavor::Microdesc].map(|flavor| {
            let builder = builder(flavor);
            let text = builder.write();
            assert_eq!(text, builder.write(), "the same builder, the same bytes");
            let document = UncheckedDocument::parse(text.as_bytes())
                .unwrap()
                .accept_unchecked();
            assert_eq!(document.flavor, flavor);
            assert_eq!(document.validity, builder.validity);
            let counts = document.counts();
            assert_eq!(counts.orports, 7_002);
            assert_eq!(counts.further, 2_335);
            assert_eq!(counts.authorities, 18);
            let set = EndpointSet::new(document.endpoints()).unwrap();
            for Endpoint { address, port } in builder.listed {
                assert!(set.contains(address, port));
            }
            set.iter().collect::<BTreeSet<_>>()
        });
        assert_eq!(sets[0], sets[1]);
    }

    #[test]
    fn the_relays_do_not_depend_on_the_signers() {
        let builder = builder(Flavor::Microdesc);
        let relays = |text: &str| {
            let from = text.find("\nr ").unwrap();
            text[from..text.find("directory-footer").unwrap()].to_owned()
        };
        let invented = relays(&builder.write());
        for count in [0, 1, 3] {
            let signed = builder.sign(&Authorities::new(count));
            assert_eq!(relays(&signed), invented);
            for keyword in ["dir-source", "directory-signature sha256"] {
                let lines = signed.matches(&format!("\n{keyword} ")).count();
                assert_eq!(lines, usize::from(count), "{keyword}");
            }
        }
    }

    #[test]
    fn another_seed_gives_another_document() {
        let one = builder(Flavor::Ns);
        let mut other = one.clone();
        other.seed = 2;
        assert_ne!(one.write(), other.write());
    }
}
