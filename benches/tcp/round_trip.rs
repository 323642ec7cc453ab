//! The round trip of one byte over one connection: the host sends it, the web server sends it
//! back, and only then the next one leaves.

use crate::common::results::number;
use crate::connection::Connection;
use exitmark_lab::site::Site;
use exitmark_lab::{LabError, join};
use hdrhistogram::Histogram;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// The time until caches and timers have settled.
const WARM_UP: Duration = Duration::from_millis(100);

/// The result of one run in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoundTrip {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// Exchanges one byte repeatedly for this long.
pub(crate) fn measure(site: &Site, length: Duration) -> Result<RoundTrip, LabError> {
    let failed = |error| LabError(format!("the round trip failed: {error}"));
    let Connection { host, server } = Connection::open(site)?;
    for end in [&host, &server] {
        end.set_nodelay(true).map_err(failed)?;
    }
    let echo = site.clearnet.spawn("echo", move || echo(server))?;
    let times = times(&host, length).map_err(failed);
    // If an end has closed already, the other side reports it.
    let _ = host.shutdown(Shutdown::Both);
    let echoed = join(echo, "a thread of the bench");
    let times = times?;
    echoed?.map_err(failed)?;
    let us = |part| number(times.value_at_quantile(part)) / 1e3;
    Ok(RoundTrip {
        p50_us: us(0.5),
        p99_us: us(0.99),
    })
}

/// The time of each round trip after the warm-up, in nanoseconds.
fn times(mut stream: &TcpStream, length: Duration) -> io::Result<Histogram<u64>> {
    let mut times = Histogram::new(3).map_err(io::Error::other)?;
    let mut byte = [0; 1];
    let begin = Instant::now();
    loop {
        let sent = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        let spent = begin.elapsed();
        if spent >= WARM_UP + length {
            return Ok(times);
        }
        if spent >= WARM_UP {
            let nanos = u64::try_from(sent.elapsed().as_nanos()).map_err(io::Error::other)?;
            times.record(nanos).map_err(io::Error::other)?;
        }
    }
}

/// Sends received data back until the other end closes.
fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut byte = [0; 1];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}
