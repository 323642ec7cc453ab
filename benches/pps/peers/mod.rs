//! The forwarders that are compared: what each must do, how it is started and ended.
//!
//! One file for each kind. A forwarder gets a fresh site, sets its middle up, and is measured
//! only if it does the whole job that it names.

mod bridge;
mod exitmark;
mod nft;
mod nftables;
mod rule;
mod testpmd;
mod wire;

use crate::common::rounds::Missing;
use crate::load::Load;
use crate::site::Site;
use crate::traffic::Traffic;
use ::exitmark::lab::LabError;
use ::exitmark::packet::MacAddr;
use std::time::Duration;

/// What a forwarder promises; the sinks hold it to that, frame by frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Everything to the uplink, nothing marked.
    Wire,
    /// Everything to the uplink, exit frames marked, relay frames not.
    Mark,
    /// Exit frames marked to the uplink, relay frames unmarked to the incoming network.
    MarkAndSteer,
}

pub(crate) trait Forwarder {
    /// Its name in the table.
    fn name(&self) -> &'static str;

    fn job(&self) -> Job;

    /// The MAC address that the host sends to: a router is addressed, a wire is not.
    fn next_hop(&self) -> MacAddr;

    /// What this machine lacks for it, if anything.
    fn missing(&self) -> Option<String> {
        None
    }

    /// How long after an overload it may still forward in another way than before: what is timed
    /// before that is not what it does under the load that it is given.
    fn recovers_in(&self) -> Duration {
        Duration::ZERO
    }

    /// Starts it in the middle of the site; returns when it is ready for the first frame.
    fn start(
        &self,
        site: &Site,
        traffic: &Traffic,
        load: &Load,
    ) -> Result<Box<dyn Running>, LabError>;
}

/// A forwarder at work. Dropping it ends it too, without asking how it was.
pub(crate) trait Running {
    fn stop(self: Box<Self>) -> Result<(), LabError>;
}

/// It lives in the kernel and goes with the site.
struct InKernel;

impl Running for InKernel {
    fn stop(self: Box<Self>) -> Result<(), LabError> {
        Ok(())
    }
}

/// All forwarders. Those that are compared with each other run after each other: what disturbs one
/// of them, disturbs both.
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

/// Without those for which something is missing here, and what that is.
pub(crate) fn available(
    bench: &'static str,
    mut forwarders: Vec<Box<dyn Forwarder>>,
) -> (Vec<Box<dyn Forwarder>>, Vec<Missing>) {
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
    (forwarders, all_missing)
}

/// Whether it is one of exitmark's engines.
pub(crate) fn is_exitmark(forwarder: &dyn Forwarder) -> bool {
    let mut variants = exitmark::VARIANTS.iter();
    variants.any(|variant| variant.name == forwarder.name())
}
