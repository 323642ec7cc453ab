//! A far end that takes what XDP redirects to it.

use super::{LabError, Netns};
use libbpf_rs::{ObjectBuilder, Xdp, XdpFlags};
use std::os::fd::AsFd;

const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/poll.bpf.o"));

/// Attaches a program that lets every frame pass, so that this end of a veth pair polls. It
/// stays as long as the interface.
///
/// # Errors
/// No privilege, or no such interface.
pub fn poll(netns: &Netns, interface: &str) -> Result<(), LabError> {
    let name = interface.to_owned();
    netns.run(move || {
        let failed = |error: &dyn std::fmt::Display| {
            LabError(format!(
                "cannot attach a passing program to {name}: {error}"
            ))
        };
        let object = ObjectBuilder::default()
            .open_memory(PROGRAM)
            .and_then(libbpf_rs::OpenObject::load)
            .map_err(|error| failed(&error))?;
        let program = object.progs_mut().next();
        let program = program.ok_or_else(|| failed(&"there is none"))?;
        let index = nix::net::if_::if_nametoindex(name.as_str()).map_err(|error| failed(&error))?;
        Xdp::new(program.as_fd())
            .attach(index.cast_signed(), XdpFlags::DRV_MODE)
            .map_err(|error| failed(&error))
    })
}
