//! The kernel filter: loads, configures and attaches it, and reads its counters.

use super::TapError;
use super::sys::{XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE, create_link};
use crate::cell::Directions;
use crate::filter::Filter;
use exitmark_nic::Nic;
use libbpf_rs::{Map, MapCore, MapFlags, Object, ObjectBuilder, ProgramInput, ProgramMut};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const COMPILED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/monitor.bpf.o"));

/// Ranges of clearnet addresses of one IP version at most. Must match bpf/monitor.bpf.c, like the
/// names and structures here.
pub const MAX_RANGES: usize = 1024;

/// 64-bit words of the rule in front of the ranges,
const FIXED_WORDS: usize = 6;
/// and of the whole rule.
const RULE_WORDS: usize = FIXED_WORDS + MAX_RANGES + 4 * MAX_RANGES;
const ONLY: [u8; 4] = 0_u32.to_ne_bytes();

/// Frames by decision of the filter; `received` is the sum of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sorted {
    /// All frames that the NIC received while the filter was attached.
    pub received: u64,
    /// Redirected to a socket: with the mark, and from or, in both directions, to a clearnet
    /// address.
    pub passed: u64,
    /// Neither IPv4 nor IPv6, or a runt.
    pub not_ip: u64,
    /// IP, but the headers cannot be parsed.
    pub malformed: u64,
    /// IP, but without the mark.
    pub unmarked: u64,
    /// With the mark, but neither from nor to a clearnet address.
    pub other_source: u64,
    /// With the mark, to a clearnet address, and only one direction is counted.
    pub inbound: u64,
    /// To be redirected, but the queue has no socket.
    pub no_socket: u64,
}

/// The filter, loaded with a mark and source addresses, attached or not.
pub struct Program {
    object: Object,
}

impl Program {
    /// Loads the filter for a NIC with this many receive queues, and for frames in one buffer or,
    /// with `multi_buffer`, in several (BPF_F_XDP_HAS_FRAGS, Linux 5.18).
    ///
    /// # Errors
    /// The number of addresses is 0 or too large, a capability is missing, or the kernel rejects the
    /// filter.
    pub fn load(filter: &Filter, queues: u32, multi_buffer: bool) -> Result<Self, TapError> {
        // The layout of the object's constants: the number of bpf/frame.h, padded to the alignment
        // of the rule (8 bytes), and the rule.
        let mut constants = u32::from(multi_buffer).to_ne_bytes().to_vec();
        constants.resize(size_of::<u64>(), 0);
        constants.extend(rule(filter)?);
        let load = || {
            let mut object = ObjectBuilder::default().open_memory(COMPILED)?;
            for mut map in object.maps_mut() {
                if map.name() == "sockets" {
                    map.set_max_entries(queues)?;
                }
                if map.name().to_string_lossy().ends_with(".rodata")
                    && let Some(values) = map.initial_value_mut()
                    && let Some(values) = values.get_mut(..constants.len())
                {
                    values.copy_from_slice(&constants);
                }
            }
            if multi_buffer {
                for mut program in object.progs_mut() {
                    program.set_flags(libbpf_sys::BPF_F_XDP_HAS_FRAGS);
                }
            }
            object.load()
        };
        Ok(Self {
            object: exitmark_bpf::load(load)?,
        })
    }

    /// Redirects the packets of a queue to a socket.
    pub(super) fn serve(&self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), TapError> {
        let value = socket.as_raw_fd().to_ne_bytes();
        self.map("sockets")?
            .update(&queue.to_ne_bytes(), &value, MapFlags::ANY)
            .map_err(TapError::Map)
    }

    /// Attaches the filter for as long as the result lives, at most until the process exits: in
    /// native mode if the driver supports it, else in generic mode.
    pub(super) fn attach(&self, nic: &Nic) -> Result<OwnedFd, TapError> {
        let program = self.program()?;
        let attach = |flags| create_link(program.as_fd(), nic.index, flags);
        let native = match attach(XDP_FLAGS_DRV_MODE) {
            Ok(link) => return Ok(link),
            Err(error) => error,
        };
        // Generic mode does not help if another program is attached or a capability is missing.
        if matches!(
            native.raw_os_error(),
            Some(libc::EBUSY | libc::EEXIST | libc::EPERM)
        ) {
            return Err(TapError::attach(&nic.name, native));
        }
        let link = match attach(XDP_FLAGS_SKB_MODE) {
            Ok(link) => link,
            Err(generic) if generic.raw_os_error() == Some(libc::EBUSY) => {
                return Err(TapError::attach(&nic.name, generic));
            }
            Err(_) => return Err(TapError::attach(&nic.name, native)),
        };
        tracing::warn!(
            "the driver of {} does not support the filter ({native}): the kernel's common receive \
             path runs it (generic XDP, which turns GRO off there), and takes more time for each \
             packet",
            nic.name
        );
        Ok(link)
    }

