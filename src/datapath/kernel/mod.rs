//! Loads, configures, attaches and pins the XDP program, and reads its counters.
//!
//! Once attached and pinned, the program decides every fast-path frame by itself, with or without
//! this process. Its maps hold its state: the policy as one image that is swapped as a whole, the
//! links, the NICs to redirect to, the workers' sockets. The unsafe code is in `sys`.
//!
//! Sources: the kernel's Documentation/bpf/map_xskmap.rst and map_devmap.rst.

mod attach;
mod chain;
pub mod contract;
mod counts;
mod pin_error;
mod pins;
mod run;
mod samples;
pub(crate) mod sys;
mod undo;

use super::counters::QUEUE_SLOTS;
use super::guard::GUARD_NUMBERS;
use super::links::LINK_NUMBERS;
use super::tap::RING_NUMBERS;
use super::{Cells, KnownHost, Links, Role, TapRing};
use contract::{MAX_QUEUES, exitmark_counts, exitmark_sample};
use exitmark_bpf::{BpfError, Refusal};
use exitmark_policy::{IMAGE_BYTES, ImageTooLarge, POLICY_BYTES, Snapshot, image};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use sys::skeleton::{ExitmarkSkel, ExitmarkSkelBuilder};

pub use attach::{
    AttachMode, Attachment, DropCounters, XdpFeatures, XdpState, kernel_version, xdp_state,
};
pub use counts::KernelCounts;
pub(crate) use counts::sums;
pub use pin_error::PinError;
pub use pins::Pins;
pub use run::Ran;
pub use samples::KernelSamples;
pub(super) use sys::Mapped;
pub use sys::run_live;
pub use undo::Undo;

/// The program's counters on one CPU, in 64-bit numbers: a tally, then others.
const COUNTS: usize = size_of::<exitmark_counts>() / size_of::<u64>();
const COUNTERS: &str = "counters";
const WORKER_COUNTERS: &str = "worker_counters";
const LINKS: &str = "links";
const NEXT_WIRE: &str = "next_wire";
/// The maps that outlive the process, in pinning order.
const PINNED_MAPS: [&str; 6] = [
    pins::POLICIES,
    LINKS,
    "guards",
    COUNTERS,
    WORKER_COUNTERS,
    NEXT_WIRE,
];
pub(crate) const ONLY: [u8; 4] = 0_u32.to_ne_bytes();

/// Why the program cannot be loaded, configured or attached.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The programs or their maps cannot be loaded, for another reason than the verifier.
    #[error("cannot load the XDP programs: {0}")]
    Load(#[source] BpfError),
    /// The kernel's verifier rejects a program.
    #[error("cannot load the XDP programs: {0}")]
    Verifier(#[source] Refusal),
    /// The program and this code were built from different sources.
    #[error("the XDP program's structures differ from those of this build; rebuild exitmark")]
    Layout,
    /// An entry of the map with this name cannot be read or written.
    #[error("cannot use the XDP program's map {0}: {1}")]
    Map(&'static str, #[source] io::Error),
    /// The program of the next wire is loaded for other frames than this one: a tail call between
    /// them is not possible.
    #[error(
        "cannot pass frames on to the next wire: of the two wires' XDP programs, one is loaded for \
         frames in one buffer and the other for frames in several; load both for several"
    )]
    OtherBuffers,
    /// The snapshot does not fit into the program's policy map.
    #[error(transparent)]
    Image(#[from] ImageTooLarge),
    /// The NIC accepts the program neither in native nor in generic mode.
    #[error("cannot attach the XDP program to {interface}: {source}{hint}")]
    Attach {
        /// The name of the NIC.
        interface: String,
        /// The kernel's error.
        source: io::Error,
        /// The remedy; empty, or begins with a semicolon.
        hint: String,
    },
    /// The pins cannot be used.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// BPF_PROG_RUN failed for a frame of this many bytes.
    #[error("cannot run a frame of {0} bytes through the XDP program: {1}")]
    Run(usize, #[source] libbpf_rs::Error),
}

impl From<BpfError> for KernelError {
    fn from(error: BpfError) -> Self {
        match error {
            BpfError::Verifier(refusal) => Self::Verifier(refusal),
            other => Self::Load(other),
        }
    }
}

fn map_error<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    map: &'static str,
) -> impl FnOnce(E) -> KernelError {
    move |error| KernelError::Map(map, io::Error::other(error))
}

/// The loaded program and its maps.
pub struct Kernel {
    skeleton: ExitmarkSkel<'static>,
    layout: u32,
    counts_drops: bool,
    buffers: Buffers,
    /// Whether it can pass frames on to the program of another wire.
    has_siblings: bool,
    /// Whether it can copy frames for the tap.
    has_tap: bool,
}

/// Whether the program is loaded for frames in one buffer or in several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffers {
    /// Every frame is in one buffer. The program never calls the kernel for a frame's length, and
    /// some drivers keep a faster receive path that multi-buffer programs disable.
    One,
    /// Frames may be in several buffers (BPF_F_XDP_HAS_FRAGS, Linux 5.18).
    Several,
}

