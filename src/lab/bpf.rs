//! Compiles, loads and attaches the BPF programs of tests and benches, and accesses their maps.

use super::{LabError, Netns};
use libbpf_rs::{
    Map, MapCore, MapFlags, Object, ObjectBuilder, ProgramInput, ProgramMut, TC_EGRESS, TC_INGRESS,
    TcAttachPoint, TcHookBuilder, Xdp, XdpFlags,
};
use std::env;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// The loaded programs and maps of one object file.
#[derive(Clone)]
pub struct Programs {
    object: Arc<Object>,
    name: &'static str,
}

impl Programs {
    /// Loads an object file. `name` is for messages.
    ///
    /// # Errors
    /// Fails without privilege, or if the kernel rejects a program.
    pub fn load(name: &'static str, compiled: &[u8]) -> Result<Self, LabError> {
        Self::load_prepared(name, compiled, &[], &[])
    }

    /// Like [`Programs::load`], with the `max_entries` of maps by name, where it differs from the
    /// source's, and the first bytes of `.rodata`, which are ignored if the section is shorter.
    ///
    /// # Errors
    /// As [`Programs::load`].
    pub fn load_prepared(
        name: &'static str,
        compiled: &[u8],
        entries: &[(&str, u32)],
        constants: &[u8],
    ) -> Result<Self, LabError> {
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
        let object = exitmark_bpf::load(load)
            .map_err(|error| LabError(format!("cannot load the programs of {name}: {error}")))?;
        Ok(Self {
            object: Arc::new(object),
            name,
        })
    }

    /// Compiles and loads a C file of the project, given by its path.
    ///
    /// # Errors
    /// As [`compile`] and [`Programs::load`].
    pub fn build(source: &'static str) -> Result<Self, LabError> {
        Self::load(source, &compile(source)?)
    }

