//! A whole site in namespaces: a Tor host, the box, the clearnet, and the network that carries
//! Tor traffic.
//!
//! ```text
//!  host ── eth0 ─── host0 ┌─────┐ uplink0 ─── eth0 ── clearnet (router, web server)
//!                         │ box │
//!                         └─────┘ incoming0 ─ eth0 ── tornet (router, relay)
//! ```

use super::{Child, LabError, Netns, VethEnd, contained, poll, veth};
use exitmark_policy::Endpoint;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

/// The Tor host's MAC address.
pub const HOST_MAC: &str = "02:00:00:00:01:01";
/// The host's clearnet IPv4 address.
pub const HOST_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The host's clearnet IPv6 address.
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
/// The MAC address of the clearnet's router.
pub const CLEARNET_MAC: &str = "02:00:00:00:02:02";
/// The web server's IPv4 address, routed by the clearnet's router.
pub const SERVER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// The web server's IPv6 address, routed by the clearnet's router.
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 7);
/// The MAC address of the box's NIC on the network that carries Tor traffic.
pub const INCOMING_MAC: &str = "02:00:00:00:03:01";
/// The MAC address of the router there, which is the next hop of steered frames.
pub const TORNET_MAC: &str = "02:00:00:00:03:02";
/// The relay's IPv4 address, routed by that router.
pub const RELAY_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The relay's IPv6 address, routed by that router.
pub const RELAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 1);
/// The relay's ORPort on both addresses.
pub const OR_PORT: u16 = 9001;
/// The box's own IPv4 address on the network that carries Tor traffic.
pub const BOX_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// The box's own IPv6 address on the network that carries Tor traffic.
pub const BOX_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 2);

const PATIENCE: Duration = Duration::from_secs(20);

/// The four namespaces of a site.
pub struct Site {
    /// The Tor host, with `eth0`.
    pub host: Netns,
    /// The box, with `host0`, `uplink0` and `incoming0`.
    pub middle: Netns,
    /// The router and server on the clearnet's side.
    pub clearnet: Netns,
    /// The router and relay on the network that carries Tor traffic.
    pub tornet: Netns,
}

/// The parameters of a site.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The MTU of every link, in bytes.
    pub mtu: u32,
    /// The number of queues of each of the box's NICs.
    pub queues: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            mtu: 1500,
            queues: 1,
        }
    }
}

impl Site {
    /// Creates links, addresses and routes, but no neighbour entries.
    ///
    /// # Errors
    /// Fails without privilege, or if `ip` or `ethtool` is missing or fails.
    pub fn build(plan: Plan) -> Result<Self, LabError> {
        let site = Self {
            host: Netns::new("host")?,
            middle: Netns::new("box")?,
            clearnet: Netns::new("clearnet")?,
            tornet: Netns::new("tornet")?,
        };
        let links = [
            (&site.host, HOST_MAC, "host0", "02:00:00:00:01:02"),
            (&site.clearnet, CLEARNET_MAC, "uplink0", "02:00:00:00:02:01"),
            (&site.tornet, TORNET_MAC, "incoming0", INCOMING_MAC),
        ];
        for (netns, mac, port, port_mac) in links {
            let end = |netns, name, mac| VethEnd {
                netns,
                name,
                mac,
                queues: plan.queues,
            };
            veth(
                &end(netns, "eth0", mac),
                &end(&site.middle, port, port_mac),
                plan.mtu,
            )?;
            // Disable checksum offload: a veth pair does not complete checksums.
            netns.command("ethtool", &["-K", "eth0", "tx", "off"])?;
            poll(netns, "eth0")?;
        }
        // The two wire ports have no addresses.
        for port in ["host0", "uplink0"] {
            site.middle
                .sysctl(&format!("net/ipv6/conf/{port}/disable_ipv6"), "1")?;
        }
        site.address()?;
        Ok(site)
    }

