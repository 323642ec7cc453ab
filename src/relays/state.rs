//! `StateFile`: stores the live set on disk, so that a restart neither loses departed endpoints nor
//! accepts a document that was refused before.
//!
//! The file is JSON, to be readable by people, and is replaced atomically. Its endpoints are those
//! of the public network; none of them depends on traffic.

use super::files;
use super::live::{LiveSet, Refusal};
use super::validity::seconds;
use super::{Identity, LoadError, SourceReport};
use exitmark_policy::{Endpoint, MAX_ENDPOINTS};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The version of the format. Version 1 listed the DirPorts of all relays.
const FORMAT: u32 = 2;

/// The file that stores a live set.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
}

/// Why a live set cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file exists, but cannot be opened or read.
    #[error(transparent)]
    Read(LoadError),
    /// The file is not a state file, or is damaged: the problem, without any of the file's text.
    #[error("{}: {_1}; remove it: exitmark writes a new one", _0.display())]
    Unusable(PathBuf, String),
    /// The file cannot be written.
    #[error("{}: cannot be written: {_1}; name another file by relays.state", _0.display())]
    Write(PathBuf, io::Error),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    #[serde(with = "seconds")]
    accepted_at: SystemTime,
    accepted: u64,
    refused: u64,
    last_refusal: Option<Refusal>,
    authorities: Vec<String>,
    sources: Vec<SourceReport>,
    listed: Vec<Endpoint>,
    departed: Vec<(Endpoint, u64)>,
}

impl StateFile {
    /// A state file at this path, which is not accessed yet.
    pub const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The path of the file, which need not exist yet.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the live set; `None` if the file does not exist.
    ///
    /// # Errors
    /// The file cannot be read, or does not contain a valid live set.
    pub fn load(&self) -> Result<Option<LiveSet>, StateError> {
        let bytes = match files::read(&self.path) {
            Ok(bytes) => bytes,
            Err(LoadError::Read(_, reason)) if reason.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(LoadError::NotRegular(path, kind)) => {
                let reason = format!("is {kind}, not a regular file");
                return Err(StateError::Unusable(path, reason));
            }
            Err(LoadError::TooLarge(path)) => {
                let reason = "is larger than any relay set".to_owned();
                return Err(StateError::Unusable(path, reason));
            }
            Err(error) => return Err(StateError::Read(error)),
        };
        let unusable = |reason| StateError::Unusable(self.path.clone(), reason);
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            unusable(format!(
                "line {line}, column {column}: is not a relay state file"
            ))
        })?;
        let live = stored.live();
        live.map(Some).map_err(|what| unusable(what.to_owned()))
    }

    /// Replaces the file atomically.
    ///
    /// # Errors
    /// The file cannot be written; the old content stays.
    pub fn save(&self, live: &LiveSet) -> Result<(), StateError> {
        let written = self.write(&Stored::of(live));
        written.map_err(|reason| StateError::Write(self.path.clone(), reason))
    }

    fn write(&self, stored: &Stored) -> io::Result<()> {
        let directory = match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o755).create(directory)?;
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = directory.join(name);
        // Left behind by an earlier process, or placed there by another user. Write only to a new
        // file: a link would lead elsewhere, and a FIFO would block.
        if let Err(error) = std::fs::remove_file(&new)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let written = self.replace_by(&new, stored);
        if written.is_err() {
            let _ = std::fs::remove_file(&new);
        }
        written?;
        File::open(directory)?.sync_all()
    }

    fn replace_by(&self, new: &Path, stored: &Stored) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o644).open(new)?;
        let mut text = serde_json::to_vec(stored)?;
        text.push(b'\n');
        file.write_all(&text)?;
        // Sync both before and after the rename, so that a crash leaves a complete file.
        file.sync_all()?;
        std::fs::rename(new, &self.path)
    }
}

impl Stored {
    fn of(live: &LiveSet) -> Self {
        let since = |(endpoint, time): (&Endpoint, &SystemTime)| {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            (*endpoint, since.as_secs())
        };
        Self {
            format: FORMAT,
            accepted_at: live.accepted_at.unwrap_or(UNIX_EPOCH),
            accepted: live.accepted,
            refused: live.refused,
            last_refusal: live.last_refusal.clone(),
            authorities: live.authorities.iter().map(Identity::to_string).collect(),
            sources: live.sources.clone(),
            listed: live.listed.clone(),
            departed: live.departed.iter().map(since).collect(),
        }
    }

    fn live(self) -> Result<LiveSet, &'static str> {
        if self.format != FORMAT {
            return Err("is of another version of exitmark");
        }
        let listed = self.listed;
        let since = |(endpoint, seconds)| {
            let since = UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
            Some((endpoint, since))
        };
        let departed: Option<BTreeMap<_, _>> = self.departed.into_iter().map(since).collect();
        let departed = departed.ok_or("holds a time out of range")?;
        if (listed.iter().chain(departed.keys())).any(|endpoint| endpoint.port == 0) {
            return Err("holds an endpoint with port 0");
        }
        if !listed.is_sorted_by(|a, b| a < b) || listed.len() > MAX_ENDPOINTS {
            return Err("holds endpoints out of order, or too many");
        }
        let mut validities = self.sources.iter().map(|source| source.validity);
        if validities.clone().any(|validity| !validity.is_ordered()) {
            return Err("holds times that do not follow each other");
        }
        if validities.any(|validity| !validity.is_brief()) {
            return Err("holds a document that is valid for too long");
        }
        let authorities = self.authorities.iter().map(|text| text.parse());
        let authorities = authorities.collect::<Result<_, _>>();
        let mut live = LiveSet {
            authorities: authorities.map_err(|_| "holds an invalid authority identity")?,
            sources: self.sources,
            // A set that was never in force has no time.
            accepted_at: (self.accepted > 0).then_some(self.accepted_at),
            listed,
            departed,
            accepted: self.accepted,
            refused: self.refused,
            last_refusal: self.last_refusal,
        };
        live.trim();
        Ok(live)
    }
}
