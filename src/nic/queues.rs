//! The receive queues of a NIC: their number and maximum, and how many of them XDP redirects to
//! the NIC allow.
//!
//! Read over ethtool netlink (the kernel's Documentation/networking/ethtool-netlink.rst). How a
//! driver's `ndo_xdp_xmit` depends on the number of queues is not reported by any interface; the
//! table here is from the drivers' sources in Linux 6.1 to 7.0.

use super::{Nic, NicError, connect_ethtool, converse};
use ethtool::{EthtoolAttr, EthtoolChannelAttr};
use futures_util::stream::StreamExt;

/// How a driver picks a transmit queue for a frame that XDP redirects to its NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RedirectQueue {
    /// An existing queue, on every CPU.
    Any,
    /// The queue with the number of the CPU that received the frame. If it does not exist, the
    /// frame is lost (-ENXIO).
    OfCpu,
    /// With more queue pairs than CPUs: a queue after those in use. If that is beyond the last one,
    /// the kernel panics. Otherwise: a queue that CPUs share.
    BehindThoseInUse,
}

impl RedirectQueue {
    fn of(driver: Option<&str>) -> Self {
        match driver {
            // virtnet_xdp_set and virtnet_xdp_get_sq in drivers/net/virtio_net.c.
            Some("virtio_net") => Self::BehindThoseInUse,
            // i40e_xdp_xmit in drivers/net/ethernet/intel/i40e/i40e_txrx.c; mlx5e_xdp_xmit in
            // drivers/net/ethernet/mellanox/mlx5/core/en/xdp.c; otx2_xdp_xmit in
            // drivers/net/ethernet/marvell/octeontx2/nic/otx2_pf.c, which does not check at all.
            Some("i40e" | "mlx5_core" | "rvu_nicpf") => Self::OfCpu,
            // Including ice, ixgbe, igb, igc, ena, bnxt_en, vmxnet3, veth: a queue for every CPU,
            // or CPU modulo queues, with a lock.
            Some(_) => Self::Any,
            // An unknown driver may be any of them; this is the worst case.
            None => Self::BehindThoseInUse,
        }
    }
}

/// Drivers that report the number of queues, but refuse to change it: vmxnet3_ethtool.c.
const FIXED: [&str; 1] = ["vmxnet3"];

/// The number of a NIC's receive queues, and whether it can be changed.
pub(super) struct Queues {
    pub(super) now: u32,
    pub(super) most: u32,
    pub(super) are_combined: bool,
    pub(super) can_be_set: bool,
    /// Whether the driver reported the numbers.
    was_answered: bool,
}

impl Queues {
    /// Queries the receive queues: the combined channels and those that only receive. A driver that
    /// does not report them counts as having one.
    pub(super) async fn look(name: &str, driver: Option<&str>) -> Result<Self, NicError> {
        let (mut now, mut most, mut combined) = (0, 0, 0);
        // The connection ends when its last handle is dropped.
        let mut ethtool = connect_ethtool()?;
        if let Ok(mut replies) = ethtool.channel().get(Some(name)).execute().await {
            while let Some(Ok(reply)) = replies.next().await {
                for attribute in &reply.payload.nlas {
                    match attribute {
                        EthtoolAttr::Channel(
                            EthtoolChannelAttr::CombinedCount(count)
                            | EthtoolChannelAttr::RxCount(count),
                        ) => now += count,
                        EthtoolAttr::Channel(EthtoolChannelAttr::RxMax(count)) => most += count,
                        EthtoolAttr::Channel(EthtoolChannelAttr::CombinedMax(count)) => {
                            combined += count;
                        }
                        _ => {}
                    }
                }
            }
        }
        let was_answered = most + combined > 0;
        let now = now.max(1);
        Ok(Self {
            now,
            most: if combined > 0 { combined } else { most }.max(now),
            are_combined: combined > 0,
            can_be_set: was_answered && !driver.is_some_and(|driver| FIXED.contains(&driver)),
            was_answered,
        })
    }
}

impl Nic {
    /// Queries the number of receive queues again, by the NIC's current `name`. virtio_net adds one
    /// per CPU when an XDP program is attached, if it has that many to spare. `None` if the driver
    /// does not report the number, always or because it is reinitialising the NIC.
    ///
    /// # Errors
    /// The netlink socket cannot be made.
    pub fn queues_now(&self, name: &str) -> Result<Option<u32>, NicError> {
        let driver = self.driver.as_deref();
        let found = converse(async { Queues::look(name, driver).await })?;
        Ok(found.was_answered.then_some(found.now))
    }

