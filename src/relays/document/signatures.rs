//! Checks the authorities' signatures of a consensus (dir-spec, "Signature formats" and "Voting
//! and consensus").
//!
//! Stricter than tor, which accepts a document with enough good signatures: here every signature
//! that can be checked must be good. A file in which any byte differs from what the authorities
//! agreed on counts as damaged.

use super::certificates::Certificates;
use super::{Flavor, SignatureError};
use crate::{Authorities, Identity};
use base64ct::{Base64, Encoding};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::time::SystemTime;
use tor_llcrypto::d::Sha1;

/// The numbers of good and of needed signatures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Signatures {
    /// Good signatures of different pinned authorities.
    pub good: usize,
    /// The number of good signatures needed.
    pub needed: usize,
    /// Good signatures of authorities that are not pinned. tor keeps certificates of the
    /// authorities that it knows, so a tor of another release or network may know more.
    #[serde(default)]
    pub unknown: usize,
}

impl fmt::Display for Signatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} good, {} needed", self.good, self.needed)?;
        match self.unknown {
            0 => Ok(()),
            unknown => write!(f, ", {unknown} more of authorities that are not known here"),
        }
    }
}

/// One signature and the digest that it signs.
#[derive(Clone)]
pub(super) struct Signature {
    pub(super) identity: Identity,
    /// The digest of the signing key.
    pub(super) signing_key: Identity,
    /// The digest of the signed part; `None` for an algorithm that this flavour does not use.
    pub(super) digest: Option<Vec<u8>>,
    pub(super) signature: Vec<u8>,
}

/// The signatures of a document, unchecked.
#[derive(Clone)]
pub(super) struct Claims {
    pub(super) signatures: Vec<Signature>,
    /// The authorities that the signed part lists, including their former keys.
    pub(super) authors: Vec<Identity>,
    /// The signatures' text is byte for byte as tor writes it.
    pub(super) as_tor_writes: bool,
}

impl Claims {
    /// Checks every signature, in the order of the document. A certificate counts if it has not
    /// expired at `valid_after`.
    ///
    /// # Errors
    /// The signatures' text is not as tor writes it, a signer is not listed or signs twice, a
    /// signature is bad or lacks its certificate, or too few of `authorities` signed.
    pub(super) fn check(
        &self,
        valid_after: SystemTime,
        certificates: &Certificates,
        authorities: &Authorities,
    ) -> Result<Signatures, SignatureError> {
        if !self.as_tor_writes {
            return Err(SignatureError::Form);
        }
        let mut signers = BTreeSet::new();
        let (mut good, mut unknown) = (0, 0);
        for (number, signature) in (1..).zip(&self.signatures) {
            let identity = signature.identity;
            if !self.authors.contains(&identity) {
                return Err(SignatureError::NoAuthor(number));
            }
            if !signers.insert(identity) {
                return Err(SignatureError::Twice(number, identity));
            }
            let counts = authorities.include(&identity);
            let key = certificates.key(identity, signature.signing_key, valid_after);
            let (Some(key), Some(digest)) = (key, &signature.digest) else {
                // With any certificate of an authority, that of its signing key must be there too.
                if certificates.know(identity, valid_after) {
                    return Err(SignatureError::NoCertificate(number, identity));
                }
                // tor fetches no certificates of authorities that it does not know (any more).
                // Such a signature cannot be checked and does not count.
                continue;
            };
            if key.verify(digest, &signature.signature).is_err() {
                return Err(SignatureError::Bad(number, identity));
            }
            good += usize::from(counts);
            unknown += usize::from(!counts);
        }
        let needed = authorities.majority();
        let signatures = Signatures {
            good,
            needed,
            unknown,
        };
        match (good < needed, unknown) {
            (false, _) => Ok(signatures),
            (true, 0) => Err(SignatureError::TooFew { good, needed }),
            (true, _) => Err(SignatureError::Unknown(signatures)),
        }
    }
}

/// The digest of the signed part: everything up to the first signature, including its keyword and
/// a space (dir-spec, "Signature formats").
pub(super) fn digest(body: &str, flavor: Flavor) -> Vec<u8> {
    fn of<D: Digest>(body: &str) -> Vec<u8> {
        let digest = D::new()
            .chain_update(body)
            .chain_update("directory-signature ");
        digest.finalize().to_vec()
    }
    match flavor {
        Flavor::Ns => of::<Sha1>(body),
        Flavor::Microdesc => of::<Sha256>(body),
    }
}

/// The signatures as tor writes them. The text of the signatures is itself unsigned; accepting
/// only one form leaves no room for manipulation.
pub(super) fn as_tor_writes(signatures: &[Signature], flavor: Flavor) -> String {
    let mut out = String::new();
    let algorithm = match flavor {
        Flavor::Ns => "",
        Flavor::Microdesc => "sha256 ",
    };
    for signature in signatures {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "directory-signature {algorithm}{} {}\n-----BEGIN SIGNATURE-----",
            signature.identity, signature.signing_key
        );
        let text = Base64::encode_string(&signature.signature);
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, behind) = rest.split_at(rest.len().min(64));
            out.push_str(line);
            out.push('\n');
            rest = behind;
        }
        out.push_str("-----END SIGNATURE-----\n");
    }
    out
}
