//! The do-nothing baseline: XDP redirects every frame to the uplink without parsing it.

use super::{Forwarder, InKernel, Job, Running};
use crate::load::Load;
use crate::site::{Site, UPLINK_MAC};
use crate::traffic::Traffic;
use exitmark_lab::LabError;
use exitmark_policy::packet::MacAddr;

pub(super) struct Wire;

impl Forwarder for Wire {
    fn name(&self) -> &'static str {
        "wire"
    }

    fn job(&self) -> Job {
        Job::Wire
    }

    fn next_hop(&self) -> MacAddr {
        UPLINK_MAC
    }

    fn start(
        &self,
        site: &Site,
        traffic: &Traffic,
        _: &Load,
    ) -> Result<Box<dyn Running>, LabError> {
        traffic.attach_wire(site)?;
        Ok(Box::new(InKernel))
    }
}
