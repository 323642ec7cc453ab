//! The part of `src/relays` that the settings need.

mod authorities;

pub use authorities::{Authorities, Identity, NotAnIdentity};
use std::path::PathBuf;

/// As in `src/relays/load.rs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    pub files: Vec<DocumentFiles>,
    pub extra: Vec<exitmark_policy::Endpoint>,
    pub trust: Trust,
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
