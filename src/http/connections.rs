//! The connections of a listener: how many there are, and which one makes room.

use super::{AtLimit, CONNECTIONS};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

/// All of them. Dropping it closes them.
pub(super) struct Connections {
    at_limit: AtLimit,
    tasks: JoinSet<()>,
    /// The oldest first.
    open: VecDeque<(AbortHandle, Busy)>,
    /// Told whenever an answer is made.
    answered: Arc<Notify>,
}

/// Whether an answer of one connection is being made.
#[derive(Clone)]
pub(super) struct Busy {
    is_busy: Arc<AtomicBool>,
    answered: Arc<Notify>,
}

/// An answer that is being made. What is left of it then is to send it.
pub(super) struct Answering(Busy);

impl Busy {
    pub(super) fn begin(&self) -> Answering {
        self.is_busy.store(true, Ordering::Relaxed);
        Answering(self.clone())
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.is_busy.store(false, Ordering::Relaxed);
        self.0.answered.notify_one();
    }
}

impl Connections {
    pub(super) fn new(at_limit: AtLimit) -> Self {
        Self {
            at_limit,
            tasks: JoinSet::new(),
            open: VecDeque::new(),
            answered: Arc::default(),
        }
    }

    /// One more.
    pub(super) fn open<F>(&mut self, connection: impl FnOnce(Busy) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let busy = Busy {
            is_busy: Arc::default(),
            answered: Arc::clone(&self.answered),
        };
        let task = self.tasks.spawn(connection(busy.clone()));
        self.open.push_back((task, busy));
    }

    /// Waits until there may be one more.
    pub(super) async fn make_room(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        while self.tasks.len() >= CONNECTIONS {
            self.open.retain(|(task, _)| !task.is_finished());
            match self.at_limit {
                AtLimit::Waits => {}
                AtLimit::OldestCloses => {
                    let idle = |(_, busy): &(_, Busy)| !busy.is_busy.load(Ordering::Relaxed);
                    if let Some(oldest) = self.open.iter().position(idle) {
                        if let Some((task, _)) = self.open.remove(oldest) {
                            task.abort();
                        }
                    } else {
                        self.answered.notified().await;
                        continue;
                    }
                }
            }
            self.tasks.join_next().await;
        }
    }
}
