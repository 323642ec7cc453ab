//! Builds a trusted relay set from consensus documents, and tracks its age.
//!
//! Reads tor's `cached-consensus` and `cached-microdesc-consensus`, verifies their signatures, and
//! decides which set is in force. Handles neither packets nor NICs, and never writes a relay's
//! address into an error or a log.
//!
//! [`Sources`] name documents by paths and by a [`DocumentPattern`]. [`load()`] reads the files,
//! verifies the signatures and unites the listed endpoints; [`Loader`] runs that in a confined
//! process. [`UncheckedDocument`] is a parsed file, [`ConsensusDocument`] a verified or accepted one;
//! [`Validity`] gives its age. [`LiveSet`] is the set in force: the newest document decides, an
//! implausible successor is refused, and departed endpoints are kept for a while. [`refresh()`] loads
//! each document by itself and offers it to the live set.
//! [`StateFile`] stores it across restarts, [`FileWatcher`] waits for new files. [`Survey`],
//! [`Status`] and [`Churn`] print documents, the live set, and the difference between two sets, as
//! text or JSON.

#![forbid(unsafe_code)]

mod authorities;
mod churn;
mod document;
mod error;
mod files;
mod live;
mod load;
mod loader;
mod pattern;
mod refresh;
mod state;
mod status;
mod survey;
mod validity;
mod watch;

pub use authorities::{Authorities, Identity, NotAnIdentity};
pub use churn::{Churn, Flow};
pub use document::{
    Certificates, ConsensusDocument, Counts, Flavor, Signatures, UncheckedDocument,
};
pub use error::{DocumentError, LoadError, LoaderFailure, MAX_DOCUMENT, SignatureError};
pub use files::Version;
pub use live::{CLOCK_SLACK, LiveSet, Offered, Refusal, Refused};
pub use load::{
    DocumentFiles, Loaded, LoadedDocument, SourceReport, Sources, Trust, load, load_newest,
};
pub use loader::{COMMAND as LOADER_COMMAND, Confinement, Loader, confine, serve};
pub use pattern::{DocumentPattern, Found, MAX_DOCUMENTS};
pub use refresh::{Refresh, SourceError, SourceRefusal, refresh};
pub use state::{StateError, StateFile};
pub use status::Status;
pub use survey::Survey;
pub use validity::{Age, FETCH_SLACK, REASONABLY_LIVE, Validity, utc};
pub use watch::FileWatcher;
