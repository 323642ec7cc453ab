//! Which files the relay set is read from, how they are followed, and as which user they are read.

use super::super::DaemonError;
use crate::relays::{Confinement, Watch};
use crate::settings::RelaySettings;
use nix::unistd::{Uid, User};
use std::io;
use std::path::PathBuf;

/// The files of these settings, consensus documents and certificates.
pub(super) fn watched(settings: &RelaySettings) -> Vec<PathBuf> {
    let files = settings.sources.files.iter();
    let paths = files.flat_map(|source| [&source.consensus, &source.certificates]);
    paths.cloned().collect()
}

/// Takes what is there now for known.
pub(super) fn watch(made: io::Result<Watch>) -> Result<Watch, DaemonError> {
    let mut watch = made.map_err(|error| DaemonError::System("watch the relay files", error))?;
    watch.has_changed();
    Ok(watch)
}

/// As whom documents are read.
pub(super) fn confinement(user: &str) -> Result<Confinement, DaemonError> {
    if !Uid::effective().is_root() {
        tracing::info!("documents are read as the user of this process, which is not root");
        return Ok(Confinement { user: None });
    }
    match User::from_name(user) {
        Ok(Some(found)) if found.uid.is_root() || found.gid.as_raw() == 0 => {
            Err(DaemonError::LoaderIsRoot)
        }
        Ok(Some(found)) => Ok(Confinement {
            user: Some((found.uid.as_raw(), found.gid.as_raw())),
        }),
        Ok(None) => Err(DaemonError::NoSuchUser(user.to_owned())),
        Err(error) => Err(DaemonError::System("look up relays.user", error.into())),
    }
}
