//! Goodput: connections from the host to the web server, bulk data in one direction, counted by the
//! reader.

use crate::connection::Connection;
use exitmark_lab::site::Site;
use exitmark_lab::{LabError, Netns, join};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The most bytes of one read or write.
const BUFFER_BYTES: usize = 128 * 1024;
/// The time until the windows have grown.
const WARM_UP: Duration = Duration::from_millis(300);

/// The direction of the data. The host always opens the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The host sends; acknowledgements return.
    Upload,
    /// The host sends a request, and the web server the data.
    Download,
}

impl Direction {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Download => "download",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Goodput {
    pub(crate) gbit_per_s: f64,
    /// Segments that the sender's stack retransmitted.
    pub(crate) retransmits: u64,
}

/// Sends on this number of connections at full speed, for this long after a warm-up.
pub(crate) fn measure(
    site: &Site,
    direction: Direction,
    streams: u16,
    length: Duration,
) -> Result<Goodput, LabError> {
    let failed = |error| LabError(format!("the {} failed: {error}", direction.name()));
    let connections = Connection::open_all(site, streams)?;
    let sending_side = match direction {
        Direction::Upload => &site.host,
        Direction::Download => &site.clearnet,
    };
    let over = Arc::new(AtomicBool::new(false));
    let received = Arc::new(AtomicU64::new(0));
    let mut threads = Vec::new();
    let mut ends = Vec::new();
    for Connection { mut host, server } in connections {
        let (sender, receiver) = match direction {
            Direction::Upload => (host, server),
            Direction::Download => {
                // The request, whose content does not matter.
                host.write_all(&[0]).map_err(failed)?;
                (server, host)
            }
        };
        ends.push(sender.try_clone().map_err(failed)?);
        ends.push(receiver.try_clone().map_err(failed)?);
        let (is_over, counter) = (Arc::clone(&over), Arc::clone(&received));
        threads.push(thread::spawn(move || receive(receiver, &counter, &is_over)));
        let is_over = Arc::clone(&over);
        let waits = direction == Direction::Download;
        threads.push(thread::spawn(move || send(sender, waits, &is_over)));
    }
    thread::sleep(WARM_UP);
    let look = || {
        let again = retransmits(sending_side)?;
        Ok::<_, LabError>((Instant::now(), received.load(Ordering::Relaxed), again))
    };
    let before = look()?;
    thread::sleep(length);
    let now = look()?;
    over.store(true, Ordering::Relaxed);
    for end in ends {
        // If an end has closed already, its thread reports it.
        let _ = end.shutdown(Shutdown::Both);
    }
    for thread in threads {
        join(thread, "a thread of the bench")?.map_err(failed)?;
    }
    let seconds = now.0.duration_since(before.0).as_secs_f64();
    Ok(Goodput {
        gbit_per_s: number(now.1 - before.1) * 8.0 / seconds / 1e9,
        retransmits: now.2 - before.2,
    })
}

/// Writes until the run is over; first waits for the other end's request, if `waits`.
fn send(mut stream: TcpStream, waits: bool, is_over: &AtomicBool) -> io::Result<()> {
    let buffer = vec![0; BUFFER_BYTES];
    if waits {
        stream.read_exact(&mut [0])?;
    }
    loop {
        match stream.write(&buffer) {
            _ if is_over.load(Ordering::Relaxed) => return Ok(()),
            Ok(_) => (),
            Err(error) => return Err(error),
        }
    }
}

/// Reads and counts until the run is over.
fn receive(mut stream: TcpStream, received: &AtomicU64, is_over: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match stream.read(&mut buffer) {
            _ if is_over.load(Ordering::Relaxed) => return Ok(()),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => received.fetch_add(bytes as u64, Ordering::Relaxed),
            Err(error) => return Err(error),
        };
    }
}

/// The number of TCP segments that the stack of a namespace has retransmitted so far.
fn retransmits(netns: &Netns) -> Result<u64, LabError> {
    let text = netns
        .run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))
        .map_err(|error| LabError(format!("cannot read the stack's counters: {error}")))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let fields = lines.next().zip(lines.next()).and_then(|(names, values)| {
        let mut fields = names.split(' ').zip(values.split(' '));
        fields.find(|(name, _)| *name == "RetransSegs")
    });
    fields
        .and_then(|(_, value)| value.parse().ok())
        .ok_or_else(|| LabError("the stack does not count retransmits".to_owned()))
}

#[allow(
    clippy::cast_precision_loss,
    reason = "exact up to 2^53 bytes; no run receives as many"
)]
fn number(bytes: u64) -> f64 {
    bytes as f64
}
