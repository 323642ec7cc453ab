//! The compared forwarders: the job of each, its start and end.
//!
//! One file per kind. A forwarder gets a fresh site, sets up its middle, and is measured only if it
//! does its whole job.

mod bridge;
mod exitmark;
mod nft;
mod nftables;
mod rule;
mod testpmd;

use crate::common::results::Missing;
use crate::common::rounds::{self, Options};
use crate::load::Load;
use crate::site::{Site, UPLINK_MAC};
use crate::traffic::Traffic;
use ::exitmark_lab::LabError;
use ::exitmark_policy::packet::MacAddr;
use std::time::Duration;

pub(crate) use self::exitmark::{captured, of_groups, with_datapath};

/// The job of a forwarder, which the sinks check frame by frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// All frames to the uplink, none marked.
    Wire,
    /// All frames to the uplink, all marked.
    MarkAll,
    /// All frames to the uplink, only exit frames marked.
    Mark,
    /// Exit frames marked to the uplink, relay frames unmarked to the incoming network.
    MarkAndSteer,
}

pub(crate) struct Forwarder {
    /// Its name in the table.
    pub(crate) name: &'static str,
    pub(crate) job: Job,
    /// The MAC address that the host sends to: the box's own if it routes.
    pub(crate) next_hop: MacAddr,
    /// A missing prerequisite on this machine.
    missing: fn() -> Option<String>,
    /// The time after an overload until the forwarder is back in its normal mode, before which its
    /// latency is not representative.
    pub(crate) recovers_in: Duration,
    start: Start,
}

type Start = Box<dyn Fn(&Site, &Traffic, &Load) -> Started>;

impl Forwarder {
    /// A forwarder that does not route, has its prerequisites everywhere, and has one mode.
    fn new(
        name: &'static str,
        job: Job,
        start: impl Fn(&Site, &Traffic, &Load) -> Started + 'static,
    ) -> Self {
        Self {
            name,
            job,
            next_hop: UPLINK_MAC,
            missing: || None,
            recovers_in: Duration::ZERO,
            start: Box::new(start),
        }
    }

    /// Starts it in the middle of the site; returns when it is ready to forward.
    pub(crate) fn start(&self, site: &Site, traffic: &Traffic, load: &Load) -> Started {
        (self.start)(site, traffic, load)
    }
}

/// What stops a running forwarder and checks its end, or why it did not start. Dropping it ends the
/// forwarder without a check.
pub(crate) type Started = Result<Box<dyn FnOnce() -> Result<(), LabError>>, LabError>;

/// A forwarder in the kernel ends with the site.
fn in_kernel() -> Started {
    Ok(Box::new(|| Ok(())))
}

/// All forwarders. Those that are compared with one another are adjacent, so that a disturbance
/// affects both.
pub(crate) fn all() -> Vec<Forwarder> {
    let [xdp, af_xdp, spill] = exitmark::all();
    let [testpmd_af_xdp, testpmd_af_packet] = testpmd::forwarders();
    vec![
        nftables::forwarder(),
        bridge::forwarder(),
        Forwarder::new("tc-bpf", Job::MarkAndSteer, rule::start_tc),
        Forwarder::new("wire", Job::Wire, |site, traffic, _| {
            traffic.attach_wire(site)?;
            in_kernel()
        }),
        Forwarder::new("touch", Job::MarkAll, rule::start_touch),
        Forwarder::new("bare-xdp", Job::MarkAndSteer, rule::start_xdp),
        xdp,
        exitmark::translating(),
        exitmark::tapped(),
        spill,
        af_xdp,
        testpmd_af_xdp,
        testpmd_af_packet,
    ]
}

/// The requested ones of these forwarders, if this machine has their prerequisites; the others with
/// what is missing.
pub(crate) fn chosen(
    bench: &'static str,
    options: &Options,
    forwarders: Vec<Forwarder>,
) -> Result<(Vec<Forwarder>, Vec<Missing>), LabError> {
    let mut forwarders = options.chosen(forwarders, |one| one.name)?;
    rounds::need_root()?;
    let mut all_missing = Vec::new();
    forwarders.retain(|forwarder| {
        let missing = (forwarder.missing)();
        if let Some(missing) = &missing {
            let name = forwarder.name;
            eprintln!("{name} is left out; this machine lacks {missing}");
            all_missing.push(Missing {
                bench,
                forwarder: name.to_owned(),
                reason: format!("this machine lacks {missing}"),
            });
        }
        missing.is_none()
    });
    Ok((forwarders, all_missing))
}

/// Whether the forwarder is one of exitmark's engines.
pub(crate) fn is_exitmark(forwarder: &Forwarder) -> bool {
    let mut variants = exitmark::VARIANTS.iter();
    variants.any(|variant| variant.name == forwarder.name)
}
