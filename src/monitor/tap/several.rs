//! Several NICs that are received from together.

use super::{Arrived, MAX_FRAMES, Tap, TapCounters, TapError, TapSettings};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use std::os::fd::AsFd;
use std::time::Duration;

/// Open taps, which share the packet memory. Dropping them ends listening.
pub struct Taps(Vec<Tap>);

impl Taps {
    /// Opens taps, as [`Tap::open`]; at most [`MAX_TAPS`](super::MAX_TAPS).
    ///
    /// # Errors
    /// As [`Tap::open`]. The taps that were opened before are closed.
    pub fn open(all: &[TapSettings]) -> Result<Self, TapError> {
        let number = u32::try_from(all.len()).unwrap_or(MAX_FRAMES).max(1);
        let frames = MAX_FRAMES / number.next_power_of_two();
        let opened = all.iter().map(|settings| Tap::open_with(settings, frames));
        opened.collect::<Result<_, _>>().map(Self)
    }

    /// As [`Tap::receive`], from all taps.
    ///
    /// # Errors
    /// As [`Tap::receive`]: one interface is gone.
    pub fn receive(
        &mut self,
        timeout: Duration,
        each: impl FnMut(&[Arrived<'_>]),
    ) -> Result<usize, TapError> {
        receive(&mut self.0, timeout, each)
    }

    /// The taps, in the order of their settings.
    pub fn each(&self) -> &[Tap] {
        &self.0
    }

    /// Frames since the taps were opened, by tap. One that cannot be read, because its NIC is gone,
    /// keeps its entry of `last`.
    pub fn counters(&self, last: &[TapCounters]) -> Vec<TapCounters> {
        let last = last
            .iter()
            .copied()
            .chain(std::iter::repeat(TapCounters::default()));
        let taps = self.0.iter().zip(last);
        taps.map(|(tap, last)| tap.counters().unwrap_or(last))
            .collect()
    }

    /// As [`Tap::shut`].
    pub fn shut(&mut self) {
        self.0.iter_mut().for_each(Tap::shut);
    }

    /// As [`Tap::close`], all of them.
    ///
    /// # Errors
    /// As [`Tap::close`]; the first of several.
    pub fn close(self) -> Result<(), TapError> {
        let closed = self.0.into_iter().map(Tap::close);
        closed.fold(Ok(()), Result::and)
    }
}

/// As [`Tap::receive`], from several taps.
pub(super) fn receive(
    taps: &mut [Tap],
    timeout: Duration,
    mut each: impl FnMut(&[Arrived<'_>]),
) -> Result<usize, TapError> {
    let mut take = |taps: &mut [Tap]| taps.iter_mut().map(|tap| tap.take(&mut each)).sum();
    let waiting = take(taps);
    if waiting > 0 {
        return Ok(waiting);
    }
    wait(taps, timeout)?;
    Ok(take(taps))
}

/// Returns when packets are there, after `timeout`, or at a signal.
fn wait(taps: &mut [Tap], timeout: Duration) -> Result<(), TapError> {
    let queues = taps.iter().flat_map(|tap| &tap.queues);
    let mut fds: Vec<_> = queues
        .map(|queue| PollFd::new(queue.as_fd(), PollFlags::POLLIN))
        .collect();
    let has_failed = match ppoll(&mut fds, Some(TimeSpec::from_duration(timeout)), None) {
        Ok(ready) => ready == 0 || fds.iter().any(has_failed),
        Err(Errno::EINTR) => false,
        Err(error) => return Err(TapError::Wait(error.into())),
    };
    if !has_failed {
        return Ok(());
    }
    taps.iter_mut().try_for_each(Tap::look_whether_it_is_gone)
}

fn has_failed(fd: &PollFd<'_>) -> bool {
    let failures = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
    fd.revents()
        .is_some_and(|events| events.intersects(failures))
}
