//! Connections from the host to the web server, with both ends in this process.

use exitmark_lab::LabError;
use exitmark_lab::site::{SERVER_V4, Site};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

const PORT: u16 = 443;
/// The timeout of a stalled connection.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn server() -> SocketAddr {
    SocketAddr::from((SERVER_V4, PORT))
}

pub(crate) fn listen(site: &Site) -> Result<TcpListener, LabError> {
    let listener = site.clearnet.run(|| TcpListener::bind(server()));
    listener.map_err(|error| LabError(format!("the web server cannot listen: {error}")))
}

/// Sets the timeouts of a stream.
pub(crate) fn bounded(end: TcpStream) -> io::Result<TcpStream> {
    end.set_read_timeout(Some(TIMEOUT))?;
    end.set_write_timeout(Some(TIMEOUT))?;
    Ok(end)
}

pub(crate) struct Connection {
    pub(crate) host: TcpStream,
    pub(crate) server: TcpStream,
}

impl Connection {
    pub(crate) fn open(site: &Site) -> Result<Self, LabError> {
        Ok(Self::open_all(site, 1)?.remove(0))
    }

    pub(crate) fn open_all(site: &Site, number: u16) -> Result<Vec<Self>, LabError> {
        let what = "the host cannot connect to the web server";
        let failed = |error| LabError(format!("{what}: {error}"));
        let listener = listen(site)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let connect = || {
            let connect = || TcpStream::connect_timeout(&server(), TIMEOUT);
            let host = site.host.run(connect)?;
            let server = accept(&listener)?;
            server.set_nonblocking(false)?;
            Ok(Self {
                host: bounded(host)?,
                server: bounded(server)?,
            })
        };
        (0..number).map(|_| connect().map_err(failed)).collect()
    }
}

/// Accepts a connection; the last segment of its handshake may be delayed or lost.
fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Ok(stream),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}
