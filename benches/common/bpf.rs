//! `benches/bpf/traffic.bpf.c`: compiled when a bench starts, and the forwarder in it that does
//! nothing.

use exitmark::lab::bpf::{self, Programs};
use exitmark::lab::{LabError, Netns};
use std::path::Path;

// `enum target` of traffic.bpf.c.
const TARGET_WIRE: u32 = 1;
const TARGET_WIRE_BACK: u32 = 2;
/// The map of interfaces to send to.
pub(crate) const TARGETS: &str = "targets";

/// Compiles it and returns the object's bytes.
pub(crate) fn compile() -> Result<Vec<u8>, LabError> {
    bpf::compile(&Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/bpf/traffic.bpf.c"))
}

/// Loads what [`compile`] returned, with room for so many flows.
pub(crate) fn load(compiled: &[u8], flows: u32) -> Result<Programs, LabError> {
    Programs::load_sized("traffic.bpf.c", compiled, &[("flows", flows)])
}

/// Makes two ports one wire: what comes in by one leaves by the other, unread.
pub(crate) fn attach_wire(
    programs: &Programs,
    netns: &Netns,
    host: &'static str,
    uplink: &'static str,
) -> Result<(), LabError> {
    programs.aim(TARGETS, TARGET_WIRE, netns, uplink)?;
    programs.aim(TARGETS, TARGET_WIRE_BACK, netns, host)?;
    programs.attach("wire", netns, host)?;
    programs.attach("wire_back", netns, uplink)
}