/// What a program is loaded for. What it is not loaded for takes neither time nor memory.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// For frames in one buffer or in several.
    pub buffers: Buffers,
    /// The box has several wires, so that [`Kernel::chain_to`] can be used.
    pub has_siblings: bool,
    /// The wire has a tap, so that [`Kernel::tap_rings`] are filled.
    pub has_tap: bool,
}

impl Form {
    /// For everything.
    pub const WHOLE: Self = Self {
        buffers: Buffers::Several,
        has_siblings: true,
        has_tap: true,
    };
}

impl Kernel {
    /// Loads the programs of a running box and unloads them, without attaching or pinning. Returns
    /// the error of the drop-counting programs, which are optional.
    ///
    /// # Errors
    /// A capability is missing, or the kernel rejects a program.
    pub fn try_to_load() -> Result<Option<KernelError>, KernelError> {
        let (_, uncounted) = Self::load_counting(layout()?, None, Form::WHOLE)?;
        Ok(uncounted)
    }

    /// Loads the program with maps of its own, unattached, for tests.
    ///
    /// # Errors
    /// A capability is missing, or the kernel rejects the program.
    pub fn load() -> Result<Self, KernelError> {
        Self::load_as(Form::WHOLE)
    }

    /// As [`Kernel::load`], for what the form says.
    ///
    /// # Errors
    /// As [`Kernel::load`].
    pub fn load_as(form: Form) -> Result<Self, KernelError> {
        Self::load_with(layout()?, None, false, form)
    }

    /// Loads the program to be attached. It reuses the pinned counters if they have its layout;
    /// all other maps are new, so that the attached program continues undisturbed until it is
    /// replaced. The second value is whether pinned counters were reused. Frames dropped by NICs
    /// are counted if the kernel allows it.
    ///
    /// # Errors
    /// A capability is missing, or the kernel rejects the program.
    pub fn load_pinned(pins: &Pins, form: Form) -> Result<(Self, bool), KernelError> {
        let layout = layout()?;
        let maps = pins.maps(layout);
        let load = |counters: Option<&Path>| {
            let (kernel, uncounted) = Self::load_counting(layout, counters, form)?;
            if let Some(error) = uncounted {
                tracing::warn!("redirected frames that a NIC drops are not counted: {error}");
            }
            Ok::<_, KernelError>(kernel)
        };
        if maps.join(COUNTERS).exists() && maps.join(WORKER_COUNTERS).exists() {
            match load(Some(&maps)) {
                Ok(kernel) => return Ok((kernel, true)),
                Err(error) => tracing::warn!("the pinned counters cannot be used: {error}"),
            }
        }
        Ok((load(None)?, false))
    }

