//! Reads a database file into memory.

use super::PlacesError;
use super::error::NAME_ANOTHER;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The largest file that is read, in bytes; a database of all cities is a quarter of that.
const MAX_BYTES: u64 = 256 << 20;

pub(super) struct Content {
    pub(super) bytes: Vec<u8>,
    modified: Option<Timestamp>,
}

impl Content {
    pub(super) fn read(path: &Path) -> Result<Self, PlacesError> {
        let failed = |error| PlacesError::unreadable(path, &error);
        // Checked before opening: opening a FIFO would block.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(PlacesError::new(
                path,
                "is not a regular file",
                NAME_ANOTHER,
            ));
        }
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.len() > MAX_BYTES {
            return Err(PlacesError::too_large(
                path,
                format_args!("{} MiB", MAX_BYTES >> 20),
            ));
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        let modified = metadata.modified().ok();
        Ok(Self {
            bytes,
            modified: modified.and_then(|time| Timestamp::try_from(time).ok()),
        })
    }

    /// File name without directory, modification date, and the first bytes of the SHA-256.
    pub(super) fn describe(&self, path: &Path) -> String {
        describe(path, self.modified, "modified", &self.bytes)
    }
}

/// Like [`Content::describe`], with another kind of date.
pub(super) fn describe(path: &Path, date: Option<Timestamp>, kind: &str, bytes: &[u8]) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let date = date.map_or_else(
        || "of unknown date".to_owned(),
        |date| format!("{kind} {}", date.strftime("%F")),
    );
    let digest = format!("{:x}", Sha256::digest(bytes));
    format!("{name}, {date}, sha256 {digest:.8}")
}
