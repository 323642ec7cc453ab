//! Why a relay set could not be loaded: what, in which file and line or field, and what to do.
//!
//! Never repeats the text of a document, because its lines name relays' addresses and errors
//! end up in logs: a line number, a field name and a reason are all that is told.

use super::{Flavor, Identity, Signatures};
use crate::policy::MAX_ENDPOINTS;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// The largest document that is read, in bytes. A full consensus of 2021 has 2.5 MB.
pub const MAX_DOCUMENT: u64 = 32 << 20;

/// Why no relay set could be loaded. Whoever asked for it keeps the set it had.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be opened or read.
    #[error("{}: cannot be read: {reason}; {}", path.display(), remedy(.reason))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// A directory, FIFO, socket or device.
    #[error("{}: is {kind}, not a regular file; give the file that tor writes", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
        /// What is there instead, with its article.
        kind: &'static str,
    },
    /// What tor has fetched and not believed yet.
    #[error("{}: is a document that tor has not verified; give cached-consensus or \
             cached-microdesc-consensus", path.display())]
    Unverified {
        /// The file.
        path: PathBuf,
    },
    /// Certificates that cannot be opened or read.
    #[error("{}: cannot be read: {reason}; {}", path.display(), remedy_of_certificates(.reason))]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// Somebody wrote to the file meanwhile.
    #[error("{}: has changed while it was read; replace it by renaming, as tor does", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// More than [`MAX_DOCUMENT`] bytes.
    #[error("{}: is larger than {MAX_DOCUMENT} bytes, more than tor ever writes; give tor's \
             own file", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file was read and is no consensus to work with.
    #[error("{}: {problem}", path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: DocumentError,
    },
    /// The signatures do not hold.
    #[error("{}: {problem}", path.display())]
    Signatures {
        /// The consensus.
        path: PathBuf,
        /// What is wrong with them.
        problem: SignatureError,
    },
    /// The process that reads documents says what is wrong with one.
    #[error("{}: {reason}", path.display())]
    Told {
        /// The file.
        path: PathBuf,
        /// Its words: printable, and of bounded length.
        reason: String,
    },
    /// The process that reads documents failed.
    #[error("the process that reads the relay files {0}; it is tried again")]
    Loader(LoaderFailure),
    /// One of the static extras has port 0.
    #[error("extra relay endpoint number {position} has port 0; give the port it listens on")]
    ExtraPortZero {
        /// Which one, counted from 1 in the order given.
        position: usize,
    },
    /// Every source is fine by itself, their union with the extras is too large.
    #[error(
        "all sources and extras together hold {count} endpoints, more than the \
             {MAX_ENDPOINTS} of a relay set; remove a source"
    )]
    TooMany {
        /// How many different endpoints there are.
        count: usize,
    },
    /// Together they collide in every table.
    #[error("all sources and extras together collide in every table; remove a source")]
    Clustered,
}

/// What lets a user read what tor keeps for itself.
const ADMISSION: &str = "tor's group may read what tor keeps where torrc has \
     `DataDirectoryGroupReadable 1` and `CacheDirectoryGroupReadable 1`; `adduser exitmark \
     debian-tor` takes the user exitmark into that group, from the next start on (the users of \
     this machine may have other names)";

fn remedy(reason: &io::Error) -> &'static str {
    match reason.kind() {
        io::ErrorKind::PermissionDenied => ADMISSION,
        io::ErrorKind::NotFound => {
            "check the path: tor writes the file when it has fetched a consensus, and names its \
             directory by `DataDirectory`"
        }
        _ => "check the path and who may read it",
    }
}

fn remedy_of_certificates(reason: &io::Error) -> &'static str {
    match reason.kind() {
        io::ErrorKind::PermissionDenied => ADMISSION,
        _ => {
            "tor keeps its certificates beside its consensus; relays.certificates, or \
             --certificates, names another place"
        }
    }
}

/// How a loader failed.
#[derive(Debug, thiserror::Error)]
pub enum LoaderFailure {
    /// It could not be started.
    #[error("cannot be started: {0}")]
    Start(io::Error),
    /// It was too slow.
    #[error("gave no answer within {} s and was ended", .0.as_secs())]
    Slow(Duration),
    /// It says that it cannot work here.
    #[error("cannot do its work: {0}")]
    Unable(String),
    /// It ended without an answer.
    #[error("ended without an answer ({0})")]
    Died(ExitStatus),
    /// It answered what makes no sense.
    #[error("answered nonsense ({0})")]
    Nonsense(&'static str),
}

/// What is wrong with the signatures of a consensus. Signatures are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Not as tor writes them.
    #[error(
        "the part with the signatures is not as tor writes it; the file is damaged, fetch it again"
    )]
    Form,
    /// By somebody whom the document does not name.
    #[error(
        "signature {number} is of nobody whom the document names as its author; fetch the file again"
    )]
    NoAuthor {
        /// Which one.
        number: usize,
    },
    /// By somebody who has signed already.
    #[error("signature {number} is a second one of the authority {identity}; fetch the file again")]
    Twice {
        /// Which one.
        number: usize,
        /// Whose.
        identity: Identity,
    },
    /// A signing key for which there is no word.
    #[error(
        "signature {number}, of the authority {identity}, is made with a key for which there is no \
         certificate that holds at the document's valid-after; tor fetches certificates by itself, \
         wait or give the cached-certs that belongs to the document"
    )]
    NoCertificate {
        /// Which one.
        number: usize,
        /// Whose.
        identity: Identity,
    },
    /// The document is not what was signed.
    #[error(
        "signature {number}, of the authority {identity}, is not good: the document is not what the \
         authority signed; fetch the file again, and find out who changed it"
    )]
    Bad {
        /// Which one.
        number: usize,
        /// Whose.
        identity: Identity,
    },
    /// Not a majority.
    #[error(
        "{good} authorities that are known have signed it, {needed} are needed; where certificates of \
         authorities are missing, wait for tor or copy its cached-certs with the document; a consensus of another \
         network needs relays.authorities, or --authority"
    )]
    TooFew {
        /// How many have.
        good: usize,
        /// How many would do.
        needed: usize,
    },
    /// Not a majority, and others have signed.
    #[error(
        "{} authorities that are known have signed it, {} are needed, and {} good signatures are of \
         authorities that are not known here; for the Tor network that means: upgrade exitmark, \
         whose list of authorities is older than this document; a consensus of another network \
         needs relays.authorities, or --authority", .0.good, .0.needed, .0.unknown
    )]
    Unknown(Signatures),
}