    /// The number of receive queues without those that virtio_net added for its XDP program, one
    /// for each of `cpus` CPUs. A socket bound to an added queue cannot send: no transmit queue has
    /// that number (`__xsk_generic_xmit` in the kernel's net/xdp/xsk.c).
    pub fn own_queues(&self, cpus: u32) -> u32 {
        match self.driver.as_deref() {
            Some("virtio_net") if self.queues > cpus => self.queues - cpus,
            _ => self.queues,
        }
    }

    /// The command that sets the number of receive queues; `None` if the driver cannot change it.
    pub fn queues_command(&self, queues: u32) -> Option<String> {
        let kind = self.queues_kind();
        let command = || format!("ethtool -L {} {kind} {queues}", self.name);
        self.sets_queues.then(command)
    }

    /// The keyword of `ethtool -L` for the NIC's receive queues.
    pub const fn queues_kind(&self) -> &'static str {
        match self.has_combined_queues {
            true => "combined",
            false => "rx",
        }
    }

    /// The command as part of a message, or that the driver cannot change the number.
    pub fn queues_advice(&self, queues: u32) -> String {
        match self.queues_command(queues) {
            Some(command) => format!("`{command}`"),
            None => format!("the driver of {} does not change their number", self.name),
        }
    }

    /// The most receive queues with which XDP can safely redirect frames to the NIC, on a machine
    /// with `cpus` CPUs ([`possible_cpus`]).
    pub fn most_queues_with_xdp(&self, cpus: u32) -> u32 {
        match RedirectQueue::of(self.driver.as_deref()) {
            RedirectQueue::BehindThoseInUse => {
                // Up to `cpus` queues are shared by the CPUs; more need a spare one for every CPU.
                let with_spare = self.most_queues.saturating_sub(cpus);
                self.most_queues.min(cpus.max(with_spare))
            }
            RedirectQueue::Any | RedirectQueue::OfCpu => self.most_queues,
        }
    }

    /// Whether the NIC loses frames that XDP redirects to it on some CPUs, because it has fewer
    /// queues than CPUs.
    pub fn loses_redirects(&self, cpus: u32) -> bool {
        RedirectQueue::of(self.driver.as_deref()) == RedirectQueue::OfCpu && self.queues < cpus
    }
}

/// The number of receive queues, up to `limit`, that all of these NICs have or can have, and with
/// which XDP can safely redirect frames to them; `None` if they have no number in common.
pub fn common_queues(nics: &[&Nic], cpus: u32, limit: u32) -> Option<u32> {
    let most = nics.iter().map(|nic| nic.most_queues_with_xdp(cpus)).min();
    let most = most?.min(limit);
    let fixed = nics.iter().filter(|nic| !nic.sets_queues);
    let mut fixed = fixed.map(|nic| nic.queues);
    if let Some(first) = fixed.next() {
        return (first <= most && fixed.all(|other| other == first)).then_some(first);
    }
    let wanted = nics.iter().map(|nic| match nic.loses_redirects(cpus) {
        true => cpus,
        false => nic.queues,
    });
    wanted.max().map(|wanted| wanted.min(most))
}

/// The number of possible CPUs (`nr_cpu_ids`): one more than the highest number that a CPU can
/// ever have. Drivers use this number.
pub fn possible_cpus() -> u32 {
    let listed = std::fs::read_to_string("/sys/devices/system/cpu/possible");
    let highest = listed.ok().and_then(|text| highest_of(&text));
    let counted = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    highest.map_or(u32::try_from(counted).unwrap_or(1), |cpu| cpu + 1)
}

