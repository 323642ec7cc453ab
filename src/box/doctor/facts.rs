//! Reads the state of the machine from files and netlink, and loads the programs as a test. Changes
//! nothing and sends no packet.

use crate::settings::{Engine, Frags, Settings, ZeroCopy};
use caps::{CapSet, Capability};
use exitmark_bpf::kernel_release;
use exitmark_datapath::{Kernel, KernelError, Pins, Role, XdpState, kernel_version, xdp_state};
use exitmark_nic::{NextHop, Nic, possible_cpus};
use exitmark_policy::packet::MacAddr;
use exitmark_relays::Validity;
use nix::sys::resource::{Resource, getrlimit};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The capabilities that the box needs.
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
#[derive(Clone, Debug)]
pub struct Asked {
    /// The NICs with their roles; without a role, a NIC is a candidate.
    pub ports: Vec<(Option<Role>, String)>,
    /// Whether the uplink's NIC is `incoming` too.
    pub shares_uplink: bool,
    /// The configured next hop of relay traffic.
    pub next_hop: Option<NextHop>,
    /// The pin directory (`pin.directory`); of the default configuration if none is given.
    pub pins: PathBuf,
    /// The consensus and certificate files of tor.
    pub files: Vec<PathBuf>,
    /// The user that the box runs as, if configured.
    pub user: Option<String>,
    /// `datapath.zero_copy` is `require`.
    pub needs_zero_copy: bool,
    /// `datapath.frags` is `off`.
    pub forbids_frags: bool,
    /// The configured engine; `Auto` without a configuration.
    pub engine: Engine,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            ports: Vec::new(),
            shares_uplink: false,
            next_hop: None,
            pins: "/sys/fs/bpf/exitmark".into(),
            files: Vec::new(),
            user: None,
            needs_zero_copy: false,
            forbids_frags: false,
            engine: Engine::Auto,
        }
    }
}

impl Asked {
    /// What a configuration names: its NICs, files and settings.
    pub fn by(settings: &Settings) -> Self {
        let ports = &settings.ports;
        let incoming = ports.incoming.as_ref();
        let shares_uplink = incoming.is_some_and(|one| one.interface == ports.uplink);
        let of_its_own = incoming.filter(|_| !shares_uplink);
        let roles = [
            Some((Role::Host, &ports.host)),
            Some((Role::Uplink, &ports.uplink)),
            of_its_own.map(|incoming| (Role::Incoming, &incoming.interface)),
        ];
        let roles = roles.into_iter().flatten();
        let mut files = Vec::new();
        for source in &settings.relays.sources.files {
            for file in [&source.consensus, &source.certificates] {
                if !files.contains(file) {
                    files.push(file.clone());
                }
            }
        }
        Self {
            ports: roles
                .map(|(role, name)| (Some(role), name.clone()))
                .collect(),
            shares_uplink,
            next_hop: incoming.map(|incoming| incoming.next_hop),
            pins: settings.pin.directory.clone(),
            files,
            user: settings.user.clone(),
            needs_zero_copy: settings.datapath.zero_copy == ZeroCopy::Require,
            forbids_frags: settings.datapath.frags == Frags::Off,
            engine: settings.engine,
        }
    }
}

/// The state of a NIC: its settings, its driver, and its XDP program.
#[derive(Clone, Debug)]
pub struct Port {
    /// The NIC's role; `None` for a candidate.
    pub role: Option<Role>,
    /// The name that was given, which may be an alternative one.
    pub name: String,
    /// The NIC, or why it cannot be read.
    pub nic: Result<Nic, String>,
    /// The NIC's XDP program and features, if the kernel reports them.
    pub xdp: Option<XdpState>,
}

/// The next hop and its entry in the neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The configured next hop: a MAC address, or an IP address to be resolved.
    pub next_hop: NextHop,
    /// The MAC address: configured, or from the neighbour table.
    pub known: Option<MacAddr>,
}

/// A file that tor writes: a consensus or `cached-certs`.
#[derive(Clone, Debug)]
pub struct RelayFile {
    /// The file's path, as configured.
    pub path: PathBuf,
    /// Why it cannot be read, if it cannot.
    pub trouble: Option<io::ErrorKind>,
    /// The times of a consensus; its signatures are not checked.
    pub validity: Option<Validity>,
}

/// The result of loading the XDP programs as a test.
#[derive(Clone, Debug)]
pub enum Trial {
    /// Not tried: CAP_BPF is missing.
    NotTried,
    /// The programs load; an error says why frames that NICs drop cannot be counted.
    Loads(Result<(), String>),
    /// The programs do not load, with the reason.
    Refused(String),
}

