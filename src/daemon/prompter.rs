//! What others have of the keeper of the relay set: a bell, orders, and what it says of itself.

use crate::observe::RelaySetReport;
use crate::policy::{Endpoint, EndpointSet};
use crate::settings::RelaySettings;
use crossbeam::channel::Sender;
use nix::sys::eventfd::EventFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often the files are looked at where nothing tells that they changed.
pub(super) const LOOK: Duration = Duration::from_secs(60);

/// Other settings to follow, and whether the set decides by them.
pub(super) struct Order {
    pub(super) number: u64,
    pub(super) settings: RelaySettings,
    pub(super) decides: bool,
}

/// What is to be published.
pub(super) struct Update {
    pub(super) endpoints: EndpointSet,
    /// Nobody can tell any more what is a relay: all is let pass.
    pub(super) passes: bool,
    /// How long reading the documents took.
    pub(super) loading: Duration,
}

impl Update {
    /// What makes it differ from another one: the endpoints in their order, not their table's.
    pub(super) fn content(&self) -> (Vec<Endpoint>, bool) {
        let mut endpoints: Vec<_> = self.endpoints.iter().collect();
        endpoints.sort_unstable();
        (endpoints, self.passes)
    }
}

/// Asks the keeper to load the files now, and knows what became of it.
pub(super) struct Prompter {
    pub(super) ordering: Sender<Order>,
    pub(super) asked: Arc<AtomicBool>,
    pub(super) wake: Arc<EventFd>,
    pub(super) numbers: Arc<Numbers>,
}

/// What the keeper counts.
#[derive(Default)]
pub(super) struct Numbers {
    pub(super) accepted: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) stale: AtomicU64,
    /// The last sign of life, in seconds since 1970.
    pub(super) beat: AtomicU64,
    /// From when on all is to be let pass if nothing newer comes, likewise.
    pub(super) stale_at: AtomicU64,
    /// What there is to say of the set.
    pub(super) report: Mutex<RelaySetReport>,
}

impl Prompter {
    pub(super) fn prompt(&self) {
        self.asked.store(true, Ordering::Release);
        let _ = self.wake.write(1);
    }

    /// Lets the keeper follow other settings, if it can; false if nobody keeps the set any more.
    /// The outcome comes as an event with this number.
    pub(super) fn order(&self, number: u64, settings: RelaySettings, decides: bool) -> bool {
        let order = Order {
            number,
            settings,
            decides,
        };
        let sent = self.ordering.send(order).is_ok();
        let _ = self.wake.write(1);
        sent
    }

    /// What there is to say of the set.
    pub(super) fn report(&self) -> RelaySetReport {
        let report = self.numbers.report.lock();
        report.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether documents are to be followed, and none has been accepted yet.
    pub(super) fn lacks_relays(&self) -> bool {
        let report = self.numbers.report.lock();
        report.unwrap_or_else(PoisonError::into_inner).is_missing
    }

    /// Whether the set has what a document lists, and that is not stale.
    pub(super) fn knows_relays(&self) -> bool {
        let report = self.report();
        let age = report.age.as_deref();
        !report.is_missing && age.is_some_and(|age| age != "stale")
    }

    /// How many sets were accepted and refused, and whether the one in force is stale.
    pub(super) fn numbers(&self) -> [(&'static str, u64); 3] {
        let Numbers {
            accepted,
            refused,
            stale,
            ..
        } = &*self.numbers;
        [
            ("relay_sets_accepted", accepted),
            ("relay_sets_refused", refused),
            ("relay_set_stale", stale),
        ]
        .map(|(name, number)| (name, number.load(Ordering::Relaxed)))
    }

    /// Whether by now all is to be let pass if nothing newer has come.
    pub(super) fn is_past_its_end(&self) -> bool {
        Self::is_past(&self.numbers.stale_at, Duration::ZERO)
    }

    /// Whether that is so, and the keeper has given no sign of life for long.
    pub(super) fn is_overdue(&self) -> bool {
        Self::is_past(&self.numbers.beat, 3 * LOOK) && self.is_past_its_end()
    }

    fn is_past(moment: &AtomicU64, slack: Duration) -> bool {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let moment = Duration::from_secs(moment.load(Ordering::Relaxed));
        moment.checked_add(slack).is_some_and(|limit| now > limit)
    }
}

/// Since 1970.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