    /// Runs the filter on a frame (BPF_PROG_RUN); returns what remains of the frame.
    ///
    /// # Errors
    /// The frame is shorter than an Ethernet header, or longer than the kernel can build.
    pub fn run(&self, frame: &[u8]) -> Result<Vec<u8>, TapError> {
        self.run_split(frame, frame.len())
    }

    /// Like [`Program::run`], with only `first` bytes (at least an Ethernet header) in the first
    /// buffer, as some drivers leave it.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn run_split(&self, frame: &[u8], first: usize) -> Result<Vec<u8>, TapError> {
        let mut after = vec![0; frame.len()];
        // `struct xdp_md`: data, data_end, and four fields that may be 0.
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&u32::try_from(first).unwrap_or(u32::MAX).to_ne_bytes());
        let input = ProgramInput {
            context_in: (first != frame.len()).then_some(&mut context[..]),
            data_in: Some(frame),
            data_out: Some(&mut after),
            ..Default::default()
        };
        let output = self.program()?.test_run(input).map_err(TapError::Map)?;
        let left = output.data.map_or(0, |data| data.len());
        after.truncate(left);
        Ok(after)
    }

    /// The filter's counters.
    ///
    /// # Errors
    /// [`TapError::Map`]: the counters' map cannot be read.
    pub fn counters(&self) -> Result<Sorted, TapError> {
        let values = self
            .map("counters")?
            .lookup_percpu(&ONLY, MapFlags::ANY)
            .map_err(TapError::Map)?;
        let mut sums = [0_u64; 8];
        for value in values.iter().flatten() {
            for (sum, number) in sums.iter_mut().zip(value.as_chunks().0) {
                *sum += u64::from_ne_bytes(*number);
            }
        }
        Ok(Sorted {
            received: sums[0],
            passed: sums[1],
            not_ip: sums[2],
            malformed: sums[3],
            unmarked: sums[4],
            other_source: sums[5],
            no_socket: sums[6],
            inbound: sums[7],
        })
    }

    fn program(&self) -> Result<ProgramMut<'_>, TapError> {
        let mut programs = self.object.progs_mut();
        programs.next().ok_or_else(|| missing("program"))
    }

    fn map(&self, name: &'static str) -> Result<Map<'_>, TapError> {
        let mut maps = self.object.maps();
        maps.find(|map| map.name() == name)
            .ok_or_else(|| missing(name))
    }
}

fn missing(what: &str) -> TapError {
    TapError::Map(io::Error::other(format!("it has no {what}")).into())
}

/// The rule in the filter's layout.
fn rule(filter: &Filter) -> Result<Vec<u8>, TapError> {
    let (v4, v6) = (filter.clearnet.v4_ranges(), filter.clearnet.v6_ranges());
    if filter.clearnet.is_empty() {
        return Err(TapError::NoSource);
    }
    let count = v4.len().max(v6.len());
    if count > MAX_RANGES {
        return Err(TapError::Ranges(count));
    }
    let mut words = vec![
        u64::from(filter.dscp.bits() << 2),
        u64::from(filter.directions == Directions::Both),
        u64::from(filter.unwrap.erspan),
        filter.unwrap.vxlan.map_or(0, u64::from),
        v4.len() as u64,
        v6.len() as u64,
    ];
    words.extend(
        v4.iter()
            .map(|&(first, last)| u64::from(first) << 32 | u64::from(last)),
    );
    words.resize(FIXED_WORDS + MAX_RANGES, 0);
    words.extend(
        v6.iter()
            .flat_map(|&(first, last)| [halves(first), halves(last)].concat()),
    );
    words.resize(RULE_WORDS, 0);
    Ok(words.into_iter().flat_map(u64::to_ne_bytes).collect())
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "each half is what it is named for"
)]
const fn halves(number: u128) -> [u64; 2] {
    [(number >> 64) as u64, number as u64]
}