    /// A program by its name.
    ///
    /// # Errors
    /// Fails if no program has this name.
    pub fn program(&self, name: &str) -> Result<ProgramMut<'_>, LabError> {
        self.object
            .progs_mut()
            .find(|program| program.name() == name)
            .ok_or_else(|| LabError(format!("{} has no program {name}", self.name)))
    }

    /// A map by its name.
    ///
    /// # Errors
    /// Fails if no map has this name.
    pub fn map(&self, name: &str) -> Result<Map<'_>, LabError> {
        self.object
            .maps()
            .find(|map| map.name() == name)
            .ok_or_else(|| LabError(format!("{} has no map {name}", self.name)))
    }

    /// Writes an entry of a map with 32-bit keys.
    ///
    /// # Errors
    /// Fails if no map has this name, or if the kernel rejects the entry.
    pub fn store(&self, map: &str, key: u32, value: &[u8]) -> Result<(), LabError> {
        self.map(map)?
            .update(&key.to_ne_bytes(), value, MapFlags::ANY)
            .map_err(|error| LabError(format!("cannot write the map {map}: {error}")))
    }

    /// Writes the first entries of a map with 32-bit keys, one for each of `values`.
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

    /// The value of an entry of a map with 32-bit keys.
    ///
    /// # Errors
    /// Fails if no map has this name, or if it has no such entry.
    pub fn value(&self, map: &str, key: u32) -> Result<Vec<u8>, LabError> {
        self.map(map)?
            .lookup(&key.to_ne_bytes(), MapFlags::ANY)
            .map_err(|error| LabError(format!("cannot read the map {map}: {error}")))?
            .ok_or_else(|| LabError(format!("the map {map} has no entry {key}")))
    }

    /// The first numbers of such a value; 0 behind its end.
    ///
    /// # Errors
    /// As [`Programs::value`].
    pub fn numbers<const N: usize>(&self, map: &str, key: u32) -> Result<[u64; N], LabError> {
        self.value(map, key).map(|value| numbers(&value))
    }

    /// The first numbers of an entry of a per-CPU map, by CPU.
    ///
    /// # Errors
    /// Fails if no map has this name, or if it has no such entry.
    pub fn percpu<const N: usize>(&self, map: &str, key: u32) -> Result<Vec<[u64; N]>, LabError> {
        let values = self
            .map(map)?
            .lookup_percpu(&key.to_ne_bytes(), MapFlags::ANY)
            .map_err(|error| LabError(format!("cannot read the map {map}: {error}")))?;
        let values = values.iter().flatten();
        Ok(values.map(|value| numbers::<N>(value)).collect())
    }

    /// The same, each summed over all CPUs.
    ///
    /// # Errors
    /// As [`Programs::percpu`].
    pub fn sums<const N: usize>(&self, map: &str, key: u32) -> Result<[u64; N], LabError> {
        let mut sums = [0; N];
        for value in self.percpu::<N>(map, key)? {
            for (sum, number) in sums.iter_mut().zip(value) {
                *sum += number;
            }
        }
        Ok(sums)
    }

    /// Writes an entry of a per-CPU map, the same on each CPU.
    ///
    /// # Errors
    /// As [`Programs::store`].
    pub fn store_percpu(&self, map: &str, key: u32, value: &[u8]) -> Result<(), LabError> {
        let failed = |error| LabError(format!("cannot write the map {map}: {error}"));
        let values = vec![value.to_vec(); libbpf_rs::num_possible_cpus().map_err(failed)?];
        self.map(map)?
            .update_percpu(&key.to_ne_bytes(), &values, MapFlags::ANY)
            .map_err(failed)
    }

    /// Writes an interface's index into an entry of a device map, inside `netns`: the kernel
    /// resolves the index in the network namespace of the writing thread.
    ///
    /// # Errors
    /// As [`Programs::store`], or if the interface does not exist.
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

    /// Adds a clsact qdisc to an interface and attaches a program to its ingress, for the lifetime
    /// of the interface.
    ///
    /// # Errors
    /// As [`Programs::attach`].
    pub fn attach_tc(
        &self,
        program: &'static str,
        netns: &Netns,
        interface: &'static str,
    ) -> Result<(), LabError> {
        self.attach_hook(program, netns, interface, TC_INGRESS)
    }

    /// Like [`Programs::attach_tc`], to the egress of the interface.
    ///
    /// # Errors
    /// As [`Programs::attach`].
    pub fn attach_egress(
        &self,
        program: &'static str,
        netns: &Netns,
        interface: &'static str,
    ) -> Result<(), LabError> {
        self.attach_hook(program, netns, interface, TC_EGRESS)
    }

    fn attach_hook(
        &self,
        program: &'static str,
        netns: &Netns,
        interface: &'static str,
        point: TcAttachPoint,
    ) -> Result<(), LabError> {
        let programs = self.clone();
        netns.run(move || {
            let index = interface_index(interface)?.cast_signed();
            let program_there = programs.program(program)?;
            TcHookBuilder::new(program_there.as_fd())
                .ifindex(index)
                .handle(1)
                .priority(1)
                .hook(point)
                .create()
                .and_then(|mut hook| hook.attach())
                .map(|_| ())
                .map_err(|error| not_attached(program, interface, &error))
        })
    }

    /// Runs a program `repeat` times, or until a signal interrupts the thread, on copies of a frame
    /// in live frame mode (`BPF_F_TEST_XDP_LIVE_FRAMES`). Frames are sent after every `batch` runs,
    /// 1 to 256.
    ///
    /// # Errors
    /// Fails if no program has this name, or if the kernel cannot run it in this mode.
    pub fn run_live(
        &self,
        program: &str,
        frame: &[u8],
        repeat: u32,
        batch: u32,
    ) -> Result<(), LabError> {
        exitmark_datapath::run_live(self.program(program)?.as_fd(), frame, repeat, batch)
            .map_err(|error| LabError(format!("cannot run {program} live: {error}")))
    }

    /// Runs a program `repeat` times in a row on a frame, whose changes stay (BPF_PROG_RUN). Nothing is
    /// sent.
    ///
    /// # Errors
    /// Fails if no program has this name, if the kernel cannot run it, or if the last run does not end
    /// in XDP_REDIRECT.
    pub fn run_often(&self, program: &str, frame: &[u8], repeat: u32) -> Result<(), LabError> {
        let input = ProgramInput {
            data_in: Some(frame),
            repeat,
            ..ProgramInput::default()
        };
        match self.program(program)?.test_run(input) {
            Ok(ran) if ran.return_value == libbpf_rs::libbpf_sys::XDP_REDIRECT => Ok(()),
            Ok(ran) => Err(LabError(format!(
                "{program} ended with {} instead of XDP_REDIRECT",
                ran.return_value
            ))),
            Err(error) => Err(LabError(format!("cannot run {program}: {error}"))),
        }
    }

    /// Attaches a program to an interface in native mode, for the lifetime of the interface.
    ///
    /// # Errors
    /// Fails without privilege, or if the program or the interface does not exist.
    pub fn attach(
        &self,
        program: &'static str,
        netns: &Netns,
        interface: &str,
    ) -> Result<(), LabError> {
        self.attach_by(program, netns, interface, XdpFlags::DRV_MODE)
    }

    pub(crate) fn attach_by(
        &self,
        program: &'static str,
        netns: &Netns,
        interface: &str,
        mode: XdpFlags,
    ) -> Result<(), LabError> {
        let (programs, interface) = (self.clone(), interface.to_owned());
        netns.run(move || {
            let index = interface_index(&interface)?.cast_signed();
            Xdp::new(programs.program(program)?.as_fd())
                .attach(index, mode)
                .map_err(|error| not_attached(program, &interface, &error))
        })
    }
}

