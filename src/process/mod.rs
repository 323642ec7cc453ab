//! What a program of ours owes the machine that it runs on: to say how it is to the service manager,
//! to give up what it does not need, to leave no packet behind in a core dump, and to end with a
//! status and words that help.

mod calls;
mod confine;
mod service;
mod words;

pub use calls::forbid_system_calls;
pub use confine::{become_user, by_own_right, is_root, keep, keep_or_say};
pub use service::Service;
pub use words::{log_to_stderr, misused, print, unmet};

use std::io;

/// What cannot be given up, or not that way.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Root is to give itself up to nobody.
    #[error("user = \"{0}\": there is no such user; `useradd --system {0}` makes one")]
    NoUser(String),
    /// Root is to give itself up to root.
    #[error("user = \"{0}\" is root; name a user of exitmark's own")]
    UserIsRoot(String),
    /// The operating system refuses something basic.
    #[error("cannot {0}: {1}")]
    System(&'static str, #[source] io::Error),
}

/// Makes core dumps impossible, and the memory unreadable for others of the same user: it holds
/// packets, and so destination addresses.
///
/// # Errors
/// The kernel refuses.
pub fn forbid_dumps() -> Result<(), ProcessError> {
    nix::sys::prctl::set_dumpable(false)
        .map_err(|error| ProcessError::System("forbid core dumps", error.into()))
}
