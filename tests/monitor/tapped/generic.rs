//! A NIC whose driver does not support the filter: generic XDP.

use super::{HOST_V4, MARK, Rig, receive, wait_for};
use crate::says;
use exitmark_lab::frames::tcp;
use exitmark_lab::needs_root;
use exitmark_policy::packet::replace_word;

/// GRO would merge a connection's consecutive segments. Generic XDP turns GRO off, so each segment
/// is a packet, without changing the NIC's settings.
#[test]
fn in_generic_mode_every_segment_is_a_packet() {
    needs_root!();
    let rig = Rig::new(2, 1500);
    // A veth refuses native XDP if its peer has more transmit queues than it has receive queues.
    let ethtool = |arguments: &[&str]| rig.monitor.command("ethtool", arguments).unwrap();
    ethtool(&["-L", "tap0", "rx", "1"]);
    ethtool(&["-K", "tap0", "gro", "on"]);
    let mut tap = rig.open().unwrap();
    says(&rig.link(), "xdpgeneric");
    let port = rig.port();
    let segment = tcp(&format!("{HOST_V4}:40000"), "198.51.100.7:443");
    let segment = segment.tos(MARK).payload(1000);
    for number in 0..40 {
        let segment = moved_on(segment.build(), 1000 * number);
        port.send(&segment).unwrap();
    }
    assert_eq!(receive(&mut tap, 40).len(), 40);
    wait_for(&tap, "all of them", |counters| counters.sorted.passed == 40);
    tap.close().unwrap();
    let features = ethtool(&["-k", "tap0"]);
    says(&features, "generic-receive-offload: on");
}

/// The segment this many bytes later in its stream, with a matching checksum.
fn moved_on(mut frame: Vec<u8>, bytes: u16) -> Vec<u8> {
    const SEQUENCE: usize = 14 + 20 + 6;
    const CHECKSUM: usize = 14 + 20 + 16;
    let half = |frame: &[u8], at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let before = half(&frame, SEQUENCE);
    let after = before.wrapping_add(bytes);
    let checksum = replace_word(half(&frame, CHECKSUM), before, after);
    frame[SEQUENCE..SEQUENCE + 2].copy_from_slice(&after.to_be_bytes());
    frame[CHECKSUM..CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
    frame
}
