//! A far end that takes what XDP redirects to it.

use super::bpf::Programs;
use super::{LabError, Netns};

const COMPILED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/poll.bpf.o"));

/// Attaches a program that lets every frame pass, so that this end of a veth pair polls. It
/// stays as long as the interface.
///
/// # Errors
/// No privilege, or no such interface.
pub fn poll(netns: &Netns, interface: &'static str) -> Result<(), LabError> {
    Programs::load("poll.bpf.c", COMPILED)?.attach("poll", netns, interface)
}

/// The same in generic mode, in which the end does not poll: a program that is in another's way.
///
/// # Errors
/// As [`poll`].
pub fn occupy(netns: &Netns, interface: &'static str) -> Result<(), LabError> {
    Programs::load("poll.bpf.c", COMPILED)?.attach_generic("poll", netns, interface)
}