    /// Loads with the drop-counting programs if possible; otherwise without, and returns the error.
    fn load_counting(
        layout: u32,
        counters: Option<&Path>,
        form: Form,
    ) -> Result<(Self, Option<KernelError>), KernelError> {
        match Self::load_with(layout, counters, true, form) {
            Ok(kernel) => Ok((kernel, None)),
            Err(error) => {
                let kernel = Self::load_with(layout, counters, false, form)?;
                Ok((kernel, Some(error)))
            }
        }
    }

    fn load_with(
        layout: u32,
        counters: Option<&Path>,
        counts_drops: bool,
        form: Form,
    ) -> Result<Self, KernelError> {
        let Form {
            buffers,
            has_siblings,
            has_tap,
        } = form;
        // The skeleton borrows its object for `'static`; a daemon loads one, once.
        let storage = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = exitmark_bpf::load(|| ExitmarkSkelBuilder::default().open(storage))?;
        let constants = open.maps.rodata_data.as_mut().ok_or(KernelError::Layout)?;
        constants.multi_buffer = u32::from(buffers == Buffers::Several);
        constants.has_siblings = u32::from(has_siblings);
        constants.has_tap = u32::from(has_tap);
        if !has_siblings {
            // The kernel may leak such a map that is looked up by its ID while it is freed:
            // prog_array_map_clear in kernel/bpf/arraymap.c takes a reference for work that is
            // pending already.
            exitmark_bpf::load(|| open.maps.next_wire.set_autocreate(false))?;
        }
        if has_tap {
            let cpus = cpus()?;
            exitmark_bpf::load(|| open.maps.taps.set_max_entries(cpus))?;
        } else {
            exitmark_bpf::load(|| open.maps.taps.set_autocreate(false))?;
        }
        if buffers == Buffers::Several {
            for program in [
                &mut open.progs.exitmark_host,
                &mut open.progs.exitmark_uplink,
                &mut open.progs.exitmark_incoming,
            ] {
                program.set_flags(libbpf_sys::BPF_F_XDP_HAS_FRAGS);
            }
        }
        // These need CAP_PERFMON and a kernel with BTF.
        open.progs.exitmark_unsent.set_autoload(counts_drops);
        open.progs.exitmark_unredirected.set_autoload(counts_drops);
        if let Some(directory) = counters {
            let maps = &mut open.maps;
            for (map, name) in [
                (&mut maps.counters, COUNTERS),
                (&mut maps.worker_counters, WORKER_COUNTERS),
            ] {
                exitmark_bpf::load(|| map.set_pin_path(directory.join(name)))?;
            }
        }
        Ok(Self {
            skeleton: exitmark_bpf::load(|| open.load())?,
            layout,
            counts_drops,
            buffers,
            has_siblings,
            has_tap,
        })
    }

    /// Whether the program was loaded for frames in one buffer or in several.
    pub const fn buffers(&self) -> Buffers {
        self.buffers
    }

    /// Pins the maps of this program, which is attached now, in place of its predecessor's.
    ///
    /// # Errors
    /// The file system refuses a pin.
    pub fn pin_maps(&self, pins: &Pins) -> Result<(), KernelError> {
        let maps = &self.skeleton.maps;
        let pinned = [
            maps.policies.as_fd(),
            maps.bss_links.as_fd(),
            maps.guards.as_fd(),
            maps.counters.as_fd(),
            maps.worker_counters.as_fd(),
        ];
        let next_wire = self.has_siblings.then(|| maps.next_wire.as_fd());
        let pinned = pinned.into_iter().chain(next_wire);
        Ok(pins.pin_maps(self.layout, PINNED_MAPS.into_iter().zip(pinned))?)
    }

