//! Events of periods, for logs and metrics. They contain no address.

use super::Period;
use std::io;
use std::path::PathBuf;

/// An event that is logged for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Notice {
    /// A period continues with an earlier process's counts.
    #[error("period {0} continues with the counts of an earlier process")]
    Restored(Period),
    /// A period was published: its file has this final name.
    #[error("period {_0} is published in {}", _1.display())]
    Published(Period, PathBuf),
    /// The period directory cannot be read.
    #[error(
        "{}: {_1}; periods wait until this directory exists: create it, writable for the \
         monitor's user",
        _0.display()
    )]
    NoDirectory(PathBuf, io::Error),
    /// A period's file, which will have this path, could not be written; it will be retried. This
    /// many periods wait, this one included; at most [`super::MAX_WAITING`].
    #[error(
        "{}: period {_0} cannot be published: {_2}; it is kept and retried every minute, and \
         periods that wait: {_3}; make room, or let the monitor's user write there",
        _1.display()
    )]
    Unpublished(Period, PathBuf, io::Error, usize),
    /// The oldest waiting period was dropped because too many wait.
    #[error("period {0} is lost: too many wait to be published, and this was the oldest of them")]
    GivenUp(Period),
    /// The running period's counts could not be saved in this state file.
    #[error(
        "{}: the counts of period {_0} cannot be kept for a restart: {_2}; counting goes on, but a \
         restart would lose the counts since the last save: make room there",
        _1.display()
    )]
    NotSaved(Period, PathBuf, io::Error),
    /// A state file cannot be used.
    #[error(
        "{}: {reason}; it is put aside under the name {aside}, its counts are not in any period, \
         and it may be removed",
        path.display()
    )]
    SetAside {
        /// Path of the state file before it was renamed.
        path: PathBuf,
        /// Why it cannot be used, as a clause.
        reason: String,
        /// The file name that it has now, in the same directory.
        aside: String,
    },
    /// This state file of a published period could not be removed.
    #[error(
        "{}: cannot be removed although its period is published: {_1}; remove it before its \
         published file is moved elsewhere, or it would be published again",
        _0.display()
    )]
    NotRemoved(PathBuf, io::Error),
    /// The noise comes from a seed, and can be subtracted with it.
    #[error("noise is drawn from a seed: it gives no protection, and is for tests only")]
    Seeded,
}

impl Notice {
    /// Whether the operator should act.
    pub const fn is_trouble(&self) -> bool {
        !matches!(self, Self::Restored(_) | Self::Published(..))
    }
}
