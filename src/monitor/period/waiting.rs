//! Closed periods that are not published yet.

use super::disk::{digest_of, hex};
use super::state::Name;
use super::{INTERVAL, MAX_WAITING, Notice, Periods};
use crate::clock::{Now, Period};
use crate::ledger::Ledger;
use crate::publish::publish;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A closed period that is not published yet, with its counts.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) period: Period,
    pub(super) ran: Duration,
    pub(super) ledger: Ledger,
    /// Digest of the rows that were last to be published.
    pub(super) digest: Option<String>,
    /// Its state file, if there is one.
    pub(super) state: Option<Name>,
    /// Whether the state file has its final counts.
    pub(super) is_saved: bool,
}

#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) closed: VecDeque<Closed>,
    /// Monotonic time of the last attempt to publish.
    pub(super) tried_at: Duration,
    pub(super) given_up: u64,
    pub(super) published: u64,
    pub(super) last_published: Option<Timestamp>,
}

impl Waiting {
    pub(super) fn has(&self, period: &Period) -> bool {
        self.closed.iter().any(|closed| closed.period == *period)
    }

    /// With captured files the monotonic clock stands still: every call is a retry.
    pub(super) fn is_due(&self, now: Now) -> bool {
        let since = now.monotonic.saturating_sub(self.tried_at);
        !self.closed.is_empty() && (since >= INTERVAL || now.monotonic.is_zero())
    }
}

impl Periods {
    /// Publishes the waiting periods where possible, and drops the oldest beyond [`MAX_WAITING`].
    pub(super) fn settle(&mut self, now: Now, notices: &mut Vec<Notice>) {
        self.waiting.tried_at = now.monotonic;
        for mut closed in std::mem::take(&mut self.waiting.closed) {
            match self.publish_one(&mut closed) {
                Ok(path) => {
                    self.waiting.published += 1;
                    self.waiting.last_published = Some(now.wall);
                    notices.push(Notice::Published(closed.period, path));
                    notices.extend(self.forget(&closed));
                }
                Err(reason) => {
                    let (period, waiting) = (closed.period, self.waiting.closed.len() + 1);
                    let path = self.path(&period);
                    notices.push(Notice::Unpublished(period, path, reason, waiting));
                    self.keep_closed(&mut closed);
                    self.waiting.closed.push_back(closed);
                }
            }
        }
        while self.waiting.closed.len() > MAX_WAITING
            && let Some(oldest) = self.waiting.closed.pop_front()
        {
            self.waiting.given_up += 1;
            notices.push(Notice::GivenUp(oldest.period));
            notices.extend(self.forget(&oldest));
        }
    }

    /// Publishes a period, unless its published file has the recorded digest already.
    fn publish_one(&mut self, closed: &mut Closed) -> io::Result<PathBuf> {
        let path = self.path(&closed.period);
        if closed.digest.is_some() && digest_of(&path)? == closed.digest {
            self.disk.sync_directory(&path)?;
            return Ok(path);
        }
        loop {
            let bytes = self.lines(closed)?;
            self.mark(closed, hex(Sha256::new_with_prefix(&bytes)))?;
            let path = self.path(&closed.period);
            match self.disk.publish(&path, &bytes) {
                Ok(()) => {
                    // If this fails, the next attempt recognises the file by its digest.
                    self.disk.sync_directory(&path)?;
                    return Ok(path);
                }
                // Periods from files have no second part: another process has counted this one.
                Err(error)
                    if error.kind() == io::ErrorKind::AlreadyExists && self.state.is_some() =>
                {
                    closed.period.part += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn lines(&mut self, closed: &Closed) -> io::Result<Vec<u8>> {
        let noise = self.noise.as_mut();
        let Closed { ledger, period, .. } = closed;
        let mut bytes = Vec::new();
        for row in publish(ledger, period, &self.origin, &self.publish, noise) {
            serde_json::to_writer(&mut bytes, &row)?;
            bytes.push(b'\n');
        }
        Ok(bytes)
    }

    /// Records the digest of the rows in the name of the state file. Publishing requires it:
    /// without it, a crash would publish the period twice.
    fn mark(&self, closed: &mut Closed, digest: String) -> io::Result<()> {
        closed.digest = Some(digest.clone());
        let (Some(state), Some(name)) = (&self.state, &closed.state) else {
            return Ok(());
        };
        let marked = Name::of(&closed.period, Some(digest));
        let place = state.place(&marked);
        match self.disk.rename(&state.place(name), &place) {
            Ok(()) => {
                closed.state = Some(marked);
                self.disk.sync_directory(&place)
            }
            // The file was removed, so no restart will find it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (closed.state, closed.is_saved) = (None, false);
                Ok(())
            }
            Err(error) => {
                let what = format!("its state file cannot be marked: {error}");
                Err(io::Error::new(error.kind(), what))
            }
        }
    }

    /// Saves an unpublished period for a restart, unless its final counts are on disk.
    fn keep_closed(&self, closed: &mut Closed) {
        let Some(state) = self.state.as_ref().filter(|_| !closed.is_saved) else {
            return;
        };
        // Not under the running period's name, which may belong to the next part.
        let digest = closed.digest.clone();
        let digest = digest.unwrap_or_else(|| hex(Sha256::new()));
        let name = Name::of(&closed.period, Some(digest));
        let name = closed.state.clone().unwrap_or(name);
        let Closed {
            ran, ref ledger, ..
        } = *closed;
        let saved = state.save(&self.disk, &name, &closed.period, ran, ledger);
        if saved.is_ok() {
            (closed.state, closed.is_saved) = (Some(name), true);
        }
    }

    /// Removes the state file of a published or dropped period.
    fn forget(&self, closed: &Closed) -> Option<Notice> {
        let (state, name) = (self.state.as_ref()?, closed.state.as_ref()?);
        let path = state.place(name);
        let reason = self.disk.delete(&path).err()?;
        Some(Notice::NotRemoved(path, reason))
    }
}
