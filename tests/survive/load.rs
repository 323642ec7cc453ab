//! The senders: a packet socket at a steady pace or in bursts, or the kernel at full speed. Every
//! frame has a number, and it is known exactly which ones were sent.

use crate::flows::{FLOWS, OUTBOUND, flows, place, sign};
use crate::sinks::Sinks;
use exitmark_lab::site::{FAR_END, Site};
use exitmark_lab::{LabError, RawPort, pin_to, timeout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The steady pace in frames per second.
pub(crate) const PACE: u64 = 20_000;
/// The frames per call of the generator: a call takes milliseconds to set up.
const GENERATED_AT_ONCE: u32 = 1 << 16;

/// The rate and the rhythm of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rhythm {
    /// [`PACE`] in both directions, several frames per millisecond.
    Steady,
    /// [`PACE`] in both directions, in a burst every 10 ms.
    Bursts,
    /// As fast as the box's NIC accepts frames, only from the host.
    Saturation,
}

impl Rhythm {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Bursts => "bursts",
            Self::Saturation => "saturation",
        }
    }

    pub(crate) const fn flows(self) -> u32 {
        match self {
            Self::Steady | Self::Bursts => FLOWS,
            Self::Saturation => OUTBOUND,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    /// The number of frame numbers used, from 0 on.
    pub(crate) numbers: u64,
    /// The numbers that no NIC accepted, in order, because a link was down.
    pub(crate) refused: Vec<u64>,
    /// The times since the start at which the frames from this number on were sent.
    pub(crate) times: Vec<(u64, Duration)>,
    pub(crate) length: Duration,
}

impl Sent {
    /// The time at which a frame was sent, to the millisecond.
    pub(crate) fn time(&self, number: u64) -> Option<Duration> {
        let after = self.times.partition_point(|&(first, _)| first <= number);
        self.times.get(after.checked_sub(1)?).map(|&(_, time)| time)
    }
}

pub(crate) struct Load {
    thread: Option<JoinHandle<Result<Sent, LabError>>>,
    stop: Arc<AtomicBool>,
    numbers: Arc<AtomicU64>,
}

impl Load {
    pub(crate) fn start(site: &Site, sinks: &Sinks, rhythm: Rhythm) -> Result<Self, LabError> {
        let stop = Arc::new(AtomicBool::new(false));
        let numbers = Arc::new(AtomicU64::new(0));
        let (until, progress) = (Arc::clone(&stop), Arc::clone(&numbers));
        let thread = match rhythm {
            Rhythm::Steady | Rhythm::Bursts => {
                let is_bursts = rhythm == Rhythm::Bursts;
                let tick = Duration::from_millis(if is_bursts { 10 } else { 1 });
                let host = RawPort::open(&site.host, FAR_END)?;
                let clearnet = RawPort::open(&site.clearnet, FAR_END)?;
                site.host.spawn("pace", move || {
                    Ok(pace(&host, &clearnet, tick, &until, &progress))
                })?
            }
            Rhythm::Saturation => {
                sinks.aim(&site.host, FAR_END)?;
                let sinks = sinks.clone();
                site.host.spawn("generator", move || {
                    // The kernel runs the box's receive side there too, and the box's process gets
                    // the other cores.
                    pin_to([0])?;
                    let begin = Instant::now();
                    while !until.load(Ordering::Relaxed) {
                        sinks.generate(GENERATED_AT_ONCE)?;
                        progress.store(sinks.generated()?, Ordering::Relaxed);
                    }
                    Ok(Sent {
                        numbers: sinks.generated()?,
                        length: begin.elapsed(),
                        ..Sent::default()
                    })
                })?
            }
        };
        Ok(Self {
            thread: Some(thread),
            stop,
            numbers,
        })
    }

    /// The number of the next frame, or one a little below it.
    pub(crate) fn number(&self) -> u64 {
        self.numbers.load(Ordering::Relaxed)
    }

    /// Waits while the load runs for this long; fails if it stops sending.
    pub(crate) fn go_on(&self, length: Duration) -> Result<(), LabError> {
        let (begin, before) = (Instant::now(), self.number());
        while begin.elapsed() < length || self.number() == before {
            let over = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            if over || begin.elapsed() > length + timeout() {
                return Err(LabError("the load has stopped sending".to_owned()));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Sent, LabError> {
        self.stop.store(true, Ordering::Relaxed);
        let outcome = self.thread.take().map(JoinHandle::join);
        match outcome {
            Some(Ok(sent)) => sent,
            _ => Err(LabError("the load panicked".to_owned())),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // An aborted run must not leave its load running.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Sends at [`PACE`] until stopped, and makes up for delays.
fn pace(
    host: &RawPort,
    clearnet: &RawPort,
    tick: Duration,
    until: &AtomicBool,
    progress: &AtomicU64,
) -> Sent {
    let mut flows = flows();
    let mut sent = Sent::default();
    let per_tick = PACE * u64::try_from(tick.as_millis()).unwrap_or(1) / 1000;
    let begin = Instant::now();
    let mut due = begin;
    while !until.load(Ordering::Relaxed) {
        due += tick;
        // Making up for a long delay at once would overflow the cable's queue.
        thread::sleep(due.saturating_duration_since(Instant::now()).max(tick / 4));
        sent.times.push((sent.numbers, begin.elapsed()));
        for number in sent.numbers..sent.numbers + per_tick {
            let (flow, sequence) = place(number, FLOWS);
            let one = &mut flows[flow as usize];
            sign(&mut one.before, flow, sequence);
            let port = if one.is_inbound() { clearnet } else { host };
            if !port.offer(&one.before) {
                sent.refused.push(number);
            }
            progress.store(number + 1, Ordering::Relaxed);
        }
        sent.numbers += per_tick;
    }
    sent.length = begin.elapsed();
    sent
}
