//! Compiles and loads the programs in `benches/bpf` when a bench starts.

use exitmark_lab::bpf::{self, Programs};
use exitmark_lab::{LabError, Netns};

/// The program that generates, forwards and counts frames.
pub(crate) const TRAFFIC: &str = "traffic.bpf.c";
// `enum target` of traffic.bpf.c.
const TARGET_WIRE: u32 = 1;
const TARGET_WIRE_BACK: u32 = 2;
/// The map of the interfaces to redirect to.
const WIRES: &str = "wires";

/// Compiles a file of `benches/bpf` and returns the object's bytes.
pub(crate) fn compile(name: &str) -> Result<Vec<u8>, LabError> {
    bpf::compile(&format!("benches/bpf/{name}"))
}

/// Loads the compiled [`TRAFFIC`] with slots for this number of flows.
pub(crate) fn load(compiled: &[u8], flows: u32) -> Result<Programs, LabError> {
    Programs::load_prepared(TRAFFIC, compiled, &[("flows", flows)], &[])
}

/// Connects two ports by the do-nothing forwarder.
pub(crate) fn attach_wire(
    programs: &Programs,
    netns: &Netns,
    host: &'static str,
    uplink: &'static str,
) -> Result<(), LabError> {
    programs.aim(WIRES, TARGET_WIRE, netns, uplink)?;
    programs.aim(WIRES, TARGET_WIRE_BACK, netns, host)?;
    programs.attach("wire", netns, host)?;
    programs.attach("wire_back", netns, uplink)
}