    /// The names of the maps that are pinned.
    fn pinned_maps(&self) -> &'static [&'static str] {
        &PINNED_MAPS[..PINNED_MAPS.len() - usize::from(!self.has_siblings)]
    }

    /// The hosts that the previous process' program learned in this network namespace, from its
    /// pinned map.
    pub fn learned_hosts(&self, pins: &Pins, netns: u64) -> Vec<KnownHost> {
        let links = MapHandle::from_pinned_path(pins.maps(self.layout).join(LINKS)).ok();
        let value = links.and_then(|links| links.lookup(&ONLY, MapFlags::ANY).ok()?);
        value.map_or_else(Vec::new, |value| Links::learned_hosts(&value, netns))
    }

    /// The links' cells, in the program's map.
    ///
    /// # Errors
    /// The map cannot be mapped.
    pub fn links(&self) -> Result<Cells, KernelError> {
        let map = self.skeleton.maps.bss_links.as_fd();
        let mapped = Mapped::new(map, LINK_NUMBERS).map_err(map_error("links"))?;
        Ok(Cells::shared(mapped))
    }

    /// The counters of the workers and of the tap's sender, in a map that is pinned with the
    /// program's.
    ///
    /// # Errors
    /// The map cannot be mapped.
    pub fn worker_counters(&self) -> Result<Cells, KernelError> {
        let map = self.skeleton.maps.worker_counters.as_fd();
        let mapped =
            Mapped::new(map, (MAX_QUEUES + 1) * QUEUE_SLOTS).map_err(map_error(WORKER_COUNTERS))?;
        Ok(Cells::shared(mapped))
    }

    /// The guards of all queues, in the program's map.
    ///
    /// # Errors
    /// The map cannot be mapped.
    pub fn guards(&self) -> Result<Cells, KernelError> {
        let map = self.skeleton.maps.guards.as_fd();
        let mapped = Mapped::new(map, MAX_QUEUES * GUARD_NUMBERS).map_err(map_error("guards"))?;
        Ok(Cells::shared(mapped))
    }

    /// The rings into which the program copies frames for the tap, one for each CPU; none if it is
    /// not loaded for a tap.
    ///
    /// # Errors
    /// The map cannot be mapped.
    pub fn tap_rings(&self) -> Result<Vec<TapRing>, KernelError> {
        if !self.has_tap {
            return Ok(Vec::new());
        }
        let cpus = cpus()? as usize;
        let map = self.skeleton.maps.taps.as_fd();
        let mapped = Mapped::new(map, cpus * RING_NUMBERS).map_err(map_error("taps"))?;
        let cells = Arc::new(Cells::shared(mapped));
        let ring = |cpu| TapRing::over(Arc::clone(&cells), cpu);
        Ok((0..cpus).map(ring).collect())
    }

    /// Publishes a snapshot atomically: every frame from now on is judged by all of it. Returns
    /// when no frame is judged by the previous one any more, which the kernel then frees.
    ///
    /// # Errors
    /// The snapshot does not fit, or memory is short.
    pub fn publish(&self, snapshot: &Snapshot) -> Result<(), KernelError> {
        self.publish_image(&image(snapshot)?)
    }

    /// As [`Kernel::publish`], with the image of a snapshot, [`IMAGE_BYTES`] long.
    ///
    /// # Errors
    /// The image has another length, or memory is short.
    pub fn publish_image(&self, image: &[u8]) -> Result<(), KernelError> {
        replace_policy(&self.skeleton.maps.policies, image).map_err(map_error(pins::POLICIES))
    }

    /// Sets the NIC to which a role's frames are redirected; `None` for no NIC.
    ///
    /// # Errors
    /// The NIC does not exist.
    pub fn set_port(&self, role: Role, ifindex: Option<u32>) -> Result<(), KernelError> {
        let ports = &self.skeleton.maps.ports;
        let key = slot(role.index());
        match ifindex {
            Some(ifindex) => ports
                .update(&key, &ifindex.to_ne_bytes(), MapFlags::ANY)
                .map_err(map_error("ports")),
            None => absent(ports.delete(&key)).map_err(map_error("ports")),
        }
    }

    /// The interface index of the NIC to which a role's frames are redirected. The kernel deletes
    /// the entry when the NIC is removed or moved to another network namespace, and does not
    /// restore it when the NIC comes back.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn port(&self, role: Role) -> Result<Option<u32>, KernelError> {
        let key = slot(role.index());
        let value = (self.skeleton.maps.ports)
            .lookup(&key, MapFlags::ANY)
            .map_err(map_error("ports"))?;
        Ok(value.and_then(|value| Some(u32::from_ne_bytes(*value.first_chunk()?))))
    }

    /// Adds a socket to the XSKMAP: it receives the frames that the program hands over on its
    /// queue.
    ///
    /// # Errors
    /// The socket is bound to another queue, or `queue` is not below [`MAX_QUEUES`].
    pub fn admit(&self, role: Role, queue: u32, socket: BorrowedFd<'_>) -> Result<(), KernelError> {
        let fd = socket.as_raw_fd().to_ne_bytes();
        let sockets = &self.skeleton.maps.sockets;
        let added = sockets.update(&socket_slot(role, queue), &fd, MapFlags::ANY);
        added.map_err(map_error("sockets"))
    }

    /// Removes a socket from the XSKMAP: from the next frame on the program decides by itself.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn dismiss(&self, role: Role, queue: u32) -> Result<(), KernelError> {
        absent(self.skeleton.maps.sockets.delete(&socket_slot(role, queue)))
            .map_err(map_error("sockets"))
    }

    /// Removes the pinned maps of other layouts after a takeover; returns those layouts.
    ///
    /// # Errors
    /// The file system refuses a removal.
    pub fn tidy(&self, pins: &Pins) -> Result<Vec<String>, KernelError> {
        Ok(pins.remove_other_maps(self.layout)?)
    }
}

