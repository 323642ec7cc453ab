//! Parses a consensus document into endpoints by kind, validity and signatures.
//!
//! The only module that uses tor-netdoc, whose API changes between releases. Reads no file and no
//! clock. Parsing returns an [`UncheckedDocument`], because a document with the right syntax may
//! not be what the authorities signed.
//!
//! This uses the newer of tor-netdoc's two parsers, `parse2`. The older one drops the authorities'
//! DirPort and address, reports many errors without a line, and does not read the ORPort of
//! `dir-source`.

mod certificates;
mod framing;
mod signatures;

use super::{Authorities, DocumentError, Identity, SignatureError, Validity};
use exitmark_policy::Endpoint;
use framing::Complete;
use signatures::{Claims, Signature};
use std::fmt;
use std::net::SocketAddr;
use tor_netdoc::doc::netstatus::{
    ConsensusAuthoritySection, DirectorySignatureHashAlgo, Lifetime, md, plain,
};
use tor_netdoc::parse2::{NetdocParseable, NetdocParseableUnverified, ParseInput, parse_netdoc};
use tor_netdoc::types::KeywordOrString;

pub use certificates::Certificates;
pub use signatures::Signatures;

/// The flavour of a consensus (dir-spec, "Consensus flavors").
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flavor {
    /// The plain one, `cached-consensus`: lists descriptors.
    Ns,
    /// `cached-microdesc-consensus`: lists microdescriptors.
    Microdesc,
}

impl Flavor {
    /// The flavour's name in the protocol.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ns => "ns",
            Self::Microdesc => "microdesc",
        }
    }
}

impl fmt::Display for Flavor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The parts of a consensus that exitmark uses. Endpoints are in the document's order and may
/// repeat.
pub struct ConsensusDocument {
    /// The flavour; both list the same endpoints.
    pub flavor: Flavor,
    /// The period in which the document is valid.
    pub validity: Validity,
    /// Every relay's address and ORPort, from its `r` line.
    pub orports: Vec<Endpoint>,
    /// Further addresses and ORPorts of relays, from `a` lines.
    pub further: Vec<Endpoint>,
    /// Every authority's DirPort and ORPort, from its `dir-source` line. Other relays' DirPorts are
    /// not relay traffic: relays do not connect to them, and an exit may open streams to them.
    pub authorities: Vec<Endpoint>,
}

/// How many endpoints of each kind a document lists, including repetitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// ORPorts on `r` lines: one per relay.
    pub orports: usize,
    /// ORPorts on `a` lines: further addresses of relays, IPv6 in today's network.
    pub further: usize,
    /// DirPorts and ORPorts on `dir-source` lines.
    pub authorities: usize,
}

impl ConsensusDocument {
    /// The number of endpoints of each kind.
    pub fn counts(&self) -> Counts {
        Counts {
            orports: self.orports.len(),
            further: self.further.len(),
            authorities: self.authorities.len(),
        }
    }

    /// The endpoints of every kind, one kind after the other.
    pub fn endpoints(&self) -> impl Iterator<Item = Endpoint> + '_ {
        [&self.orports, &self.further, &self.authorities]
            .into_iter()
            .flatten()
            .copied()
    }
}

impl fmt::Debug for ConsensusDocument {
    /// Shows counts only: addresses must not be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsensusDocument")
            .field("flavor", &self.flavor)
            .field("validity", &self.validity)
            .field("counts", &self.counts())
            .finish()
    }
}

/// A parsed consensus whose signatures are not checked yet. Its content is available after
/// [`UncheckedDocument::verify`], or by an explicit [`UncheckedDocument::accept_unchecked`].
pub struct UncheckedDocument {
    document: ConsensusDocument,
    claims: Claims,
}

impl fmt::Debug for UncheckedDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.document.fmt(f)
    }
}

impl UncheckedDocument {
    /// Parses a document of the flavour that its header announces.
    ///
    /// # Errors
    /// The problem with its line or field, without any of the document's text.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let (text, flavor) = framing::check(bytes)?;
        let complete = framing::complete(text);

