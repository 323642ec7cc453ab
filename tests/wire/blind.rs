//! A NIC that receives while its program sees nothing.

use crate::craft::{AF11, exit};
use crate::rig::{Config, PATIENCE, Rig, Side, eventually, moved, needs_root};
use exitmark_lab::LabError;
use exitmark_lab::bpf::Programs;
use exitmark_lab::site::Plan;
use libbpf_rs::Link;
use std::time::{Duration, Instant};

/// Another program in the pinned link simulates a driver that has lost the box's: the link exists,
/// the NIC receives, and no frame is counted.
#[test]
fn a_blind_port_is_attached_again_and_forwards() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    let blindfold = Programs::build("tests/bpf/pass.bpf.c").unwrap();
    rig.site.middle.run(move || {
        let mut link = Link::open("/sys/fs/bpf/exitmark/link_host").unwrap();
        link.update_prog(&blindfold.program("pass").unwrap())
            .unwrap();
    });

    let port = rig.port(Side::Host);
    let mut uplink = rig.watch(Side::Clearnet);
    let (sent, marked) = (
        exit(0, 60).outbound(&[]),
        exit(0, 60).tos(AF11).outbound(&[]),
    );
    let deadline = Instant::now() + PATIENCE;
    // More than a few packets a second, until one of them is forwarded.
    while !uplink.wait_until(Duration::from_millis(50), |seen| !seen.is_empty()) {
        assert!(Instant::now() < deadline, "{}", rig.running.log());
        port.send(&sent).unwrap();
    }
    assert!(uplink.wait_until(PATIENCE, |seen| seen[0].bytes == marked));
    for part in ["ALARM: host0 (host)", "sees frames again"] {
        eventually(part, || {
            let log = rig.running.log();
            log.contains(part).then_some(()).ok_or(LabError(log))
        });
    }
    moved(&rig.running.stop().unwrap());
}
