//! The connections of a listener: their number, and which one is closed at the limit.

use super::{AtLimit, CONNECTIONS};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

/// The open connections. Dropping this closes them.
pub(super) struct Connections {
    at_limit: AtLimit,
    tasks: JoinSet<()>,
    /// The task of each connection, oldest first; ended ones stay until the limit is reached.
    open: VecDeque<(AbortHandle, Busy)>,
    /// Notified after each answer.
    answered: Arc<Notify>,
}

/// Whether a connection's answer is being made.
#[derive(Clone)]
pub(super) struct Busy {
    is_busy: Arc<AtomicBool>,
    answered: Arc<Notify>,
}

/// An answer that is being made. Dropping this marks it as made; sending it is all that remains.
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

    /// Starts a connection's task.
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

    /// Waits until another connection may be opened.
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
