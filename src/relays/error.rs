//! Why a relay set could not be loaded: the problem, its file and line or field, and the remedy.
//!
//! Errors never quote a document, because its lines contain relays' addresses and errors are
//! logged: they give only a line number, a field name and a reason.

use super::{Flavor, Identity, MAX_DOCUMENTS, Signatures};
use exitmark_policy::MAX_ENDPOINTS;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

/// The largest document that is read, in bytes. A full consensus of 2021 has 2.5 MB.
pub const MAX_DOCUMENT: u64 = 32 << 20;

/// Why no relay set could be loaded. The caller keeps its previous set.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file, by its configured path, cannot be opened or read.
    #[error("{}: cannot be read: {_1}; {}", _0.display(), remedy(_1))]
    Read(PathBuf, io::Error),
    /// A directory, FIFO, socket or device: its path, and its kind with the article.
    #[error("{}: is {_1}, not a regular file; give the file that tor writes", _0.display())]
    NotRegular(PathBuf, &'static str),
    /// A document that tor has fetched but not verified, by its configured path; a symbolic link may
    /// lead to the unverified one.
    #[error("{}: is a document that tor has not verified; give cached-consensus or \
             cached-microdesc-consensus", .0.display())]
    Unverified(PathBuf),
    /// Certificates, by their path as configured or beside the document, that cannot be opened or
    /// read.
    #[error("{}: cannot be read: {_1}; {}", _0.display(), remedy_of_certificates(_1))]
    Certificates(PathBuf, io::Error),
    /// No file matches the pattern of this path.
    #[error(
        "{}: matches no file; check the path: tor writes the file when it has fetched a consensus, \
         into the `CacheDirectory` or `DataDirectory` of torrc", .0.display()
    )]
    NoMatch(PathBuf),
    /// This many files match the pattern of this path, more than a relay set is made of.
    #[error(
        "{}: matches {_1} files, and at most {MAX_DOCUMENTS} documents are read; the others are \
         refused: give a path that matches fewer", _0.display()
    )]
    TooManyMatches(PathBuf, usize),
    /// The search by the pattern of this path ended after this many names.
    #[error(
        "{}: the search ended after {_1} names, and documents behind them are not found; give a \
         path with fewer names in the place of its wildcards", _0.display()
    )]
    TooManyNames(PathBuf, usize),
    /// The document at this path was not read, because reading those before it took this long.
    #[error(
        "{}: was not read, because those before it took {} s; the load is retried",
        _0.display(), _1.as_secs()
    )]
    NoTime(PathBuf, Duration),
    /// This document or list of certificates was written to while it was read.
    #[error("{}: has changed while it was read; replace it by renaming, as tor does", .0.display())]
    Changed(PathBuf),
    /// A document or list of certificates of more than [`MAX_DOCUMENT`] bytes.
    #[error("{}: is larger than {MAX_DOCUMENT} bytes, more than tor ever writes; give tor's \
             own file", .0.display())]
    TooLarge(PathBuf),
    /// The file was read, but is not a usable consensus or list of certificates.
    #[error("{}: {_1}", _0.display())]
    Document(PathBuf, DocumentError),
    /// The signatures of the consensus at this path are not acceptable.
    #[error("{}: {_1}", _0.display())]
    Signatures(PathBuf, SignatureError),
    /// The loader process refused a consensus or certificates: their path, and the loader's reason,
    /// restricted to printable ASCII and 500 characters.
    #[error("{}: {_1}", _0.display())]
    Reported(PathBuf, String),
    /// The loader process failed.
    #[error("the process that reads the relay files {0}; the load is retried")]
    Loader(LoaderFailure),
    /// The static extra at this position, counted from 1, has port 0.
    #[error("extra relay endpoint number {0} has port 0; give the port it listens on")]
    ExtraPortZero(usize),
    /// Every source is valid by itself, but their union with the extras has this many endpoints.
    #[error(
        "all sources and extras together hold {0} endpoints, more than the \
             {MAX_ENDPOINTS} of a relay set; remove a source"
    )]
    TooMany(usize),
    /// The union of the sources and extras collides under every random key.
    #[error("all sources and extras together collide in every table; remove a source")]
    Clustered,
}

