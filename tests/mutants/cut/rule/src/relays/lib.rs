//! The part of `src/relays` that the settings need.

mod authorities;

pub use authorities::{Authorities, Identity, NotAnIdentity};
use std::path::{Path, PathBuf};

/// As in `src/relays/load.rs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    pub files: Vec<DocumentFiles>,
    pub patterns: Vec<DocumentPattern>,
    pub extra: Vec<exitmark_policy::Endpoint>,
    pub trust: Trust,
}

impl Sources {
    pub fn names_documents(&self) -> bool {
        !self.files.is_empty() || !self.patterns.is_empty()
    }
}

/// As in `src/relays/pattern.rs`.
pub const MAX_DOCUMENTS: usize = 64;

/// A pattern that is not searched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentPattern(PathBuf, Option<PathBuf>);

impl DocumentPattern {
    pub fn is_pattern(path: &Path) -> bool {
        path.to_string_lossy().contains(['*', '?', '['])
    }

    pub fn new(
        base: &Path,
        path: &Path,
        certificates: Option<PathBuf>,
    ) -> Result<Self, &'static str> {
        Ok(Self(base.join(path), certificates))
    }

    pub fn matches(&self, _path: &Path) -> bool {
        false
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// As in `src/relays/load.rs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentFiles {
    pub consensus: PathBuf,
    pub certificates: PathBuf,
}

/// As in `src/relays/load.rs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    Majority(Authorities),
    Unverified,
}

impl DocumentFiles {
    pub fn beside(consensus: PathBuf) -> Self {
        let certificates = consensus.with_file_name("cached-certs");
        Self {
            consensus,
            certificates,
        }
    }
}
