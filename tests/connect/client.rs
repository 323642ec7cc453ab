//! A process that opens connections as tor does: another user, and sockets that do not block.
//!
//! It is this test program again, and obeys lines on its standard input.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, getsockname,
    getsockopt, listen, setsockopt, socket, sockopt,
};
use nix::unistd::{Uid, setresuid};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{ChildStdin, ChildStdout, Stdio};

use exitmark_lab::{Child, Netns, contained};

/// The most connections that a load opens to each destination.
const MOST: u64 = 2_000_000;
const USER: &str = "EXITMARK_CONNECT_CLIENT";
/// What the lines of an answer begin with; the test harness prints others.
const MARK: &str = "client: ";

/// Not a test by itself: the other process.
#[test]
#[ignore = "it is run by the other tests"]
fn obey() {
    let Ok(user) = std::env::var(USER) else {
        return;
    };
    let user = Uid::from_raw(user.parse().unwrap());
    setresuid(user, user, user).unwrap();
    let mut sockets: Vec<OwnedFd> = Vec::new();
    println!("{MARK}ready");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<_> = line.split(' ').collect();
        let answer = match words.as_slice() {
            ["open", destination, options @ ..] => match open(destination, options) {
                Ok(socket) => {
                    let shown = show(&socket);
                    sockets.push(socket);
                    shown
                }
                Err(error) => format!("error {error}"),
            },
            ["try", destination] => tried(destination),
            ["listen", address] => {
                let socket = made(address.parse().unwrap(), SockType::Stream);
                let address: SocketAddr = address.parse().unwrap();
                bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
                listen(&socket, Backlog::new(8).unwrap()).unwrap();
                sockets.push(socket);
                "listens".to_owned()
            }
            ["show", number] => show(&sockets[number.parse::<usize>().unwrap()]),
            ["load", exit, relay] => load([exit, relay]),
            ["stop"] => "stopped".to_owned(),
            _ => panic!("unknown: {line}"),
        };
        println!("{MARK}{answer}");
        std::io::stdout().flush().unwrap();
    }
}

