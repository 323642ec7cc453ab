//! `DocumentPattern`: consensus documents that are named by a path with wildcards, and the files and
//! directories that match it now.
//!
//! The directories may be controlled by others, so a search is bounded in names, directories,
//! documents and problems.

use super::{DocumentFiles, LoadError};
use glob::{MatchOptions, Pattern};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

/// The limit of the documents of a relay set. Documents that match beyond it are refused.
pub const MAX_DOCUMENTS: usize = 64;
/// The limit of the names that one search reads.
const MAX_NAMES: usize = 16_384;
/// The limit of the directories of one search that are reported as unreadable.
const MAX_UNREADABLE: usize = 16;
/// The limit of the directories of one search that are watched.
const MAX_DIRECTORIES: usize = 256;

/// As a shell matches: upper and lower case differ, and a wildcard matches no leading dot.
const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// A path of consensus documents with wildcards: `*` and `?` for characters of one name, `[…]` for
/// one character of a set. The certificates are beside each document, or in one place for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentPattern {
    path: PathBuf,
    /// The directory before the first name with a wildcard.
    fixed: PathBuf,
    /// The names behind `fixed`; the first one has a wildcard.
    names: Vec<Name>,
    certificates: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Exactly(OsString),
    Like(Pattern),
}

/// The documents that sources name, and exist, at one moment.
#[derive(Debug, Default)]
pub struct Found {
    /// At most [`MAX_DOCUMENTS`]: those with a path of their own first, in the order of the
    /// configuration, then those that match a pattern, by their paths.
    pub files: Vec<DocumentFiles>,
    /// Patterns without a match, directories that cannot be read, and documents beyond the limit.
    pub problems: Vec<LoadError>,
    /// The directories in which matches can appear.
    pub(super) directories: Vec<PathBuf>,
}

impl DocumentPattern {
    /// Whether a path in the configuration is a pattern.
    pub fn is_pattern(path: &Path) -> bool {
        path.to_string_lossy().contains(['*', '?', '['])
    }

    /// The pattern `path`, relative to `base`, in which no character is a wildcard. Without
    /// `certificates`, they are the `cached-certs` beside each document.
    ///
    /// # Errors
    /// The reason why the path is not a pattern of documents.
    pub fn new(
        base: &Path,
        path: &Path,
        certificates: Option<PathBuf>,
    ) -> Result<Self, &'static str> {
        let mut fixed = base.to_owned();
        let mut names = Vec::new();
        for component in path.components() {
            let is_like = Self::is_pattern(Path::new(component.as_os_str()));
            match component {
                Component::Normal(name) if is_like => {
                    let name = name.to_str().ok_or("is not UTF-8")?;
                    if name.contains("**") {
                        return Err(
                            "has `**`, and a wildcard matches within one name only; write one \
                             pattern for each depth, such as \"/srv/*/cached-consensus\"",
                        );
                    }
                    let pattern = Pattern::new(name);
                    let pattern = pattern.map_err(
                        |_| "has a `[` without its `]`; the character itself is written `[[]`",
                    )?;
                    names.push(Name::Like(pattern));
                }
                other if names.is_empty() => fixed.push(other),
                other => names.push(Name::Exactly(other.as_os_str().to_owned())),
            }
        }
        match names.last() {
            None => return Err("has no wildcard"),
            Some(Name::Exactly(name)) if name == ".." => return Err("ends in a directory"),
            Some(_) => {}
        }
        Ok(Self {
            path: base.join(path),
            fixed,
            names,
            certificates,
        })
    }

    /// The pattern's path, as configured and relative to the current directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path is that of a document of this pattern, which need not exist.
    pub fn matches(&self, path: &Path) -> bool {
        let Ok(rest) = path.strip_prefix(&self.fixed) else {
            return false;
        };
        let mut rest = rest.components().map(Component::as_os_str);
        let mut names = self.names.iter();
        names.all(|name| match (name, rest.next()) {
            (Name::Exactly(name), Some(other)) => name == other,
            (Name::Like(pattern), Some(other)) => {
                other.to_str().is_some_and(|name| is_like(pattern, name))
            }
            (_, None) => false,
        }) && rest.next().is_none()
            && !is_unverified(path)
    }

    fn files(&self, consensus: PathBuf) -> DocumentFiles {
        let mut files = DocumentFiles::beside(consensus);
        if let Some(certificates) = &self.certificates {
            files.certificates.clone_from(certificates);
        }
        files
    }

    /// Adds the documents that match now, those in `first` before the others, and the directories in
    /// which matches can appear.
    pub(super) fn find(&self, first: &BTreeSet<PathBuf>, found: &mut Found) {
        let mut search = Search::default();
        let mut matches = search.run(self);
        let directories = search.directories.into_iter();
        let room = MAX_DIRECTORIES.saturating_sub(found.directories.len());
        found.directories.extend(directories.take(room));
        if search.names > MAX_NAMES {
            let problem = LoadError::TooManyNames(self.path.clone(), MAX_NAMES);
            search.problems.push(problem);
        } else if matches.is_empty() && search.problems.is_empty() {
            search.problems.push(LoadError::NoMatch(self.path.clone()));
        }
        found.problems.append(&mut search.problems);
        matches.sort_by_cached_key(|path| (!first.contains(path), path.clone()));
        let count = matches.len();
        // Links lead to the same document by different paths.
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let known = found.files.iter().map(|files| real(&files.consensus));
        let mut known: BTreeSet<_> = known.collect();
        let mut matches = matches.into_iter();
        let mut chosen = BTreeSet::new();
        while found.files.len() + chosen.len() < MAX_DOCUMENTS
            && let Some(path) = matches.next()
        {
            if known.insert(real(&path)) {
                chosen.insert(path);
            }
        }
        found
            .files
            .extend(chosen.into_iter().map(|path| self.files(path)));
        if matches.next().is_some() {
            let path = self.path.clone();
            found.problems.push(LoadError::TooManyMatches(path, count));
        }
    }
}

