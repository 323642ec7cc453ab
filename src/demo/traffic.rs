//! Real connections through the box: servers, and client jobs.
//!
//! All of it runs inside the site's namespaces on threads of its own, so that the demo can be
//! interrupted at any time. It is independent of marks and of what the captures must prove.

use super::plan::{self, BULK, SSH};
use super::{DemoError, Interrupt};
use exitmark_lab::site::{HOST_V4, SERVER_V4, Site};
use exitmark_lab::{LabError, Netns};
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The timeout of connecting, reading and writing.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The bytes that every TCP flow sends and receives.
const PARCEL: usize = 500_000;
/// The send buffer of a TCP flow in bytes. All flows together then fit in the box's rings, so that
/// no frame is lost even while the box is not scheduled.
const IN_FLIGHT: usize = 32 << 10;
const QUERIES: u8 = 50;
const BULK_TIME: Duration = Duration::from_secs(2);

/// What a TCP server does with received data.
#[derive(Clone, Copy)]
enum Service {
    Echo,
    /// Discards the data, and sends the byte count at the end.
    Sink,
}

/// Servers that stop when this is dropped.
pub(super) struct Servers {
    running: Vec<(Socket, Option<JoinHandle<()>>)>,
}

enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Servers {
    /// Starts every server of the site; each listens when this returns.
    pub(super) fn start(site: &Site) -> Result<Self, DemoError> {
        let running = Vec::new();
        let mut servers = Self { running };
        for address in plan::clearnet_tcp() {
            servers.tcp(&site.clearnet, address, Service::Echo)?;
        }
        for address in plan::tornet_tcp() {
            servers.tcp(&site.tornet, address, Service::Echo)?;
        }
        servers.tcp(&site.clearnet, (SERVER_V4, BULK).into(), Service::Sink)?;
        let ssh = (Ipv6Addr::UNSPECIFIED, SSH).into();
        servers.tcp(&site.host, ssh, Service::Echo)?;
        for address in plan::name_servers() {
            servers.udp(&site.clearnet, address)?;
        }
        Ok(servers)
    }

    fn tcp(
        &mut self,
        netns: &Netns,
        address: SocketAddr,
        service: Service,
    ) -> Result<(), LabError> {
        let (ours, listener) = netns
            .run(move || {
                let listener = TcpListener::bind(address)?;
                Ok((listener.try_clone()?, listener))
            })
            .map_err(|error: io::Error| LabError(format!("cannot listen: {error}")))?;
        let thread = netns.spawn("server", move || {
            while let Ok((stream, _)) = listener.accept() {
                thread::spawn(move || serve(stream, service));
            }
        })?;
        self.running.push((Socket::Tcp(ours), Some(thread)));
        Ok(())
    }

    fn udp(&mut self, netns: &Netns, address: SocketAddr) -> Result<(), LabError> {
        let (ours, socket) = netns
            .run(move || {
                let socket = UdpSocket::bind(address)?;
                Ok((socket.try_clone()?, socket))
            })
            .map_err(|error: io::Error| LabError(format!("cannot listen: {error}")))?;
        let thread = netns.spawn("name server", move || {
            let mut query = [0; 512];
            while let Ok((length @ 1.., from)) = socket.recv_from(&mut query) {
                let _ = socket.send_to(&query[..length], from);
            }
        })?;
        self.running.push((Socket::Udp(ours), Some(thread)));
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for (socket, thread) in &mut self.running {
            // Wakes the thread that waits on the socket.
            match socket {
                Socket::Tcp(listener) => {
                    let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
                }
                Socket::Udp(socket) => {
                    let own = socket.local_addr();
                    let _ = own.and_then(|own| socket.send_to(&[], own));
                }
            }
            if let Some(thread) = thread.take() {
                let _ = thread.join();
            }
        }
    }
}

fn serve(mut stream: TcpStream, service: Service) -> io::Result<()> {
    set_timeouts(&stream)?;
    if matches!(service, Service::Echo) {
        setsockopt(&stream, sockopt::SndBuf, &IN_FLIGHT)?;
    }
    let mut buffer = vec![0; 1 << 16];
    let mut received: u64 = 0;
    loop {
        let length = stream.read(&mut buffer)?;
        received += length as u64;
        match service {
            Service::Sink if length == 0 => return stream.write_all(&received.to_be_bytes()),
            Service::Echo if length == 0 => return Ok(()),
            Service::Echo => stream.write_all(&buffer[..length])?,
            Service::Sink => {}
        }
    }
}

fn set_timeouts(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    set_timeouts(&stream)?;
    Ok(stream)
}