/// How many CPUs the machine can have.
fn cpus() -> Result<u32, KernelError> {
    let cpus = libbpf_rs::num_possible_cpus().map_err(map_error("taps"))?;
    Ok(u32::try_from(cpus).unwrap_or(u32::MAX))
}

/// Checks the sizes of the program's structures, and returns their layout version.
fn layout() -> Result<u32, KernelError> {
    let mut storage = MaybeUninit::uninit();
    let open = exitmark_bpf::load(|| ExitmarkSkelBuilder::default().open(&mut storage))?;
    let constants = open.maps.rodata_data.as_ref().ok_or(KernelError::Layout)?;
    let same = constants.policy_bytes as usize == POLICY_BYTES
        && constants.counts_bytes as usize == size_of::<exitmark_counts>()
        && constants.links_bytes as usize == LINK_NUMBERS * size_of::<u64>()
        && constants.guard_bytes as usize == GUARD_NUMBERS * size_of::<u64>()
        && constants.sample_bytes as usize == size_of::<exitmark_sample>();
    same.then_some(constants.layout_version)
        .ok_or(KernelError::Layout)
}

/// Puts a new map with this image into the map of the policy in force.
pub(crate) fn replace_policy(policies: &impl MapCore, image: &[u8]) -> libbpf_rs::Result<()> {
    let bytes = u32::try_from(IMAGE_BYTES).unwrap_or(u32::MAX);
    let inner = new_array("exitmark_policy", bytes, 1)?;
    inner.update(&ONLY, image, MapFlags::ANY)?;
    let fd = inner.as_fd().as_raw_fd().to_ne_bytes();
    policies.update(&ONLY, &fd, MapFlags::ANY)
}

/// Makes an array map with values of this many bytes.
fn new_array(name: &str, value_bytes: u32, entries: u32) -> libbpf_rs::Result<MapHandle> {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    MapHandle::create(
        MapType::Array,
        Some(name),
        4,
        value_bytes,
        entries,
        &options,
    )
}

fn slot(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_ne_bytes()
}

fn socket_slot(role: Role, queue: u32) -> [u8; 4] {
    debug_assert!((queue as usize) < MAX_QUEUES, "the daemon bounds this");
    slot(role.index() * MAX_QUEUES + queue as usize)
}

/// Turns ENOENT of a deletion into success.
fn absent(result: libbpf_rs::Result<()>) -> libbpf_rs::Result<()> {
    match result {
        Err(error) if error.kind() == libbpf_rs::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
