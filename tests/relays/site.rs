//! A tor's data directory with what the lab's authorities signed, and both ways to load it.

use crate::{assert_names_no_address, file, order};
use exitmark::lab::authorities::Authorities;
use exitmark::lab::consensus::Order;
use exitmark::lab::{CERTIFICATES, publish};
use exitmark::relays::{
    self, Certificates, Flavor, LOADER_COMMAND, LoadError, Loaded, Loader, Source, Sources, Trust,
    load,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// Longer than any load takes on any machine: who waits for this has found a fault.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// The three authorities that these tests trust.
pub(crate) fn authorities() -> Authorities {
    Authorities::new(3)
}

/// The same, as what is trusted.
pub(crate) fn pinned(authorities: &Authorities) -> relays::Authorities {
    let identities = authorities.identities();
    relays::Authorities::new(identities.iter().map(|text| text.parse().unwrap()))
}

/// Four relays, not signed yet.
pub(crate) fn plan(flavor: Flavor) -> Order {
    order(flavor, 4)
}

/// Four relays, signed by the three.
pub(crate) fn signed(flavor: Flavor) -> String {
    plan(flavor).sign(&authorities())
}

/// The three's certificates, which hold for every document of these tests.
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
    /// What is there is a good document of this flavour.
    pub(crate) fn new(flavor: Flavor) -> Self {
        Self::of(&plan(flavor))
    }

    /// What is there is this document, signed.
    pub(crate) fn of(order: &Order) -> Self {
        let directory = TempDir::new().unwrap();
        let consensus = publish(directory.path(), "cached-consensus", order, &authorities());
        Self {
            consensus: consensus.unwrap(),
            certificates: directory.path().join(CERTIFICATES),
            directory,
        }
    }

    /// What is there are these bytes.
    pub(crate) fn holding(consensus: impl AsRef<[u8]>, certificates: impl AsRef<[u8]>) -> Self {
        let directory = TempDir::new().unwrap();
        Self {
            consensus: file(&directory, "cached-consensus", consensus),
            certificates: file(&directory, CERTIFICATES, certificates),
            directory,
        }
    }

    /// Its document, of which most of the three must be the authors.
    pub(crate) fn sources(&self) -> Sources {
        checked([&self.consensus])
    }

    pub(crate) fn load(&self) -> Result<Loaded, LoadError> {
        both(&self.sources())
    }

    /// Why it is refused.
    pub(crate) fn refusal(&self) -> LoadError {
        self.load().unwrap_err()
    }

    pub(crate) fn write(&self, consensus: impl AsRef<[u8]>) {
        fs::write(&self.consensus, consensus).unwrap();
    }
}

/// Documents of the three, with certificates beside them.
pub(crate) fn checked<P: AsRef<Path>>(files: impl IntoIterator<Item = P>) -> Sources {
    Sources {
        trust: Trust::MostOf(pinned(&authorities())),
        ..unchecked(files)
    }
}

/// Documents that are believed as they stand.
pub(crate) fn unchecked<P: AsRef<Path>>(files: impl IntoIterator<Item = P>) -> Sources {
    let source = |path: P| Source::beside(path.as_ref().to_owned());
    Sources {
        files: files.into_iter().map(source).collect(),
        extra: Vec::new(),
        trust: Trust::Anybody,
    }
}

/// The program itself as a loader.
pub(crate) fn loader() -> Loader {
    Loader::of(
        env!("CARGO_BIN_EXE_exitmark").into(),
        vec![LOADER_COMMAND.into()],
        LONG,
    )
}

/// Loads in this process and by a confined one, which must be of one mind, to the word.
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
            let path = |source: &Source| {
                let (consensus, certificates) = (&source.consensus, &source.certificates);
                let said = here.to_string();
                [consensus, certificates].map(|path| said.starts_with(&*path.to_string_lossy()))
            };
            assert!(
                sources.files.iter().flat_map(path).any(|named| named),
                "{here}"
            );
        }
        _ => panic!("here: {here:?}\nthere: {there:?}"),
    }
    here
}