/// The state of the machine.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The kernel's version: major, minor.
    pub kernel: (u32, u32),
    /// The kernel's release, as `uname -r` prints it.
    pub release: String,
    /// Whether the XDP programs load.
    pub trial: Trial,
    /// Whether the kernel provides BTF (/sys/kernel/btf/vmlinux).
    pub has_btf: bool,
    /// The pin directory that was checked.
    pub pins: PathBuf,
    /// Whether `pins` is in a BPF file system.
    pub has_bpf_fs: bool,
    /// Whether `pins` holds the pins of a box.
    pub is_pinned: bool,
    /// Whether pins may exist that this user has no permission to see.
    pub hides_pins: bool,
    /// The attached programs of the pins: role, interface index, program ID.
    pub attached: Vec<(Role, u32, u32)>,
    /// The needed capabilities that this process does not have.
    pub missing: Vec<Capability>,
    /// RLIMIT_MEMLOCK in bytes; `None` if unlimited.
    pub memlock: Option<u64>,
    /// Whether the BPF JIT is on (net.core.bpf_jit_enable), if that can be read.
    pub has_jit: Option<bool>,
    /// The consensus and certificate files of tor.
    pub files: Vec<RelayFile>,
    /// The time of this machine's clock.
    pub now: SystemTime,
    /// The user that the box runs as, if configured.
    pub user: Option<String>,
    /// The state of each NIC, in the order of the roles; of every NIC if none was named.
    pub ports: Vec<Port>,
    /// Whether the uplink's NIC is `incoming` too.
    pub shares_uplink: bool,
    /// The next hop of relay traffic, if it is steered.
    pub hop: Option<Hop>,
    /// `datapath.zero_copy` is `require`.
    pub needs_zero_copy: bool,
    /// `datapath.frags` is `off`.
    pub forbids_frags: bool,
    /// The configured engine; `Auto` without a configuration.
    pub engine: Engine,
    /// The number of possible CPUs.
    pub cpus: u32,
    /// The running box's warning that the host runs a recursive resolver, if any.
    pub own_resolver: Option<String>,
}

impl Facts {
    /// Reads the state of the NICs and files in `asked`; of every NIC if it names none.
    pub fn look(asked: Asked) -> Self {
        let mut names = asked.ports;
        if names.is_empty() {
            let all = Nic::names().unwrap_or_default();
            names = all.into_iter().map(|name| (None, name)).collect();
        }
        let cpus = possible_cpus();
        let ports: Vec<Port> = names
            .into_iter()
            .map(|(role, name)| {
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
            })
            .collect();
        let hop = asked.next_hop.map(|next_hop| {
            let is_way_out = |port: &&Port| match port.role {
                Some(Role::Uplink) => asked.shares_uplink,
                role => role == Some(Role::Incoming),
            };
            let nic = ports
                .iter()
                .find(is_way_out)
                .and_then(|port| port.nic.as_ref().ok());
            let known = match (next_hop, nic) {
                (NextHop::Mac(mac), _) => Some(mac),
                (NextHop::Address(address), Some(nic)) => nic.neighbour(address).ok().flatten(),
                (NextHop::Address(_), None) => None,
            };
            Hop { next_hop, known }
        });
        let has = caps::read(None, CapSet::Effective).unwrap_or_default();
        Self {
            kernel: kernel_version(),
            release: kernel_release(),
            trial: try_to_load(has.contains(&Capability::CAP_BPF)),
            has_btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            has_bpf_fs: Pins::can_be_in(&asked.pins),
            is_pinned: Pins::exist(&asked.pins),
            hides_pins: !nix::unistd::Uid::effective().is_root()
                && Pins::peek(&asked.pins).is_empty(),
            attached: Pins::peek(&asked.pins),
            pins: asked.pins,
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
            files: asked.files.into_iter().map(relay_file).collect(),
            now: SystemTime::now(),
            user: asked.user,
            ports,
            shares_uplink: asked.shares_uplink,
            hop,
            needs_zero_copy: asked.needs_zero_copy,
            forbids_frags: asked.forbids_frags,
            engine: asked.engine,
            cpus,
            own_resolver: None,
        }
    }
}

/// Loads the programs and unloads them, which takes half a second on a slow machine.
fn try_to_load(may: bool) -> Trial {
    if !may {
        return Trial::NotTried;
    }
    match Kernel::try_to_load() {
        Ok(uncounted) => Trial::Loads(uncounted.map_or(Ok(()), |error| Err(cause(&error)))),
        Err(error) => Trial::Refused(cause(&error)),
    }
}

/// The source of an error, because the finding itself says "do not load".
fn cause(error: &KernelError) -> String {
    let source = std::error::Error::source(error);
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
