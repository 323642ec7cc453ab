//! Sends a load with BPF_PROG_RUN, and counts frames at the sinks.
//!
//! Independent of forwarders, except for the next hop that the host addresses.

use crate::common::bpf;
use crate::load::{Family, Load};
use crate::site::{BOX_HOST, BOX_UPLINK, FAR_END, Site, pin_to_generator_cpu};
use exitmark_lab::bpf::Programs;
use exitmark_lab::{LabError, join};
use exitmark_policy::packet::MacAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

// Interface to traffic.bpf.c.
const SLOT_BYTES: usize = 80;
const TARGET_GENERATE: u32 = 0;
/// The map of the interfaces that generators send to.
pub(crate) const TARGETS: &str = "targets";
const SINK_UPLINK: u32 = 0;
const SINK_INCOMING: u32 = 1;

const BATCH: u32 = 64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) exit_marked: u64,
    pub(crate) exit_unmarked: u64,
    pub(crate) relay_marked: u64,
    pub(crate) relay_unmarked: u64,
    /// Frames addressed to another NIC.
    pub(crate) astray: u64,
}

impl Tally {
    /// The frames that a sink's NIC would accept.
    pub(crate) fn arrived(&self) -> u64 {
        self.exit_marked + self.exit_unmarked + self.relay_marked + self.relay_unmarked
    }

    fn minus(&self, before: &Self) -> Self {
        Self {
            exit_marked: self.exit_marked - before.exit_marked,
            exit_unmarked: self.exit_unmarked - before.exit_unmarked,
            relay_marked: self.relay_marked - before.relay_marked,
            relay_unmarked: self.relay_unmarked - before.relay_unmarked,
            astray: self.astray - before.astray,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) at: Instant,
    pub(crate) sent: u64,
    pub(crate) uplink: Tally,
    pub(crate) incoming: Tally,
}

impl Counts {
    pub(crate) fn arrived(&self) -> u64 {
        self.uplink.arrived() + self.incoming.arrived()
    }

    /// The difference to `before`, with the time of `self`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            at: self.at,
            sent: self.sent - before.sent,
            uplink: self.uplink.minus(&before.uplink),
            incoming: self.incoming.minus(&before.incoming),
        }
    }
}

/// The programs of one measurement, loaded and attached to the sinks of a site.
pub(crate) struct Traffic {
    /// All programs and maps, to run other programs of the object.
    pub(crate) programs: Programs,
    load: Load,
    /// The frame before the generator writes the headers of its flow.
    pub(crate) frame: Arc<[u8]>,
}

impl Traffic {
    pub(crate) fn new(
        compiled: &[u8],
        site: &Site,
        load: Load,
        next_hop: MacAddr,
    ) -> Result<Self, LabError> {
        let programs = bpf::load(compiled, load.flows)?;
        let headers = load.family.header_bytes();
        let slots: Vec<_> = (0..load.flows)
            .map(|flow| {
                let mut slot = [0; SLOT_BYTES];
                slot[..headers].copy_from_slice(&load.frame(flow, next_hop)[..headers]);
                slot
            })
            .collect();
        programs.store_all("flows", slots.iter().map(|slot| slot.as_slice()))?;
        for generator in 0..load.queues {
            programs.store("parts", generator, &part(load, generator))?;
        }
        programs.aim(TARGETS, TARGET_GENERATE, &site.host, FAR_END)?;
        // Before any forwarder starts: it may check whether its ports accept redirected frames,
        // which requires a program at their peers.
        programs.attach("count_uplink", &site.clearnet, FAR_END)?;
        programs.attach("count_incoming", &site.tornet, FAR_END)?;
        Ok(Self {
            programs,
            load,
            frame: load.frame(0, next_hop).into(),
        })
    }

    /// Attaches the do-nothing forwarder between the host and the uplink.
    pub(crate) fn attach_wire(&self, site: &Site) -> Result<(), LabError> {
        bpf::attach_wire(&self.programs, &site.middle, BOX_HOST, BOX_UPLINK)
    }

    /// Makes the box's own stack receive the host's frames.
    pub(crate) fn attach_pass(&self, site: &Site) -> Result<(), LabError> {
        self.programs.attach("pass", &site.middle, BOX_HOST)
    }

    /// Starts sending about `frames` frames as fast as the box's receive side accepts them, with
    /// one generator per queue, on the CPU with the queue's number.
    pub(crate) fn send(&self, site: &Site, frames: u32) -> Result<Sending, LabError> {
        let each = frames / self.load.queues;
        let mut sending = Sending {
            threads: Vec::new(),
        };
        for number in 0..self.load.queues {
            sending.threads.push(self.generate(site, number, each)?);
        }
        Ok(sending)
    }

    fn generate(&self, site: &Site, number: u32, frames: u32) -> Result<Generator, LabError> {
        let (programs, frame) = (self.programs.clone(), Arc::clone(&self.frame));
        let program = match self.load.family {
            Family::Ipv4 => "generate_ipv4",
            Family::Ipv6 => "generate_ipv6",
        };
        site.host.spawn("generator", move || {
            pin_to_generator_cpu(number)?;
            programs.run_live(program, &frame, frames, BATCH)
        })
    }

    pub(crate) fn counts(&self) -> Result<Counts, LabError> {
        let [sent, _next] = self.programs.sums("sent", 0)?;
        Ok(Counts {
            at: Instant::now(),
            sent,
            uplink: self.tally(SINK_UPLINK)?,
            incoming: self.tally(SINK_INCOMING)?,
        })
    }

    /// Waits until no frame has arrived for a while, at most a second, and reads all counters.
    pub(crate) fn drained(&self) -> Result<Counts, LabError> {
        let mut counts = self.counts()?;
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(50));
            let before = std::mem::replace(&mut counts, self.counts()?);
            if counts.arrived() == before.arrived() {
                break;
            }
        }
        Ok(counts)
    }

    fn tally(&self, sink: u32) -> Result<Tally, LabError> {
        let [
            exit_marked,
            exit_unmarked,
            relay_marked,
            relay_unmarked,
            astray,
            _other,
        ] = self.programs.sums("received", sink)?;
        Ok(Tally {
            exit_marked,
            exit_unmarked,
            relay_marked,
            relay_unmarked,
            astray,
        })
    }
}

/// The flows of one generator as `struct part`: no flow uses two queues, unless there are fewer
/// flows than queues.
fn part(load: Load, generator: u32) -> [u8; 8] {
    let count = (load.flows / load.queues).max(1);
    let begin = (generator * count) % load.flows;
    let mut part = [0; 8];
    part[..4].copy_from_slice(&begin.to_ne_bytes());
    part[4..].copy_from_slice(&(begin + count).to_ne_bytes());
    part
}

type Generator = thread::JoinHandle<Result<(), LabError>>;

/// A load that is being sent. Dropping it waits for its end, so that it ends before its site.
pub(crate) struct Sending {
    threads: Vec<Generator>,
}

impl Sending {
    pub(crate) fn is_on(&self) -> bool {
        !self.threads.iter().any(thread::JoinHandle::is_finished)
    }

    /// Waits until the last frame is sent.
    pub(crate) fn finish(mut self) -> Result<(), LabError> {
        while let Some(thread) = self.threads.pop() {
            join(thread, "a generator")??;
        }
        Ok(())
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        for thread in self.threads.drain(..) {
            // Without `finish` there is an earlier error to report.
            let _ = thread.join();
        }
    }
}