/// The highest number of a list such as `0-3,8`.
fn highest_of(list: &str) -> Option<u32> {
    let numbers = list.trim().split([',', '-']);
    numbers.filter_map(|number| number.parse().ok()).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(driver: Option<&str>, queues: u32, most_queues: u32) -> Nic {
        Nic {
            queues,
            most_queues,
            ..Nic::example("nic0", driver)
        }
    }

    #[test]
    fn virtio_has_a_queue_for_every_cpu_or_shares_them() {
        // CPUs, most queue pairs, and how many of them are safe.
        for (cpus, most, safe) in [
            (2, 4, 2),
            (2, 1, 1),
            (4, 4, 4),
            (2, 3, 2),
            (2, 5, 3),
            (2, 8, 6),
            (8, 4, 4),
            (8, 16, 8),
        ] {
            for driver in [Some("virtio_net"), None] {
                let nic = nic(driver, 1, most);
                assert_eq!(nic.most_queues_with_xdp(cpus), safe, "{cpus} CPUs, {most}");
                // virtnet_xdp_set gives every CPU a queue only where that leaves it within the
                // last one, and virtnet_xdp_get_sq takes such a queue if there are more pairs
                // than CPUs.
                let panics = |pairs: u32| pairs > cpus && pairs + cpus > most;
                assert!(!(1..=safe).any(panics), "{cpus} CPUs, {most}");
                assert!((safe + 1..=most).all(panics), "{cpus} CPUs, {most}");
            }
            assert_eq!(nic(Some("igb"), 1, most).most_queues_with_xdp(cpus), most);
        }
    }

    #[test]
    fn own_queues_excludes_those_that_virtio_net_added() {
        // CPUs, most queue pairs, and the pairs in use before the program was attached.
        for (cpus, most, own) in [
            (2, 4, 2),
            (2, 4, 1),
            (2, 2, 2),
            (1, 1, 1),
            (4, 8, 4),
            (8, 8, 8),
        ] {
            let now = if own + cpus <= most { own + cpus } else { own };
            assert_eq!(nic(Some("virtio_net"), now, most).own_queues(cpus), own);
            assert_eq!(nic(Some("igb"), now, most).own_queues(cpus), now);
        }
    }

    #[test]
    fn drivers_that_use_the_queue_of_the_cpu_need_one_per_cpu() {
        for driver in ["i40e", "mlx5_core"] {
            assert!(nic(Some(driver), 4, 8).loses_redirects(8));
            assert!(!nic(Some(driver), 8, 8).loses_redirects(8));
        }
        for driver in ["ice", "ixgbe", "igb", "virtio_net", "veth"] {
            assert!(!nic(Some(driver), 1, 8).loses_redirects(8));
        }
    }

    #[test]
    fn a_common_number_is_one_that_every_nic_can_have() {
        let fixed = |driver, queues| Nic {
            sets_queues: false,
            ..nic(Some(driver), queues, queues)
        };
        let igb = |queues| nic(Some("igb"), queues, 8);
        let of = |nics: &[Nic], cpus| {
            let nics: Vec<&Nic> = nics.iter().collect();
            common_queues(&nics, cpus, 64)
        };
        assert_eq!(of(&[igb(4), igb(8)], 2), Some(8));
        // Raised to the largest; virtio_net is limited to the number of CPUs.
        let virtio = nic(Some("virtio_net"), 1, 4);
        assert_eq!(of(&[igb(4), virtio.clone()], 2), Some(2));
        assert_eq!(of(&[virtio], 2), Some(1));
        // A NIC with a fixed number decides; two of them may differ.
        assert_eq!(of(&[igb(4), fixed("e1000e", 1)], 2), Some(1));
        assert_eq!(of(&[fixed("vmxnet3", 4), fixed("e1000e", 1)], 2), None);
        assert_eq!(of(&[nic(Some("i40e"), 4, 64), igb(4)], 8), Some(8));
        assert_eq!(of(&[nic(Some("i40e"), 4, 64), igb(4)], 16), Some(8));
        assert_eq!(of(&[nic(Some("ice"), 96, 96)], 96), Some(64));
        assert_eq!(of(&[], 2), None);
    }

    #[test]
    fn names_the_command_only_if_the_driver_can_change_the_queues() {
        let settable = nic(Some("igb"), 4, 8);
        assert_eq!(settable.queues_advice(2), "`ethtool -L nic0 combined 2`");
        let fixed = Nic {
            sets_queues: false,
            ..settable
        };
        assert_eq!(fixed.queues_command(2), None);
        assert!(!fixed.queues_advice(2).contains("ethtool"));
    }

    #[test]
    fn the_highest_cpu_of_a_list_is_found() {
        assert_eq!(highest_of("0-3\n"), Some(3));
        assert_eq!(highest_of("0\n"), Some(0));
        assert_eq!(highest_of("0-3,8-11,16\n"), Some(16));
        assert_eq!(highest_of(""), None);
    }
}
