//! The pinned identities of the directory authorities, which may sign a consensus.
//!
//! Identities only; the signing keys change every few months and come with `cached-certs`.

use std::fmt;
use std::str::FromStr;

/// A directory authority's v3 identity: the SHA-1 digest of its identity key (dir-spec,
/// "Creating key certificates", `fingerprint`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity([u8; 20]);

/// The set of authorities whose signatures count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorities(Vec<Identity>);

/// The authorities of the Tor network, as tor 0.4.9 has them built in (`v3ident` in its
/// auth_dirs.inc): moria1, tor26, dizum, gabelmoo, dannenberg, maatuska, longclaw, bastet and
/// faravahar.
const TOR_NETWORK: [&str; 9] = [
    "F533C81CEF0BC0267857C99B2F471ADF249FA232",
    "2F3DF9CA0E5D36F2685A2DA67184EB8DCB8CBA8C",
    "E8A9C45EDE6D711294FADF8E7951F4DE6CA56B58",
    "ED03BB616EB2F60BEC80151114BB25CEF515B226",
    "0232AF901C31A04EE9848595AF9BB7620D4C5B2E",
    "49015F787433103580E3B66A1707A00E60F2D15B",
    "23D15D965BC35114467363C165C4F724B64B4F66",
    "27102BC123E7AF1D4741AE047E160C91ADC76B21",
    "70849B868D606BAECFB6128C5E3D782029AA394F",
];

/// Not 40 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not the identity of a directory authority: 40 hexadecimal digits, as in `fingerprint` of \
     its certificate or `v3ident` of tor's DirAuthority"
)]
pub struct NotAnIdentity;

impl Identity {
    /// Makes an identity of its digest.
    pub const fn new(digest: [u8; 20]) -> Self {
        Self(digest)
    }

    /// The 20 bytes of the SHA-1 digest.
    pub const fn bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

impl FromStr for Identity {
    type Err = NotAnIdentity;

    fn from_str(text: &str) -> Result<Self, NotAnIdentity> {
        let mut digest = [0; 20];
        // `from_str_radix` would accept a sign, so check the digits first.
        if text.len() != 40 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NotAnIdentity);
        }
        for (index, byte) in digest.iter_mut().enumerate() {
            let digits = text.get(2 * index..2 * index + 2).ok_or(NotAnIdentity)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| NotAnIdentity)?;
        }
        Ok(Self(digest))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02X}"))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Authorities {
    /// The nine authorities of the Tor network.
    pub fn tor_network() -> Self {
        Self::new(TOR_NETWORK.iter().filter_map(|text| text.parse().ok()))
    }

    /// The authorities of another network. Duplicates count once.
    pub fn new(identities: impl IntoIterator<Item = Identity>) -> Self {
        let mut identities: Vec<_> = identities.into_iter().collect();
        identities.sort_unstable();
        identities.dedup();
        Self(identities)
    }

    /// Whether this is the identity of one of the authorities.
    pub fn include(&self, identity: &Identity) -> bool {
        self.0.binary_search(identity).is_ok()
    }

    /// The number of signatures needed: more than half of the authorities.
    pub const fn majority(&self) -> usize {
        self.0.len() / 2 + 1
    }

    /// All identities, in ascending order, each once.
    pub fn iter(&self) -> impl Iterator<Item = Identity> + '_ {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tor_network_has_nine_authorities_and_needs_five() {
        let authorities = Authorities::tor_network();
        assert_eq!(authorities.iter().count(), 9);
        assert_eq!(authorities.majority(), 5);
    }

    #[test]
    fn an_identity_is_forty_digits() {
        let text = TOR_NETWORK[0];
        let identity: Identity = text.parse().unwrap();
        assert_eq!(identity.to_string(), text);
        assert_eq!(text.to_lowercase().parse(), Ok(identity));
        for bad in [
            "",
            &text[1..],
            &format!("{text}0"),
            &text.replace('F', "G"),
            &text.replacen("F5", "+5", 1),
            &format!("{}é", &text[2..]),
        ] {
            assert_eq!(bad.parse::<Identity>(), Err(NotAnIdentity), "{bad}");
        }
    }

    #[test]
    fn a_majority_is_more_than_half() {
        let of = |count: u8| Authorities::new((0..count).map(|n| Identity::new([n; 20])));
        let majorities = [1, 2, 3, 4, 9].map(|count| of(count).majority());
        assert_eq!(majorities, [1, 2, 2, 3, 5]);
        let twice = Authorities::new([Identity::new([1; 20]); 2]);
        assert_eq!(twice.majority(), 1);
    }
}