/// Whether a pattern matches a name. Names with control characters never match, because paths are
/// logged.
fn is_like(pattern: &Pattern, name: &str) -> bool {
    !name.contains(char::is_control) && pattern.matches_with(name, OPTIONS)
}

/// Whether tor has fetched the document and not verified it; such a file comes and goes.
fn is_unverified(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("unverified-")
}

#[derive(Default)]
struct Search {
    /// The number of names that were read.
    names: usize,
    directories: BTreeSet<PathBuf>,
    problems: Vec<LoadError>,
}

impl Search {
    /// The paths that match, except those that surely are no file.
    fn run(&mut self, pattern: &DocumentPattern) -> Vec<PathBuf> {
        let mut places = vec![pattern.fixed.clone()];
        for (index, name) in pattern.names.iter().enumerate() {
            let is_last = index + 1 == pattern.names.len();
            let mut next = Vec::new();
            for place in places {
                match name {
                    Name::Exactly(name) => next.push(place.join(name)),
                    Name::Like(pattern) => self.list(&place, pattern, is_last, &mut next),
                }
                if self.directories.len() < MAX_DIRECTORIES {
                    self.directories.insert(place);
                }
            }
            places = next;
        }
        // A name that was not read may be missing. With another error, loading says what is wrong.
        let is_missing = |path: &PathBuf| path.metadata().is_err_and(|error| is_absence(&error));
        if let Some(Name::Exactly(_)) = pattern.names.last() {
            places.retain(|path| !is_missing(path));
        }
        places
    }

    /// Adds the paths in this directory that match.
    fn list(&mut self, place: &Path, pattern: &Pattern, is_last: bool, next: &mut Vec<PathBuf>) {
        let entries = match place.read_dir() {
            Ok(entries) => entries,
            Err(error) => {
                if !is_absence(&error) && self.problems.len() < MAX_UNREADABLE {
                    let problem = LoadError::Read(place.to_owned(), error);
                    self.problems.push(problem);
                }
                return;
            }
        };
        for entry in entries.flatten() {
            self.names += 1;
            if self.names > MAX_NAMES {
                return;
            }
            let can_lead_on = || {
                let kind = entry.file_type();
                kind.is_ok_and(|kind| kind.is_dir() || kind.is_symlink())
            };
            let name = entry.file_name();
            let matches = name.to_str().is_some_and(|name| is_like(pattern, name));
            let path = place.join(&name);
            if matches && (is_last && !is_unverified(&path) || !is_last && can_lead_on()) {
                next.push(path);
            }
        }
    }
}

/// Whether the error says that there is no such file.
fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
