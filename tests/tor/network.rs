//! The Tor network: every tor is a process in a namespace, with a data directory of its own.

use crate::ground::{DIR_PORT, Dual, EXITS, OR_PORT, RESOLVER, relay};
use crate::keys::{self, fingerprint, make_private};
use exitmark_lab::process::{as_user, set_mode};
use exitmark_lab::{Child, Netns, contained};
use nix::sys::signal::Signal;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

const AUTHORITIES: u8 = 3;
/// The number of initial relays. One of them is an exit, for circuits in which an exit under test
/// is the first hop.
const RELAYS: u8 = 4;
/// The consensus files of both flavours, which every relay has.
pub(crate) const DOCUMENTS: [&str; 2] = ["cached-consensus", "cached-microdesc-consensus"];
/// The number of log lines in an error.
const LAST_LINES: usize = 12;

/// The timeout of every step, a few rounds of votes.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(120);

/// Votes every 20 s, the least that two busy cores keep up with.
pub(crate) const COMMON: &str = "TestingTorNetwork 1
V3AuthVotingInterval 20
V3AuthVoteDelay 4
V3AuthDistDelay 4
AuthDirMaxServersPerAddr 0
PathsNeededToBuildCircuits 0.25
AssumeReachable 1
ExitPolicyRejectPrivate 0
ShutdownWaitLength 0
SafeLogging 0
";
/// With parameters in the consensus.
const AUTHORITY: &str = "AuthoritativeDirectory 1
ConsensusParams circwindow=1000
V3AuthoritativeDirectory 1
TestingV3AuthInitialVotingInterval 5
TestingV3AuthInitialVoteDelay 2
TestingV3AuthInitialDistDelay 2
TestingDirAuthVoteExit *
TestingDirAuthVoteGuard *
TestingDirAuthVoteHSDir *
TestingMinExitFlagThreshold 0
AuthDirHasIPv6Connectivity 1
ExitPolicy reject *:*
";
const MIDDLE: &str = "ExitPolicy reject *:*\n";
const DOOR: &str = "ExitRelay 1\nIPv6Exit 1\nExitPolicy accept *:*\n";

pub(crate) struct Tor {
    pub(crate) name: String,
    pub(crate) directory: PathBuf,
    child: Child,
}

impl Tor {
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
        format!("--- {}:\n{}\n", self.name, last.join("\n"))
    }

    /// Whether its consensus documents, in both flavours, list all of these relays.
    pub(crate) fn lists(&self, names: &[String]) -> bool {
        DOCUMENTS.iter().all(|document| {
            let text = fs::read_to_string(self.directory.join(document)).unwrap_or_default();
            let lists = |name| text.contains(&format!("\nr {name} "));
            names.iter().all(lists)
        })
    }

    /// The fingerprint, as used in control commands.
    pub(crate) fn fingerprint(&self) -> String {
        fingerprint(&self.directory)
    }

    /// Ends tor with a signal, as an operator does.
    pub(crate) fn stop(mut self) {
        self.child.signal(Signal::SIGTERM).unwrap();
        self.child.wait(TIMEOUT).unwrap();
    }
}

