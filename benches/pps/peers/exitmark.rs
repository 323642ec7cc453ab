//! `exitmark run`, by its engines, on the cores that the generator leaves it.

use super::{Forwarder, Job, Running};
use crate::common::exitmark::{self, Variant};
use crate::site::{
    BOX_HOST, BOX_INCOMING, BOX_UPLINK, HOST_ADDRESS, INCOMING_MAC, Site, UPLINK_MAC,
    pin_to_forwarder_cpus,
};
use crate::traffic::{Traffic, relays};
use ::exitmark::lab::LabError;
use ::exitmark::packet::MacAddr;

/// The rows that exitmark has.
pub(super) const VARIANTS: [Variant; 3] = [
    Variant {
        name: "exitmark-xdp",
        engine: "xdp",
        datapath: "",
    },
    Variant {
        name: "exitmark-af_xdp",
        engine: "af_xdp",
        datapath: "spill = false",
    },
    Variant {
        name: "exitmark-af_xdp-spill",
        engine: "af_xdp",
        datapath: "spill = true",
    },
];

pub(super) struct Exitmark(pub(super) Variant);

impl Forwarder for Exitmark {
    fn name(&self) -> &'static str {
        self.0.name
    }

    fn job(&self) -> Job {
        Job::MarkAndSteer
    }

    fn next_hop(&self) -> MacAddr {
        UPLINK_MAC
    }

    fn start(&self, site: &Site, _: &Traffic) -> Result<Box<dyn Running>, LabError> {
        site.middle.run(pin_to_forwarder_cpus)?;
        Ok(Box::new(self.0.start(&site.middle, &configuration())?))
    }
}

impl Running for exitmark::Running {
    fn stop(self: Box<Self>) -> Result<(), LabError> {
        (*self).stop()
    }
}

fn configuration() -> String {
    let relays: Vec<_> = relays()
        .map(|relay| format!("    \"{relay}\",\n"))
        .collect();
    format!(
        "[ports]
host = \"{BOX_HOST}\"
uplink = \"{BOX_UPLINK}\"
incoming = \"{BOX_INCOMING}\"

[host]
addresses = [\"{HOST_ADDRESS}\"]

[mark]
dscp = \"af11\"

[steer]
next_hop = \"{INCOMING_MAC}\"

[relays]
extra = [
{}]
",
        relays.concat()
    )
}
