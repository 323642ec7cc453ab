//! `benches/bpf/traffic.bpf.c`, compiled when a bench starts: loading, attaching, and the
//! forwarder that does nothing.

use exitmark::lab::{LabError, Netns};
use libbpf_rs::{Map, MapCore, MapFlags, Object, ObjectBuilder, ProgramMut, Xdp, XdpFlags};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

// `enum target` of traffic.bpf.c.
const TARGET_WIRE: u32 = 1;
const TARGET_WIRE_BACK: u32 = 2;

/// The programs and maps, loaded once for each site.
pub(crate) struct Programs {
    pub(crate) object: Arc<Object>,
}

impl Programs {
    /// Loads what [`compile`] returned.
    pub(crate) fn load(compiled: &[u8]) -> Result<Self, LabError> {
        let mut builder = ObjectBuilder::default();
        let object = builder
            .name("traffic")
            .and_then(|builder| builder.open_memory(compiled))
            .and_then(libbpf_rs::OpenObject::load)
            .map_err(|error| LabError(format!("cannot load traffic.bpf.c: {error}")))?;
        Ok(Self {
            object: Arc::new(object),
        })
    }

    /// Makes two ports one wire: what comes in by one leaves by the other, unread.
    pub(crate) fn attach_wire(
        &self,
        netns: &Netns,
        host: &'static str,
        uplink: &'static str,
    ) -> Result<(), LabError> {
        self.aim(TARGET_WIRE, netns, uplink)?;
        self.aim(TARGET_WIRE_BACK, netns, host)?;
        self.attach("wire", netns, host)?;
        self.attach("wire_back", netns, uplink)
    }

    /// Says to which interface a program sends.
    pub(crate) fn aim(
        &self,
        target: u32,
        netns: &Netns,
        interface: &'static str,
    ) -> Result<(), LabError> {
        let index = netns.run(move || interface_index(interface))?;
        self.store("targets", target, &index.to_ne_bytes())
    }

    pub(crate) fn store(&self, map: &str, key: u32, value: &[u8]) -> Result<(), LabError> {
        find_map(&self.object, map)?
            .update(&key.to_ne_bytes(), value, MapFlags::ANY)
            .map_err(|error| LabError(format!("cannot write the map {map}: {error}")))
    }

    /// The attachment lasts as long as the interface.
    pub(crate) fn attach(
        &self,
        name: &'static str,
        netns: &Netns,
        interface: &'static str,
    ) -> Result<(), LabError> {
        let object = Arc::clone(&self.object);
        netns.run(move || {
            let index = interface_index(interface)?.cast_signed();
            Xdp::new(find_program(&object, name)?.as_fd())
                .attach(index, XdpFlags::DRV_MODE)
                .map_err(|error| LabError(format!("cannot attach {name} to {interface}: {error}")))
        })
    }
}

/// Compiles `benches/bpf/traffic.bpf.c` and returns the object's bytes.
pub(crate) fn compile() -> Result<Vec<u8>, LabError> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/bpf/traffic.bpf.c");
    let triple = run(Command::new("clang").arg("-print-multiarch"))?;
    let include = format!("-I/usr/include/{}", String::from_utf8_lossy(&triple).trim());
    run(Command::new("clang")
        .args(["-O2", "-g", "-target", "bpf", &include, "-c"])
        .arg(source)
        .args(["-o", "-"]))
}

fn run(command: &mut Command) -> Result<Vec<u8>, LabError> {
    let output = command
        .output()
        .map_err(|error| LabError(format!("cannot run clang: {error}; is it installed?")))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(LabError(format!(
            "clang cannot compile traffic.bpf.c: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )))
    }
}

fn interface_index(name: &str) -> Result<u32, LabError> {
    nix::net::if_::if_nametoindex(name)
        .map_err(|error| LabError(format!("there is no interface {name}: {error}")))
}

pub(crate) fn find_program<'o>(object: &'o Object, name: &str) -> Result<ProgramMut<'o>, LabError> {
    object
        .progs_mut()
        .find(|program| program.name() == name)
        .ok_or_else(|| LabError(format!("traffic.bpf.c has no program {name}")))
}

pub(crate) fn find_map<'o>(object: &'o Object, name: &str) -> Result<Map<'o>, LabError> {
    object
        .maps()
        .find(|map| map.name() == name)
        .ok_or_else(|| LabError(format!("traffic.bpf.c has no map {name}")))
}
