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
const NAME_ANOTHER: &str = "name another database in the configuration";
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
        Self::new(path, format!("cannot be read: {error}"), remedy)
    }

    pub(super) fn no_file(path: &Path) -> Self {
        Self::new(path, "is not a regular file".to_owned(), NAME_ANOTHER)
    }

    pub(super) fn too_large(path: &Path, bound: u64) -> Self {
        let what = format!("has more than {} MiB", bound >> 20);
        Self::new(path, what, "use a database of countries or systems only")
    }

    pub(super) fn too_many_ranges(path: &Path, bound: usize) -> Self {
        let what = format!("has more than {bound} ranges of addresses");
        Self::new(path, what, "use a database of countries or systems only")
    }

    pub(super) fn is_binary(path: &Path) -> Self {
        let what = "is neither MMDB nor text".to_owned();
        Self::new(path, what, FETCH_AGAIN)
    }

    pub(super) fn is_empty(path: &Path) -> Self {
        let what = "has no range of addresses".to_owned();
        Self::new(path, what, FETCH_AGAIN)
    }

    pub(super) fn at_line(path: &Path, line: Option<usize>, what: String) -> Self {
        Self {
            line,
            ..Self::new(path, what, LOOK_AT_LINE)
        }
    }

    pub(super) fn broken_mmdb(path: &Path, what: impl fmt::Display) -> Self {
        Self::new(path, format!("is a broken MMDB: {what}"), FETCH_AGAIN)
    }

    pub(super) fn lacks_countries(path: &Path) -> Self {
        let what = "has no country for any address".to_owned();
        Self::new(
            path,
            what,
            "if it is a database of autonomous systems, name it in `places.systems`",
        )
    }

    pub(super) fn lacks_systems(path: &Path) -> Self {
        let what = "has no autonomous system for any address".to_owned();
        Self::new(
            path,
            what,
            "use a CSV with a fourth column, or an MMDB with autonomous_system_number",
        )
    }

    fn new(path: &Path, what: String, remedy: &'static str) -> Self {
        Self {
            path: path.to_owned(),
            line: None,
            what,
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