/// A client's job on a thread of its own.
pub(super) struct Errand<T> {
    title: String,
    outcome: mpsc::Receiver<io::Result<T>>,
}

impl<T: Send + 'static> Errand<T> {
    fn start(
        netns: &Netns,
        title: String,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<Self, LabError> {
        let (done, outcome) = mpsc::channel();
        netns.spawn("client", move || {
            let _ = done.send(work());
        })?;
        Ok(Self { title, outcome })
    }

    /// Waits until the job ends, or for Ctrl-C.
    pub(super) fn wait(self, interrupt: &Interrupt) -> Result<T, DemoError> {
        match interrupt.receive(&self.outcome)? {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => Err(DemoError::Traffic(self.title, error.to_string())),
            None => Err(DemoError::Traffic(self.title, "it ended early".to_owned())),
        }
    }
}

/// Runs all flows at once; each sends a parcel and receives it back.
pub(super) fn exchange(site: &Site, interrupt: &Interrupt) -> Result<(), DemoError> {
    let mut errands = Vec::new();
    let from_host = plan::clearnet_tcp().into_iter().chain(plan::tornet_tcp());
    for address in from_host {
        let title = format!("TCP to {address}");
        errands.push(Errand::start(&site.host, title, move || echo(address))?);
    }
    for address in plan::name_servers() {
        let title = format!("DNS to {address}");
        errands.push(Errand::start(&site.host, title, move || ask(address))?);
    }
    let (ssh, title) = ((HOST_V4, SSH).into(), "ssh to the host".to_owned());
    errands.push(Errand::start(&site.clearnet, title, move || echo(ssh))?);
    let mut errands = errands.into_iter();
    errands.try_for_each(|errand| errand.wait(interrupt))
}

/// Sends a parcel and compares it with the data received back.
fn echo(address: SocketAddr) -> io::Result<()> {
    let mut stream = connect(address)?;
    setsockopt(&stream, sockopt::SndBuf, &IN_FLIGHT)?;
    let mut writer = stream.try_clone()?;
    let parcel: Vec<u8> = (0..=250).cycle().take(PARCEL).collect();
    let sent = parcel.clone();
    let sending = thread::spawn(move || {
        writer.write_all(&sent)?;
        writer.shutdown(std::net::Shutdown::Write)
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received)?;
    let sent = sending.join();
    sent.map_err(|_| io::Error::other("the sender ended early"))??;
    if received != parcel {
        return Err(io::Error::other("the echoed bytes differ"));
    }
    Ok(())
}

/// Sends queries to the name server, one after the other.
fn ask(address: SocketAddr) -> io::Result<()> {
    let any: IpAddr = if address.is_ipv4() {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.connect(address)?;
    for number in 0..QUERIES {
        let query = [number; 40];
        socket.send(&query)?;
        let mut answer = [0; 64];
        let length = socket.recv(&mut answer)?;
        if answer[..length] != query {
            return Err(io::Error::other("the answer differs from the query"));
        }
    }
    Ok(())
}

/// Sends bulk data to the clearnet for two seconds; returns the goodput in Gbit/s.
pub(super) fn bulk(site: &Site, interrupt: &Interrupt) -> Result<f64, DemoError> {
    let errand = Errand::start(&site.host, "bulk transfer".to_owned(), || {
        let mut stream = connect((SERVER_V4, BULK).into())?;
        let block = vec![0x5a; 1 << 17];
        let start = Instant::now();
        while start.elapsed() < BULK_TIME {
            stream.write_all(&block)?;
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut received = [0; 8];
        stream.read_exact(&mut received)?;
        let kilobits = u64::from_be_bytes(received) / 125;
        let kilobits = u32::try_from(kilobits).unwrap_or(u32::MAX);
        Ok(f64::from(kilobits) / 1e6 / start.elapsed().as_secs_f64())
    })?;
    errand.wait(interrupt)
}

/// Exchanges 64 bytes repeatedly over one connection; returns every round-trip time.
pub(super) fn ping_pong(
    site: &Site,
    address: SocketAddr,
    rounds: u32,
    interrupt: &Interrupt,
) -> Result<Vec<Duration>, DemoError> {
    let errand = Errand::start(&site.host, format!("round trips to {address}"), move || {
        let mut stream = connect(address)?;
        let mut ball = [0x5a; 64];
        (0..rounds)
            .map(|_| {
                let start = Instant::now();
                stream.write_all(&ball)?;
                stream.read_exact(&mut ball)?;
                Ok(start.elapsed())
            })
            .collect()
    })?;
    errand.wait(interrupt)
}
