//! Errors of reading a database.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Names the file, the position, the fault and a remedy.
#[derive(Debug)]
pub struct PlacesError {
    path: PathBuf,
    line: Option<usize>,
    what: String,
    remedy: &'static str,
}

/// Remedy for a truncated or altered file.
const FETCH_AGAIN: &str = "fetch it again, or use another database";
pub(super) const NAME_ANOTHER: &str = "name another database in the configuration";
const LOOK_AT_LINE: &str =
    "fix that line, or fetch the file again (`apt-get install --reinstall tor-geoipdb` for Tor's)";

impl PlacesError {
    pub(super) fn unreadable(path: &Path, error: &io::Error) -> Self {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => {
                "correct the path in the configuration, or install the database (Tor's is in \
                 Debian's package tor-geoipdb)"
            }
            io::ErrorKind::PermissionDenied => "let the monitor's user read it (`chmod a+r FILE`)",
            _ => NAME_ANOTHER,
        };
        Self::new(path, format_args!("cannot be read: {error}"), remedy)
    }

    /// `bound` is a number and its unit.
    pub(super) fn too_large(path: &Path, bound: impl fmt::Display) -> Self {
        let what = format_args!("has more than {bound}");
        Self::new(path, what, "use a database of countries or systems only")
    }

    pub(super) fn too_many_ranges(path: &Path, bound: usize) -> Self {
        Self::too_large(path, format_args!("{bound} ranges of addresses"))
    }

    pub(super) fn is_binary(path: &Path) -> Self {
        Self::new(path, "is neither MMDB nor text", FETCH_AGAIN)
    }

    pub(super) fn is_empty(path: &Path) -> Self {
        Self::new(path, "has no range of addresses", FETCH_AGAIN)
    }

    pub(super) fn at_line(path: &Path, line: Option<usize>, what: impl fmt::Display) -> Self {
        Self {
            line,
            ..Self::new(path, what, LOOK_AT_LINE)
        }
    }

    pub(super) fn broken_mmdb(path: &Path, what: impl fmt::Display) -> Self {
        Self::new(path, format_args!("is a broken MMDB: {what}"), FETCH_AGAIN)
    }

    /// `what` is the fault as a verb phrase.
    pub(super) fn new(path: &Path, what: impl fmt::Display, remedy: &'static str) -> Self {
        Self {
            path: path.to_owned(),
            line: None,
            what: what.to_string(),
            remedy,
        }
    }
}

impl fmt::Display for PlacesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        match self.line {
            Some(line) => write!(f, ", line {line}: {}", self.what)?,
            None => write!(f, " {}", self.what)?,
        }
        write!(f, "; {}", self.remedy)
    }
}

impl std::error::Error for PlacesError {}
