//! The files of the relay set: their watch, and the user that they are read as.

use super::super::DaemonError;
use exitmark_relays::{Confinement, FileWatcher};
use nix::unistd::{Uid, User};
use std::io;

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
