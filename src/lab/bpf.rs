//! BPF programs of tests and benches: compiled when they start, loaded, attached, their maps read
//! and written.

use super::{LabError, Netns};
use crate::{bpf, datapath};
use libbpf_rs::{
    Map, MapCore, MapFlags, Object, ObjectBuilder, ProgramMut, TC_INGRESS, TcHookBuilder, Xdp,
    XdpFlags,
};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// What is known of an object file's maps and constants only when it is loaded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Preparation<'p> {
    /// Maps with other numbers of entries than the source has.
    pub entries: &'p [(&'p str, u32)],
    /// What its `.rodata` begins with. Where there is less room than that, nothing changes.
    pub constants: &'p [u8],
}

/// The programs and maps of one object file, loaded.
#[derive(Clone)]
pub struct Programs {
    object: Arc<Object>,
    name: &'static str,
}

impl Programs {
    /// Loads an object file's bytes. `name` is what it is called in messages.
    ///
    /// # Errors
    /// No privilege, or programs that the kernel refuses.
    pub fn load(name: &'static str, compiled: &[u8]) -> Result<Self, LabError> {
        Self::load_prepared(name, compiled, Preparation::default())
    }

    /// The same, with what is known only now.
    ///
    /// # Errors
    /// As [`Programs::load`].
    pub fn load_prepared(
        name: &'static str,
        compiled: &[u8],
        preparation: Preparation<'_>,
    ) -> Result<Self, LabError> {
        let Preparation { entries, constants } = preparation;
        let load = || {
            let mut object = ObjectBuilder::default().open_memory(compiled)?;
            for mut map in object.maps_mut() {
                let sized = entries.iter().find(|(name, _)| map.name() == *name);
                if let Some((_, count)) = sized {
                    map.set_max_entries(*count)?;
                }
                if map.name().to_string_lossy().ends_with(".rodata")
                    && let Some(values) = map.initial_value_mut()
                    && let Some(values) = values.get_mut(..constants.len())
                {
                    values.copy_from_slice(constants);
                }
            }
            object.load()
        };
        let object = bpf::load(load)
            .map_err(|error| LabError(format!("cannot load the programs of {name}: {error}")))?;
        Ok(Self {
            object: Arc::new(object),
            name,
        })
    }

