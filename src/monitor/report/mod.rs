//! The report: reads period files, sums them, and writes a static site.
//!
//! It uses [`super::row`]s only, never a ledger, and treats them as untrusted input. Pages run no
//! script, load nothing from elsewhere, and can be opened from a directory.

mod countries;
mod data;
mod format;
mod page;
mod plot;
mod ranking;
mod read;
mod site;
mod sums;

pub use data::json;
pub use read::read;
pub use site::{Summary, write};
pub use sums::{Month, Span, Statistics, SumKey};

use std::path::PathBuf;

/// Why a report cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A line is not a valid row at its place: file, line number, fault.
    #[error(
        "{}, line {_1}: {_2}. Nothing was written. Move the file away, or replace it by the one that the monitor wrote",
        _0.display()
    )]
    Line(PathBuf, u64, String),
    /// A file is not a period file: file, fault.
    #[error(
        "{}: {_1}. Nothing was written. Move it away, or name the files and directories to read",
        _0.display()
    )]
    File(PathBuf, String),
    /// No period was found in the given paths.
    #[error(
        "no period was found in {0}: give files, or directories with files whose names end in .jsonl"
    )]
    NoPeriod(String),
    /// The site could not be written: path, fault.
    #[error("{}: {_1}. The existing pages are unchanged; check that the directory can be written to", _0.display())]
    Out(PathBuf, String),
}
