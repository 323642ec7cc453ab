//! Documents to a relay set: parses every source, checks who signed it, and unites all endpoints
//! with the static extras. All or nothing: one bad source is an error, and the caller keeps what
//! it had.
//!
//! Takes a few tens of milliseconds, so it belongs on a thread of its own; the daemon has it done
//! by a process of its own ([`super::Loader`]).

use super::{
    Authorities, Certificates, Counts, DocumentError, Flavor, LoadError, SignatureError,
    Signatures, UncheckedDocument, Validity, files,
};
use crate::policy::{Endpoint, EndpointSet, EndpointSetError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where a relay set comes from, and who is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// Consensus documents, of which all are united.
    pub files: Vec<Source>,
    /// Endpoints that no consensus lists: a bridge authority, relays of one's own.
    pub extra: Vec<Endpoint>,
    /// Who is believed.
    pub trust: Trust,
}

/// One consensus document and the certificates that go with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// tor's `cached-consensus` or `cached-microdesc-consensus`.
    pub consensus: PathBuf,
    /// tor's `cached-certs`.
    pub certificates: PathBuf,
}

/// Who is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Most of these authorities.
    MostOf(Authorities),
    /// Whoever can write the files.
    Anybody,
}

impl Source {
    /// A consensus with the certificates that tor keeps beside it.
    pub fn beside(consensus: PathBuf) -> Self {
        let certificates = consensus.with_file_name("cached-certs");
        Self {
            consensus,
            certificates,
        }
    }
}

/// A relay set and where it comes from.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Every endpoint that a source lists, the extras not among them; sorted, each once.
    pub listed: Vec<Endpoint>,
    /// One report per source, in the order given.
    pub sources: Vec<SourceReport>,
}

/// What one source contributed.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceReport {
    /// The file.
    pub path: PathBuf,
    /// Its flavour.
    pub flavor: Flavor,
    /// From when until when it holds.
    pub validity: Validity,
    /// Its signatures; none where nobody checked.
    pub signatures: Option<Signatures>,
    /// How many endpoints it lists, by kind.
    pub counts: Counts,
    /// How many different endpoints these are.
    pub distinct: usize,
    /// How long parsing and checking took, reading the file not included.
    pub parse_time: Duration,
}

/// Loads a relay set in this process.
///
/// # Errors
/// The first source that cannot be used and why, an extra with port 0, or a union that is too
/// large. Errors name files, lines and fields, and no address.
pub fn load(sources: &Sources) -> Result<Loaded, LoadError> {
    let mut loading = Loading::default();
    for source in &sources.files {
        let consensus = files::read(&source.consensus)?;
        let certificates = match sources.trust {
            Trust::MostOf(_) => Some(read_certificates(source)?),
            Trust::Anybody => None,
        };
        loading
            .add(
                &source.consensus,
                &consensus,
                certificates.as_deref(),
                &sources.trust,
            )
            .map_err(|problem| problem.of(source))?;
    }
    let loaded = loading.finish();
    loaded.with(&sources.extra)?;
    sources.warn();
    Ok(loaded)
}

fn read_certificates(source: &Source) -> Result<Vec<u8>, LoadError> {
    files::read(&source.certificates).map_err(files::about_certificates)
}

impl Sources {
    /// Says so where nobody checks who made the documents.
    pub(super) fn warn(&self) {
        if self.trust == Trust::Anybody && !self.files.is_empty() {
            tracing::warn!(
                sources = self.files.len(),
                "relays.verify = false: signatures are not checked; whoever can write the \
                 consensus files decides what is steered"
            );
        }
    }
}

impl Loaded {
    /// The set with these extras.
    ///
    /// # Errors
    /// An extra with port 0, or more than a set may hold.
    pub fn with(&self, extra: &[Endpoint]) -> Result<EndpointSet, LoadError> {
        unite(self.listed.iter().chain(extra).copied(), extra)
    }
}

/// The set of all these endpoints, of which `extra` are the operator's own.
pub(super) fn unite(
    endpoints: impl Iterator<Item = Endpoint>,
    extra: &[Endpoint],
) -> Result<EndpointSet, LoadError> {
    if let Some(index) = extra.iter().position(|endpoint| endpoint.port == 0) {
        return Err(LoadError::ExtraPortZero {
            position: index + 1,
        });
    }
    EndpointSet::new(endpoints).map_err(|error| match error {
        EndpointSetError::TooMany(count) => LoadError::TooMany { count },
        EndpointSetError::Clustered => LoadError::Clustered,
        EndpointSetError::PortZero => unreachable!("neither documents nor extras have a port 0"),
    })
}

/// What is wrong with a source, whose path its caller knows.
#[derive(Debug)]
pub(super) enum Problem {
    Document(DocumentError),
    Certificates(DocumentError),
    Signatures(SignatureError),
}

impl Problem {
    pub(super) fn of(self, source: &Source) -> LoadError {
        match self {
            Self::Document(problem) => LoadError::Document {
                path: source.consensus.clone(),
                problem,
            },
            Self::Certificates(problem) => LoadError::Document {
                path: source.certificates.clone(),
                problem,
            },
            Self::Signatures(problem) => LoadError::Signatures {
                path: source.consensus.clone(),
                problem,
            },
        }
    }
}

/// A set in the making.
#[derive(Default)]
pub(super) struct Loading {
    listed: Vec<Endpoint>,
    sources: Vec<SourceReport>,
}

impl Loading {
    /// Adds what a document lists, if it is to be believed.
    pub(super) fn add(
        &mut self,
        path: &Path,
        consensus: &[u8],
        certificates: Option<&[u8]>,
        trust: &Trust,
    ) -> Result<(), Problem> {
        let started = Instant::now();
        let document = UncheckedDocument::parse(consensus).map_err(Problem::Document)?;
        let (document, signatures) = match trust {
            Trust::MostOf(authorities) => {
                let certificates = Certificates::parse(certificates.unwrap_or_default())
                    .map_err(Problem::Certificates)?;
                let (document, signatures) = document
                    .verify(&certificates, authorities)
                    .map_err(Problem::Signatures)?;
                (document, Some(signatures))
            }
            Trust::Anybody => (document.accept_unchecked(), None),
        };
        let parse_time = started.elapsed();
        let distinct = match EndpointSet::new(document.endpoints()) {
            Ok(set) => set.len(),
            Err(EndpointSetError::TooMany(count)) => {
                return Err(Problem::Document(DocumentError::TooMany { count }));
            }
            Err(EndpointSetError::Clustered) => {
                return Err(Problem::Document(DocumentError::Clustered));
            }
            Err(EndpointSetError::PortZero) => unreachable!("a parsed document has no port 0"),
        };
        self.listed.extend(document.endpoints());
        self.sources.push(SourceReport {
            path: path.to_owned(),
            flavor: document.flavor,
            validity: document.validity,
            signatures,
            counts: document.counts(),
            distinct,
            parse_time,
        });
        Ok(())
    }

    pub(super) fn finish(mut self) -> Loaded {
        self.listed.sort_unstable();
        self.listed.dedup();
        Loaded {
            listed: self.listed,
            sources: self.sources,
        }
    }
}
