//! What becomes of periods, told to whoever logs and measures it. None of it names an address.

use super::Period;
use std::io;
use std::path::PathBuf;

/// Something that happened.
#[derive(Debug, thiserror::Error)]
pub enum Notice {
    /// A period goes on where an earlier process left it.
    #[error("period {0} goes on with the counts of an earlier process")]
    Restored(Period),
    /// A period's file is there.
    #[error("period {period} is published in {}", path.display())]
    Published {
        /// The period.
        period: Period,
        /// Its file.
        path: PathBuf,
    },
    /// There is nowhere to publish to.
    #[error(
        "{}: {reason}; periods wait until it is there: make it, writable for the monitor's user",
        path.display()
    )]
    NoDirectory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// A period's file could not be written. Nothing is lost: it is tried again.
    #[error(
        "{}: period {period} cannot be published: {reason}; it is kept and tried again every \
         minute, and {waiting} wait: make room, or let the monitor's user write there",
        path.display()
    )]
    Unpublished {
        /// The period.
        period: Period,
        /// Its file.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
        /// How many periods are kept.
        waiting: usize,
    },
    /// More periods wait than are kept.
    #[error("period {0} is lost: too many wait to be published, and it was the oldest of them")]
    GivenUp(Period),
    /// The running counts could not be kept for a restart.
    #[error(
        "{}: the counts of period {period} cannot be kept for a restart: {reason}; counting goes \
         on, and a restart would lose what came since they last were: make room there",
        path.display()
    )]
    NotSaved {
        /// The period.
        period: Period,
        /// The state file.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// A state file is of no use.
    #[error(
        "{}: {reason}; it is put aside under the name {aside}, its counts are not in any period, \
         and it may be removed",
        path.display()
    )]
    SetAside {
        /// The state file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What became of it.
        aside: String,
    },
    /// The state of a published period is still there.
    #[error(
        "{}: cannot be removed though its period is published: {reason}; remove it before its \
         published file is moved elsewhere, or it would be published again",
        path.display()
    )]
    NotRemoved {
        /// The state file.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// The noise can be subtracted by whoever knows the seed.
    #[error("noise is drawn from a seed: it protects nobody, and is for tests alone")]
    Seeded,
}

impl Notice {
    /// Whether somebody should do something.
    pub const fn is_trouble(&self) -> bool {
        !matches!(self, Self::Restored(_) | Self::Published { .. })
    }
}
