//! The handle of the relay service: wake-up, reconfiguration requests, and its report.

use crate::observe::RelaySetReport;
use crate::settings::RelaySettings;
use crossbeam::channel::Sender;
use exitmark_policy::{Endpoint, EndpointSet};
use nix::sys::eventfd::EventFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The interval of checking the relay files where no inotify event arrives.
pub(super) const LOOK: Duration = Duration::from_secs(60);

/// Other relay settings to apply.
pub(super) struct Reconfiguration {
    pub(super) number: u64,
    pub(super) settings: RelaySettings,
    pub(super) decides: bool,
}

/// A relay set to publish, in a new snapshot.
pub(super) struct Update {
    pub(super) endpoints: EndpointSet,
    /// The set is missing or stale: forward everything unmarked.
    pub(super) passes: bool,
    pub(super) loading: Duration,
}

impl Update {
    /// The content, to compare two updates by: the sorted endpoints, not the table's layout.
    pub(super) fn content(&self) -> (Vec<Endpoint>, bool) {
        let mut endpoints: Vec<_> = self.endpoints.iter().collect();
        endpoints.sort_unstable();
        (endpoints, self.passes)
    }
}

/// Numbers of the relay sets, by name.
pub(super) type RelayNumbers = [(&'static str, u64); 3];

pub(super) struct RelayServiceHandle {
    pub(super) reconfigure: Sender<Reconfiguration>,
    pub(super) load_requested: Arc<AtomicBool>,
    pub(super) wake: Arc<EventFd>,
    pub(super) numbers: Arc<Numbers>,
}

/// The relay service's shared counters and report.
#[derive(Default)]
pub(super) struct Numbers {
    /// The last heartbeat, in seconds since 1970.
    pub(super) beat: AtomicU64,
    /// When the set gets stale and everything is forwarded unmarked, in seconds since 1970.
    pub(super) stale_at: AtomicU64,
    report: Mutex<RelaySetReport>,
}

impl Numbers {
    /// The report on the set, as of the last load or check.
    pub(super) fn report(&self) -> MutexGuard<'_, RelaySetReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RelayServiceHandle {
    pub(super) fn load_now(&self) {
        self.load_requested.store(true, Ordering::Release);
        let _ = self.wake.write(1);
    }

    /// Requests other settings; false if the service has ended. The outcome arrives as an
    /// [`super::Event::Reconfigured`] with this number.
    pub(super) fn reconfigure(&self, number: u64, settings: RelaySettings, decides: bool) -> bool {
        let reconfiguration = Reconfiguration {
            number,
            settings,
            decides,
        };
        let sent = self.reconfigure.send(reconfiguration).is_ok();
        let _ = self.wake.write(1);
        sent
    }

    /// Whether the set comes from a document that is not stale.
    pub(super) fn knows_relays(&self) -> bool {
        let report = self.numbers.report();
        let age = report.age.as_deref();
        !report.is_missing && age.is_some_and(|age| age != "stale")
    }

    /// How many sets were accepted and refused, and whether the one in force is stale.
    pub(super) fn numbers(&self) -> RelayNumbers {
        let report = self.numbers.report();
        let is_stale = report.age.as_deref() == Some("stale");
        [
            ("relay_sets_accepted", report.accepted),
            ("relay_sets_refused", report.refused),
            ("relay_set_stale", is_stale.into()),
        ]
    }

    /// Whether the set is stale by now and everything must be forwarded unmarked.
    pub(super) fn is_past_its_end(&self) -> bool {
        Self::is_past(&self.numbers.stale_at, Duration::ZERO)
    }

    /// The same, and the service has not stamped its heartbeat for three check intervals.
    pub(super) fn is_overdue(&self) -> bool {
        Self::is_past(&self.numbers.beat, 3 * LOOK) && self.is_past_its_end()
    }

    fn is_past(moment: &AtomicU64, slack: Duration) -> bool {
        let now = UNIX_EPOCH.elapsed().unwrap_or_default();
        let moment = Duration::from_secs(moment.load(Ordering::Relaxed));
        moment.checked_add(slack).is_some_and(|limit| now > limit)
    }
}

/// Seconds since 1970; 0 for an earlier time.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
