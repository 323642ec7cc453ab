//! Connections per second: several threads of the host repeatedly connect, send a request, receive
//! the answer and close. A connection counts once its whole answer has arrived.

use crate::common::results::number;
use crate::connection::{TIMEOUT, bounded, listen, server};
use exitmark_lab::site::Site;
use exitmark_lab::{LabError, join};
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The length of the request and of the answer.
const MESSAGE_BYTES: usize = 64;
/// The time until every thread runs.
const WARM_UP: Duration = Duration::from_millis(200);

/// Connects with this number of threads for this long; returns the connections per second.
pub(crate) fn measure(site: &Site, parallel: u16, length: Duration) -> Result<f64, LabError> {
    let failed = |error| LabError(format!("a short connection failed: {error}"));
    let listener = Arc::new(listen(site)?);
    let over = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU64::new(0));
    let (mut servers, mut hosts) = (Vec::new(), Vec::new());
    for _ in 0..parallel {
        let (listening, is_over) = (Arc::clone(&listener), Arc::clone(&over));
        let answer = move || answer(&listening, &is_over);
        servers.push(site.clearnet.spawn("answer", answer)?);
        let (counter, is_over) = (Arc::clone(&answered), Arc::clone(&over));
        hosts.push(site.host.spawn("ask", move || ask(&counter, &is_over))?);
    }
    thread::sleep(WARM_UP);
    let look = || (Instant::now(), answered.load(Ordering::Relaxed));
    let before = look();
    thread::sleep(length);
    let now = look();
    over.store(true, Ordering::Relaxed);
    let finish = |thread: thread::JoinHandle<io::Result<()>>| {
        join(thread, "a thread of the bench")?.map_err(failed)
    };
    let requested = hosts.into_iter().try_for_each(finish);
    // Wake the threads that wait for the next connection.
    shutdown(listener.as_raw_fd(), Shutdown::Both).map_err(|error| failed(error.into()))?;
    let answered = servers.into_iter().try_for_each(finish);
    requested.and(answered)?;
    let seconds = now.0.duration_since(before.0).as_secs_f64();
    Ok(number(now.1 - before.1) / seconds)
}

/// Connects and sends requests until the run is over.
fn ask(answered: &AtomicU64, is_over: &AtomicBool) -> io::Result<()> {
    let mut message = [0; MESSAGE_BYTES];
    while !is_over.load(Ordering::Relaxed) {
        let mut stream = bounded(TcpStream::connect_timeout(&server(), TIMEOUT)?)?;
        // Close with a reset, so that no port stays in TIME-WAIT.
        let at_once = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&stream, sockopt::Linger, &at_once)?;
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Answers one connection after the other until the listener is shut down.
fn answer(listener: &TcpListener, is_over: &AtomicBool) -> io::Result<()> {
    let mut message = [0; MESSAGE_BYTES];
    loop {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => bounded(stream)?,
            Err(_) if is_over.load(Ordering::Relaxed) => return Ok(()),
            Err(error) => return Err(error),
        };
        stream.read_exact(&mut message)?;
        stream.write_all(&message)?;
        match stream.read(&mut message) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (),
            Err(error) => return Err(error),
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
