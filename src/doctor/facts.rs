//! Looking at the machine: files, netlink, and loading programs for trial; nothing that changes or
//! sends.

use crate::bpf::kernel_release;
use crate::datapath::{Kernel, KernelError, Pins, Role, XdpState, kernel_version, xdp_state};
use crate::nic::{NextHop, Nic, possible_cpus};
use crate::packet::MacAddr;
use crate::relays::Validity;
use crate::settings::{Engine, Frags, Settings, ZeroCopy};
use caps::{CapSet, Capability};
use nix::sys::resource::{Resource, getrlimit};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What the box would do without which capability.
pub(super) const CAPABILITIES: [Capability; 5] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_BPF,
    Capability::CAP_NET_RAW,
    Capability::CAP_PERFMON,
    Capability::CAP_IPC_LOCK,
];

/// Bytes of a document in which its times are: they come after four short lines.
const BEGINNING: u64 = 4096;

/// What is to be looked at.
#[derive(Clone, Debug)]
pub struct Asked {
    /// NICs, with the roles that they are to play.
    pub ports: Vec<(Option<Role>, String)>,
    /// The uplink is the way out for relay traffic too.
    pub shares_uplink: bool,
    /// Who gets that.
    pub next_hop: Option<NextHop>,
    /// Where pins would be.
    pub pins: PathBuf,
    /// tor's files that would be read.
    pub files: Vec<PathBuf>,
    /// As whom the box runs.
    pub user: Option<String>,
    /// A box without zero-copy would not start.
    pub needs_zero_copy: bool,
    /// A frame must fit one buffer.
    pub forbids_frags: bool,
    /// The engine that is asked for.
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
    /// All that a configuration names.
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

/// A NIC that was looked at.
#[derive(Clone, Debug)]
pub struct Port {
    /// The role that it is to play; none: it is a candidate.
    pub role: Option<Role>,
    /// Its name.
    pub name: String,
    /// What it is, or why that cannot be said.
    pub nic: Result<Nic, String>,
    /// What XDP is on it.
    pub xdp: Option<XdpState>,
}

/// What the box' own stack knows of the next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Who it is.
    pub next_hop: NextHop,
    /// Its MAC address in the neighbour table, if it is there.
    pub known: Option<MacAddr>,
}

/// A file that tor writes.
#[derive(Clone, Debug)]
pub struct RelayFile {
    /// Where.
    pub path: PathBuf,
    /// Why it cannot be opened, if it cannot.
    pub trouble: Option<io::ErrorKind>,
    /// When it holds, if it is a consensus. Nothing has checked who says so.
    pub validity: Option<Validity>,
}

/// What came of loading the XDP programs for trial.
#[derive(Clone, Debug)]
pub enum Trial {
    /// The user may not load programs.
    NotTried,
    /// They load. What NICs drop can be counted, or why it cannot.
    Loads(Result<(), String>),
    /// They do not, and why.
    Refused(String),
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The kernel's version.
    pub kernel: (u32, u32),
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// Whether it loads the XDP programs.
    pub trial: Trial,
    /// The kernel tells its own types.
    pub has_btf: bool,
    /// Where pins would be.
    pub pins: PathBuf,
    /// They can be there.
    pub has_bpf_fs: bool,
    /// There are some.
    pub is_pinned: bool,
    /// There may be pins that this user may not see.
    pub hides_pins: bool,
    /// The programs that are attached by them, with the numbers of their NICs.
    pub attached: Vec<(Role, u32, u32)>,
    /// Capabilities that this process has not.
    pub missing: Vec<Capability>,
    /// Bytes of memory that it may lock; none: as many as there are.
    pub memlock: Option<u64>,
    /// BPF programs are compiled, where the kernel says.
    pub has_jit: Option<bool>,
    /// tor's files.
    pub files: Vec<RelayFile>,
    /// This machine's clock.
    pub now: SystemTime,
    /// As whom the box runs.
    pub user: Option<String>,
    /// The NICs.
    pub ports: Vec<Port>,
    /// The uplink is the way out for relay traffic too.
    pub shares_uplink: bool,
    /// The next hop of relay traffic, if it is steered.
    pub hop: Option<Hop>,
    /// A box without zero-copy would not start.
    pub needs_zero_copy: bool,
    /// A frame must fit one buffer.
    pub forbids_frags: bool,
    /// The engine that is asked for.
    pub engine: Engine,
    /// How many CPUs the kernel has room for.
    pub cpus: u32,
    /// The host has a recursive resolver of its own: the words of the running box, if one says so.
    pub own_resolver: Option<String>,
}

impl Facts {
    /// Looks at what is asked for; where that is no NIC, at all of them.
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
                // As `exitmark run` counts them.
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

/// Loads the programs and lets go of them. It takes half a second on a slow machine.
fn try_to_load(may: bool) -> Trial {
    if !may {
        return Trial::NotTried;
    }
    match Kernel::try_to_load() {
        Ok(uncounted) => Trial::Loads(uncounted.map_or(Ok(()), |error| Err(cause(&error)))),
        Err(error) => Trial::Refused(cause(&error)),
    }
}

/// What is behind "cannot load", which the finding says itself.
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
