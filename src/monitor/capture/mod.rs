//! The only wiring of the monitor: where packets come from, when the clock is asked, what is told
//! to whom, and what the process gives up.

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
use crate::http::ListenError;
use crate::process::ProcessError;
use jiff::Timestamp;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

pub use files::{FilesError, Summary};

/// Where packets come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The NIC at a tap.
    Interface(String),
    /// Captured files, in any order.
    Files(Vec<PathBuf>),
}

/// Why nothing is counted, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The databases are of no use.
    #[error(transparent)]
    Places(#[from] PlacesError),
    /// There can be no periods.
    #[error(transparent)]
    Period(#[from] PeriodError),
    /// The tap is none, or gone.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A captured file cannot be read.
    #[error(transparent)]
    Pcap(#[from] PcapError),
    /// Captured files cannot be counted as they are.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The metrics' port cannot be had.
    #[error(transparent)]
    Metrics(#[from] ListenError),
    /// Nothing can be given up.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The operating system refuses something basic.
    #[error("cannot {0}: {1}")]
    System(&'static str, #[source] io::Error),
    /// The thread with the periods has ended.
    #[error("nobody keeps the books any more; the log says why, and what is lost is a minute")]
    BooksAreGone,
}

/// Counts: at a tap until SIGTERM or SIGINT, where SIGUSR1 prints the counters; or all that is in
/// files, and then says what.
///
/// # Errors
/// What is wrong with where packets come from, or where counts go.
pub fn run(settings: &Settings, source: &Source) -> Result<Option<Summary>, CaptureError> {
    match source {
        Source::Interface(interface) => live::run(settings, interface).map(|()| None),
        Source::Files(files) => files::run(settings, files).map(Some),
    }
}

/// Periods, and what the running one had before.
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

/// What the clocks show, of a process that started then.
fn now(started: Instant) -> Now {
    Now {
        wall: Timestamp::now(),
        monotonic: started.elapsed(),
    }
}

/// Logs what happened.
fn tell(notices: &[Notice]) {
    for notice in notices {
        match notice {
            Notice::Restored(_) | Notice::Published { .. } => tracing::info!("{notice}"),
            Notice::GivenUp(_) => tracing::error!("{notice}"),
            _ => tracing::warn!("{notice}"),
        }
    }
}