impl LoadError {
    /// The path of the file, pattern or directory; empty for errors of the whole load.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Read(path, _)
            | Self::NotRegular(path, _)
            | Self::Unverified(path)
            | Self::Certificates(path, _)
            | Self::NoMatch(path)
            | Self::TooManyMatches(path, _)
            | Self::TooManyNames(path, _)
            | Self::NoTime(path, _)
            | Self::Changed(path)
            | Self::TooLarge(path)
            | Self::Document(path, _)
            | Self::Signatures(path, _)
            | Self::Reported(path, _) => path,
            Self::Loader(_) | Self::ExtraPortZero(_) | Self::TooMany(_) | Self::Clustered => {
                Path::new("")
            }
        }
    }
}

/// The remedy if the user may not read tor's files, which tor creates with mode 0600.
const ADMISSION: &str = "tor lets only its own user read its files; start exitmark as root, which \
     `user` then changes, or give its service CAP_DAC_READ_SEARCH, as the package's unit does";

fn remedy(reason: &io::Error) -> &'static str {
    match reason.kind() {
        io::ErrorKind::PermissionDenied => ADMISSION,
        io::ErrorKind::NotFound => {
            "check the path: tor writes the file when it has fetched a consensus, into the \
             `CacheDirectory` or `DataDirectory` of torrc"
        }
        _ => "check the path and its permissions",
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

/// How the process that parses documents failed. The set in force stays, and the load is tried
/// again.
#[derive(Debug, thiserror::Error)]
pub enum LoaderFailure {
    /// The process could not be started or read.
    #[error("cannot be started: {0}")]
    Start(io::Error),
    /// The process did not answer within this timeout.
    #[error("did not answer within {} s and was killed", .0.as_secs())]
    Slow(Duration),
    /// The process reports that it cannot confine itself.
    #[error("cannot do its work: {0}")]
    Unable(String),
    /// The process ended without an answer.
    #[error("ended without an answer ({0})")]
    Died(ExitStatus),
    /// The process sent an invalid answer.
    #[error("sent an invalid answer ({0})")]
    Nonsense(&'static str),
}

/// The problem with the signatures of a consensus. Signatures are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The text of the signatures differs from what tor writes.
    #[error(
        "the part with the signatures is not as tor writes it; the file is damaged, fetch it again"
    )]
    Form,
    /// The signer of this signature is not one of the document's authorities.
    #[error(
        "the signer of signature {0} is not listed as an authority in the document; fetch the \
         file again"
    )]
    NoAuthor(usize),
    /// This signature is the second one of its authority.
    #[error("signature {0} is a second one of the authority {1}; fetch the file again")]
    Twice(usize, Identity),
    /// No certificate of the key of this authority's signature is valid.
    #[error(
        "signature {0}, of the authority {1}, is made with a key for which there is no \
         certificate valid at the document's valid-after; wait until tor has fetched it, or copy \
         the cached-certs that belongs to the document"
    )]
    NoCertificate(usize, Identity),
    /// This signature of this authority does not match the document.
    #[error(
        "signature {0}, of the authority {1}, is not good: the document is not what the \
         authority signed; fetch the file again, and find out what changed it"
    )]
    Bad(usize, Identity),
    /// Fewer known authorities than a majority have signed.
    #[error(
        "{good} authorities that are known have signed it, {needed} are needed; where certificates of \
         authorities are missing, wait for tor or copy its cached-certs with the document; a consensus of another \
         network needs relays.authorities, or --authority"
    )]
    TooFew {
        /// Good signatures of known authorities.
        good: usize,
        /// The number of good signatures needed.
        needed: usize,
    },
    /// Fewer known authorities than a majority have signed, and unknown ones have too.
    #[error(
        "{} authorities that are known have signed it, {} are needed, and {} good signatures are of \
         authorities that are not known here; for the Tor network, upgrade exitmark: its list of \
         authorities is older than this document; a consensus of another network \
         needs relays.authorities, or --authority", .0.good, .0.needed, .0.unknown
    )]
    Unknown(Signatures),
}

