//! A consensus document: bytes in, endpoints by kind, validity and signatures out.
//!
//! The only room that knows tor-netdoc, whose API moves between releases. Reads no file, asks
//! no clock, and believes nothing: what it returns is an [`UncheckedDocument`], because bytes
//! with the right shape are not yet what the authorities signed.
//!
//! Of tor-netdoc's two parsers this takes the newer one, `parse2`. The older one drops the
//! authorities' DirPort and address, names no line for many errors, and does not read the ORPort of
//! `dir-source`.

mod certificates;
mod framing;
mod signatures;

use super::{Authorities, DocumentError, Identity, SignatureError, Validity};
use crate::policy::Endpoint;
use framing::Complete;
use signatures::{Claims, Signature};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use tor_netdoc::doc::netstatus::{
    ConsensusAuthoritySection, DirectorySignatureHashAlgo, Lifetime, md, plain,
};
use tor_netdoc::parse2::{NetdocParseable, NetdocParseableUnverified, ParseInput, parse_netdoc};
use tor_netdoc::types::KeywordOrString;

pub use certificates::Certificates;
pub use signatures::Signatures;

/// A consensus' flavour: dir-spec, "Consensus flavors".
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

/// What exitmark wants to know of a consensus. Endpoints stand in the document's order and may
/// repeat.
pub struct ConsensusDocument {
    /// Which flavour it is; both list the same endpoints.
    pub flavor: Flavor,
    /// From when until when it holds.
    pub validity: Validity,
    /// Every relay's address and ORPort, from its `r` line.
    pub orports: Vec<Endpoint>,
    /// Every `a` line: further ORPorts of relays, with ports of their own.
    pub further: Vec<Endpoint>,
    /// Every authority's DirPort and ORPort, from its `dir-source` line. Other relays' DirPorts are
    /// not relay traffic: no relay dials them, and an exit may open streams to them.
    pub authorities: Vec<Endpoint>,
}

/// How many endpoints of each kind a document lists, repetitions counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// ORPorts on `r` lines: one per relay.
    pub orports: usize,
    /// `a` lines.
    pub further: usize,
    /// DirPorts and ORPorts on `dir-source` lines.
    pub authorities: usize,
}

impl ConsensusDocument {
    /// How many endpoints of each kind there are.
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
    /// Counts only: addresses do not belong in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsensusDocument")
            .field("flavor", &self.flavor)
            .field("validity", &self.validity)
            .field("counts", &self.counts())
            .finish()
    }
}

/// A document that has the shape of a consensus and whose signatures nobody has checked. The
/// ways out are to check them, or a decision that its caller has to name.
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
    /// Reads a document of either flavour, as its header announces.
    ///
    /// # Errors
    /// What is wrong and at which line or field, without any of the document's text.
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
                let signatures = data
                    .sigs
                    .directory_signature
                    .into_iter()
                    .map(|signature| claim(signature, flavor, &digest))
                    .collect::<Vec<_>>();
                let written = signatures::as_tor_writes(&signatures, flavor);
                let claims = Claims {
                    as_tor_writes: text.get(end..) == Some(&written),
                    authors: authors(&body.authority),
                    signatures,
                };
                let entries = body.routers.iter().map(|router| Entry {
                    address: router.r.ip,
                    orport: router.r.or_port,
                    further: &router.a,
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

    /// The document, if most of `authorities` signed it and no signature that can be checked is
    /// bad. A certificate must not have expired at the document's `valid-after`.
    ///
    /// # Errors
    /// Which signature is missing or bad, and why.
    pub fn verify(
        self,
        certificates: &Certificates,
        authorities: &Authorities,
    ) -> Result<(ConsensusDocument, Signatures), SignatureError> {
        let valid_after = self.document.validity.valid_after;
        let signatures = self.claims.check(valid_after, certificates, authorities)?;
        Ok((self.document, signatures))
    }

    /// The document, believed as it stands. Whoever can write the file decides what is steered,
    /// so the caller has to say so in the log.
    pub fn accept_unchecked(self) -> ConsensusDocument {
        self.document
    }
}

/// The fields of a relay's entry that carry endpoints.
struct Entry<'a> {
    address: Ipv4Addr,
    orport: u16,
    further: &'a [SocketAddr],
}

