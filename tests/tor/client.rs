//! A stock Tor client with paths chosen by the test: circuits built through its control port, and
//! streams attached to them.

use crate::network::{Network, TIMEOUT, Tor, wait};
use crate::socks;
use crate::web::Page;
use exitmark_lab::Netns;
use std::collections::VecDeque;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// The status code of asynchronous events (control-spec).
const EVENT: &str = "650 ";

#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// An address, without a DNS query by the exit.
    Address(IpAddr),
    Name(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address @ IpAddr::V6(_)) => write!(f, "[{address}]"),
            Self::Address(address) => write!(f, "{address}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A running download; the result is complete, or an error.
pub(crate) type Download = thread::JoinHandle<Result<(), String>>;

/// A circuit, by tor's circuit ID.
#[derive(Clone, Debug)]
pub(crate) struct Circuit(String);

pub(crate) struct Client {
    pub(crate) tor: Tor,
    control: BufReader<UnixStream>,
    events: VecDeque<String>,
    socks: PathBuf,
}

impl Client {
    /// Starts a client, and returns when its control port is open.
    pub(crate) fn start(world: &Netns, network: &Network, name: &str) -> Self {
        let directory = network.directory_of(name);
        let (control, socks) = (directory.join("control"), directory.join("socks"));
        // It requests no directories from exits, and builds no circuits of its own.
        let lines = format!(
            "SocksPort unix:{} IPv6Traffic PreferIPv6\nControlPort unix:{}\n\
             EntryNodes {}\n__DisablePredictedCircuits 1\n__LeaveStreamsUnattached 1\n\
             ConfluxEnabled 0\nLearnCircuitBuildTimeout 0\n",
            socks.display(),
            control.display(),
            network.guards()
        );
        let tor = network.tor(world, name, &lines);
        let mut stream = None;
        wait("a client opens its control port", &[&tor], || {
            stream = UnixStream::connect(&control).ok();
            stream.is_some()
        });
        let stream = stream.unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut client = Self {
            tor,
            control: BufReader::new(stream),
            events: VecDeque::new(),
            socks,
        };
        client.ask("AUTHENTICATE").unwrap();
        client.ask("SETEVENTS CIRC STREAM").unwrap();
        client
    }

    pub(crate) fn circuit(&mut self, path: &[&Tor]) -> Circuit {
        let path = path.iter().map(|tor| format!("${}", tor.fingerprint()));
        let path: Vec<_> = path.collect();
        let command = format!("EXTENDCIRCUIT 0 {}", path.join(","));
        // First the client needs a consensus with all of these relays, and their descriptors.
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Ok(answer) = self.ask(&command) {
                let number = answer.rsplit(' ').next().unwrap();
                let event = self.event(|words| {
                    let ends = ["BUILT", "FAILED", "CLOSED"];
                    words[0] == "CIRC" && words[1] == number && ends.contains(&words[2])
                });
                if event.contains(" BUILT ") {
                    return Circuit(number.to_owned());
                }
            }
            assert!(
                Instant::now() < deadline,
                "waited for {TIMEOUT:?} in vain: {command}\n{}",
                self.tor.log_tail()
            );
            thread::sleep(Duration::from_millis(200));
        }
    }

    pub(crate) fn fetch(&mut self, circuit: &Circuit, place: &Place, page: Page) -> Download {
        let (socks, host) = (self.socks.clone(), place.clone());
        let download = thread::spawn(move || {
            socks::fetch(&socks, &host, page)
                .map_err(|error| format!("{host}:{}{}: {error}", page.port, page.path()))
        });
        let target = format!("{place}:{}", page.port);
        let event =
            self.event(|words| words[0] == "STREAM" && words[2] == "NEW" && words[4] == target);
        let stream = event.split(' ').nth(2).unwrap();
        let command = format!("ATTACHSTREAM {stream} {}", circuit.0);
        self.ask(&command).unwrap();
        download
    }

    /// Waits for the first unconsumed event that `wanted` accepts.
    fn event(&mut self, wanted: impl Fn(&[&str]) -> bool) -> String {
        loop {
            while let Some(event) = self.events.pop_front() {
                let words: Vec<_> = event.split(' ').skip(1).collect();
                if wanted(&words) {
                    return event;
                }
            }
            let line = self.line();
            assert!(line.starts_with(EVENT), "unexpected line {line}");
            self.events.push_back(line);
        }
    }

    /// Sends a command, and returns the last line of the answer, as an error if the command failed.
    fn ask(&mut self, command: &str) -> Result<String, String> {
        write!(self.control.get_mut(), "{command}\r\n").unwrap();
        loop {
            match self.line() {
                line if line.starts_with(EVENT) => self.events.push_back(line),
                line if line.starts_with("250 ") => return Ok(line),
                line => return Err(line),
            }
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        if let Err(error) = self.control.read_line(&mut line) {
            panic!("the control port: {error}\n{}", self.tor.log_tail());
        }
        assert!(!line.is_empty(), "tor ended\n{}", self.tor.log_tail());
        line.trim_end().to_owned()
    }
}
