//! Wires the monitor: packet source, clock, notices, metrics, and the privileges that are dropped.

mod aggregator;
pub(crate) mod files;
pub(crate) mod live;
mod metrics;

use super::clock::Now;
use super::filter::Filter;
use super::period::{Disk, Notice, Opened, PeriodSettings, Periods};
use super::places::Places;
use super::publish::Origin;
use super::settings::Settings;
use jiff::Timestamp;
use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Says what to do about marked packets to the host.
const INBOUND: &str = "marked packets to `addresses` arrive and are not counted; if this is the \
                       tap port of exitmark, set `tap.directions = \"both\"`; on a mirror of the \
                       uplink nothing is to be done, because the Internet may set any DSCP";

/// Why counting could not start, or ended: an error of another module, or a message. It is shown
/// only, so its kinds are not distinguished.
pub(crate) type CaptureError = Box<dyn Error + Send + Sync>;

/// The error of a step that failed; `step` is a verb phrase.
fn cannot(step: &'static str) -> impl Fn(io::Error) -> CaptureError {
    move |error| format!("cannot {step}: {error}").into()
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
    let publish = settings.publish.clone();
    Ok(Periods::open(
        Disk::default(),
        period,
        publish,
        origin,
        now,
    )?)
}

fn filter(settings: &Settings) -> Filter {
    Filter {
        dscp: settings.mark,
        clearnet: settings.addresses.clone(),
        directions: settings.directions,
        unwrap: settings.unwrap,
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
fn log_notices(notices: &[Notice]) {
    for notice in notices {
        match notice {
            Notice::Restored(_) | Notice::Published(..) => tracing::info!("{notice}"),
            Notice::GivenUp(_) => tracing::error!("{notice}"),
            _ => tracing::warn!("{notice}"),
        }
    }
}