    fn address(&self) -> Result<(), LabError> {
        let Self {
            host,
            middle,
            clearnet,
            tornet,
        } = self;
        for (netns, addresses) in [
            (host, [format!("{HOST_V4}/24"), format!("{HOST_V6}/64")]),
            (clearnet, ["192.0.2.1/24".into(), "2001:db8:1::1/64".into()]),
            (
                clearnet,
                [format!("{SERVER_V4}/32"), format!("{SERVER_V6}/128")],
            ),
            (tornet, ["203.0.113.1/24".into(), "2001:db8:3::1/64".into()]),
            (
                tornet,
                [format!("{RELAY_V4}/32"), format!("{RELAY_V6}/128")],
            ),
        ] {
            for address in addresses {
                netns.ip(&format!("addr add {address} dev eth0"))?;
            }
        }
        middle.ip(&format!("addr add {BOX_V4}/24 dev incoming0"))?;
        middle.ip(&format!("addr add {BOX_V6}/64 dev incoming0"))?;
        host.ip("route add default via 192.0.2.1")?;
        host.ip("-6 route add default via 2001:db8:1::1")?;
        // Route answers to the host through the box.
        tornet.ip(&format!("route add 192.0.2.0/24 via {BOX_V4}"))?;
        tornet.ip(&format!("-6 route add 2001:db8:1::/64 via {BOX_V6}"))?;
        tornet.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
        tornet.sysctl("net/ipv4/conf/eth0/rp_filter", "0")?;
        Ok(())
    }

    /// Writes a configuration for this site into `directory` and returns its path. `relays` are
    /// lines of the table `[relays]`; `more` is appended unchanged.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn configuration(
        &self,
        directory: &Path,
        relays: &str,
        more: &str,
    ) -> Result<PathBuf, LabError> {
        let text = format!(
            "[ports]\nhost = \"host0\"\nuplink = \"uplink0\"\nincoming = \"incoming0\"\n\n\
             [host]\naddresses = [\"{HOST_V4}\", \"{HOST_V6}\"]\n\n\
             [steer]\nnext_hop = \"{TORNET_MAC}\"\n\n\
             [relays]\n{relays}\n{more}"
        );
        let path = directory.join("exitmark.toml");
        std::fs::write(&path, text)
            .map_err(|error| LabError(format!("cannot write {}: {error}", path.display())))?;
        Ok(path)
    }

    /// Starts `exitmark run` in the box and returns when it is ready.
    ///
    /// # Errors
    /// Fails if the box does not become ready; the error contains its log.
    pub fn run(&self, exitmark: &Path, configuration: &Path) -> Result<RunningBox, LabError> {
        RunningBox::start(&self.middle, exitmark, configuration)
    }
}

/// The endpoints at which the site's relay listens.
pub fn relay_endpoints() -> [Endpoint; 2] {
    [IpAddr::from(RELAY_V4), IpAddr::from(RELAY_V6)].map(|address| Endpoint::new(address, OR_PORT))
}

/// A running `exitmark run`.
pub struct RunningBox {
    child: Child,
    lines: mpsc::Receiver<String>,
    log: Arc<Mutex<String>>,
    printed: Arc<Mutex<String>>,
    words: Option<thread::JoinHandle<()>>,
    /// Its `ready` line.
    pub ready: String,
}

/// The exit status and the final output of a box.
pub struct LastWords {
    /// The exit status of the process.
    pub status: ExitStatus,
    /// The final counters by name.
    pub counters: BTreeMap<String, u64>,
    /// All of its standard error.
    pub log: String,
}

impl RunningBox {
    /// Starts a box in a namespace and returns when it is ready.
    ///
    /// # Errors
    /// Fails if the box does not become ready; the error contains its log.
    pub fn start(netns: &Netns, exitmark: &Path, configuration: &Path) -> Result<Self, LabError> {
        let mut command = contained(exitmark);
        command.args(["run", "--config"]).arg(configuration);
        Self::start_by(netns, command)
    }

