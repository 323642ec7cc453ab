//! Reads the state of the machine from files and netlink, and loads the programs as a test. Changes
//! nothing and sends no packet.

use super::next_hops::{self, HopFacts};
use super::sources::{SourceFacts, SourceScope};
use super::tap::TapFacts;
use super::tor_facts::{TorFacts, TorScope};
use crate::settings::{Engine, Frags, Hop, Pin, Settings, ZeroCopy};
use caps::{CapSet, Capability};
use exitmark_bpf::kernel_release;
use exitmark_datapath::{
    Connect, CpuLatency, Kernel, Pins, Role, XdpState, connect_cgroups, kernel_version, xdp_state,
};
use exitmark_nic::{Nic, possible_cpus};
use exitmark_relays::{LoadError, Validity};
use nix::sys::resource::{Resource, getrlimit};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub(super) const CAPABILITIES: [Capability; 5] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_BPF,
    Capability::CAP_NET_RAW,
    Capability::CAP_PERFMON,
    Capability::CAP_IPC_LOCK,
];

/// How many bytes of a consensus are read for its times, which follow four short lines.
const BEGINNING: u64 = 4096;

/// The NICs, files and settings to check.
#[derive(Clone, Debug, Default)]
pub(crate) struct CheckScope {
    /// The NICs, with their roles if given.
    pub(crate) ports: Vec<(Option<Role>, String)>,
    /// Whether the uplink's NIC is `incoming` too.
    pub(crate) shares_uplink: bool,
    /// The NIC of the tap.
    pub(crate) tap: Option<String>,
    pub(crate) next_hops: Vec<Hop>,
    /// The addresses of `steer.source`.
    pub(crate) sources: SourceScope,
    /// The most bytes by which the tags of `steer.vlan` make a frame longer.
    pub(crate) added_tags: u32,
    /// Of the default configuration if none is given.
    pub(crate) pin: Pin,
    /// The pin directories of the wires, if there are several.
    pub(crate) wire_pins: Vec<PathBuf>,
    /// The consensus and certificate files of tor.
    pub(crate) files: Vec<PathBuf>,
    /// `datapath.zero_copy` is `require`.
    pub(crate) needs_zero_copy: bool,
    /// `datapath.frags` is `off`.
    pub(crate) forbids_frags: bool,
    /// Whether workers may request fast wake-ups.
    pub(crate) permits_fast_wakes: bool,
    /// The configured engine; `Auto` without a configuration.
    pub(crate) engine: Engine,
    /// The settings of engine connect.
    pub(crate) tor: Option<TorScope>,
}

