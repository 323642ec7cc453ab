//! Loads documents: parses each one, verifies its signatures, and unites the endpoints with the
//! static extras. [`load()`] merges all documents of its sources, and one that cannot be used fails
//! the whole load; [`super::refresh()`] judges each document by itself.
//!
//! A load takes a few tens of milliseconds, so it must not run on a thread that handles frames;
//! the daemon runs it in a separate process ([`super::Loader`]).

use super::{
    Authorities, Certificates, Counts, DocumentError, DocumentPattern, Flavor, Found, LoadError,
    SignatureError, Signatures, UncheckedDocument, Validity, files,
};
use exitmark_policy::{Endpoint, EndpointSet, EndpointSetError, MAX_ENDPOINTS};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// The sources of a relay set, and whose signatures are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// The consensus documents with a path of their own.
    pub files: Vec<DocumentFiles>,
    /// Further documents, by patterns of their paths.
    pub patterns: Vec<DocumentPattern>,
    /// Endpoints that no consensus lists, e.g. a bridge authority or private relays.
    pub extra: Vec<Endpoint>,
    /// Whose signatures are trusted.
    pub trust: Trust,
}

/// One consensus document and the certificates that go with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentFiles {
    /// tor's `cached-consensus` or `cached-microdesc-consensus`.
    pub consensus: PathBuf,
    /// tor's `cached-certs`. Not opened if signatures are not checked.
    pub certificates: PathBuf,
}

/// Whose signatures are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// A majority of these authorities must have signed.
    Majority(Authorities),
    /// Signatures are not checked: any writer of the files is trusted.
    Unverified,
}

impl DocumentFiles {
    /// A consensus with the `cached-certs` in the same directory.
    pub fn beside(consensus: PathBuf) -> Self {
        let certificates = consensus.with_file_name("cached-certs");
        Self {
            consensus,
            certificates,
        }
    }
}

/// A loaded relay set and its sources.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Every endpoint that a source lists, without the extras; sorted, without duplicates.
    pub listed: Vec<Endpoint>,
    /// One report per source, in the order given.
    pub sources: Vec<SourceReport>,
}

/// A report on one source: its document, its times, and how many endpoints it lists.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceReport {
    /// The path of the consensus.
    pub path: PathBuf,
    /// The flavour of the consensus.
    pub flavor: Flavor,
    /// The period in which the consensus is valid.
    pub validity: Validity,
    /// The counts of signatures; `None` if they were not checked.
    pub signatures: Option<Signatures>,
    /// The number of listed endpoints, by kind.
    pub counts: Counts,
    /// The number of different endpoints.
    pub distinct: usize,
    /// The time for parsing and checking, without reading the file.
    pub parse_time: Duration,
}

/// A document that was parsed and verified.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedDocument {
    /// Its path, its times, and its counts.
    pub report: SourceReport,
    /// The endpoints that it lists; sorted, without duplicates.
    pub listed: Vec<Endpoint>,
}

impl LoadedDocument {
    pub(super) const fn valid_after(&self) -> SystemTime {
        self.report.validity.valid_after
    }
}

impl FromIterator<LoadedDocument> for Loaded {
    fn from_iter<T: IntoIterator<Item = LoadedDocument>>(documents: T) -> Self {
        let mut loaded = Self::default();
        for mut document in documents {
            loaded.listed.append(&mut document.listed);
            loaded.sources.push(document.report);
        }
        loaded.listed.sort();
        loaded.listed.dedup();
        loaded
    }
}

/// Loads a relay set in this process: the union of all documents of the sources.
///
/// # Errors
/// The first unusable source, an extra with port 0, or a union that is too large. Errors name
/// files, lines and fields, but no address.
pub fn load(sources: &Sources) -> Result<Loaded, LoadError> {
    let files = sources.all()?;
    let documents = files.iter().map(|files| read(files, &sources.trust));
    sources.checked(documents.collect::<Result<_, _>>()?)
}

/// Loads a relay set in this process: the union of the newest documents of the sources. An unusable
/// document is logged and left out.
///
/// # Errors
/// No document can be used: the reason for the first one. An extra with port 0, or a union that is
/// too large.
pub fn load_newest(sources: &Sources) -> Result<Loaded, LoadError> {
    let found = sources.find(&BTreeSet::new());
    let (mut documents, mut problems) = (Vec::new(), found.problems);
    for files in &found.files {
        match read(files, &sources.trust) {
            Ok(document) => documents.push(document),
            Err(problem) => problems.push(problem),
        }
    }
    if documents.is_empty() && !problems.is_empty() {
        return Err(problems.swap_remove(0));
    }
    for problem in problems {
        tracing::warn!("a relay document is left out: {problem}");
    }
    let newest = documents.iter().map(LoadedDocument::valid_after).max();
    documents.retain(|document| Some(document.valid_after()) == newest);
    sources.checked(documents.into_iter().collect())
}

/// Reads one document and its certificates, and verifies it, in this process.
pub(super) fn read(files: &DocumentFiles, trust: &Trust) -> Result<LoadedDocument, LoadError> {
    let consensus = files::read(&files.consensus)?;
    let certificates = match trust {
        Trust::Majority(_) => {
            let read = files::read(&files.certificates);
            Some(read.map_err(files::about_certificates)?)
        }
        Trust::Unverified => None,
    };
    let document = verify(&files.consensus, &consensus, certificates.as_deref(), trust);
    document.map_err(|problem| problem.of(files))
}

