//! Sockets whose fill ring is full before they are bound, as zero-copy drivers need it; tested in
//! copy mode, which veth supports.

use exitmark_datapath::{
    AttachMode, Frame, FrameMemory, FramePool, Kernel, Links, PerRole, Pins, Port, Role,
    TakeoverLimits, Umem, XskSettings,
};
use exitmark_lab::{Netns, RawPort, VethEnd, needs_root, timeout, veth, wait_until};
use exitmark_nic::Nic;
use std::os::fd::AsFd;
use std::path::Path;

const RING: u32 = 64;
const IN_HAND: u32 = 8;

fn wait(what: &str, enough: impl FnMut() -> bool) {
    wait_until(what, enough, || "not in time");
}

/// Receives a frame of the peer into the chunks that are in the fill ring already, sends it back,
/// and waits for the completion.
fn there_and_back<P: Port>(
    peer: &RawPort,
    port: &mut P,
    memory: &mut P::Memory,
    pool: &mut FramePool,
) {
    let sent: Vec<u8> = (0..60).collect();
    peer.send(&sent).unwrap();
    let mut arrived: Vec<Frame> = Vec::new();
    wait("the frame arrives", || {
        port.receive(memory, &mut arrived, RING as usize);
        // The peer's own stack may send frames too.
        arrived.iter().any(|frame| memory.bytes(frame) == sent)
    });
    port.transmit(memory, &mut arrived);
    wait("it is sent back", || {
        port.kick();
        port.complete(memory, pool);
        port.held().sending == 0
    });
}

#[test]
fn receives_into_chunks_filled_before_the_bind() {
    needs_root!();
    let (near, far) = (Netns::new("near").unwrap(), Netns::new("far").unwrap());
    let near_end = VethEnd::new(&near, "host0", "02:00:00:00:00:01");
    let far_end = VethEnd::new(&far, "eth0", "02:00:00:00:00:02");
    veth(&near_end, &far_end, 1500).unwrap();
    let peer = RawPort::open(&far, "eth0").unwrap();
    near.run(move || {
        let index = Nic::look("host0").unwrap().index;
        let settings = XskSettings {
            ring: RING,
            in_hand: IN_HAND,
            chunk_bytes: 4096,
            multi_buffer: false,
            zero_copy: false,
        };
        let umem = Umem::new(settings, 2, 1).unwrap();
        // The part of the second worker begins within the memory.
        let mut names = PerRole::from_fn(|_| None);
        assert!(umem.bind_filled(1, &names).unwrap().ports[Role::Host].is_none());
        names[Role::Host] = Some("host0".to_owned());
        let mut share = umem.bind_filled(0, &names).unwrap();
        let total = (2 * RING + IN_HAND) as usize;
        let port = share.ports[Role::Host].as_mut().unwrap();
        assert_eq!(port.held().receiving, RING as usize);
        assert_eq!(share.pool.len(), total - RING as usize);

        let pins = Pins::open(Path::new("/sys/fs/bpf/filled")).unwrap();
        let kernel = Kernel::load().unwrap();
        let links = Links::over(kernel.links().unwrap(), None);
        let limits = TakeoverLimits {
            heartbeat_timeout: timeout(),
            soft_watermark: u64::from(RING),
            hard_watermark: u64::from(RING),
        };
        links.hand_over(PerRole::from_fn(|_| true), limits);
        kernel.admit(Role::Host, 0, port.as_fd()).unwrap();
        kernel.attach(&pins, Role::Host, "host0", index).unwrap();

        let (pool, memory) = (&mut share.pool, &mut share.memory);
        there_and_back(&peer, port, memory, pool);
        // The same after the program was detached and attached again.
        kernel
            .reattach(&pins, Role::Host, "host0", index, AttachMode::Native)
            .unwrap();
        there_and_back(&peer, port, memory, pool);
        assert_eq!(share.pool.len() + port.held().receiving, total);
        pins.remove_links().unwrap();
        pins.remove().unwrap();
    });
}
