//! Consensus documents to a relay set that can be trusted and does not go stale unnoticed.
//!
//! Owns reading tor's `cached-consensus` and `cached-microdesc-consensus`, who signed them, and
//! what of them is in force. Knows nothing of packets and NICs, and never writes a relay's address
//! into an error or a log.
//!
//! A tour: [`load()`] reads the files, checks the signatures and unites what is listed; a
//! [`Loader`] has that done by a confined process. [`UncheckedDocument`] is one file's bytes
//! parsed, [`ConsensusDocument`] what somebody decided to believe; [`Validity`] says how old it is.
//! A [`LiveSet`] is what is in force: it refuses what makes no sense after what was there, and
//! remembers who has left. [`StateFile`] carries it over a restart, [`Watch`] tells when there is
//! something new. [`Survey`], [`Status`] and [`Churn`] show documents, the live set, and how two sets
//! differ, to a person or a program.

mod authorities;
mod churn;
mod document;
mod error;
mod files;
mod live;
mod load;
mod loader;
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
pub use live::{CLOCK_SLACK, LiveSet, Refusal, Refused};
pub use load::{Loaded, Source, SourceReport, Sources, Trust, load};
pub use loader::{COMMAND as LOADER_COMMAND, Confinement, Loader, confine, serve};
pub use state::{StateError, StateFile};
pub use status::Status;
pub use survey::Survey;
pub use validity::{Age, FETCH_SLACK, REASONABLY_LIVE, Validity, utc};
pub use watch::Watch;
