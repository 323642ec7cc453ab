//! The four hosts of the bench and the cables between them, created for every measurement.
//!
//! ```text
//!   host (generator) ──── eth0  box  eth1 ──── uplink (counts and drops)
//!                          (forwarder)
//!                               eth2 ──── incoming (counts and drops)
//! ```
//!
//! Independent of forwarders and frames. Its constants for the two sinks' MAC addresses are
//! repeated in `benches/bpf/traffic.bpf.c`; if they differ, every frame counts as astray.

use exitmark_lab::{LabError, Netns, VethEnd, veth};
use exitmark_policy::packet::MacAddr;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::ops::Range;

pub(crate) const HOST_MAC: MacAddr = mac(1, 1);
pub(crate) const BOX_HOST_MAC: MacAddr = mac(1, 2);
pub(crate) const UPLINK_MAC: MacAddr = mac(2, 1);
pub(crate) const INCOMING_MAC: MacAddr = mac(3, 1);
pub(crate) const BOX_INCOMING_MAC: MacAddr = mac(3, 2);

/// The name of the interface at the far end of each of the three cables.
pub(crate) const FAR_END: &str = "eth0";
/// The box's interfaces towards the host, the uplink and the incoming network.
pub(crate) const BOX_HOST: &str = "eth0";
pub(crate) const BOX_UPLINK: &str = "eth1";
pub(crate) const BOX_INCOMING: &str = "eth2";

const MTU: u32 = 1500;

const fn mac(cable: u8, end: u8) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, cable, end])
}

pub(crate) struct Site {
    pub(crate) host: Netns,
    pub(crate) middle: Netns,
    pub(crate) uplink: Netns,
    pub(crate) incoming: Netns,
    queues: u32,
}

impl Site {
    /// Builds a site whose ports have this number of queues.
    pub(crate) fn new(queues: u32) -> Result<Self, LabError> {
        let site = Self {
            host: quiet_netns("host")?,
            middle: quiet_netns("box")?,
            uplink: quiet_netns("uplink")?,
            incoming: quiet_netns("incoming")?,
            queues,
        };
        site.cable(&site.host, HOST_MAC, BOX_HOST, BOX_HOST_MAC)?;
        site.cable(&site.uplink, UPLINK_MAC, BOX_UPLINK, mac(2, 2))?;
        site.cable(&site.incoming, INCOMING_MAC, BOX_INCOMING, BOX_INCOMING_MAC)?;
        Ok(site)
    }

    fn cable(
        &self,
        far: &Netns,
        far_mac: MacAddr,
        box_end: &str,
        box_mac: MacAddr,
    ) -> Result<(), LabError> {
        let far_end = VethEnd {
            netns: far,
            name: FAR_END,
            mac: &far_mac.to_string(),
            queues: self.queues,
        };
        let box_end = VethEnd {
            netns: &self.middle,
            name: box_end,
            mac: &box_mac.to_string(),
            queues: self.queues,
        };
        veth(&far_end, &box_end, MTU)?;
        // A veth accepts redirected frames only while its peer polls, as for GRO.
        for (end, gro) in [(&far_end, "on"), (&box_end, "off")] {
            let offloads = ["-K", end.name, "tx", "off", "gro", gro];
            end.netns.command("ethtool", &offloads)?;
        }
        Ok(())
    }
}

/// A namespace whose stack sends nothing by itself and accepts every source address.
fn quiet_netns(label: &str) -> Result<Netns, LabError> {
    let netns = Netns::new(label)?;
    for conf in ["all", "default"] {
        netns.sysctl(&format!("net/ipv6/conf/{conf}/disable_ipv6"), "1")?;
        netns.sysctl(&format!("net/ipv4/conf/{conf}/rp_filter"), "0")?;
    }
    Ok(netns)
}

/// Pins the calling thread to the core of one generator. The kernel runs the box's receive side
/// there too, because a veth's receive queue has the number of the sending core.
pub(crate) fn pin_to_generator_cpu(generator: u32) -> Result<(), LabError> {
    let core = core(generator);
    pin("a generator", core..core + 1)
}

/// Pins the calling thread and its child processes to the cores that the generators leave, if any.
pub(crate) fn pin_to_forwarder_cpus(generators: u32) -> Result<(), LabError> {
    pin("the forwarder", forwarder_cpus(generators))
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

fn pin(whom: &str, cores: Range<usize>) -> Result<(), LabError> {
    let mut cpus = CpuSet::new();
    cores
        .into_iter()
        .try_for_each(|core| cpus.set(core))
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpus))
        .map_err(|error| LabError(format!("cannot pin {whom} to its cores: {error}")))
}