/// Waits for a condition; on timeout fails with the logs of these tors.
#[track_caller]
pub(crate) fn wait(what: &str, tors: &[&Tor], mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        if Instant::now() > deadline {
            let words: String = tors.iter().map(|tor| tor.log_tail()).collect();
            panic!("waited for {TIMEOUT:?} in vain: {what}\n{words}");
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The running network, and the data that a participant needs.
pub(crate) struct Network {
    /// The authorities, then the initial relays.
    tors: Vec<Tor>,
    /// The lines of a torrc that name the authorities.
    authority_lines: String,
    /// The authorities' identities, 40 hexadecimal digits each.
    pub(crate) identities: Vec<String>,
    /// The files of all tors. The last field, so that it is removed after all of them have ended.
    directory: tempfile::TempDir,
}

impl Network {
    /// Starts the authorities and the first relays.
    pub(crate) fn start(world: &Netns) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name| directory.path().join(name);
        fs::write(file("defaults"), "").unwrap();
        fs::write(file("resolv.conf"), format!("nameserver {RESOLVER}\n")).unwrap();
        let keys: Vec<_> = (1..=AUTHORITIES)
            .map(|number| {
                let directory = directory.path().to_owned();
                thread::spawn(move || {
                    let (name, role) = (name(number), dir_port(number));
                    keys::authority(&directory, &name, relay(number), &role)
                })
            })
            .collect();
        let (lines, identities): (Vec<_>, Vec<_>) =
            keys.into_iter().map(|keys| keys.join().unwrap()).unzip();
        let mut network = Self {
            directory,
            authority_lines: lines.concat(),
            identities,
            tors: Vec::new(),
        };
        for number in 1..=AUTHORITIES + RELAYS {
            let name = name(number);
            let role = match number - 1 {
                ..AUTHORITIES => dir_port(number),
                AUTHORITIES => network.door(),
                _ => MIDDLE.to_owned(),
            };
            let role = role + &avoid_newcomer();
            let tor = network.relay(world, &name, relay(number), &role);
            network.tors.push(tor);
        }
        network
    }

    /// Starts one more relay in the world. Before it is listed, other relays connect to it to test
    /// its reachability; it uses no exit for that, and connects to none by itself.
    pub(crate) fn join(&self, world: &Netns, name: &str) -> Tor {
        let role = MIDDLE.to_owned() + &avoiding(EXITS);
        self.relay(world, name, newcomer(), &role)
    }

    /// Starts a relay with an ORPort on both of its addresses, which are also its source addresses.
    fn relay(&self, netns: &Netns, name: &str, at: Dual, role: &str) -> Tor {
        let (Dual { v4, v6 }, listens) = (at, listening(name, at));
        let bind = format!("OutboundBindAddress {v4}\nOutboundBindAddress [{v6}]\n");
        self.tor(netns, name, &(listens + &bind + role))
    }

    /// The lines of a torrc that make a relay an exit.
    pub(crate) fn door(&self) -> String {
        let resolver = self.path("resolv.conf");
        format!("{DOOR}ServerDNSResolvConfFile {}\n", resolver.display())
    }

    /// The data directory of a tor of this name.
    pub(crate) fn directory_of(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        make_private(&path);
        path
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts a tor with these lines in its torrc.
    pub(crate) fn tor(&self, netns: &Netns, name: &str, lines: &str) -> Tor {
        self.tor_of(netns, name, lines, None)
    }

    /// The same, as this user if one is given.
    pub(crate) fn tor_of(&self, netns: &Netns, name: &str, lines: &str, user: Option<u32>) -> Tor {
        let directory = self.directory_of(name);
        let torrc = directory.join("torrc");
        let text = format!(
            "{COMMON}DataDirectory {0}\nLog notice file {0}/log\n{lines}{1}",
            directory.display(),
            self.authority_lines
        );
        fs::write(&torrc, text).unwrap();
        let mut command = match user {
            None => contained("tor"),
            Some(user) => {
                // The user reads what all tors share, and owns what is its own.
                set_mode(self.directory.path(), 0o755).unwrap();
                let entries = fs::read_dir(&directory).unwrap();
                let own = entries.map(|entry| entry.unwrap().path());
                for path in own.chain([directory.clone()]) {
                    std::os::unix::fs::chown(path, Some(user), Some(user)).unwrap();
                }
                as_user(user, "tor")
            }
        };
        command
            .arg("--defaults-torrc")
            .arg(self.directory.path().join("defaults"))
            .arg("-f")
            .arg(&torrc)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Tor {
            name: name.to_owned(),
            directory,
            child: netns.start(command).unwrap(),
        }
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.tors.iter().map(|tor| tor.name.clone()).collect()
    }

    /// The relay that is an exit, and the others.
    pub(crate) fn relays(&self) -> (&Tor, &[Tor]) {
        let relays = &self.tors[usize::from(AUTHORITIES)..];
        (&relays[0], &relays[1..])
    }

    /// The directory authorities, which have every consensus first. Clients start with the
    /// documents of one of them, and fetch the next ones late.
    pub(crate) fn authorities(&self) -> &[Tor] {
        &self.tors[..usize::from(AUTHORITIES)]
    }

    /// Relays that clients may use as guards, so that they request no directories from exits.
    pub(crate) fn guards(&self) -> String {
        let (_, guards) = self.relays();
        let names: Vec<_> = guards.iter().map(Tor::fingerprint).collect();
        names.join(",")
    }

    /// All initial tors, for [`wait`].
    pub(crate) fn all(&self) -> Vec<&Tor> {
        self.tors.iter().collect()
    }
}

fn name(number: u8) -> String {
    match number.checked_sub(AUTHORITIES) {
        None | Some(0) => format!("authority{number}"),
        Some(relay) => format!("relay{relay}"),
    }
}

pub(crate) fn newcomer() -> Dual {
    relay(AUTHORITIES + RELAYS + 1)
}

/// Every endpoint of the network that listens in the world.
pub(crate) fn endpoints() -> impl Iterator<Item = std::net::SocketAddr> {
    let all = (1..=AUTHORITIES + RELAYS + 1).flat_map(|number| relay(number).at(OR_PORT));
    all.chain((1..=AUTHORITIES).map(|number| (relay(number).v4, DIR_PORT).into()))
}

/// The lines of a torrc with which a relay listens and publishes its addresses.
pub(crate) fn listening(name: &str, Dual { v4, v6 }: Dual) -> String {
    format!(
        "Nickname {name}\nSocksPort 0\nAddress {v4}\nAddress [{v6}]\n\
         ORPort {v4}:{OR_PORT}\nORPort [{v6}]:{OR_PORT}\n"
    )
}

/// The lines of a torrc with which a tor builds no circuits through these addresses.
fn avoiding(addresses: &str) -> String {
    format!("ExcludeNodes {addresses}\nStrictNodes 1\n")
}

/// The same for the relay that joins: a tor that knows it first could extend a circuit to it
/// through an exit whose own tor, and so the box, does not know it yet.
pub(crate) fn avoid_newcomer() -> String {
    avoiding(&newcomer().v4.to_string())
}

fn dir_port(number: u8) -> String {
    format!("{AUTHORITY}DirPort {}:{DIR_PORT}\n", relay(number).v4)
}
