//! The tap: packets from a NIC that hears the uplink and says nothing.
//!
//! A filter in the kernel (bpf/monitor.bpf.c) drops all but what bears the mark and comes from a
//! clearnet address, cuts that right behind its transport header, and hands it over by AF_XDP
//! sockets, one for each receive queue. They are bound in copy mode, so that only the part that
//! was cut off for us ever lies in our memory: in zero-copy mode the NIC would write whole frames
//! there. They have no ring to send from.
//!
//! A frame in several buffers (a jumbo frame) is one packet here: the filter takes such frames,
//! and what it leaves of them lies in the first buffer.
//!
//! Nothing here may send, or keep a packet's bytes longer than its batch; `sys` is the unsafe
//! room.

mod error;
mod listening;
mod program;
mod sys;

use super::filter::Arrived;
use crate::nic::{Nic, possible_cpus};
use crate::packet::Dscp;
use listening::{Listening, attach_prepared};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{getsockopt, sockopt::SocketError};
use nix::sys::time::TimeSpec;
use std::ffi::CString;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;
use sys::{BATCH, CHUNK_BYTES, Queue};

pub use error::TapError;
pub use program::{MAX_SOURCES, Program, Sorted};
pub(super) use sys::return_large_blocks;

/// How many packets all queues together have room for: each has `ring`, or its share of this
/// where there are too many queues for that.
pub const MAX_FRAMES: u32 = 8192;
/// The smallest ring, and so the end of sharing.
pub const MIN_RING: u32 = 64;

/// How often and how long apart a bind is tried while the queue's last owner goes away: the
/// kernel frees it up to 32 ms after that process ended.
const BIND_ATTEMPTS: u32 = 200;
const BIND_PAUSE: Duration = Duration::from_millis(1);

/// What to listen to.
#[derive(Clone, Debug)]
pub struct TapSettings {
    /// The NIC at the tap.
    pub interface: String,
    /// The mark.
    pub dscp: Dscp,
    /// The host's clearnet addresses, at most [`MAX_SOURCES`] of each IP version.
    pub clearnet: Vec<IpAddr>,
    /// How many packets of a queue may wait: a power of two, [`MIN_RING`] to [`MAX_FRAMES`]. Each
    /// takes 2 KiB.
    pub ring: u32,
}

impl TapSettings {
    /// How many packets of a queue may wait unless told otherwise: 8 ms at 0.5 Mpps.
    pub const RING: u32 = 4096;

    /// The size of each queue's ring where there are so many.
    fn ring_of(&self, queues: u32) -> u32 {
        let share = MAX_FRAMES / queues.max(1).next_power_of_two();
        self.ring.min(share)
    }
}

/// What became of all that was heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TapCounters {
    /// What the filter decided.
    pub sorted: Sorted,
    /// Packets that passed and found no room in their queue.
    pub overrun: u64,
    /// Those of them that came when no empty chunk was left.
    pub no_chunk: u64,
}

impl TapCounters {
    /// Packets that should have been counted and cannot be.
    pub const fn lost(&self) -> u64 {
        self.overrun + self.sorted.no_socket
    }
}

/// Looks whether a NIC that is listened to still has no address, and no other interface sends by it.
/// Takes no capability, and some milliseconds.
///
/// # Errors
/// Either, or it is gone.
pub fn look(interface: &str) -> Result<(), TapError> {
    listening::refuse_senders(&Nic::look(interface)?)
}

/// A NIC that is listened to. Dropping it ends that, as [`Tap::close`] does.
pub struct Tap {
    // In this order they end: the filter is taken off before the sockets that it hands over to
    // are gone, and the NIC is as it was when nothing listens any more.
    link: Option<OwnedFd>,
    program: Program,
    queues: Vec<Queue>,
    listening: Listening,
    /// What its sockets were told when the interface disappeared.
    gone: Option<Errno>,
}

