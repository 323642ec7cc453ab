//! `exitmark run` with its engines, on the cores that the generators leave.

use super::{Forwarder, Job, Running, Started};
use crate::common::exitmark::Variant;
use crate::load::Load;
use crate::site::{Site, pin_to_forwarder_cpus};
use crate::traffic::Traffic;
use ::exitmark_lab::site::RunningBox;
use ::exitmark_lab::{Config, LabError};
use std::time::Duration;

const SPILL: &str = "spill = true";

/// After an overload the XDP program decides alone for about a second, and returns frames to the
/// worker within another second and a third.
const SPILL_RECOVERS_IN: Duration = Duration::from_millis(2500);

/// The configurations of exitmark, a row each.
pub(super) const VARIANTS: [Variant; 3] = [
    Variant::new("exitmark-xdp", "xdp", ""),
    Variant::new("exitmark-af_xdp", "af_xdp", "spill = false"),
    Variant::new("exitmark-af_xdp-spill", "af_xdp", SPILL),
];

pub(super) struct Exitmark(pub(super) Variant);

impl Forwarder for Exitmark {
    fn name(&self) -> &'static str {
        self.0.name
    }

    fn job(&self) -> Job {
        Job::MarkAndSteer
    }

    fn recovers_in(&self) -> Duration {
        match self.0.datapath {
            SPILL => SPILL_RECOVERS_IN,
            _ => Duration::ZERO,
        }
    }

    fn start(&self, site: &Site, _: &Traffic, load: &Load) -> Started {
        let generators = load.queues;
        site.middle.run(move || pin_to_forwarder_cpus(generators))?;
        let relays: Vec<_> = load.relays().map(|relay| relay.to_string()).collect();
        let config = Config::default()
            .addresses(load.host_prefixes())
            .relays(format!("extra = {relays:?}"))
            .more("[mark]\ndscp = \"af11\"");
        Ok(Box::new(self.0.start(&site.middle, config)?))
    }
}

impl Running for RunningBox {
    fn stop(self: Box<Self>) -> Result<(), LabError> {
        self.stop_well().map(drop)
    }
}