        // The entries of the two flavours are two types with the same fields.
        macro_rules! read {
            ($netstatus:ty) => {{
                let netstatus = parse_as::<$netstatus>(&complete, flavor)?;
                let (body, data) = netstatus.unwrap_unverified();
                let end = data.unsigned_body_len - complete.added_bytes;
                let digest = signatures::digest(text.get(..end).unwrap_or_default(), flavor);
                let signatures = data.sigs.directory_signature.into_iter();
                let claimed = signatures.map(|signature| claim(signature, flavor, &digest));
                let signatures: Vec<_> = claimed.collect();
                let written = signatures::as_tor_writes(&signatures, flavor);
                let claims = Claims {
                    as_tor_writes: text.get(end..) == Some(&written),
                    authors: authors(&body.authority),
                    signatures,
                };
                let entries = body.routers.iter().map(|router| {
                    let orport = Endpoint::new(router.r.ip.into(), router.r.or_port);
                    (orport, router.a.as_slice())
                });
                let validity = validity(&body.preamble.lifetime)?;
                let authorities = authority_endpoints(&body.authority);
                let document = gather(text, flavor, validity, authorities, entries)?;
                Self { document, claims }
            }};
        }
        let unchecked = match flavor {
            Flavor::Ns => read!(plain::NetworkStatusUnverified),
            Flavor::Microdesc => read!(md::NetworkStatusUnverified),
        };
        if unchecked.document.orports.is_empty() {
            return Err(DocumentError::NoRelays);
        }
        Ok(unchecked)
    }

    /// Returns the document if a majority of `authorities` signed it and no signature that can be
    /// checked is bad. A certificate must not have expired at the document's `valid-after`; the
    /// clock is not read, so an old document passes (see [`Validity::age`]).
    ///
    /// # Errors
    /// [`SignatureError::Form`] if the signatures are not byte for byte as tor writes them.
    /// Otherwise the first signature that is not acceptable: `NoAuthor`, `Twice`, `NoCertificate`
    /// or `Bad`, with its number, counted from 1. If all are, [`SignatureError::TooFew`], or
    /// [`SignatureError::Unknown`] if the missing ones may be those of unknown authorities.
    ///
    /// # Examples
    /// For the Tor network, the documents are tor's `cached-microdesc-consensus` and
    /// `cached-certs`, and the authorities are [`Authorities::tor_network`]. Here a network of
    /// three authorities made them.
    ///
    /// ```
    /// use exitmark_relays::{Authorities, Certificates, Identity, SignatureError, UncheckedDocument};
    /// # use exitmark_lab::{authorities, consensus::ConsensusBuilder};
    /// # use exitmark_relays::{Flavor, Validity};
    /// # use std::time::{Duration, UNIX_EPOCH};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let network = authorities::Authorities::new(3);
    /// # let at = |hour: u64| UNIX_EPOCH + Duration::from_secs(1_700_000_000 + 3_600 * hour);
    /// # let validity = Validity {
    /// #     valid_after: at(0),
    /// #     fresh_until: at(1),
    /// #     valid_until: at(3),
    /// # };
    /// # let small = ConsensusBuilder {
    /// #     relays: 4,
    /// #     ..ConsensusBuilder::full_size(Flavor::Microdesc, validity)
    /// # };
    /// # let consensus = small.sign(&network);
    /// # let cached_certs = network.certificates_for(validity);
    /// # let identities = network.identities();
    /// let identities: Result<Vec<Identity>, _> = identities.iter().map(|id| id.parse()).collect();
    /// let authorities = Authorities::new(identities?);
    /// let certificates = Certificates::parse(cached_certs.as_bytes())?;
    ///
    /// let unchecked = UncheckedDocument::parse(consensus.as_bytes())?;
    /// let (document, signatures) = unchecked.verify(&certificates, &authorities)?;
    /// assert_eq!((signatures.good, signatures.needed), (3, 2));
    /// assert_eq!(document.counts().orports, 4);
    ///
    /// // Without certificates, no signature can be checked, and none counts.
    /// let unchecked = UncheckedDocument::parse(consensus.as_bytes())?;
    /// let error = unchecked.verify(&Certificates::default(), &authorities).unwrap_err();
    /// assert_eq!(error, SignatureError::TooFew { good: 0, needed: 2 });
    /// # Ok(())
    /// # }
    /// ```
    pub fn verify(
        self,
        certificates: &Certificates,
        authorities: &Authorities,
    ) -> Result<(ConsensusDocument, Signatures), SignatureError> {
        let valid_after = self.document.validity.valid_after;
        let signatures = self.claims.check(valid_after, certificates, authorities)?;
        Ok((self.document, signatures))
    }

    /// Returns the document without checking signatures. Any writer of the file then controls what
    /// is steered, so the caller must log that.
    pub fn accept_unchecked(self) -> ConsensusDocument {
        self.document
    }
}