/// What is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// No bytes at all.
    #[error("the file is empty; wait until tor has fetched a consensus, or restore the file")]
    Empty,
    /// Bytes that are no UTF-8.
    #[error("line {line}: not UTF-8, so no directory document; is the file compressed?")]
    NotUtf8 {
        /// Line of the first bad byte, counted from 1.
        line: usize,
    },
    /// A NUL byte.
    #[error("line {line}: a NUL byte, so no directory document; fetch the file again")]
    Nul {
        /// Line of the first NUL, counted from 1.
        line: usize,
    },
    /// Line ends of another system, which also break every signature.
    #[error(
        "line {line}: ends in CR LF, the directory ends lines in LF alone; copy the file \
             again without converting it"
    )]
    CrLf {
        /// The first such line, counted from 1.
        line: usize,
    },
    /// Something else in the place of certificates.
    #[error(
        "line 1: does not begin with `dir-key-certificate-version`, so the file holds no \
         certificates; give tor's cached-certs"
    )]
    NotCertificates,
    /// More certificates than tor keeps.
    #[error("the file holds more than {limit} certificates; give tor's own cached-certs")]
    TooManyCertificates {
        /// How many are read.
        limit: usize,
    },
    /// Nothing that the directory protocol knows.
    #[error(
        "line 1: does not begin with `network-status-version`, so the file is no consensus; \
             give tor's cached-consensus or cached-microdesc-consensus"
    )]
    NotConsensus,
    /// Another document of the directory protocol.
    #[error(
        "line {line}: this is {found}, not a consensus; give tor's cached-consensus or \
             cached-microdesc-consensus"
    )]
    OtherDocument {
        /// The line that says so, counted from 1.
        line: usize,
        /// What it is, with its article.
        found: &'static str,
    },
    /// A consensus of a flavour that this version cannot read.
    #[error(
        "line 1: a consensus of a flavour that is neither `ns` nor `microdesc`; give tor's \
             cached-consensus or cached-microdesc-consensus"
    )]
    UnknownFlavor,
    /// The entries are not of the flavour that the header announces.
    #[error(
        "line {line}: the header announces the {announced} flavour, but this `r` line is of \
             the {found} flavour; the file is patched together, fetch it again"
    )]
    WrongFlavor {
        /// The first line that does not fit, counted from 1.
        line: usize,
        /// The flavour in the header.
        announced: Flavor,
        /// The flavour that the number of fields tells.
        found: Flavor,
    },
    /// The end of the document is missing.
    #[error("line {line}: the document is cut off: {missing}; fetch the file again")]
    Cut {
        /// The last line there is, counted from 1.
        line: usize,
        /// What a whole document would still have.
        missing: &'static str,
    },
    /// Something that tor-netdoc does not accept.
    #[error("line {line}{}: {reason}; fetch the file again",
            column.map(|column| format!(", column {column}")).unwrap_or_default())]
    Unparsable {
        /// The line at which reading stopped, counted from 1. For an item that is missing,
        /// the line before which it should have stood.
        line: usize,
        /// The column of the bad argument, counted from 1, if one argument is at fault.
        column: Option<usize>,
        /// The reason, without any of the document's text.
        reason: String,
    },
    /// The three times do not follow each other.
    #[error(
        "`valid-after`, `fresh-until` and `valid-until` do not follow each other; fetch the \
             file again"
    )]
    Lifetime,
    /// Port 0 where somebody has to listen.
    #[error("line {line}: {field} is 0, and no relay can listen there; fetch the file again")]
    PortZero {
        /// The line, counted from 1.
        line: usize,
        /// Which field of it.
        field: &'static str,
    },
    /// A network without relays.
    #[error("the document has no `r` line, so it lists no relay; fetch the file again")]
    NoRelays,
    /// More different endpoints than a set may hold.
    #[error(
        "the `r`, `a` and `dir-source` lines list {count} endpoints, more than the \
             {MAX_ENDPOINTS} of a relay set; no real consensus does"
    )]
    TooMany {
        /// How many different ones.
        count: usize,
    },
    /// Endpoints that nobody would have by chance.
    #[error(
        "the `r`, `a` and `dir-source` lines list endpoints that collide in every table; no real \
             consensus does"
    )]
    Clustered,
}
