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
mod wire;

use crate::common::rounds::{self, Missing, Options};
use crate::load::Load;
use crate::site::{Site, UPLINK_MAC};
use crate::traffic::Traffic;
use ::exitmark_lab::LabError;
use ::exitmark_policy::packet::MacAddr;
use std::time::Duration;

/// The job of a forwarder, which the sinks check frame by frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// All frames to the uplink, none marked.
    Wire,
    /// All frames to the uplink, only exit frames marked.
    Mark,
    /// Exit frames marked to the uplink, relay frames unmarked to the incoming network.
    MarkAndSteer,
}

pub(crate) trait Forwarder {
    /// Its name in the table.
    fn name(&self) -> &'static str;

    fn job(&self) -> Job;

    /// The MAC address that the host sends to: the box's own if it routes.
    fn next_hop(&self) -> MacAddr {
        UPLINK_MAC
    }

    /// A missing prerequisite on this machine.
    fn missing(&self) -> Option<String> {
        None
    }

    /// The time after an overload until the forwarder is back in its normal mode, before which its
    /// latency is not representative.
    fn recovers_in(&self) -> Duration {
        Duration::ZERO
    }

    /// Starts it in the middle of the site; returns when it is ready to forward.
    fn start(&self, site: &Site, traffic: &Traffic, load: &Load) -> Started;
}

/// A running forwarder, or why it did not start.
pub(crate) type Started = Result<Box<dyn Running>, LabError>;

/// A running forwarder. Dropping it ends it without checking its state.
pub(crate) trait Running {
    fn stop(self: Box<Self>) -> Result<(), LabError>;
}

/// A forwarder in the kernel, which ends with the site.
struct InKernel;

impl Running for InKernel {
    fn stop(self: Box<Self>) -> Result<(), LabError> {
        Ok(())
    }
}

/// All forwarders. Those that are compared with one another are adjacent, so that a disturbance
/// affects both.
pub(crate) fn all() -> Vec<Box<dyn Forwarder>> {
    let [xdp, af_xdp, spill] = exitmark::VARIANTS.map(exitmark::Exitmark);
    vec![
        Box::new(nftables::Nftables),
        Box::new(bridge::Bridge),
        Box::new(rule::Rule(rule::Place::Tc)),
        Box::new(wire::Wire),
        Box::new(rule::Rule(rule::Place::Xdp)),
        Box::new(xdp),
        Box::new(spill),
        Box::new(af_xdp),
        Box::new(testpmd::Testpmd::AfXdp),
        Box::new(testpmd::Testpmd::AfPacket),
    ]
}

/// Forwarders that take turns.
pub(crate) type Forwarders = Vec<Box<dyn Forwarder>>;

/// The requested ones of these forwarders, if this machine has their prerequisites; the others with
/// what is missing.
pub(crate) fn chosen(
    bench: &'static str,
    options: &Options,
    forwarders: Forwarders,
) -> Result<(Forwarders, Vec<Missing>), LabError> {
    let mut forwarders = options.chosen(forwarders, |one| one.name())?;
    rounds::need_root()?;
    let mut all_missing = Vec::new();
    forwarders.retain(|forwarder| {
        let missing = forwarder.missing();
        if let Some(missing) = &missing {
            let name = forwarder.name();
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
pub(crate) fn is_exitmark(forwarder: &dyn Forwarder) -> bool {
    let mut variants = exitmark::VARIANTS.iter();
    variants.any(|variant| variant.name == forwarder.name())
}