    /// A program by its name.
    ///
    /// # Errors
    /// There is none.
    pub fn program(&self, name: &str) -> Result<ProgramMut<'_>, LabError> {
        self.object
            .progs_mut()
            .find(|program| program.name() == name)
            .ok_or_else(|| LabError(format!("{} has no program {name}", self.name)))
    }

    /// A map by its name.
    ///
    /// # Errors
    /// There is none.
    pub fn map(&self, name: &str) -> Result<Map<'_>, LabError> {
        self.object
            .maps()
            .find(|map| map.name() == name)
            .ok_or_else(|| LabError(format!("{} has no map {name}", self.name)))
    }

    /// Writes an entry of a map with 32-bit keys.
    ///
    /// # Errors
    /// There is no such map, or it does not take the entry.
    pub fn store(&self, map: &str, key: u32, value: &[u8]) -> Result<(), LabError> {
        self.map(map)?
            .update(&key.to_ne_bytes(), value, MapFlags::ANY)
            .map_err(|error| LabError(format!("cannot write the map {map}: {error}")))
    }

    /// Writes the first entries of such a map, one for each of `values`.
    ///
    /// # Errors
    /// As [`Programs::store`].
    pub fn store_all<'v>(
        &self,
        map: &str,
        values: impl Iterator<Item = &'v [u8]>,
    ) -> Result<(), LabError> {
        let (mut keys, mut content, mut count) = (Vec::new(), Vec::new(), 0_u32);
        for value in values {
            keys.extend(count.to_ne_bytes());
            content.extend(value);
            count += 1;
        }
        self.map(map)?
            .update_batch(&keys, &content, count, MapFlags::ANY, MapFlags::ANY)
            .map_err(|error| LabError(format!("cannot fill the map {map}: {error}")))
    }

    /// Writes an interface's number into such an entry. A device map takes it for an interface of
    /// the namespace of whoever writes, so that is done in there: elsewhere the same number is
    /// somebody else's interface.
    ///
    /// # Errors
    /// As [`Programs::store`], or there is no such interface.
    pub fn aim(
        &self,
        map: &'static str,
        key: u32,
        netns: &Netns,
        interface: &'static str,
    ) -> Result<(), LabError> {
        let programs = self.clone();
        netns.run(move || {
            let index = interface_index(interface)?;
            programs.store(map, key, &index.to_ne_bytes())
        })
    }

    /// Attaches a program to the ingress of an interface's clsact discipline, which it makes. It
    /// lasts as long as the interface.
    ///
    /// # Errors
    /// As [`Programs::attach`].
    pub fn attach_tc(
        &self,
        program: &'static str,
        netns: &Netns,
        interface: &'static str,
    ) -> Result<(), LabError> {
        let programs = self.clone();
        netns.run(move || {
            let index = interface_index(interface)?.cast_signed();
            let program_there = programs.program(program)?;
            TcHookBuilder::new(program_there.as_fd())
                .ifindex(index)
                .handle(1)
                .priority(1)
                .hook(TC_INGRESS)
                .create()
                .and_then(|mut hook| hook.attach())
                .map(|_| ())
                .map_err(|error| not_attached(program, interface, &error))
        })
    }

    /// Runs a program on copies of a frame, which go where it sends them, until it ran so often
    /// or a signal interrupts the thread. What it sends leaves after every `batch` runs, 1 to 256.
    ///
    /// # Errors
    /// There is no such program, or the kernel does not run it so.
    pub fn run_live(
        &self,
        program: &str,
        frame: &[u8],
        repeat: u32,
        batch: u32,
    ) -> Result<(), LabError> {
        datapath::run_live(self.program(program)?.as_fd(), frame, repeat, batch)
            .map_err(|error| LabError(format!("cannot run {program} live: {error}")))
    }

    /// Attaches a program to an interface in the kernel's common receive path. It lasts as long as
    /// the interface.
    ///
    /// # Errors
    /// There is no such program or interface, or no privilege.
    pub fn attach_generic(
        &self,
        program: &'static str,
        netns: &Netns,
        interface: &'static str,
    ) -> Result<(), LabError> {
        self.attach_by(program, netns, interface, XdpFlags::SKB_MODE)
    }

    /// Attaches a program to an interface, natively. It lasts as long as the interface.
    ///
    /// # Errors
    /// There is no such program or interface, or no privilege.
    pub fn attach(
        &self,
        program: &'static str,
        netns: &Netns,
        interface: &'static str,
    ) -> Result<(), LabError> {
        self.attach_by(program, netns, interface, XdpFlags::DRV_MODE)
    }

    fn attach_by(
        &self,
        program: &'static str,
        netns: &Netns,
        interface: &'static str,
        mode: XdpFlags,
    ) -> Result<(), LabError> {
        let programs = self.clone();
        netns.run(move || {
            let index = interface_index(interface)?.cast_signed();
            Xdp::new(programs.program(program)?.as_fd())
                .attach(index, mode)
                .map_err(|error| not_attached(program, interface, &error))
        })
    }
}

fn not_attached(program: &str, interface: &str, error: &libbpf_rs::Error) -> LabError {
    LabError(format!("cannot attach {program} to {interface}: {error}"))
}

/// Compiles a C file for BPF's third instruction set and returns the object file's bytes.
///
/// # Errors
/// clang is missing, or refuses.
pub fn compile(source: &Path) -> Result<Vec<u8>, LabError> {
    let run = |command: &mut Command| {
        let output = command
            .output()
            .map_err(|error| LabError(format!("cannot run clang: {error}; is it installed?")))?;
        match output.status.success() {
            true => Ok(output.stdout),
            false => Err(LabError(format!(
                "clang cannot compile {}: {}",
                source.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            ))),
        }
    };
    let triple = run(Command::new("clang").arg("-print-multiarch"))?;
    let include = format!("-I/usr/include/{}", String::from_utf8_lossy(&triple).trim());
    run(Command::new("clang")
        .args([
            "-O2", "-g", "-Wall", "-target", "bpf", "-mcpu=v3", &include, "-c",
        ])
        .arg(source)
        .args(["-o", "-"]))
}

/// An interface's number in the calling thread's namespace.
///
/// # Errors
/// There is none of this name.
pub fn interface_index(name: &str) -> Result<u32, LabError> {
    nix::net::if_::if_nametoindex(name)
        .map_err(|error| LabError(format!("there is no interface {name}: {error}")))
}
