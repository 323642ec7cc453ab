//! The process environment of both programs: service manager notifications, dropped privileges, no
//! core dumps (they would hold packets), exit status, logging.

mod calls;
mod confine;
mod exit_status;
mod service;

pub use calls::forbid_system_calls;
pub use confine::{become_user, is_root, keep, keep_or_say, without};
pub use exit_status::{exit_failure, exit_usage_error, log_to_stderr, print};
pub use service::Service;

use std::io;

/// Privileges could not be dropped.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The configured user does not exist.
    #[error("user = \"{0}\": there is no such user; create it with `useradd --system {0}`")]
    NoUser(String),
    /// The configured user is root.
    #[error("user = \"{0}\" is root; name a user of exitmark's own")]
    UserIsRoot(String),
    /// A system call failed: the step, as a verb phrase, and the error.
    #[error("cannot {0}: {1}")]
    System(&'static str, #[source] io::Error),
}

/// Disables core dumps and ptrace by the same user (`PR_SET_DUMPABLE`, prctl(2)), because the
/// memory holds packets, and so destination addresses.
///
/// # Errors
/// [`ProcessError::System`]: prctl(2) fails, for example because a system-call filter forbids it.
pub fn forbid_dumps() -> Result<(), ProcessError> {
    nix::sys::prctl::set_dumpable(false)
        .map_err(|error| ProcessError::System("forbid core dumps", error.into()))
}