fn claim(
    signature: tor_netdoc::doc::netstatus::Signature,
    flavor: Flavor,
    digest: &[u8],
) -> Signature {
    use KeywordOrString::Known;
    // Each flavour has one algorithm; whoever signs with another one signs for nobody.
    let is_of_flavor = matches!(
        (flavor, &signature.digest_algo.0),
        (Flavor::Ns, None)
            | (
                Flavor::Microdesc,
                Some(Known(DirectorySignatureHashAlgo::Sha256))
            )
    );
    let keys = signature.key_ids;
    Signature {
        identity: Identity::new(keys.id_fingerprint.to_bytes()),
        signing_key: Identity::new(keys.sk_fingerprint.to_bytes()),
        digest: is_of_flavor.then(|| digest.to_vec()),
        signature: signature.signature,
    }
}

/// Whom the `dir-source` lines name, former keys included.
fn authors(section: &ConsensusAuthoritySection) -> Vec<Identity> {
    let current = section
        .authorities
        .iter()
        .map(|authority| *authority.dir_source.identity);
    let superseded = section.superseded_keys.iter().map(|key| **key.identity());
    current
        .chain(superseded)
        .map(|identity| Identity::new(identity.to_bytes()))
        .collect()
}

fn parse_as<D: NetdocParseable>(
    complete: &Complete<'_>,
    announced: Flavor,
) -> Result<D, DocumentError> {
    let text = &*complete.text;
    // The loader puts the file's name in front of every error; the parser need not know it.
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
    // tor-netdoc leaves their order to signature checking.
    if validity.is_ordered() {
        Ok(validity)
    } else {
        Err(DocumentError::Lifetime)
    }
}

/// A port of 0 on a `dir-source` line means that the authority has none.
fn authority_endpoints(section: &ConsensusAuthoritySection) -> Vec<Endpoint> {
    let current = section.authorities.iter().map(|authority| {
        let source = &authority.dir_source;
        (source.ip, source.dir_port, source.or_port)
    });
    // Lines with a `-legacy` name repeat an authority for the sake of its former key.
    let superseded = section
        .superseded_keys
        .iter()
        .map(|key| (*key.ip(), *key.dir_port(), *key.or_port()));
    current
        .chain(superseded)
        .flat_map(|(address, dirport, orport)| {
            [dirport, orport].map(|port| Endpoint::new(address, port))
        })
        .filter(|endpoint| endpoint.port != 0)
        .collect()
}

fn gather<'a>(
    text: &str,
    flavor: Flavor,
    validity: Validity,
    authorities: Vec<Endpoint>,
    entries: impl Iterator<Item = Entry<'a>>,
) -> Result<ConsensusDocument, DocumentError> {
    let mut document = ConsensusDocument {
        flavor,
        validity,
        orports: Vec::new(),
        further: Vec::new(),
        authorities,
    };
    for (index, entry) in entries.enumerate() {
        if entry.orport == 0 {
            return Err(DocumentError::PortZero {
                line: framing::entry_line(text, index),
                field: "the ORPort of the `r` line",
            });
        }
        let address = entry.address.into();
        document.orports.push(Endpoint::new(address, entry.orport));
        for (position, socket) in entry.further.iter().enumerate() {
            if socket.port() == 0 {
                return Err(DocumentError::PortZero {
                    line: framing::further_line(text, index, position),
                    field: "the port of the `a` line",
                });
            }
            let endpoint = Endpoint::new(socket.ip(), socket.port());
            document.further.push(endpoint);
        }
    }
    Ok(document)
}
