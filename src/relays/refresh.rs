//! Loads each document of the sources by itself and offers them to the live set, so that one that
//! cannot be used never holds the others back.

use super::load::unite;
use super::{DocumentFiles, LiveSet, LoadError, LoadedDocument, Loader, Refused, Sources};
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

/// The time after which no further document is read. A start waits for the documents, and a service
/// manager waits for the start.
const TIME: Duration = Duration::from_secs(30);

/// What came of loading the documents of the sources.
#[derive(Debug, Default)]
pub struct Refresh {
    /// Whether a document was accepted: it is in force, or its endpoints are remembered.
    pub is_accepted: bool,
    /// The sources that were refused.
    pub refusals: Vec<SourceRefusal>,
}

/// A source that was refused: a document, a pattern, or a directory that a pattern leads to.
#[derive(Debug)]
pub struct SourceRefusal {
    /// The path of the consensus, of the pattern, or of the directory.
    pub path: PathBuf,
    /// The reason, without text of the document.
    pub error: SourceError,
    /// It is the only source, so that a message without a path is clear.
    is_alone: bool,
}

/// Why a source was refused.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The document cannot be found or loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The document was loaded but failed the plausibility checks.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl SourceRefusal {
    /// Whether a retry may succeed although no file changes. A faulty document stays faulty; errors
    /// of this machine may pass.
    pub const fn may_pass(&self) -> bool {
        matches!(
            self.error,
            SourceError::Load(
                LoadError::Loader(_)
                    | LoadError::Read(..)
                    | LoadError::Certificates(..)
                    | LoadError::Changed(_)
                    | LoadError::NoMatch(_)
                    | LoadError::NoTime(..)
            ) | SourceError::Refused(Refused::Future(..))
        )
    }

    /// Whether the loader process failed, which may have taken its whole time.
    const fn is_of_loader(&self) -> bool {
        matches!(self.error, SourceError::Load(LoadError::Loader(_)))
    }
}

impl fmt::Display for SourceRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lacks_path = matches!(
            self.error,
            SourceError::Load(
                LoadError::Loader(_)
                    | LoadError::ExtraPortZero(_)
                    | LoadError::TooMany(_)
                    | LoadError::Clustered
            )
        );
        if lacks_path && !self.is_alone {
            write!(f, "{}: ", self.path.display())?;
        }
        self.error.fmt(f)
    }
}

/// Loads each document of the sources in a process of its own, and offers them to the live set.
/// `before` are the refusals of the previous refresh: documents at which the loader failed are read
/// last.
pub fn refresh(
    live: &mut LiveSet,
    sources: &Sources,
    loader: &Loader,
    before: &[SourceRefusal],
    now: SystemTime,
) -> Refresh {
    let first = live.sources().iter().map(|report| report.path.clone());
    let found = sources.find(&first.collect());
    let mut refused: Vec<(PathBuf, SourceError)> = Vec::new();
    for problem in found.problems {
        refused.push((problem.path().to_owned(), problem.into()));
    }
    let is_alone = found.files.len() + refused.len() <= 1;
    let is_last = |files: &DocumentFiles| {
        let mut before = before.iter().filter(|one| one.is_of_loader());
        before.any(|one| one.path == files.consensus)
    };
    let mut files: Vec<_> = found.files.into_iter().enumerate().collect();
    files.sort_by_key(|(_, files)| is_last(files));
    let begun = Instant::now();
    let mut documents = Vec::new();
    for (index, files) in files {
        let loaded = match begun.elapsed() {
            spent if spent > TIME => Err(LoadError::NoTime(files.consensus.clone(), spent)),
            _ => loader.load_document(&files, &sources.trust),
        };
        let fits = |document: LoadedDocument| {
            unite(document.listed.iter().copied(), &sources.extra).map(|_| document)
        };
        match loaded.and_then(fits) {
            Ok(document) => documents.push((index, document)),
            Err(error) => refused.push((files.consensus, error.into())),
        }
    }
    if !documents.is_empty() {
        sources.warn();
    }
    documents.sort_by_key(|&(index, _)| index);
    let documents = documents.into_iter().map(|(_, document)| document);
    let offered = live.offer(documents.collect(), &sources.extra, now);
    for error in offered.refused {
        refused.push((error.path().to_owned(), error.into()));
    }
    let refusal = |(path, error)| SourceRefusal {
        path,
        error,
        is_alone,
    };
    Refresh {
        is_accepted: offered.accepted > 0,
        refusals: refused.into_iter().map(refusal).collect(),
    }
}