/// The problem with a document. Lines are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// The file has no bytes, for example because tor has not fetched a consensus yet.
    #[error("the file is empty; wait until tor has fetched a consensus, or restore the file")]
    Empty,
    /// The file is not UTF-8, first in this line, for example because it is compressed.
    #[error("line {0}: not UTF-8, so not a directory document; is the file compressed?")]
    NotUtf8(usize),
    /// The file contains a NUL byte, first in this line.
    #[error("line {0}: a NUL byte, so not a directory document; fetch the file again")]
    Nul(usize),
    /// The line ends are CR LF, first in this line, which also breaks every signature.
    #[error(
        "line {0}: ends in CR LF, the directory ends lines in LF alone; copy the file \
             again without converting it"
    )]
    CrLf(usize),
    /// The file is not a list of certificates.
    #[error(
        "line 1: does not begin with `dir-key-certificate-version`, so the file holds no \
         certificates; give tor's cached-certs"
    )]
    NotCertificates,
    /// More certificates than this limit, which tor never reaches.
    #[error("the file holds more than {0} certificates; give tor's own cached-certs")]
    TooManyCertificates(usize),
    /// The file is not a document of the directory protocol.
    #[error(
        "line 1: does not begin with `network-status-version`, so the file is not a consensus; \
             give tor's cached-consensus or cached-microdesc-consensus"
    )]
    NotConsensus,
    /// Another document of the directory protocol: the line that identifies it, and its kind with
    /// the article.
    #[error(
        "line {0}: this is {1}, not a consensus; give tor's cached-consensus or \
             cached-microdesc-consensus"
    )]
    OtherDocument(usize, &'static str),
    /// A consensus of a flavour that this version cannot read.
    #[error(
        "line 1: a consensus of a flavour that is neither `ns` nor `microdesc`; give tor's \
             cached-consensus or cached-microdesc-consensus"
    )]
    UnknownFlavor,
    /// The entries are not of the flavour that the header announces.
    #[error(
        "line {line}: the header announces the {announced} flavour, but this `r` line is of \
             the {found} flavour; the file has parts of two documents, fetch it again"
    )]
    WrongFlavor {
        /// The first line that does not fit, counted from 1.
        line: usize,
        /// The flavour in the header.
        announced: Flavor,
        /// The flavour by the number of fields.
        found: Flavor,
    },
    /// The end of the document is missing: the last line of the file, and the missing part as a
    /// clause.
    #[error("line {0}: the document is cut off: {1}; fetch the file again")]
    Cut(usize, &'static str),
    /// tor-netdoc cannot parse the document.
    #[error("line {line}{}: {reason}; fetch the file again",
            column.map(|column| format!(", column {column}")).unwrap_or_default())]
    Unparsable {
        /// The line at which parsing stopped, counted from 1. For a missing item, the line before
        /// which it was expected.
        line: usize,
        /// The column of the bad argument, counted from 1, if one argument is at fault.
        column: Option<usize>,
        /// The reason, without any of the document's text.
        reason: String,
    },
    /// The three times are not in order.
    #[error(
        "`valid-after`, `fresh-until` and `valid-until` do not follow each other; fetch the \
             file again"
    )]
    Lifetime,
    /// A relay's port is 0: the line, and the field with its keyword, such as "the ORPort of the `r`
    /// line". An authority's DirPort or ORPort may be 0, which means that the authority has no such
    /// port.
    #[error("line {0}: {1} is 0, which is not a port; fetch the file again")]
    PortZero(usize, &'static str),
    /// The document lists no relay.
    #[error("the document has no `r` line, so it lists no relay; fetch the file again")]
    NoRelays,
    /// This many different endpoints, more than a set may hold.
    #[error(
        "the `r`, `a` and `dir-source` lines list {0} endpoints, more than the \
             {MAX_ENDPOINTS} of a relay set; no real consensus does"
    )]
    TooMany(usize),
}