impl Sources {
    /// Documents by their paths, without extras.
    pub const fn of(files: Vec<DocumentFiles>, trust: Trust) -> Self {
        Self {
            files,
            patterns: Vec::new(),
            extra: Vec::new(),
            trust,
        }
    }

    /// Whether documents are named, by paths or patterns; they need not exist.
    pub fn names_documents(&self) -> bool {
        !self.files.is_empty() || !self.patterns.is_empty()
    }

    /// Whether the document at this path is one of the sources; it need not exist.
    pub fn names(&self, path: &Path) -> bool {
        self.files.iter().any(|files| files.consensus == path)
            || self.patterns.iter().any(|pattern| pattern.matches(path))
    }

    /// The documents that exist now. If more match than a relay set is made of, those in `first` are
    /// found before the others.
    pub fn find(&self, first: &BTreeSet<PathBuf>) -> Found {
        let mut found = Found {
            files: self.files.clone(),
            ..Found::default()
        };
        for pattern in &self.patterns {
            pattern.find(first, &mut found);
        }
        found
    }

    /// The documents that exist now, or the first reason why they cannot be found.
    pub(super) fn all(&self) -> Result<Vec<DocumentFiles>, LoadError> {
        let found = self.find(&BTreeSet::new());
        match found.problems.into_iter().next() {
            Some(problem) => Err(problem),
            None => Ok(found.files),
        }
    }

    /// The loaded set, if the extras can be added to it.
    pub(super) fn checked(&self, loaded: Loaded) -> Result<Loaded, LoadError> {
        loaded.with(&self.extra)?;
        self.warn();
        Ok(loaded)
    }

    /// Logs a warning if signatures are not checked.
    pub(super) fn warn(&self) {
        if self.trust == Trust::Unverified && self.names_documents() {
            tracing::warn!(
                sources = self.files.len() + self.patterns.len(),
                "relays.verify = false: signatures are not checked; any writer of the consensus \
                 files controls what is steered"
            );
        }
    }
}

impl Loaded {
    /// The set united with these extras.
    ///
    /// # Errors
    /// An extra has port 0, or the union is too large.
    pub fn with(&self, extra: &[Endpoint]) -> Result<EndpointSet, LoadError> {
        unite(self.listed.iter().copied(), extra)
    }
}

/// The set of these endpoints, which are checked already, and of `extra`, the operator's own.
pub(super) fn unite(
    endpoints: impl Iterator<Item = Endpoint>,
    extra: &[Endpoint],
) -> Result<EndpointSet, LoadError> {
    if let Some(index) = extra.iter().position(|endpoint| endpoint.port == 0) {
        return Err(LoadError::ExtraPortZero(index + 1));
    }
    EndpointSet::new(endpoints.chain(extra.iter().copied())).map_err(|error| match error {
        EndpointSetError::TooMany(count) => LoadError::TooMany(count),
        EndpointSetError::Clustered => LoadError::Clustered,
        EndpointSetError::PortZero => unreachable!("neither documents nor extras have a port 0"),
    })
}

/// The problem with a source; the caller adds the path.
#[derive(Debug)]
pub(super) enum Problem {
    Document(DocumentError),
    Certificates(DocumentError),
    Signatures(SignatureError),
}

impl Problem {
    pub(super) fn of(self, source: &DocumentFiles) -> LoadError {
        let path = match self {
            Self::Certificates(_) => source.certificates.clone(),
            _ => source.consensus.clone(),
        };
        match self {
            Self::Document(one) | Self::Certificates(one) => LoadError::Document(path, one),
            Self::Signatures(one) => LoadError::Signatures(path, one),
        }
    }
}

/// Parses a document, and verifies it unless signatures are not checked.
pub(super) fn verify(
    path: &Path,
    consensus: &[u8],
    certificates: Option<&[u8]>,
    trust: &Trust,
) -> Result<LoadedDocument, Problem> {
    let started = Instant::now();
    let document = UncheckedDocument::parse(consensus).map_err(Problem::Document)?;
    let (document, signatures) = match trust {
        Trust::Majority(authorities) => {
            let certificates = Certificates::parse(certificates.unwrap_or_default());
            let certificates = certificates.map_err(Problem::Certificates)?;
            let verified = document.verify(&certificates, authorities);
            let (document, signatures) = verified.map_err(Problem::Signatures)?;
            (document, Some(signatures))
        }
        Trust::Unverified => (document.accept_unchecked(), None),
    };
    let parse_time = started.elapsed();
    let listed: BTreeSet<_> = document.endpoints().collect();
    let distinct = listed.len();
    if distinct > MAX_ENDPOINTS {
        let problem = DocumentError::TooMany(distinct);
        return Err(Problem::Document(problem));
    }
    Ok(LoadedDocument {
        report: SourceReport {
            path: path.to_owned(),
            flavor: document.flavor,
            validity: document.validity,
            signatures,
            counts: document.counts(),
            distinct,
            parse_time,
        },
        listed: listed.into_iter().collect(),
    })
}