fn claim(
    signature: tor_netdoc::doc::netstatus::Signature,
    flavor: Flavor,
    digest: &[u8],
) -> Signature {
    use DirectorySignatureHashAlgo::Sha256;
    use KeywordOrString::Known;
    // Each flavour has one algorithm; signatures with another one do not count.
    let is_of_flavor = match flavor {
        Flavor::Ns => signature.digest_algo.0.is_none(),
        Flavor::Microdesc => matches!(signature.digest_algo.0, Some(Known(Sha256))),
    };
    let keys = signature.key_ids;
    Signature {
        identity: Identity::new(keys.id_fingerprint.to_bytes()),
        signing_key: Identity::new(keys.sk_fingerprint.to_bytes()),
        digest: is_of_flavor.then(|| digest.to_vec()),
        signature: signature.signature,
    }
}

/// The authorities on the `dir-source` lines, including former keys.
fn authors(section: &ConsensusAuthoritySection) -> Vec<Identity> {
    let current = section.authorities.iter();
    let current = current.map(|authority| *authority.dir_source.identity);
    let superseded = section.superseded_keys.iter().map(|key| **key.identity());
    let all = current.chain(superseded);
    all.map(|id| Identity::new(id.to_bytes())).collect()
}

fn parse_as<D: NetdocParseable>(
    complete: &Complete<'_>,
    announced: Flavor,
) -> Result<D, DocumentError> {
    let text = &*complete.text;
    // The loader puts the file's name in front of every error, so the parser gets none.
    parse_netdoc(&ParseInput::new(text, "")).map_err(|error| {
        let line = complete.line(error.lno);
        match framing::entry_flavor(text, error.lno) {
            Some(found) if found != announced => DocumentError::WrongFlavor {
                line,
                announced,
                found,
            },
            _ => DocumentError::Unparsable {
                line,
                column: error.column,
                reason: error.problem.to_string(),
            },
        }
    })
}

fn validity(lifetime: &Lifetime) -> Result<Validity, DocumentError> {
    let validity = Validity {
        valid_after: lifetime.valid_after(),
        fresh_until: lifetime.fresh_until(),
        valid_until: lifetime.valid_until(),
    };
    // tor-netdoc checks their order only when it verifies signatures.
    if validity.is_ordered() {
        Ok(validity)
    } else {
        Err(DocumentError::Lifetime)
    }
}

/// The endpoints of the `dir-source` lines. Port 0 means that the authority has no such port.
fn authority_endpoints(section: &ConsensusAuthoritySection) -> Vec<Endpoint> {
    let current = section.authorities.iter().map(|authority| {
        let source = &authority.dir_source;
        (source.ip, source.dir_port, source.or_port)
    });
    // Lines with a `-legacy` name repeat an authority under its former key.
    let superseded = section.superseded_keys.iter();
    let superseded = superseded.map(|key| (*key.ip(), *key.dir_port(), *key.or_port()));
    let endpoints = current
        .chain(superseded)
        .flat_map(|(address, dirport, orport)| {
            [dirport, orport].map(|port| Endpoint::new(address, port))
        });
    endpoints.filter(|endpoint| endpoint.port != 0).collect()
}

/// Collects the endpoints; an entry is a relay's ORPort and the endpoints of its `a` lines.
fn gather<'a>(
    text: &str,
    flavor: Flavor,
    validity: Validity,
    authorities: Vec<Endpoint>,
    entries: impl Iterator<Item = (Endpoint, &'a [SocketAddr])>,
) -> Result<ConsensusDocument, DocumentError> {
    let mut document = ConsensusDocument {
        flavor,
        validity,
        orports: Vec::new(),
        further: Vec::new(),
        authorities,
    };
    for (index, (orport, further)) in entries.enumerate() {
        if orport.port == 0 {
            let line = framing::entry_line(text, index);
            return Err(DocumentError::PortZero(line, "the ORPort of the `r` line"));
        }
        document.orports.push(orport);
        for (position, socket) in further.iter().enumerate() {
            if socket.port() == 0 {
                let line = framing::further_line(text, index, position);
                return Err(DocumentError::PortZero(line, "the port of the `a` line"));
            }
            document.further.push(Endpoint::from(*socket));
        }
    }
    Ok(document)
}