impl Tap {
    /// Listens to a NIC of the calling thread's network namespace. It takes `CAP_NET_ADMIN`,
    /// `CAP_NET_RAW`, `CAP_BPF` and, where the memory lock limit is small, `CAP_IPC_LOCK`; what
    /// comes later, up to [`Tap::close`], takes none.
    ///
    /// # Errors
    /// The NIC is no passive tap, is in use, or cannot do this; or there is no privilege.
    pub fn open(settings: &TapSettings) -> Result<Self, TapError> {
        let ring = settings.ring;
        if !ring.is_power_of_two() || !(MIN_RING..=MAX_FRAMES).contains(&ring) {
            return Err(TapError::Ring(ring));
        }
        let nic = Nic::look(&settings.interface)?;
        listening::refuse_speakers(&nic)?;
        let most = MAX_FRAMES / MIN_RING;
        if nic.queues > most {
            return Err(TapError::Queues {
                interface: nic.name.clone(),
                queues: nic.queues,
                advice: nic.queues_advice(most.min(nic.most_queues_with_xdp(possible_cpus()))),
            });
        }
        let program = Program::load(
            settings.dscp,
            &settings.clearnet,
            // Some drivers add receive queues for a program.
            nic.most_queues,
            nic.may_need_several_buffers(),
        )?;
        let ring = settings.ring_of(nic.queues);
        let opened = (0..nic.queues).map(|number| open_queue(&nic, number, ring));
        let queues = opened.collect::<Result<Vec<_>, _>>()?;
        for (number, queue) in (0..).zip(&queues) {
            program.serve(number, queue.as_fd())?;
        }
        // Only now may packets come: no queue that is there is without a socket.
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

    /// Opens sockets for the receive queues that the driver has added for the filter, as virtio_net
    /// does where it has any to spare.
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

    /// Waits for packets, at most so long, and hands over what is there: of each queue one batch
    /// of at most 64. Afterwards their memory holds zeroes. Returns how many there were.
    ///
    /// # Errors
    /// The interface is gone; it is known when a wait was in vain. That its link is down is none.
    pub fn receive(
        &mut self,
        patience: Duration,
        mut each: impl FnMut(&[Arrived<'_>]),
    ) -> Result<usize, TapError> {
        let waiting = self.take(&mut each);
        if waiting > 0 {
            return Ok(waiting);
        }
        self.wait(patience)?;
        Ok(self.take(&mut each))
    }

    fn take(&mut self, each: &mut impl FnMut(&[Arrived<'_>])) -> usize {
        let mut taken = 0;
        for queue in &mut self.queues {
            let batch = queue.take();
            let mut arrived = [Arrived {
                bytes: &[],
                whole: usize::MAX,
            }; BATCH];
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

    /// Returns when there is something, when the time is over, or at a signal.
    fn wait(&mut self, patience: Duration) -> Result<(), TapError> {
        let fds = self.queues.iter();
        let mut fds: Vec<_> = fds
            .map(|queue| PollFd::new(queue.as_fd(), PollFlags::POLLIN))
            .collect();
        match ppoll(&mut fds, Some(TimeSpec::from_duration(patience)), None) {
            Ok(0) => self.look_whether_it_is_gone(),
            Ok(_) if fds.iter().any(has_failed) => self.look_whether_it_is_gone(),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(TapError::Wait(error.into())),
        }
    }

    /// A socket says once that its NIC is gone. That its NIC is down, it does not say.
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
            Some(code) => Err(TapError::Gone {
                interface: self.interface().to_owned(),
                source: code.into(),
            }),
        }
    }

    /// What became of all that was heard since it was opened.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn counters(&self) -> Result<TapCounters, TapError> {
        let mut counters = TapCounters {
            sorted: self.program.counters()?,
            ..TapCounters::default()
        };
        for queue in &self.queues {
            let missed = queue.statistics().map_err(TapError::Statistics)?;
            // A packet for which there is no empty chunk is among the dropped ones.
            counters.overrun += missed.rx_dropped + missed.rx_ring_full;
            counters.no_chunk += missed.rx_fill_ring_empty_descs;
        }
        Ok(counters)
    }

    /// The NIC's name.
    pub fn interface(&self) -> &str {
        self.listening.interface()
    }

    /// How many receive queues are listened to.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Lets nothing more in. What was let in before is still to be received.
    pub fn shut(&mut self) {
        self.link = None;
    }

    /// Ends listening, and sets the NIC back to how it was.
    ///
    /// # Errors
    /// It cannot be set back: that takes `CAP_NET_ADMIN`.
    pub fn close(self) -> Result<(), TapError> {
        let Self {
            link,
            program,
            queues,
            listening,
            ..
        } = self;
        let set_back = listening.end(link);
        drop(queues);
        drop(program);
        Ok(set_back?)
    }
}

fn has_failed(fd: &PollFd<'_>) -> bool {
    let failures = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
    fd.revents()
        .is_some_and(|events| events.intersects(failures))
}

fn open_queue(nic: &Nic, number: u32, ring: u32) -> Result<Queue, TapError> {
    let mut queue = Queue::new(ring).map_err(|source| TapError::Memory {
        bytes: u64::from(ring) * u64::from(CHUNK_BYTES),
        source,
    })?;
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

    #[test]
    fn many_queues_share_what_memory_there_is() {
        let settings = TapSettings {
            interface: "tap0".to_owned(),
            dscp: Dscp::AF11,
            clearnet: Vec::new(),
            ring: TapSettings::RING,
        };
        for queues in 1..=MAX_FRAMES / MIN_RING {
            let ring = settings.ring_of(queues);
            assert!(
                ring.is_power_of_two() && ring >= MIN_RING,
                "{queues} queues"
            );
            assert!(ring * queues <= MAX_FRAMES, "{queues} queues");
        }
        assert_eq!(
            [1, 2, 3, 128].map(|queues| settings.ring_of(queues)),
            [4096, 4096, 2048, 64]
        );
    }
}
