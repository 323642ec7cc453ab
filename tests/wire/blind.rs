//! A NIC that receives while its program sees nothing.

use crate::rig::{Case, Config, Rig, needs_root};
use exitmark_lab::bpf::Programs;
use exitmark_lab::site::Plan;
use libbpf_rs::Link;

/// Another program in the pinned link simulates a driver that has lost the box's: the link exists,
/// the NIC receives, and no frame is counted. That program passes every frame.
#[test]
fn a_blind_port_is_attached_again_and_forwards() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    let blindfold = Programs::build("src/lab/poll.bpf.c").unwrap();
    rig.site.middle.run(move || {
        let mut link = Link::open("/sys/fs/bpf/exitmark/link_host").unwrap();
        link.update_prog(&blindfold.program("poll").unwrap())
            .unwrap();
    });

    // More than a few packets a second, until one of them is forwarded.
    rig.assert_forwarded(&Case::exit(0, 60));
    for part in ["ALARM: host0 (host)", "sees frames again"] {
        rig.said(part, 1..);
    }
    rig.stop();
}
