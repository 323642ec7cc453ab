//! Test directory authorities with working keys.
//!
//! They sign the documents of [`ConsensusBuilder`](super::consensus::ConsensusBuilder) as tor's
//! authorities do, and write the key certificates that tor keeps in `cached-certs` (dir-spec,
//! "Creating key certificates"). Their private keys are derived from a small number and are not
//! secret: never configure them on a box that carries real traffic.
//!
//! Deterministic: the same number gives the same keys. Generating a key takes tens of
//! milliseconds, so each is generated once per process.

use super::Random;
use super::netdoc::{hex, object};
use exitmark_relays::{Validity, utc};
use rsa::pkcs1::EncodeRsaPublicKey;
use rsa::rand_core::{CryptoRng, Error, RngCore};
use rsa::{Pkcs1v15Sign, RsaPrivateKey, RsaPublicKey};
use sha1::{Digest, Sha1};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A set of authorities. A larger set of a family begins with the members of a smaller one.
#[derive(Clone)]
pub struct Authorities {
    members: Vec<Arc<Authority>>,
}

impl Authorities {
    /// The first `count` authorities of the family that the lab's boxes trust.
    pub fn new(count: u8) -> Self {
        Self::family(0, count)
    }

    /// The first `count` authorities of a family. Families have no key in common; 0 is that of
    /// [`new`](Self::new).
    pub fn family(family: u32, count: u8) -> Self {
        Self {
            members: (0..count).map(|number| known(family, number)).collect(),
        }
    }

    /// The number of authorities.
    pub fn count(&self) -> u8 {
        u8::try_from(self.members.len()).unwrap_or(u8::MAX)
    }

    /// Their identities, as in `dir-source` lines and configurations: 40 upper-case hexadecimal
    /// digits each.
    pub fn identities(&self) -> Vec<String> {
        let identity = |member: &Arc<Authority>| member.identity.fingerprint();
        self.members.iter().map(identity).collect()
    }

    /// The `authorities` line of a configuration's `[relays]` table.
    pub fn toml(&self) -> String {
        format!("authorities = {:?}", self.identities())
    }

    /// Tor's `cached-certs`: a key certificate of each, valid from `published` until `expires`, in
    /// whole seconds.
    pub fn certificates(&self, published: SystemTime, expires: SystemTime) -> String {
        (0..)
            .zip(&self.members)
            .map(|(number, member)| member.certificate(number, published, expires))
            .collect()
    }

    /// Like [`certificates`](Self::certificates), valid from 30 days before until 150 days after
    /// the document: tor's authorities issue certificates for months.
    pub fn certificates_for(&self, validity: Validity) -> String {
        let (published, expires) = (validity.valid_after, validity.valid_until);
        self.certificates(published - 30 * DAY, expires + 150 * DAY)
    }

    /// One authority's `directory-signature` line and object for a document with this digest.
    ///
    /// # Panics
    /// If `number` is out of range.
    pub(super) fn signature(&self, number: u8, algorithm: &str, digest: &[u8]) -> String {
        let Authority { identity, signing } = &*self.members[usize::from(number)];
        let (identity, key) = (identity.fingerprint(), signing.fingerprint());
        let mut out = format!("directory-signature {algorithm}{identity} {key}\n");
        object(&mut out, "SIGNATURE", &signing.sign(digest));
        out
    }
}

/// The authority of this family and number, generated on first use.
fn known(family: u32, number: u8) -> Arc<Authority> {
    static KNOWN: Mutex<BTreeMap<(u32, u8), Arc<Authority>>> = Mutex::new(BTreeMap::new());
    // Other threads wait: that is faster than generating the same keys.
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let authority = known.entry((family, number)).or_insert_with(|| {
        let seed = u64::from(family) << 32 | u64::from(number) << 1;
        Arc::new(Authority {
            identity: SigningKey::generate(seed),
            signing: SigningKey::generate(seed | 1),
        })
    });
    Arc::clone(authority)
}

/// The identity key and the signing key of an authority.
struct Authority {
    identity: SigningKey,
    signing: SigningKey,
}