fn not_attached(program: &str, interface: &str, error: &libbpf_rs::Error) -> LabError {
    LabError(format!("cannot attach {program} to {interface}: {error}"))
}

/// The first numbers of a map's value; 0 behind its end.
pub fn numbers<const N: usize>(value: &[u8]) -> [u64; N] {
    let (words, _) = value.as_chunks::<8>();
    std::array::from_fn(|index| words.get(index).map_or(0, |word| u64::from_ne_bytes(*word)))
}

/// Compiles a C file of the project, given by its path, for BPF (`-mcpu=v3`) and returns the object
/// file.
///
/// # Errors
/// Fails if clang is missing or reports an error.
pub fn compile(source: &str) -> Result<Vec<u8>, LabError> {
    let run = |command: &mut Command| {
        let output = command
            .output()
            .map_err(|error| LabError(format!("cannot run clang: {error}; is it installed?")))?;
        match output.status.success() {
            true => Ok(output.stdout),
            false => Err(LabError(format!(
                "clang cannot compile {source}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ))),
        }
    };
    let triple = run(Command::new("clang").arg("-print-multiarch"))?;
    let include = format!("-I/usr/include/{}", String::from_utf8_lossy(&triple).trim());
    run(Command::new("clang")
        .args(["-O2", "-g", "-Wall", "-target", "bpf", "-mcpu=v3"])
        .args([&include, "-c", source, "-o", "-"])
        .current_dir(sources()?))
}

/// The directory of the project's sources, above the working directory or this program. A constant
/// from the build would differ in each directory, and with it the package, which has the lab too.
fn sources() -> Result<PathBuf, LabError> {
    let places = [env::current_dir(), env::current_exe()];
    let mut above = places.iter().flatten().flat_map(|place| place.ancestors());
    above
        .find(|directory| directory.join("bpf/exitmark.bpf.c").exists())
        .map(Path::to_owned)
        .ok_or_else(|| {
            let reason =
                "neither the working directory nor this program is in the project's sources";
            LabError(reason.to_owned())
        })
}

/// An interface's index in the calling thread's network namespace.
///
/// # Errors
/// Fails if no interface has this name.
pub fn interface_index(name: &str) -> Result<u32, LabError> {
    nix::net::if_::if_nametoindex(name)
        .map_err(|error| LabError(format!("there is no interface {name}: {error}")))
}
