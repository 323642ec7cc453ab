//! The clearnet servers of exit traffic: a web server whose pages are determined by their names,
//! and a resolver for names of its two addresses.

use crate::ground::{RESOLVER, WEB, is_exit_host, relay};
use exitmark_lab::{Netns, Random};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

pub(crate) const WEB_PORTS: [u16; 2] = [80, 8080];
pub(crate) const DNS_PORT: u16 = 53;

/// A relay's address with a web server.
pub(crate) fn on_relay() -> IpAddr {
    relay(4).v4.into()
}

/// The chunk and the interval of a slow page until it is released, about 5 KiB a second.
const TRICKLE: (usize, Duration) = (256, Duration::from_millis(50));

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const NOT_EXISTING: u8 = 3;

/// A page, whose bytes depend only on its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    pub(crate) size: usize,
    pub(crate) seed: u64,
    /// Whether the page is sent slowly until [`Web::let_go`].
    pub(crate) slow: bool,
    /// The server's port, on which the bytes do not depend.
    pub(crate) port: u16,
}

impl Page {
    pub(crate) fn path(self) -> String {
        let pace = if self.slow { "slow" } else { "fast" };
        format!("/{pace}/{}/{}", self.size, self.seed)
    }

    pub(crate) fn body(self) -> Vec<u8> {
        let mut random = Random::new(self.seed);
        (0..self.size).map(|_| random.byte()).collect()
    }

    fn named(path: &str, port: u16) -> Option<Self> {
        let mut words = path.strip_prefix('/')?.split('/');
        Some(Self {
            slow: words.next()? == "slow",
            size: words.next()?.parse().ok()?,
            seed: words.next()?.parse().ok()?,
            port,
        })
    }
}

/// The endpoints of web servers with this port.
pub(crate) fn endpoints(port: u16) -> [SocketAddr; 3] {
    let [v4, v6] = WEB.at(port);
    [v4, v6, SocketAddr::new(on_relay(), port)]
}

/// The running servers. Their threads end with the test.
pub(crate) struct Web {
    released: Arc<AtomicBool>,
    /// Accepted connections of exit hosts, in the order of the ports; without those of the exit
    /// that has no box.
    accepted: Arc<[AtomicU64; WEB_PORTS.len()]>,
}

impl Web {
    pub(crate) fn open(world: &Netns) -> Self {
        let released = Arc::new(AtomicBool::new(false));
        let accepted = Arc::<[AtomicU64; WEB_PORTS.len()]>::default();
        for (number, port) in WEB_PORTS.into_iter().enumerate() {
            for endpoint in endpoints(port) {
                let (released, accepted) = (Arc::clone(&released), Arc::clone(&accepted));
                let listener = world.run(move || TcpListener::bind(endpoint)).unwrap();
                thread::spawn(move || {
                    while let Ok((stream, peer)) = listener.accept() {
                        let is_exit = u64::from(is_exit_host(peer.ip()));
                        accepted[number].fetch_add(is_exit, Ordering::Relaxed);
                        let released = Arc::clone(&released);
                        thread::spawn(move || serve(stream, port, &released));
                    }
                });
            }
        }
        let socket = world.run(|| UdpSocket::bind((RESOLVER, DNS_PORT))).unwrap();
        thread::spawn(move || {
            let mut query = [0; 1500];
            while let Ok((length, client)) = socket.recv_from(&mut query) {
                if let Some(answer) = answer(&query[..length]) {
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        Self { released, accepted }
    }

    /// The number of accepted connections of exit hosts, by port.
    pub(crate) fn accepted(&self) -> [(u16, u64); WEB_PORTS.len()] {
        let counts = |number: usize| self.accepted[number].load(Ordering::Relaxed);
        std::array::from_fn(|number| (WEB_PORTS[number], counts(number)))
    }

    /// Sends the rest of every slow page at once.
    pub(crate) fn let_go(&self) {
        self.released.store(true, Ordering::Relaxed);
    }
}

/// Answers one request. If the client disconnects, the download fails.
fn serve(mut stream: TcpStream, port: u16, released: &AtomicBool) -> Option<()> {
    let mut request = BufReader::new(stream.try_clone().ok()?).lines();
    let first = request.next()?.ok()?;
    let page = Page::named(first.split(' ').nth(1)?, port)?;
    while !request.next()?.ok()?.is_empty() {}
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", page.size);
    stream.write_all(head.as_bytes()).ok()?;
    let body = page.body();
    let mut left = body.as_slice();
    while page.slow && !released.load(Ordering::Relaxed) && !left.is_empty() {
        let (drop, rest) = left.split_at(TRICKLE.0.min(left.len()));
        stream.write_all(drop).ok()?;
        left = rest;
        thread::sleep(TRICKLE.1);
    }
    stream.write_all(left).ok()
}

/// The answer to a query: `….four.example` has an A record, `….six.example` an AAAA record; no
/// other name exists.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let mut end = 12;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*query.get(end)?);
        if length == 0 {
            break;
        }
        labels.push(query.get(end + 1..=end + length)?.to_ascii_lowercase());
        end += length + 1;
    }
    let kind = u16::from_be_bytes([*query.get(end + 1)?, *query.get(end + 2)?]);
    // Copy the name unchanged: tor randomises the case of its letters and checks the answer.
    let question = query.get(12..end + 5)?;
    let exists = |name: &[u8]| {
        let tail = labels.iter().rev().take(2).map(Vec::as_slice);
        tail.eq([b"example".as_slice(), name])
    };
    let (four, six) = (exists(b"four"), exists(b"six"));
    let record = match kind {
        TYPE_A if four => Some(IpAddr::from(WEB.v4)),
        TYPE_AAAA if six => Some(IpAddr::from(WEB.v6)),
        _ => None,
    };
    let code = if four || six { 0 } else { NOT_EXISTING };
    let mut answer = query.get(..2)?.to_vec();
    let answers = u8::from(record.is_some());
    answer.extend([0x85, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0]);
    answer.extend(question);
    if let Some(address) = record {
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 60]);
        match address {
            IpAddr::V4(address) => {
                answer.extend([0, 4]);
                answer.extend(address.octets());
            }
            IpAddr::V6(address) => {
                answer.extend([0, 16]);
                answer.extend(address.octets());
            }
        }
    }
    Some(answer)
}