    /// Like [`start`](Self::start), with the caller's command, for example to set its environment.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_by(netns: &Netns, mut command: Command) -> Result<Self, LabError> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = netns.start(command)?;
        let no_pipe = || LabError("exitmark has no pipe".to_owned());
        let stdout = child.process().stdout.take().ok_or_else(no_pipe)?;
        let stderr = child.process().stderr.take().ok_or_else(no_pipe)?;
        let (line_out, lines) = mpsc::channel();
        let [log, printed] = [(), ()].map(|()| Arc::new(Mutex::new(String::new())));
        let (log_in, printed_in) = (Arc::clone(&log), Arc::clone(&printed));
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                append(&printed_in, &line);
                let _ = line_out.send(line);
            }
        });
        let words = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                append(&log_in, &line);
            }
        });
        let mut running = Self {
            child,
            lines,
            log,
            printed,
            words: Some(words),
            ready: String::new(),
        };
        match running.line("ready") {
            Ok(line) => {
                running.ready = line;
                Ok(running)
            }
            Err(_) => {
                drop(running.child);
                let _ = running.words.take().map(thread::JoinHandle::join);
                let log = running.log.lock().unwrap_or_else(PoisonError::into_inner);
                Err(LabError(format!(
                    "exitmark did not get ready: {}",
                    log.trim()
                )))
            }
        }
    }

    /// Waits for the next line on standard output that begins with `beginning`.
    fn line(&self, beginning: &str) -> Result<String, LabError> {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.map_err(|_| LabError(format!("no line `{beginning}…` received")))?;
            if line.starts_with(beginning) {
                return Ok(line);
            }
        }
    }

    /// Sends a signal to the box.
    ///
    /// # Errors
    /// Fails if the box has ended.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        self.child.signal(signal)
    }

    /// The process ID of the box.
    pub fn pid(&mut self) -> u32 {
        self.child.process().id()
    }

    /// Whether the box has ended, by itself or by a signal.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.process().try_wait(), Ok(Some(_)))
    }

    /// The current counters by name.
    ///
    /// # Errors
    /// Fails if the box does not answer.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>, LabError> {
        self.signal(Signal::SIGUSR1)?;
        self.line("counters").map(|line| numbers(&line))
    }

    /// Its standard error so far.
    pub fn log(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.clone()
    }

    /// Its standard output so far.
    pub fn printed(&self) -> String {
        let printed = self.printed.lock().unwrap_or_else(PoisonError::into_inner);
        printed.clone()
    }

    /// Waits until the box has ended by itself or by a signal; returns its exit status.
    ///
    /// # Errors
    /// Fails if the box does not end in time.
    pub fn ended(&mut self) -> Result<ExitStatus, LabError> {
        self.child.wait(PATIENCE)
    }

    /// Stops the box with SIGTERM and waits for its end.
    ///
    /// # Errors
    /// Fails if the box does not end in time.
    pub fn stop(self) -> Result<LastWords, LabError> {
        self.signal(Signal::SIGTERM)?;
        let counters = numbers(&self.line("counters")?);
        self.last_words(counters)
    }

    /// Like [`stop`](Self::stop), for a program that prints no counters at its end.
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    pub fn end(self) -> Result<LastWords, LabError> {
        self.signal(Signal::SIGTERM)?;
        self.last_words(BTreeMap::new())
    }

    fn last_words(mut self, counters: BTreeMap<String, u64>) -> Result<LastWords, LabError> {
        let status = self.child.wait(PATIENCE)?;
        let _ = self.words.take().map(thread::JoinHandle::join);
        Ok(LastWords {
            status,
            counters,
            log: self.log(),
        })
    }
}

fn append(text: &Mutex<String>, line: &str) {
    let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
    *text += line;
    text.push('\n');
}

/// Parses the `name=number` words of a line.
fn numbers(line: &str) -> BTreeMap<String, u64> {
    line.split_whitespace()
        .filter_map(|word| word.split_once('='))
        .filter_map(|(name, number)| Some((name.to_owned(), number.parse().ok()?)))
        .collect()
}
