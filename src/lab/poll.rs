//! XDP programs for the far end of a veth pair, so that it receives redirected frames.

use super::bpf::Programs;
use super::{LabError, Netns};
use libbpf_rs::XdpFlags;

const COMPILED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/poll.bpf.o"));

/// Attaches a program that passes every frame, so that this end of a veth pair polls, for the
/// lifetime of the interface.
///
/// # Errors
/// Fails without privilege, or if the interface does not exist.
pub fn poll(netns: &Netns, interface: &str) -> Result<(), LabError> {
    Programs::load("poll.bpf.c", COMPILED)?.attach("poll", netns, interface)
}

/// Like [`poll`] in generic mode, in which the end does not poll: occupies the XDP hook.
///
/// # Errors
/// As [`poll`].
pub fn occupy(netns: &Netns, interface: &str) -> Result<(), LabError> {
    Programs::load("poll.bpf.c", COMPILED)?.attach_by("poll", netns, interface, XdpFlags::SKB_MODE)
}
