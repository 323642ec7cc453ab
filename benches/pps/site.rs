//! The hosts of the bench and the cables between them: the lab's site with bare hosts, created for
//! every measurement. The host generates frames; the clearnet and the tornet count and drop them.
//!
//! The MAC addresses of these two are repeated in `benches/bpf/traffic.bpf.c`; if they differ, every
//! frame counts as astray.

use exitmark_datapath::Role;
pub(crate) use exitmark_lab::site::{FAR_END, Site};
use exitmark_lab::site::{Plan, nic};
use exitmark_lab::{LabError, pin_to};
use exitmark_policy::packet::MacAddr;
use std::ops::Range;

pub(crate) const HOST_MAC: MacAddr = mac(1, 1);
pub(crate) const BOX_HOST_MAC: MacAddr = mac(1, 2);
pub(crate) const UPLINK_MAC: MacAddr = mac(2, 2);
pub(crate) const INCOMING_MAC: MacAddr = mac(3, 2);
pub(crate) const BOX_INCOMING_MAC: MacAddr = mac(3, 1);

/// The box's interfaces towards the host, the uplink and the incoming network.
pub(crate) const BOX_HOST: &str = nic(Role::Host);
pub(crate) const BOX_UPLINK: &str = nic(Role::Uplink);
pub(crate) const BOX_INCOMING: &str = nic(Role::Incoming);

const fn mac(cable: u8, end: u8) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, cable, end])
}

pub(crate) fn build(queues: u32) -> Result<Site, LabError> {
    Site::build(Plan {
        is_bare: true,
        ..Plan::of_queues(queues)
    })
}

/// Pins the calling thread to the core of one generator. The kernel runs the box's receive side
/// there too, because a veth's receive queue has the number of the sending core.
pub(crate) fn pin_to_generator_cpu(generator: u32) -> Result<(), LabError> {
    pin_to([core(generator)])
}

/// Pins the calling thread and its child processes to the cores that the generators leave, if any.
pub(crate) fn pin_to_forwarder_cpus(generators: u32) -> Result<(), LabError> {
    pin_to(forwarder_cpus(generators))
}

/// The cores that the generators leave, or all if they leave none.
pub(crate) fn forwarder_cpus(generators: u32) -> Range<usize> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match core(generators) {
        first if first < cores => first..cores,
        _ => 0..cores,
    }
}

fn core(generator: u32) -> usize {
    usize::try_from(generator).unwrap_or(usize::MAX)
}
