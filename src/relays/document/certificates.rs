//! `cached-certs`: the authorities' certificates of their signing keys.
//!
//! Certificates that cannot be parsed are skipped and counted, which is not an error: tor keeps old
//! ones, and those of former authorities. A missing certificate shows when a signature needs it.

use super::DocumentError;
use crate::Identity;
use crate::document::framing;
use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;
use std::time::SystemTime;
use tor_llcrypto::pk::rsa::{PublicKey, RsaIdentity};
use tor_netdoc::doc::authcert::AuthCertUnverified;
use tor_netdoc::parse2::{NetdocParseableUnverified, ParseInput, parse_netdoc};

/// More than tor ever keeps; bounds the parsing time.
const MAX_CERTIFICATES: usize = 512;
const BEGINNING: &str = "dir-key-certificate-version ";

/// The certificates of a `cached-certs` file, by authority and signing key.
#[derive(Default)]
pub struct Certificates {
    by_keys: HashMap<(Identity, Identity), Vec<Certificate>>,
    unusable: usize,
}

/// One certificate. Its own signatures are checked when its key is first used.
struct Certificate {
    document: AuthCertUnverified,
    key: OnceLock<Option<PublicKey>>,
}

impl Certificates {
    /// Parses tor's `cached-certs`.
    ///
    /// # Errors
    /// The file is not a list of certificates, or its lines end in CR LF, which breaks every
    /// signature in it.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let text = framing::text(bytes)?;
        if !text.starts_with(BEGINNING) {
            return Err(DocumentError::NotCertificates);
        }
        let mut certificates = Self::default();
        for (number, one) in pieces(text).enumerate() {
            if number >= MAX_CERTIFICATES {
                return Err(DocumentError::TooManyCertificates(MAX_CERTIFICATES));
            }
            let Ok(document) = parse_netdoc::<AuthCertUnverified>(&ParseInput::new(one, "")) else {
                certificates.unusable += 1;
                continue;
            };
            let (body, _) = document.inspect_unverified();
            let keys = body.key_ids();
            let digest = |id: &RsaIdentity| Identity::new(id.to_bytes());
            let ids = (digest(&keys.id_fingerprint), digest(&keys.sk_fingerprint));
            let key = OnceLock::new();
            let of_keys = certificates.by_keys.entry(ids).or_default();
            of_keys.push(Certificate { document, key });
        }
        Ok(certificates)
    }

    /// The signing key with this digest, if this authority certified it and the certificate has
    /// not expired by `at`. The beginning of a certificate is not checked: authorities sign with
    /// their next key some days before its certificate is dated.
    pub(super) fn key(
        &self,
        identity: Identity,
        signing_key: Identity,
        at: SystemTime,
    ) -> Option<&PublicKey> {
        self.by_keys
            .get(&(identity, signing_key))?
            .iter()
            .filter(|certificate| !certificate.has_expired(at))
            .find_map(Certificate::key)
    }

    /// Whether this authority has any valid certificate, for any key.
    pub(super) fn know(&self, identity: Identity, at: SystemTime) -> bool {
        let of_theirs = self.by_keys.iter().filter(|((one, _), _)| *one == identity);
        of_theirs
            .flat_map(|(_, certificates)| certificates)
            .any(|certificate| !certificate.has_expired(at) && certificate.key().is_some())
    }

    /// The number of parsed certificates, and of those that cannot be parsed.
    pub fn counts(&self) -> (usize, usize) {
        (self.by_keys.values().map(Vec::len).sum(), self.unusable)
    }
}

impl Certificate {
    fn has_expired(&self, at: SystemTime) -> bool {
        let (body, _) = self.document.inspect_unverified();
        at > body.expires()
    }

    /// The signing key, if identity key and signing key have signed each other.
    fn key(&self) -> Option<&PublicKey> {
        let checked = || {
            let (body, _) = self.document.inspect_unverified();
            let (own, key) = (*body.id_fingerprint(), body.signing_key().clone());
            // Checks that the certificate is consistent; the caller decides whether to trust it.
            self.document.clone().verify(&[own]).ok().map(|_| key)
        };
        self.key.get_or_init(checked).as_ref()
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (usable, unusable) = self.counts();
        write!(f, "Certificates({usable}, and {unusable} unusable)")
    }
}

/// Splits the text into certificates, each up to the first line of the next.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest
            .find("\ndir-key-certificate-version ")
            .map_or(rest.len(), |newline| newline + 1);
        let (one, behind) = rest.split_at(end);
        rest = behind;
        Some(one)
    })
}
