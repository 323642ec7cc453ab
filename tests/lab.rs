//! Tier: root. The laboratory itself: what the other tests stand on.

use exitmark_lab::{Capture, Netns, RawPort, VethEnd, is_root, veth};
use std::time::Duration;

#[test]
fn a_veth_pair_forwards_a_raw_frame_with_its_tags() {
    if !is_root() {
        return;
    }
    let (left, right) = (Netns::new("left").unwrap(), Netns::new("right").unwrap());
    let end = |netns, name, mac| VethEnd {
        netns,
        name,
        mac,
        queues: 1,
    };
    veth(
        &end(&left, "l0", "02:00:00:00:00:01"),
        &end(&right, "r0", "02:00:00:00:00:02"),
        1500,
    )
    .unwrap();
    let mut capture = Capture::start(&right, "r0", "in", "ether src 02:00:00:00:00:09").unwrap();
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 9];
    frame.extend_from_slice(&[0x88, 0xa8, 0x20, 0x64, 0x81, 0x00, 0x40, 0x07, 0x88, 0xb5]);
    frame.extend_from_slice(&[0x5a; 60]);
    RawPort::open(&left, "l0").unwrap().send(&frame).unwrap();
    assert!(capture.wait_until(Duration::from_secs(5), |frames| !frames.is_empty()));
    let frames = capture.finish().unwrap();
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].bytes, frame);
}
