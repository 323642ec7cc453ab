//! Files to a relay set: reads every source, parses it, and unites all endpoints with the
//! static extras. All or nothing: one bad source is an error, and the caller keeps what it had.
//!
//! Blocks on file reads and a few tens of milliseconds of parsing, so it belongs on a thread of
//! its own. Follows no file and never writes one.

use super::{Counts, DocumentError, Flavor, LoadError, MAX_DOCUMENT, UncheckedDocument, Validity};
use crate::policy::{Endpoint, EndpointSet, EndpointSetError};
use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A relay set and where it comes from.
#[derive(Debug)]
pub struct Loaded {
    /// Every endpoint of every source, and the extras.
    pub endpoints: EndpointSet,
    /// One report per source, in the order given.
    pub sources: Vec<SourceReport>,
}

/// What one source contributed.
#[derive(Clone, Debug)]
pub struct SourceReport {
    /// The file.
    pub path: PathBuf,
    /// Its flavour.
    pub flavor: Flavor,
    /// From when until when it holds.
    pub validity: Validity,
    /// How many endpoints it lists, by kind.
    pub counts: Counts,
    /// How many different endpoints these are.
    pub distinct: usize,
    /// How long parsing took, reading the file not included.
    pub parse_time: Duration,
}

/// Loads the consensus documents at `sources` and adds the endpoints of `extra`, which are in
/// no consensus: a bridge authority, relays of one's own, unlisted ORPorts.
///
/// # Errors
/// The first source that cannot be used and why, an extra with port 0, or a union that is too
/// large. Errors name files, lines and fields, and no address.
pub fn load(sources: &[PathBuf], extra: &[Endpoint]) -> Result<Loaded, LoadError> {
    if let Some(index) = extra.iter().position(|endpoint| endpoint.port == 0) {
        return Err(LoadError::ExtraPortZero {
            position: index + 1,
        });
    }
    let mut reports = Vec::with_capacity(sources.len());
    let mut endpoints = extra.to_vec();
    for path in sources {
        let bytes = read(path)?;
        let in_file = |problem| LoadError::Document {
            path: path.clone(),
            problem,
        };
        let started = Instant::now();
        let document = UncheckedDocument::parse(&bytes)
            .map_err(in_file)?
            .accept_unchecked();
        let parse_time = started.elapsed();
        let distinct = match EndpointSet::new(document.endpoints()) {
            Ok(set) => set.len(),
            Err(EndpointSetError::TooMany(count)) => {
                return Err(in_file(DocumentError::TooMany { count }));
            }
            Err(EndpointSetError::Clustered) => return Err(in_file(DocumentError::Clustered)),
            Err(EndpointSetError::PortZero) => unreachable!("a parsed document has no port 0"),
        };
        endpoints.extend(document.endpoints());
        reports.push(SourceReport {
            path: path.clone(),
            flavor: document.flavor,
            validity: document.validity,
            counts: document.counts(),
            distinct,
            parse_time,
        });
    }
    let endpoints = EndpointSet::new(endpoints).map_err(|error| match error {
        EndpointSetError::TooMany(count) => LoadError::TooMany { count },
        EndpointSetError::Clustered => LoadError::Clustered,
        EndpointSetError::PortZero => unreachable!("neither documents nor extras have a port 0"),
    })?;
    if !sources.is_empty() {
        tracing::warn!(
            sources = sources.len(),
            "relay set loaded; this version does not check the signatures of consensus \
             documents: whoever can write these files decides what is steered"
        );
    }
    Ok(Loaded {
        endpoints,
        sources: reports,
    })
}

/// The bytes of a regular file of at most [`MAX_DOCUMENT`] bytes.
fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let failed = |reason| LoadError::Read {
        path: path.to_owned(),
        reason,
    };
    let only_regular = |kind: FileType| match kind_of(kind) {
        None => Ok(()),
        Some(kind) => Err(LoadError::NotRegular {
            path: path.to_owned(),
            kind,
        }),
    };
    let too_large = || LoadError::TooLarge {
        path: path.to_owned(),
    };
    // Asked before opening, because to open a device can already do something, and again on
    // the open file, because tor replaces its files and the path may mean another one by now.
    only_regular(path.metadata().map_err(failed)?.file_type())?;
    let file = open_without_waiting(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    only_regular(metadata.file_type())?;
    if metadata.len() > MAX_DOCUMENT {
        return Err(too_large());
    }
    // The file may still grow: one byte more than allowed is enough to know.
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    file.take(MAX_DOCUMENT + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= MAX_DOCUMENT) {
        Ok(bytes)
    } else {
        Err(too_large())
    }
}

/// Without `O_NONBLOCK`, opening a FIFO waits until somebody writes to it.
fn open_without_waiting(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

/// What a file is, with its article, unless it is a regular one.
fn kind_of(kind: FileType) -> Option<&'static str> {
    if kind.is_file() {
        None
    } else if kind.is_dir() {
        Some("a directory")
    } else if kind.is_fifo() {
        Some("a FIFO")
    } else if kind.is_socket() {
        Some("a socket")
    } else {
        Some("a device")
    }
}