fn made(destination: SocketAddr, kind: SockType) -> OwnedFd {
    let family = match destination {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    socket(family, kind, flags, None).unwrap()
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

/// Opens a connection and waits for it. Options: `udp`, `tos=…`, `source=…`.
fn open(destination: &str, options: &[&str]) -> Result<OwnedFd, Errno> {
    let destination: SocketAddr = destination.parse().unwrap();
    let kind = match options.contains(&"udp") {
        true => SockType::Datagram,
        false => SockType::Stream,
    };
    let socket = made(destination, kind);
    for option in options.iter().filter_map(|option| option.split_once('=')) {
        match option {
            ("tos", tos) => {
                let tos: i32 = tos.parse().unwrap();
                match destination.is_ipv4() || is_mapped(destination.ip()) {
                    true => setsockopt(&socket, sockopt::Ipv4Tos, &tos)?,
                    false => setsockopt(&socket, sockopt::Ipv6TClass, &tos)?,
                }
            }
            (_, source) => {
                let source = SocketAddr::new(source.parse().unwrap(), 0);
                bind(socket.as_raw_fd(), &SockaddrStorage::from(source))?;
            }
        }
    }
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(destination)) {
        Ok(()) => return Ok(socket),
        Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    poll(&mut ready, PollTimeout::from(10_000_u16))?;
    match getsockopt(&socket, sockopt::SocketError)? {
        0 => Ok(socket),
        error => Err(Errno::from_raw(error)),
    }
}

/// The ToS of the IP version that the socket uses, its own address, fwmark and NIC.
fn show(socket: &OwnedFd) -> String {
    let own: SockaddrStorage = getsockname(socket.as_raw_fd()).unwrap();
    let own = match (own.as_sockaddr_in(), own.as_sockaddr_in6()) {
        (Some(v4), _) => IpAddr::from(v4.ip()),
        (_, Some(v6)) => IpAddr::from(v6.ip()),
        _ => unreachable!("a socket of IP"),
    };
    let tos = match own.is_ipv4() || is_mapped(own) {
        true => getsockopt(socket, sockopt::Ipv4Tos).unwrap(),
        false => getsockopt(socket, sockopt::Ipv6TClass).unwrap(),
    };
    let fwmark = getsockopt(socket, sockopt::Mark).unwrap();
    let nic = getsockopt(socket, sockopt::BindToDevice).unwrap();
    let nic = nic.to_str().unwrap().trim_end_matches('\0');
    format!("{tos:#x} {} {fwmark:#x} {nic}", own.to_canonical())
}

/// Begins a connection and gives it up: the ToS that it would have had.
fn tried(destination: &str) -> String {
    let destination: SocketAddr = destination.parse().unwrap();
    let socket = made(destination, SockType::Stream);
    let _ = connect(socket.as_raw_fd(), &SockaddrStorage::from(destination));
    let tos = match destination.is_ipv4() || is_mapped(destination.ip()) {
        true => getsockopt(&socket, sockopt::Ipv4Tos).unwrap(),
        false => getsockopt(&socket, sockopt::Ipv6TClass).unwrap(),
    };
    format!("{tos:#x}")
}

/// Opens connections to each destination in turn without waiting for them, until the next request.
/// Answers with the number opened to each, and the numbers of marked ones.
fn load(destinations: [&str; 2]) -> String {
    let destinations = destinations.map(|one| one.parse::<SocketAddr>().unwrap());
    let (mut opened, mut marked) = (0, [0; 2]);
    let stdin = std::io::stdin();
    let is_asked = || {
        let mut waiting = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        poll(&mut waiting, PollTimeout::ZERO).unwrap() > 0
    };
    while opened < MOST && !is_asked() {
        for (destination, marked) in destinations.iter().zip(&mut marked) {
            let socket = made(*destination, SockType::Stream);
            let _ = connect(socket.as_raw_fd(), &SockaddrStorage::from(*destination));
            *marked += u64::from(getsockopt(&socket, sockopt::Ipv4Tos).unwrap() != 0);
        }
        opened += 1;
    }
    format!("{opened} {} {}", marked[0], marked[1])
}

/// The other process, as seen by a test.
pub(crate) struct Client {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Client {
    /// Starts a client in a namespace, as this user.
    pub(crate) fn start(netns: &Netns, user: u32) -> Self {
        let mut command = contained(std::env::current_exe().unwrap());
        command.args(["client::obey", "--exact", "--ignored", "--nocapture"]);
        command.env(USER, user.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = netns.start(command).unwrap();
        let requests = child.process().stdin.take().unwrap();
        let answers = BufReader::new(child.process().stdout.take().unwrap());
        let mut client = Self {
            child,
            requests,
            answers,
        };
        assert_eq!(client.answer(), "ready");
        client
    }

    pub(crate) fn pid(&mut self) -> u32 {
        self.child.process().id()
    }

    /// Sends a request, without waiting for its answer.
    pub(crate) fn send(&mut self, request: &str) {
        writeln!(self.requests, "{request}").unwrap();
    }

    pub(crate) fn answer(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(
                self.answers.read_line(&mut line).unwrap() > 0,
                "the client has ended"
            );
            // The harness begins a line before a test and does not end it.
            if let Some((_, answer)) = line.split_once(MARK) {
                return answer.trim().to_owned();
            }
        }
    }

    /// Sends a request and returns its answer.
    pub(crate) fn ask(&mut self, request: &str) -> String {
        self.send(request);
        self.answer()
    }

    /// Opens a connection: its ToS and its own address.
    pub(crate) fn open(&mut self, destination: &str) -> (u8, IpAddr) {
        shown(&self.ask(&format!("open {destination}")))
    }
}

/// Parses the answer about a socket: its ToS and its own address.
pub(crate) fn shown(answer: &str) -> (u8, IpAddr) {
    assert!(!answer.starts_with("error"), "the client: {answer}");
    let mut words = answer.split(' ');
    let mut word = || words.next().unwrap();
    (hex(word()), word().parse().unwrap())
}

pub(crate) fn hex(text: &str) -> u8 {
    u8::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}
