//! Limits of NIC drivers with XDP that the kernel does not report, but that lose frames.
//!
//! Drivers that are not listed are assumed to have no such limit. Each entry names the limit's
//! place in the kernel's sources (Linux 6.18) and whether it was observed.

/// Drivers whose `ndo_xdp_xmit` writes a header of its own in front of the frame. A frame that
/// was received zero-copy has no headroom for it after the kernel has copied it for a redirect
/// (net/core/xdp.c, `xdp_convert_zc_to_xdp_frame` sets `headroom` to 0).
///
/// `virtio_net`: drivers/net/virtio_net.c, `__virtnet_xdp_xmit_one` returns -EOVERFLOW if
/// `headroom` is less than the virtio header; observed on 6.18 and 7.3.
const NEED_HEADROOM: [&str; 1] = ["virtio_net"];

/// Whether a NIC of this driver accepts frames that the XDP program redirects to it from a port
/// bound zero-copy.
pub(super) fn takes_zero_copy_redirects(driver: Option<&str>) -> bool {
    driver.is_none_or(|driver| !NEED_HEADROOM.contains(&driver))
}

/// The longest packet, in bytes, that this driver receives into one buffer with an Ethernet header
/// and two VLAN tags: a page less XDP's headroom (256 bytes) and `struct skb_shared_info` (320).
///
/// `virtio_net` also keeps its 12-byte header there (drivers/net/virtio_net.c, `virtnet_xdp_set`);
/// longer frames were lost without being counted on 6.1.
pub(super) fn one_buffer_mtu(driver: Option<&str>) -> u32 {
    match driver {
        // A driver that the kernel does not name may be virtio_net.
        Some("virtio_net") | None => 3486,
        _ => 3498,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_drivers_refuse_frames_that_were_received_zero_copy() {
        for (driver, takes) in [
            (Some("virtio_net"), false),
            (Some("igb"), true),
            (Some("ice"), true),
            (Some("veth"), true),
            (None, true),
        ] {
            assert_eq!(takes_zero_copy_redirects(driver), takes, "{driver:?}");
        }
    }
}
