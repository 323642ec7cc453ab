//! The tap: receives packets from a NIC at the uplink without sending anything.
//!
//! A filter in the kernel (bpf/monitor.bpf.c) drops all packets but those with the mark and a
//! clearnet source address, truncates these behind the transport header, and redirects them to
//! AF_XDP sockets, one for each receive queue. The sockets are bound in copy mode, so that only
//! truncated packets are ever in the process's memory; in zero-copy mode the NIC would write whole
//! frames there. The sockets have no transmit ring. Several NICs have a filter, and sockets, each.
//!
//! A frame in several buffers (a jumbo frame) is one packet: the filter accepts such frames, and
//! what remains of them is in the first buffer.
//!
//! Nothing here may send, or keep a packet's bytes longer than its batch. Unsafe code is in `sys`
//! only.

mod error;
mod listening;
mod program;
mod several;
mod sys;

use super::filter::{Arrived, Filter};
use exitmark_nic::{Nic, possible_cpus};
use listening::{Listening, attach_prepared};
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt::SocketError};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;
use sys::{BATCH, CHUNK_BYTES, Queue};

pub use error::TapError;
pub use program::{MAX_RANGES, Program, Sorted};
pub use several::Taps;
pub(super) use sys::return_large_blocks;

/// NICs at most: each gets an equal share of [`MAX_FRAMES`].
pub const MAX_TAPS: usize = 8;
/// Packets that all queues together can hold. With many queues, each gets an equal share of this
/// instead of `ring`.
pub const MAX_FRAMES: u32 = 8192;
/// The smallest ring, in packets; it limits the number of queues.
pub const MIN_RING: u32 = 64;

/// Attempts to bind, and the pause between them: the kernel releases a queue up to 32 ms after the
/// previous owner has exited.
const BIND_ATTEMPTS: u32 = 200;
const BIND_PAUSE: Duration = Duration::from_millis(1);

/// The NIC of a tap, the packets to receive, and the memory for them.
#[derive(Clone, Debug)]
pub struct TapSettings {
    /// The name of the NIC, or an alternative name.
    pub interface: String,
    /// The packets to receive; its addresses are at most [`MAX_RANGES`] ranges of each IP version.
    pub filter: Filter,
    /// Ring size of each queue, in packets: a power of two, [`MIN_RING`] to [`MAX_FRAMES`]. A
    /// packet takes 2 KiB.
    pub ring: u32,
}

impl TapSettings {
    /// The default ring size, in packets: 8 ms at 0.5 Mpps.
    pub const RING: u32 = 4096;

    /// Ring size of each queue for this number of queues, which share room for `frames` packets.
    fn ring_of(&self, frames: u32, queues: u32) -> u32 {
        let share = frames / queues.max(1).next_power_of_two();
        self.ring.min(share)
    }
}

/// Frames at the tap, by fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TapCounters {
    /// The decisions of the filter in the kernel.
    pub sorted: Sorted,
    /// Packets that passed the filter and were dropped at their queue.
    pub overrun: u64,
    /// Those of them for which the fill ring was empty.
    pub no_chunk: u64,
}

impl TapCounters {
    /// Packets that passed the filter and were not received.
    pub const fn lost(&self) -> u64 {
        self.overrun + self.sorted.no_socket
    }
}

/// Checks that a NIC in use still has no address and that no other interface sends through it.
/// Needs no capability; takes some milliseconds.
///
/// # Errors
/// [`TapError::Address`] or [`TapError::Nic`]: the NIC has one of these, or is gone.
pub fn look(interface: &str) -> Result<(), TapError> {
    listening::refuse_senders(&Nic::look(interface)?)
}

/// An open tap. Dropping it ends listening, as [`Tap::close`] does.
pub struct Tap {
    // Fields are dropped in this order: the filter is detached before its sockets close, and the
    // NIC is restored last.
    link: Option<OwnedFd>,
    program: Program,
    queues: Vec<Queue>,
    listening: Listening,
    /// The error that the sockets returned when the interface disappeared.
    gone: Option<Errno>,
}

impl Tap {
    /// Opens a NIC of the calling thread's network namespace. Needs `CAP_NET_ADMIN`, `CAP_NET_RAW`,
    /// `CAP_BPF` and, with a small memory lock limit, `CAP_IPC_LOCK`; later calls up to
    /// [`Tap::close`] need none.
    ///
    /// # Errors
    /// The NIC is not a passive tap, is in use, or lacks support; or a capability is missing.
    pub fn open(settings: &TapSettings) -> Result<Self, TapError> {
        Self::open_with(settings, MAX_FRAMES)
    }

    /// As [`Tap::open`], with room for this many packets in all queues, a power of two.
    fn open_with(settings: &TapSettings, frames: u32) -> Result<Self, TapError> {
        let ring = settings.ring;
        if !ring.is_power_of_two() || !(MIN_RING..=MAX_FRAMES).contains(&ring) {
            return Err(TapError::Ring(ring));
        }
        let nic = Nic::look(&settings.interface)?;
        listening::refuse_speakers(&nic)?;
        let most = frames / MIN_RING;
        if nic.queues > most {
            let advice = nic.queues_advice(most.min(nic.most_queues_with_xdp(possible_cpus())));
            return Err(TapError::Queues(nic.name, nic.queues, advice));
        }
        let program = Program::load(
            &settings.filter,
            // Some drivers add receive queues for an XDP program.
            nic.most_queues,
            nic.may_need_several_buffers(),
        )?;
        let ring = settings.ring_of(frames, nic.queues);
        let opened = (0..nic.queues).map(|number| open_queue(&nic, number, ring));
        let queues = opened.collect::<Result<Vec<_>, _>>()?;
        for (number, queue) in (0..).zip(&queues) {
            program.serve(number, queue.as_fd())?;
        }
        // Attached last: every queue has its socket before packets arrive.
        let (link, listening) = attach_prepared(nic, |nic| program.attach(nic))?;
        let mut tap = Self {
            link: Some(link),
            program,
            queues,
            listening,
            gone: None,
        };
        tap.listen_to_added(ring)?;
        Ok(tap)
    }