impl Authority {
    fn certificate(&self, number: u8, published: SystemTime, expires: SystemTime) -> String {
        let Self { identity, signing } = self;
        let mut out = format!(
            "dir-key-certificate-version 3\n\
             dir-address {}:9030\n\
             fingerprint {}\n\
             dir-key-published {}\n\
             dir-key-expires {}\n\
             dir-identity-key\n",
            address(number),
            identity.fingerprint(),
            utc(published),
            utc(expires),
        );
        object(&mut out, "RSA PUBLIC KEY", &identity.der);
        out.push_str("dir-signing-key\n");
        object(&mut out, "RSA PUBLIC KEY", &signing.der);
        // The signing key signs the identity key's digest,
        out.push_str("dir-key-crosscert\n");
        object(&mut out, "ID SIGNATURE", &signing.sign(&identity.digest()));
        // and the identity key signs the certificate, this line included.
        out.push_str("dir-key-certification\n");
        let signature = identity.sign(&Sha1::digest(&out));
        object(&mut out, "SIGNATURE", &signature);
        out
    }
}

/// The address of an authority, from 192.0.2.0/24 (RFC 5737). It repeats after 256.
pub(super) fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number.wrapping_add(1))
}

struct SigningKey {
    private: RsaPrivateKey,
    /// The public key in PKCS #1 DER, the input of the fingerprint.
    der: Vec<u8>,
}

impl SigningKey {
    /// The shortest key that tor accepts: fast to generate, and not secret.
    const BITS: usize = 1024;

    fn generate(seed: u64) -> Self {
        let private = RsaPrivateKey::new(&mut Chance(Random::new(seed)), Self::BITS)
            .unwrap_or_else(|error| unreachable!("the size is one that RSA has: {error}"));
        let der = RsaPublicKey::from(&private)
            .to_pkcs1_der()
            .unwrap_or_else(|error| unreachable!("two numbers make a sequence: {error}"))
            .into_vec();
        Self { private, der }
    }

    fn digest(&self) -> [u8; 20] {
        Sha1::digest(&self.der).into()
    }

    fn fingerprint(&self) -> String {
        hex(&self.digest())
    }

    /// Signs a digest as tor does: PKCS #1 v1.5 padding without a digest algorithm identifier.
    fn sign(&self, digest: &[u8]) -> Vec<u8> {
        self.private
            .sign(Pkcs1v15Sign::new_unprefixed(), digest)
            .unwrap_or_else(|error| unreachable!("a digest is shorter than a key: {error}"))
    }
}

/// Adapts [`Random`] to the traits of `rsa`.
struct Chance(Random);

impl RngCore for Chance {
    fn next_u32(&mut self) -> u32 {
        self.0.wide()
    }

    fn next_u64(&mut self) -> u64 {
        self.0.word()
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        bytes.fill_with(|| self.0.byte());
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

/// Required by `rsa`. Not cryptographically secure: the seeds are public.
impl CryptoRng for Chance {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_sets_extend_smaller_ones_and_families_share_no_identity() {
        let three = Authorities::new(3).identities();
        assert_eq!(Authorities::new(2).identities(), three[..2]);
        assert_eq!(Authorities::new(0).count(), 0);
        for stranger in Authorities::family(1, 3).identities() {
            assert!(!three.contains(&stranger));
        }
        for identity in &three {
            assert_eq!(identity.len(), 40);
            assert!(identity.bytes().all(|b| b"0123456789ABCDEF".contains(&b)));
        }
    }

    #[test]
    fn generates_the_same_key_for_the_same_number() {
        let known = known(0, 0);
        assert_eq!(SigningKey::generate(0).der, known.identity.der);
        assert_eq!(SigningKey::generate(1).der, known.signing.der);
    }

    #[test]
    fn writes_a_valid_toml_line() {
        let authorities = Authorities::new(2);
        let table: toml::Table = authorities.toml().parse().unwrap();
        let listed: Vec<String> = table["authorities"].clone().try_into().unwrap();
        assert_eq!(listed, authorities.identities());
    }
}
