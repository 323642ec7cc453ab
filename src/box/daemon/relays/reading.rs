//! The files of the relay set: their watch, the user that they are read as, and why they cannot be
//! used.

use super::super::DaemonError;
use exitmark_relays::{Confinement, FileWatcher, SourceRefusal};
use nix::unistd::{Uid, User};
use std::io;
use std::time::Instant;

/// Why the files' current content, or a part of it, is not in force.
pub(super) struct Failure {
    pub(super) reason: String,
    pub(super) at: Instant,
    /// Whether a retry may succeed although no file changes.
    pub(super) may_pass: bool,
}

impl Failure {
    pub(super) fn of(error: &DaemonError) -> Self {
        Self {
            reason: error.to_string(),
            at: Instant::now(),
            may_pass: false,
        }
    }

    /// The first refusal, with the number of others.
    pub(super) fn of_sources(refusals: &[SourceRefusal]) -> Option<Self> {
        let (first, others) = refusals.split_first()?;
        let reason = match others.len() {
            0 => first.to_string(),
            1 => format!("{first}; another one is refused: `exitmark status` lists it"),
            count => format!("{first}; {count} others are refused: `exitmark status` lists them"),
        };
        Some(Self {
            reason,
            at: Instant::now(),
            may_pass: refusals.iter().any(SourceRefusal::may_pass),
        })
    }
}

/// No document was accepted.
pub(super) struct Unaccepted {
    pub(super) reason: String,
    /// The reason differs from that of the last time.
    pub(super) is_news: bool,
}

/// Resets a new watch: only later changes count.
pub(super) fn watch(made: io::Result<FileWatcher>) -> Result<FileWatcher, DaemonError> {
    let mut watch = made.map_err(|error| DaemonError::System("watch the relay files", error))?;
    watch.has_changed();
    Ok(watch)
}

/// The user that documents are read as; none if this process is not root.
pub(super) fn confinement(user: &str) -> Result<Confinement, DaemonError> {
    if !Uid::effective().is_root() {
        tracing::info!("documents are read as the user of this process, which is not root");
        return Ok(Confinement { user: None });
    }
    match User::from_name(user) {
        Ok(Some(found)) if found.uid.is_root() || found.gid.as_raw() == 0 => {
            Err(DaemonError::Unmet(
                "relays.user is root; untrusted documents must be read by a user without \
                 privileges: name one, such as \"nobody\""
                    .to_owned(),
            ))
        }
        Ok(Some(found)) => Ok(Confinement {
            user: Some((found.uid.as_raw(), found.gid.as_raw())),
        }),
        Ok(None) => Err(DaemonError::Unmet(format!(
            "relays.user = \"{user}\": there is no such user; create it with `useradd --system \
             {user}`"
        ))),
        Err(error) => Err(DaemonError::System("look up relays.user", error.into())),
    }
}