    /// Opens sockets for receive queues that the driver added for the filter, as virtio_net does if
    /// it has spare ones.
    fn listen_to_added(&mut self, ring: u32) -> Result<(), TapError> {
        let nic = self.listening.nic();
        let now = nic.queues_now(&nic.name)?.unwrap_or(nic.queues);
        for number in nic.queues..now {
            let queue = open_queue(nic, number, ring)?;
            self.program.serve(number, queue.as_fd())?;
            self.queues.push(queue);
        }
        Ok(())
    }

    /// Waits for packets for at most `timeout` and passes on what is there: one batch of at most
    /// 64 from each queue. Afterwards the batch's memory is zeroed. Returns the number of packets.
    ///
    /// # Errors
    /// The interface is gone, which is detected when a wait returns nothing. A link that is down is
    /// not an error.
    pub fn receive(
        &mut self,
        timeout: Duration,
        each: impl FnMut(&[Arrived<'_>]),
    ) -> Result<usize, TapError> {
        several::receive(std::slice::from_mut(self), timeout, each)
    }

    fn take(&mut self, each: &mut impl FnMut(&[Arrived<'_>])) -> usize {
        let mut taken = 0;
        for queue in &mut self.queues {
            let batch = queue.take();
            let mut arrived = [Arrived { bytes: &[] }; BATCH];
            let mut count = 0;
            for (slot, bytes) in arrived.iter_mut().zip(batch.packets()) {
                slot.bytes = bytes;
                count += 1;
            }
            if count > 0 {
                each(&arrived[..count]);
            }
            taken += count;
        }
        taken
    }

    /// A socket reports once that its NIC is gone, and does not report that it is down.
    fn look_whether_it_is_gone(&mut self) -> Result<(), TapError> {
        for queue in &self.queues {
            match getsockopt(queue, SocketError) {
                Ok(0) => {}
                Ok(code) => self.gone = Some(Errno::from_raw(code)),
                Err(error) => return Err(TapError::Wait(error.into())),
            }
        }
        match self.gone {
            None => Ok(()),
            Some(code) => Err(TapError::Gone(self.interface().to_owned(), code.into())),
        }
    }

    /// Frames since the tap was opened, by fate.
    ///
    /// # Errors
    /// The filter's map or a socket's statistics cannot be read.
    pub fn counters(&self) -> Result<TapCounters, TapError> {
        let mut counters = TapCounters {
            sorted: self.program.counters()?,
            ..TapCounters::default()
        };
        for queue in &self.queues {
            let missed = queue.statistics().map_err(TapError::Statistics)?;
            // rx_dropped includes packets that found the fill ring empty.
            counters.overrun += missed.rx_dropped + missed.rx_ring_full;
            counters.no_chunk += missed.rx_fill_ring_empty_descs;
        }
        Ok(counters)
    }

    /// The interface name of the NIC.
    pub fn interface(&self) -> &str {
        self.listening.interface()
    }

    /// Number of receive queues.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Detaches the filter. Packets that have passed it can still be received.
    pub fn shut(&mut self) {
        self.link = None;
    }

    /// Ends listening and restores the NIC's settings.
    ///
    /// # Errors
    /// The settings cannot be restored: that needs `CAP_NET_ADMIN`.
    pub fn close(self) -> Result<(), TapError> {
        Ok(self.listening.end(self.link)?)
    }
}

fn open_queue(nic: &Nic, number: u32, ring: u32) -> Result<Queue, TapError> {
    let bytes = u64::from(ring) * u64::from(CHUNK_BYTES);
    let mut queue = Queue::new(ring).map_err(|error| TapError::Memory(bytes, error))?;
    let name = CString::new(nic.name.as_str())
        .map_err(|error| TapError::bind(&nic.name, number, error.into()))?;
    let mut attempt = 0;
    while let Err(source) = queue.bind(&name, number) {
        attempt += 1;
        if source.raw_os_error() != Some(libc::EBUSY) || attempt >= BIND_ATTEMPTS {
            return Err(TapError::bind(&nic.name, number, source));
        }
        thread::sleep(BIND_PAUSE);
    }
    Ok(queue)
}

#[cfg(test)]
mod tests {
    use super::*;
    use exitmark_policy::PrefixSet;
    use exitmark_policy::packet::Dscp;

    #[test]
    fn many_queues_share_the_memory_bound() {
        let settings = TapSettings {
            interface: "tap0".to_owned(),
            filter: Filter::outbound(Dscp::AF11, PrefixSet::default()),
            ring: TapSettings::RING,
        };
        for queues in 1..=MAX_FRAMES / MIN_RING {
            let ring = settings.ring_of(MAX_FRAMES, queues);
            let is_possible = ring.is_power_of_two() && ring >= MIN_RING;
            assert!(is_possible, "{queues} queues");
            assert!(ring * queues <= MAX_FRAMES, "{queues} queues");
        }
        let rings = [1, 2, 3, 128].map(|queues| settings.ring_of(MAX_FRAMES, queues));
        assert_eq!(rings, [4096, 4096, 2048, 64]);
        assert_eq!(settings.ring_of(MAX_FRAMES / 8, 3), 256);
    }
}
