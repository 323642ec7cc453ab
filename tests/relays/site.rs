//! A tor data directory with documents signed by the lab's authorities, and both ways to load it.

use crate::{assert_names_no_address, builder, file};
use exitmark_lab::authorities::Authorities;
use exitmark_lab::consensus::ConsensusBuilder;
use exitmark_lab::{CERTIFICATES, publish};
use exitmark_relays::{
    self, Certificates, DocumentFiles, Flavor, LOADER_COMMAND, LoadError, Loaded, Loader, Sources,
    Trust, load,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// Timeout: longer than any load takes on any machine.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// The three authorities that these tests trust.
pub(crate) fn authorities() -> Authorities {
    Authorities::new(3)
}

/// The same authorities, as the pinned set.
pub(crate) fn pinned(authorities: &Authorities) -> exitmark_relays::Authorities {
    let identities = authorities.identities();
    exitmark_relays::Authorities::new(identities.iter().map(|text| text.parse().unwrap()))
}

/// A document with four relays.
pub(crate) fn plan(flavor: Flavor) -> ConsensusBuilder {
    builder(flavor, 4)
}

/// A document with four relays, signed by the three authorities.
pub(crate) fn signed(flavor: Flavor) -> String {
    plan(flavor).sign(&authorities())
}

/// The certificates of the three authorities, valid for every document of these tests.
pub(crate) fn certificates() -> String {
    authorities().certificates_for(plan(Flavor::Ns).validity)
}

pub(crate) fn parsed_certificates() -> Certificates {
    Certificates::parse(certificates().as_bytes()).unwrap()
}

/// A directory with one document and its certificates.
pub(crate) struct Site {
    pub(crate) directory: TempDir,
    pub(crate) consensus: PathBuf,
    pub(crate) certificates: PathBuf,
}

impl Site {
    pub(crate) fn new(flavor: Flavor) -> Self {
        Self::of(&plan(flavor))
    }

    pub(crate) fn of(builder: &ConsensusBuilder) -> Self {
        let site = Self::holding("", "");
        site.publish(builder);
        site
    }

    pub(crate) fn holding(consensus: impl AsRef<[u8]>, certificates: impl AsRef<[u8]>) -> Self {
        let directory = TempDir::new().unwrap();
        Self {
            consensus: file(&directory, "cached-consensus", consensus),
            certificates: file(&directory, CERTIFICATES, certificates),
            directory,
        }
    }

    /// The site's document, with the three authorities pinned.
    pub(crate) fn sources(&self) -> Sources {
        checked([&self.consensus])
    }

    pub(crate) fn sources_of(&self, trusted: &Authorities) -> Sources {
        Sources {
            trust: Trust::Majority(pinned(trusted)),
            ..self.sources()
        }
    }

    pub(crate) fn load(&self) -> Result<Loaded, LoadError> {
        both(&self.sources())
    }

    pub(crate) fn refusal(&self) -> LoadError {
        self.load().unwrap_err()
    }

    pub(crate) fn write(&self, consensus: impl AsRef<[u8]>) {
        fs::write(&self.consensus, consensus).unwrap();
    }

    /// Writes this document, signed, and its certificates.
    pub(crate) fn publish(&self, builder: &ConsensusBuilder) {
        let directory = self.directory.path();
        publish(directory, "cached-consensus", builder, &authorities()).unwrap();
    }
}

/// Documents of the three authorities, with the certificates in the same directory.
pub(crate) fn checked<P: AsRef<Path>>(files: impl IntoIterator<Item = P>) -> Sources {
    Sources {
        trust: Trust::Majority(pinned(&authorities())),
        ..unchecked(files)
    }
}

/// Documents whose signatures are not checked.
pub(crate) fn unchecked<P: AsRef<Path>>(files: impl IntoIterator<Item = P>) -> Sources {
    let source = |path: P| DocumentFiles::beside(path.as_ref().to_owned());
    Sources::of(files.into_iter().map(source).collect(), Trust::Unverified)
}

pub(crate) fn loader() -> Loader {
    let program = env!("CARGO_BIN_EXE_exitmark");
    Loader::of(program.into(), vec![LOADER_COMMAND.into()], LONG)
}

/// Loads in this process and by a confined one; both must give the same result or message.
pub(crate) fn both(sources: &Sources) -> Result<Loaded, LoadError> {
    let (here, there) = (load(sources), loader().load(sources));
    match (&here, &there) {
        (Ok(here), Ok(there)) => {
            assert_eq!(here.listed, there.listed);
            let timeless = |loaded: &Loaded| {
                let mut sources = loaded.sources.clone();
                for source in &mut sources {
                    source.parse_time = Duration::ZERO;
                }
                sources
            };
            assert_eq!(timeless(here), timeless(there));
        }
        (Err(here), Err(there)) => {
            assert_eq!(here.to_string(), there.to_string());
            assert_names_no_address(here);
            assert_names_no_address(there);
            let path = |source: &DocumentFiles| {
                let (consensus, certificates) = (&source.consensus, &source.certificates);
                let said = here.to_string();
                [consensus, certificates].map(|path| said.starts_with(&*path.to_string_lossy()))
            };
            let mut named = sources.files.iter().flat_map(path);
            assert!(named.any(|named| named), "{here}");
        }
        _ => panic!("here: {here:?}\nthere: {there:?}"),
    }
    here
}