impl CheckScope {
    /// Everything that the configuration names, with the NICs of the first wire.
    pub(crate) fn by(settings: &Settings) -> Self {
        let ports = settings.ports.as_ref();
        let uplink = ports.map(|ports| &ports.uplink);
        let incoming = settings.incoming();
        let shares_uplink = incoming.is_some_and(|one| Some(&one.interface) == uplink);
        let of_its_own = incoming.filter(|_| !shares_uplink);
        let roles = [
            ports.map(|ports| (Role::Host, &ports.host)),
            uplink.map(|uplink| (Role::Uplink, uplink)),
            of_its_own.map(|incoming| (Role::Incoming, &incoming.interface)),
        ];
        let roles = roles.into_iter().flatten();
        let found = settings.relays.sources.find(&BTreeSet::new());
        let mut files = Vec::new();
        for source in found.files {
            for file in [source.consensus, source.certificates] {
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        // A pattern without a match is reported like a missing file.
        files.extend(
            found
                .problems
                .into_iter()
                .filter_map(|problem| match problem {
                    LoadError::NoMatch(path) | LoadError::Read(path, _) => Some(path),
                    _ => None,
                }),
        );
        Self {
            ports: roles
                .map(|(role, name)| (Some(role), name.clone()))
                .collect(),
            shares_uplink,
            tap: settings.tap().map(str::to_owned),
            next_hops: incoming.map_or_else(Vec::new, |incoming| incoming.next_hops.clone()),
            sources: SourceScope::by(settings),
            added_tags: next_hops::added_tags(settings.rules.groups()),
            pin: settings.pin.clone(),
            wire_pins: match settings.wires.len() {
                0 | 1 => Vec::new(),
                count => (0..count)
                    .map(|index| settings.of_wire(index).pin.directory)
                    .collect(),
            },
            files,
            needs_zero_copy: settings.datapath.zero_copy == ZeroCopy::Require,
            forbids_frags: settings.datapath.frags == Frags::Off,
            permits_fast_wakes: settings.permits_fast_wakes(),
            engine: settings.engine,
            tor: TorScope::by(settings),
        }
    }

    /// Whether steered relay traffic leaves by the NIC of this role.
    pub(super) fn is_egress(&self, role: Option<Role>) -> bool {
        match role {
            Some(Role::Uplink) => self.shares_uplink,
            role => role == Some(Role::Incoming),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) role: Option<Role>,
    /// The name that was given, which may be an alternative one.
    pub(crate) name: String,
    pub(crate) nic: Result<Nic, String>,
    /// The NIC's XDP program and features, if the kernel reports them.
    pub(crate) xdp: Option<XdpState>,
}

/// A file that tor writes: a consensus or `cached-certs`.
#[derive(Clone, Debug)]
pub(crate) struct RelayFile {
    pub(crate) path: PathBuf,
    pub(crate) trouble: Option<io::ErrorKind>,
    /// The times of a consensus; its signatures are not checked.
    pub(crate) validity: Option<Validity>,
}

#[derive(Clone, Debug)]
pub(crate) enum Trial {
    /// Not tried: CAP_BPF is missing.
    NotTried,
    /// The programs load; an error says why those that are optional do not: the ones that count
    /// frames dropped by NICs, or of engine connect the iterators over open connections.
    Loads(Result<(), String>),
    Refused(String),
}

#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// The settings to check; its NICs and files are moved to `ports` and `files`.
    pub(crate) scope: CheckScope,
    /// The kernel's version: major, minor.
    pub(crate) kernel: (u32, u32),
    /// The kernel's release, as `uname -r` prints it.
    pub(crate) release: String,
    pub(crate) trial: Trial,
    /// Whether the kernel provides BTF (/sys/kernel/btf/vmlinux).
    pub(crate) has_btf: bool,
    /// Whether the pin directory is in a BPF file system.
    pub(crate) has_bpf_fs: bool,
    /// Whether it holds the pins of a box.
    pub(crate) is_pinned: bool,
    /// Whether pins may exist that this user has no permission to see.
    pub(crate) hides_pins: bool,
    /// The attached programs of the pins: role, interface index, program ID.
    pub(crate) attached: Vec<(Role, u32, u32)>,
    /// The number of cgroups to which programs of the pins are attached.
    pub(crate) attached_cgroups: usize,
    /// The needed capabilities that this process does not have.
    pub(crate) missing: Vec<Capability>,
    /// RLIMIT_MEMLOCK in bytes; `None` if unlimited.
    pub(crate) memlock: Option<u64>,
    /// Whether the BPF JIT is on (net.core.bpf_jit_enable), if that can be read.
    pub(crate) has_jit: Option<bool>,
    /// The limit that makes wake-ups fast, if workers may request it and it has an effect; or why
    /// it cannot be requested.
    pub(crate) cpu_latency: Option<Result<Duration, String>>,
    pub(crate) files: Vec<RelayFile>,
    pub(crate) now: SystemTime,
    /// The state of each NIC, in the order of the roles; of every NIC if none was named.
    pub(crate) ports: Vec<Port>,
    /// The tap, if there is one.
    pub(super) tap: Option<TapFacts>,
    /// The next hops, in the order of the configuration.
    pub(crate) next_hops: Vec<HopFacts>,
    /// The addresses of `steer.source`; an error of netlink or of the proc file system.
    pub(super) sources: Result<Vec<SourceFacts>, String>,
    /// The number of possible CPUs.
    pub(crate) cpus: u32,
    /// The running box's warning that the host runs a recursive resolver, if any.
    pub(crate) own_resolver: Option<String>,
    /// The state of a Tor host; `None` for a box.
    pub(crate) tor: Option<TorFacts>,
}

impl Facts {
    /// Reads the state of the NICs and files in `scope`; of every NIC if it names none, except with
    /// engine `connect`, which uses none.
    pub(crate) fn look(mut scope: CheckScope) -> Self {
        let mut names = std::mem::take(&mut scope.ports);
        if names.is_empty() && scope.engine != Engine::Connect {
            let all = Nic::names().unwrap_or_default();
            names = all.into_iter().map(|name| (None, name)).collect();
        }
        let cpus = possible_cpus();
        let ports = look_at_ports(names, cpus);
        let next_hops = look_at_next_hops(&scope, &ports);
        let pins = &scope.pin.directory;
        let directories = std::iter::once(pins).chain(&scope.wire_pins);
        let attached: Vec<_> = directories
            .flat_map(|directory| Pins::peek(directory))
            .collect();
        let files = std::mem::take(&mut scope.files);
        let has = caps::read(None, CapSet::Effective).unwrap_or_default();
        Self {
            kernel: kernel_version(),
            release: kernel_release(),
            trial: match has.contains(&Capability::CAP_BPF) {
                true => try_to_load(scope.engine),
                false => Trial::NotTried,
            },
            has_btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            has_bpf_fs: Pins::can_be_in(pins),
            is_pinned: pins.is_dir(),
            hides_pins: !nix::unistd::Uid::effective().is_root() && attached.is_empty(),
            attached,
            attached_cgroups: connect_cgroups(pins),
            missing: CAPABILITIES
                .into_iter()
                .filter(|one| !has.contains(one))
                .collect(),
            memlock: getrlimit(Resource::RLIMIT_MEMLOCK)
                .ok()
                .map(|(soft, _)| soft)
                .filter(|&soft| soft != nix::libc::RLIM_INFINITY),
            has_jit: fs::read_to_string("/proc/sys/net/core/bpf_jit_enable")
                .ok()
                .map(|text| text.trim() != "0"),
            cpu_latency: scope.permits_fast_wakes.then(look_at_cpu_latency).flatten(),
            files: files.into_iter().map(relay_file).collect(),
            now: SystemTime::now(),
            ports,
            tap: scope.tap.as_deref().map(TapFacts::look),
            sources: scope.sources.look(),
            next_hops,
            cpus,
            own_resolver: None,
            tor: scope.tor.as_ref().map(TorScope::look),
            scope,
        }
    }

    /// The facts of the same machine on another wire, whose NICs and next hops are read.
    pub(crate) fn of_wire(&self, mut scope: CheckScope) -> Self {
        let ports = look_at_ports(std::mem::take(&mut scope.ports), self.cpus);
        Self {
            next_hops: look_at_next_hops(&scope, &ports),
            tap: scope.tap.as_deref().map(TapFacts::look),
            ports,
            scope,
            ..self.clone()
        }
    }
}

fn look_at_cpu_latency() -> Option<Result<Duration, String>> {
    let limit = CpuLatency::useful_limit()?;
    let opened = CpuLatency::open(limit).map(|_| limit);
    Some(opened.map_err(|error| error.to_string()))
}

fn look_at_ports(names: Vec<(Option<Role>, String)>, cpus: u32) -> Vec<Port> {
    let look = |(role, name): (Option<Role>, String)| {
        let mut nic = Nic::look(&name).map_err(|error| error.to_string());
        let xdp = nic.as_ref().ok().and_then(|nic| xdp_state(nic.index).ok());
        // Counted as in `exitmark run`.
        if let Ok(nic) = &mut nic
            && xdp.as_ref().is_some_and(XdpState::is_native)
        {
            nic.queues = nic.own_queues(cpus);
        }
        Port {
            role,
            name,
            nic,
            xdp,
        }
    };
    names.into_iter().map(look).collect()
}

fn look_at_next_hops(scope: &CheckScope, ports: &[Port]) -> Vec<HopFacts> {
    let egress = ports.iter().find(|port| scope.is_egress(port.role));
    let nic = egress.and_then(|port| port.nic.as_ref().ok());
    let look = |hop: &Hop| HopFacts::look(*hop, nic);
    scope.next_hops.iter().map(look).collect()
}

/// Loads the programs of the engine and unloads them, which takes half a second on a slow machine.
fn try_to_load(engine: Engine) -> Trial {
    fn trial<E: std::error::Error>(tried: Result<Option<E>, E>) -> Trial {
        match tried {
            Ok(without) => Trial::Loads(without.map_or(Ok(()), |error| Err(cause(&error)))),
            Err(error) => Trial::Refused(cause(&error)),
        }
    }
    match engine {
        Engine::Connect => trial(Connect::try_to_load()),
        Engine::Auto | Engine::AfXdp | Engine::Xdp => trial(Kernel::try_to_load()),
    }
}

/// The source of an error, because the finding itself says "do not load".
fn cause(error: &impl std::error::Error) -> String {
    let source = error.source();
    source.map_or_else(|| error.to_string(), ToString::to_string)
}

fn relay_file(path: PathBuf) -> RelayFile {
    let mut beginning = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(BEGINNING).read_to_end(&mut beginning));
    RelayFile {
        path,
        trouble: read.err().map(|error| error.kind()),
        validity: Validity::of_beginning(&String::from_utf8_lossy(&beginning)),
    }
}
