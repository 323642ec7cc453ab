//! Wires the monitor: packet source, clock, notices, metrics, and the privileges that are dropped.

mod books;
mod files;
mod live;
mod metrics;

use super::clock::Now;
use super::filter::Filter;
use super::ledger::Ledger;
use super::pcap::CaptureError as PcapError;
use super::period::{Notice, PeriodError, PeriodSettings, Periods};
use super::places::{Places, PlacesError};
use super::publish::Origin;
use super::settings::Settings;
use super::tap::TapError;
use exitmark_service::http::ListenError;
use exitmark_service::process::ProcessError;
use jiff::Timestamp;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

pub use files::{FilesError, Summary};

/// Where packets come from: a tap, or files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The NIC at a tap, by its name.
    Interface(String),
    /// Captured files, in any order.
    Files(Vec<PathBuf>),
}

/// Why counting could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// A database cannot be used.
    #[error(transparent)]
    Places(#[from] PlacesError),
    /// Periods cannot be opened.
    #[error(transparent)]
    Period(#[from] PeriodError),
    /// The NIC is not a usable tap, or is gone.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A captured file cannot be read.
    #[error(transparent)]
    Pcap(#[from] PcapError),
    /// Captured files cannot be counted as they are.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The metrics port cannot be opened.
    #[error(transparent)]
    Metrics(#[from] ListenError),
    /// Privileges cannot be dropped.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A system call failed: the step, as a verb phrase, and the error.
    #[error("cannot {0}: {1}")]
    System(&'static str, #[source] io::Error),
    /// The aggregation thread has exited.
    #[error("the aggregation thread has exited; the log says why, and up to a minute is lost")]
    BooksAreGone,
}

/// Counts at a tap until SIGTERM or SIGINT, with SIGUSR1 printing the counters; or counts files and
/// returns a summary.
///
/// # Errors
/// The packet source or the period directory is not usable.
pub fn run(settings: &Settings, source: &Source) -> Result<Option<Summary>, CaptureError> {
    match source {
        Source::Interface(interface) => live::run(settings, interface).map(|()| None),
        Source::Files(files) => files::run(settings, files).map(Some),
    }
}

/// The periods, and the running one's saved counts.
struct Opened {
    periods: Periods,
    before: Option<Ledger>,
    notices: Vec<Notice>,
}

fn open_periods(
    settings: &Settings,
    places: &Arc<Places>,
    state: Option<&Path>,
    now: Now,
) -> Result<Opened, CaptureError> {
    let described = places.described();
    let names = Arc::clone(places);
    let origin = Origin {
        exit: settings.exit.clone(),
        countries: described.countries.clone(),
        systems: described.systems.clone(),
        names: Arc::new(move |asn| names.as_name(asn).map(str::to_owned)),
    };
    let period = PeriodSettings {
        length: settings.length,
        directory: settings.directory.clone(),
        state: state.map(Path::to_owned),
    };
    let (periods, before, notices) = Periods::open(period, settings.publish.clone(), origin, now)?;
    Ok(Opened {
        periods,
        before,
        notices,
    })
}

fn filter(settings: &Settings) -> Filter {
    Filter {
        dscp: settings.mark,
        clearnet: settings.addresses.clone(),
    }
}

/// Reads both clocks; monotonic time counts from `started`.
fn now(started: Instant) -> Now {
    Now {
        wall: Timestamp::now(),
        monotonic: started.elapsed(),
    }
}

/// Logs notices: a lost period as an error, other trouble as a warning.
fn tell(notices: &[Notice]) {
    for notice in notices {
        match notice {
            Notice::Restored(_) | Notice::Published { .. } => tracing::info!("{notice}"),
            Notice::GivenUp(_) => tracing::error!("{notice}"),
            _ => tracing::warn!("{notice}"),
        }
    }
}
