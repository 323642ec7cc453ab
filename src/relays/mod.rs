//! Consensus documents to a relay set.
//!
//! Owns reading tor's `cached-consensus` and `cached-microdesc-consensus`. Knows nothing of
//! packets and NICs, and never writes a relay's address into an error or a log.
//!
//! A tour: [`load()`] reads the files and unites what they list; [`UncheckedDocument`] is one
//! file's bytes parsed, [`ConsensusDocument`] what somebody decided to believe; [`Validity`]
//! says how old it is; [`Survey`] shows all that to a person or a program.

mod document;
mod error;
mod framing;
mod load;
mod survey;
mod validity;

pub use document::{ConsensusDocument, Counts, Flavor, UncheckedDocument};
pub use error::{DocumentError, LoadError, MAX_DOCUMENT};
pub use load::{Loaded, SourceReport, load};
pub use survey::Survey;
pub use validity::{Age, FETCH_SLACK, REASONABLY_LIVE, Validity, utc};
