//! What is published, as a page: periods' files in, sums, and a static site out.
//!
//! It reads [`super::row`]s only, never a ledger, and takes them for what strangers wrote. A page
//! runs no script, asks nobody for anything, and works from a directory.

mod countries;
mod data;
mod page;
mod plot;
mod ranking;
mod read;
mod site;
mod sums;
mod words;

pub use data::json;
pub use read::read;
pub use site::{Summary, write};
pub use sums::{Day, Entry, Key, Method, Month, Part, Span, Statistics, Sums, Table, Values};

use std::path::PathBuf;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A line is not what a period's file has there.
    #[error(
        "{}, line {_1}: {_2}. Nothing was written. Move the file away, or put the one in its place that the monitor wrote",
        _0.display()
    )]
    Line(PathBuf, u64, String),
    /// A file is no period's file.
    #[error(
        "{}: {_1}. Nothing was written. Move it away, or name the files and directories to read",
        _0.display()
    )]
    File(PathBuf, String),
    /// There was nothing to read.
    #[error(
        "there is no period in {0}: give files, or directories with files whose names end in .jsonl"
    )]
    NoPeriod(String),
    /// The site could not be written.
    #[error("{}: {_1}. The pages there are what they were; see that the directory can be written to", _0.display())]
    Out(PathBuf, String),
}
