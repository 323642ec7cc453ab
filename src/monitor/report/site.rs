//! Writes the pages into a directory. Every file is replaced atomically, no page depends on
//! another, and `index.html` is replaced last. Nothing is synced to disk: the site can be made
//! again at any time.

use super::ReportError;
use super::data::Data;
use super::format;
use super::page::{Link, Links, Page, STYLE, Subject};
use super::sums::{Month, Span, Statistics};
use askama::Template;
use base64ct::{Base64, Encoding};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Prefix of temporary directories.
const UNFINISHED: &str = ".exitmark-report-";

/// The start page: a copy of the newest month of all exits.
const INDEX: &str = "index.html";

/// Result of writing a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Number of pages, `index.html` included.
    pub pages: usize,
    /// Number of files, pages included.
    pub files: usize,
    /// Number of different exits.
    pub exits: usize,
    /// Number of periods, over all exits.
    pub periods: u64,
}

/// Writes all pages into `out`, which is created if necessary. Other files in it stay.
///
/// # Errors
/// The directory cannot be written to, or another report is being written to it.
pub fn write(statistics: &Statistics, out: &Path) -> Result<Summary, ReportError> {
    let site = Site {
        statistics,
        files: names(statistics),
        style_digest: Base64::encode_string(&Sha256::digest(STYLE)),
    };
    let refused = |path: &Path, error: &dyn std::fmt::Display| {
        ReportError::Out(path.to_owned(), error.to_string())
    };
    let failed = |error: std::io::Error| refused(out, &error);
    fs::create_dir_all(out).map_err(failed)?;
    let directory = File::open(out).map_err(failed)?;
    let _alone = Flock::lock(directory, FlockArg::LockExclusiveNonblock)
        .map_err(|_| refused(out, &"another report is being written here; wait for it"))?;
    remove_unfinished(out).map_err(failed)?;

    // Within `out`: its parent may be another file system.
    let unfinished = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempdir_in(out)
        .map_err(failed)?;
    let mut written = BTreeSet::new();
    let mut put = |name: String, text: &str| {
        let path = unfinished.path().join(&name);
        let readable = fs::Permissions::from_mode(0o644);
        fs::write(&path, text)
            .and_then(|()| fs::set_permissions(&path, readable))
            .map_err(|error| refused(&out.join(&name), &error))?;
        written.insert(name);
        Ok(())
    };
    put("icon.svg".to_owned(), include_str!("templates/icon.svg"))?;
    let mut pages = 0;
    for exit in statistics.scopes() {
        for span in statistics.spans(exit) {
            site.span(exit, span, &mut put)?;
            pages += 1;
        }
    }
    let newest = statistics
        .months(None)
        .last()
        .map(|month| Span::Month(*month));
    let file = site.file(None, newest.unwrap_or(Span::Everything));
    let from = unfinished.path().join(format!("{file}.html"));
    fs::copy(&from, unfinished.path().join(INDEX)).map_err(failed)?;

    let files = written.len() + 1;
    for name in written.into_iter().chain([INDEX.to_owned()]) {
        let (from, to) = (unfinished.path().join(&name), out.join(&name));
        fs::rename(from, &to).map_err(|error| refused(&to, &error))?;
    }
    Ok(Summary {
        pages: pages + 1,
        files,
        exits: statistics.exits().len(),
        periods: statistics.sum(None, Span::Everything).periods,
    })
}

/// Removes temporary directories of interrupted runs.
fn remove_unfinished(out: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(out)? {
        let entry = entry?;
        let is_ours = entry.file_name().to_string_lossy().starts_with(UNFINISHED);
        if is_ours && entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// File name prefix of each exit: letters and digits of its name, with a number if that is empty or
/// taken.
fn names(statistics: &Statistics) -> BTreeMap<&str, String> {
    let mut taken = BTreeSet::new();
    let mut names = BTreeMap::new();
    for exit in statistics.exits() {
        let name = exit.to_ascii_lowercase();
        let words = name.split(|c: char| !c.is_ascii_alphanumeric());
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        let slug: String = format!("exit-{}", words.join("-"))
            .chars()
            .take(48)
            .collect();
        let mut name = slug.clone();
        let mut number = 2;
        while name == "exit-" || !taken.insert(name.clone()) {
            name = format!("{slug}-{number}");
            number += 1;
        }
        names.insert(exit, name);
    }
    names
}

struct Site<'a> {
    statistics: &'a Statistics,
    files: BTreeMap<&'a str, String>,
    style_digest: String,
}

impl Site<'_> {
    /// Base name of a page's files.
    fn file(&self, exit: Option<&str>, span: Span) -> String {
        let span = span.slug();
        match exit.and_then(|exit| self.files.get(exit)) {
            Some(exit) => format!("{exit}-{span}"),
            None => span,
        }
    }

    /// Writes a page and its data files.
    fn span(
        &self,
        exit: Option<&str>,
        span: Span,
        put: &mut dyn FnMut(String, &str) -> Result<(), ReportError>,
    ) -> Result<(), ReportError> {
        let sums = self.statistics.sum(exit, span);
        let file = self.file(exit, span);
        let links = self.links(exit, span);
        let page = Page::new(Subject {
            statistics: self.statistics,
            exit,
            span,
            sums: &sums,
            links: &links,
            file: &file,
            style_digest: &self.style_digest,
        });
        let html = page
            .render()
            .map_err(|error| ReportError::Out(PathBuf::from(&file), error.to_string()))?;
        let data = Data::new(exit, span, &sums, &self.statistics.names);
        put(format!("{file}.csv"), &data.csv())?;
        put(format!("{file}.json"), &data.json())?;
        put(format!("{file}.html"), &html)
    }

    /// Links from a page: the same span of other exits, the years, and the months of the year.
    fn links(&self, exit: Option<&str>, span: Span) -> Links {
        let to = |exit: Option<&str>, to: Span| format!("{}.html", self.file(exit, to));
        let months = self.statistics.months(exit);
        let exits = self.statistics.scopes().into_iter().map(|other| {
            // An exit may have no period in the span.
            let has = self
                .statistics
                .months(other)
                .iter()
                .any(|month| span.has(*month));
            let there = if has { span } else { Span::Everything };
            let text = other.unwrap_or("All exits");
            Link::new(text, (other != exit).then(|| to(other, there)))
        });
        let years: BTreeSet<i16> = months.iter().map(|month| month.year).collect();
        let newest = years.last().copied().unwrap_or(0);
        let year = match span {
            Span::Everything => newest,
            Span::Year(year) | Span::Month(Month { year, .. }) => year,
        };
        let link =
            |text: String, there: Span| Link::new(text, (there != span).then(|| to(exit, there)));
        let all = link(format::span(Span::Everything), Span::Everything);
        let years = years
            .iter()
            .map(|&year| link(year.to_string(), Span::Year(year)));
        let months = months
            .iter()
            .filter(|month| month.year == year)
            .map(|&month| link(format::short_month(month), Span::Month(month)));
        Links {
            exits: exits.collect(),
            years: std::iter::once(all).chain(years).collect(),
            months: months.collect(),
        }
    }
}
