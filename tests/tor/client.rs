//! A stock Tor client whose paths the test lays: circuits by its control port, and streams put on
//! them as they come.

use crate::network::{Network, PATIENCE, Tor, wait};
use crate::socks;
use crate::web::Page;
use exitmark::lab::Netns;
use std::collections::VecDeque;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// The first number of the lines that come unasked.
const EVENT: &str = "650 ";

/// Where a page is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// At an address: the exit asks no resolver.
    Address(IpAddr),
    /// At a name.
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

/// A page under way: whole, or what is wrong with it.
pub(crate) type Download = thread::JoinHandle<Result<(), String>>;

/// A circuit, by tor's number for it.
#[derive(Clone, Debug)]
pub(crate) struct Circuit(String);

pub(crate) struct Client {
    pub(crate) tor: Tor,
    control: BufReader<UnixStream>,
    events: VecDeque<String>,
    socks: PathBuf,
}

impl Client {
    /// Starts a client, and returns when it can be told what to do.
    pub(crate) fn start(world: &Netns, network: &Network, name: &str) -> Self {
        let directory = network.directory_of(name);
        let (control, socks) = (directory.join("control"), directory.join("socks"));
        // It asks no exit for directories, and builds no circuits of its own.
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
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
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

    /// Builds a circuit through these relays.
    pub(crate) fn circuit(&mut self, path: &[&Tor]) -> Circuit {
        let path: Vec<_> = path
            .iter()
            .map(|tor| format!("${}", tor.fingerprint()))
            .collect();
        let command = format!("EXTENDCIRCUIT 0 {}", path.join(","));
        // The client needs a consensus with all of these relays first, and their descriptors.
        let deadline = Instant::now() + PATIENCE;
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
                "waited for {PATIENCE:?} in vain: {command}\n{}",
                self.tor.last_words()
            );
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Starts to fetch a page through a circuit.
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
        self.ask(&format!("ATTACHSTREAM {stream} {}", circuit.0))
            .unwrap();
        download
    }

    /// Waits for the first event, of those that nobody has waited for yet, of which this holds.
    fn event(&mut self, wanted: impl Fn(&[&str]) -> bool) -> String {
        loop {
            while let Some(event) = self.events.pop_front() {
                let words: Vec<_> = event.split(' ').skip(1).collect();
                if wanted(&words) {
                    return event;
                }
            }
            let line = self.line();
            assert!(line.starts_with(EVENT), "nobody asked for {line}");
            self.events.push_back(line);
        }
    }

    /// Gives a command, and returns the last line of the answer: what is wrong with it if it was
    /// not done.
    fn ask(&mut self, command: &str) -> Result<String, String> {
        let stream = self.control.get_mut();
        stream
            .write_all(format!("{command}\r\n").as_bytes())
            .unwrap();
        loop {
            let line = self.line();
            if line.starts_with(EVENT) {
                self.events.push_back(line);
            } else if line.starts_with("250 ") {
                return Ok(line);
            } else {
                return Err(line);
            }
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        if let Err(error) = self.control.read_line(&mut line) {
            panic!("the control port: {error}\n{}", self.tor.last_words());
        }
        assert!(!line.is_empty(), "tor ended\n{}", self.tor.last_words());
        line.trim_end().to_owned()
    }
}
