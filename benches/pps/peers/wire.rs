//! The do-nothing baseline: XDP redirects every frame to the uplink without parsing it.

use super::{Forwarder, InKernel, Job, Started};
use crate::load::Load;
use crate::site::Site;
use crate::traffic::Traffic;

pub(super) struct Wire;

impl Forwarder for Wire {
    fn name(&self) -> &'static str {
        "wire"
    }

    fn job(&self) -> Job {
        Job::Wire
    }

    fn start(&self, site: &Site, traffic: &Traffic, _: &Load) -> Started {
        traffic.attach_wire(site)?;
        Ok(Box::new(InKernel))
    }
}
