//! The whole box, run and proven on one machine: `exitmark demo`.
//!
//! Owns the story: a Tor host, the clearnet and a relay in namespaces of their own, the real
//! forwarder between them, real connections through it, and captures that have nothing to do
//! with it. It must never touch the machine's own interfaces, and leave nothing behind,
//! however it ends: namespaces have no names, processes end with the threads that started them,
//! and the one directory goes when the stack unwinds.
//!
//! A tour: `plan` says which flows there are and what shall become of each; `traffic` makes
//! them; `watch` captures what the wire carried; `evidence` compares the two sides frame by
//! frame; [`Report`] shows it to a person or a program. `needs` and `interrupt` are about the
//! machine and about Ctrl-C.

mod evidence;
mod interrupt;
mod needs;
mod plan;
mod report;
mod traffic;
mod watch;

pub use report::Report;

use crate::lab::authorities::Authorities;
use crate::lab::consensus::Order;
use crate::lab::site::{
    HOST_V4, HOST_V6, Plan, RELAY_V4, RunningBox, SERVER_V4, SERVER_V6, Site, TORNET_MAC,
    relay_endpoints,
};
use crate::lab::{LabError, publish};
use crate::relays::{Flavor, Validity};
use evidence::Evidence;
use hdrhistogram::Histogram;
use interrupt::Interrupt;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};
use traffic::Servers;
use watch::Watch;

/// Round trips over each of the two connections.
const ROUNDS: u32 = 1_000;
const HOUR: Duration = Duration::from_secs(3600);

/// Why the demo could not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Namespaces take root.
    #[error("the demo makes network namespaces, which takes root: try `sudo exitmark demo`")]
    NotRoot,
    /// A program is missing.
    #[error("there is no `{program}`, which {purpose} in the demo: `apt install {package}`")]
    Missing {
        /// The program.
        program: &'static str,
        /// What it does for the demo.
        purpose: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The laboratory refuses.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A file cannot be written.
    #[error("cannot write the demo's files: {0}")]
    Files(#[source] io::Error),
    /// Signals cannot be watched.
    #[error("cannot watch for signals: {0}")]
    Signals(#[source] io::Error),
    /// A connection failed.
    #[error("{0}: {1}")]
    Traffic(String, String),
    /// Somebody pressed Ctrl-C.
    #[error("ended by signal {0}; everything that the demo made is gone")]
    Interrupted(u8),
}

/// How fast it was.
#[derive(Debug)]
struct Speed {
    gbit_per_s: f64,
    /// Microseconds.
    exit: Histogram<u64>,
    /// Microseconds.
    relay: Histogram<u64>,
}

/// How the box ended.
#[derive(Debug)]
struct Ending {
    ready: String,
    ended_well: bool,
    /// Its last counters, those that are not zero.
    counters: Vec<(String, u64)>,
    unaccounted: Option<u64>,
}

/// Runs the demo; `say` gets a line of progress now and then.
///
/// # Errors
/// The machine lacks something, a step fails, or somebody pressed Ctrl-C. A box that works
/// wrongly is no error but a report that does not hold.
pub fn run(say: &dyn Fn(&str)) -> Result<Report, DemoError> {
    needs::check()?;
    let interrupt = Interrupt::watch()?;
    let outcome = stage(say, &interrupt);
    // Ctrl-C reaches the children too: what looks like a fault of theirs may be just that.
    interrupt.check()?;
    let report = outcome?;
    say("gone: the namespaces, the processes, the files\n");
    Ok(report)
}

/// Everything that is made here is gone when this returns.
fn stage(say: &dyn Fn(&str), interrupt: &Interrupt) -> Result<Report, DemoError> {
    say("building    Tor host, box, clearnet and Tor network, each a network namespace");
    let directory = tempfile::Builder::new()
        .prefix("exitmark-demo-")
        .tempdir()
        .map_err(DemoError::Files)?;
    let site = Site::build(Plan::default())?;
    // The relay's operator has a web page, too: one address, two ways to it.
    site.clearnet
        .ip(&format!("addr add {RELAY_V4}/32 dev eth0"))?;
    interrupt.check()?;

    say("loading     a relay set of full size, in which the demo's relay is listed");
    let running = start_box(&site, directory.path())?;
    say(&format!("            {}", running.ready));
    interrupt.check()?;

    let servers = Servers::start(&site)?;
    say("watching    three captures, on the wires of the Tor host, the clearnet and the relay");
    let watch = Watch::start(&site, interrupt)?;
    // Whatever the hosts know of each other by now, they shall find it out under watch.
    site.host.ip("neigh flush dev eth0")?;
    say("talking     TCP of both kinds over IPv4 and IPv6, DNS, ssh, ping, and what is no IP");
    watch.send_oddities()?;
    let trouble = match traffic::exchange(&site, interrupt) {
        Err(DemoError::Traffic(what, why)) => Some(format!("{what}: {why}")),
        done => done.map(|()| None)?,
    };
    say("comparing   every frame that was sent with what arrived, byte by byte");
    let evidence = Evidence::weigh(&watch.finish(interrupt)?);

    if evidence.lost() > 0 {
        say_drops(&site, say)?;
    }

    let speed = if trouble.is_none() {
        say("timing      2,000 round trips, then two seconds at full speed, captures off");
        Some(Speed {
            exit: round_trips(&site, plan::clearnet_tcp()[0], interrupt)?,
            relay: round_trips(&site, plan::tornet_tcp()[0], interrupt)?,
            gbit_per_s: traffic::bulk(&site, interrupt)?,
        })
    } else {
        None
    };
    drop(servers);
    say("stopping    the box");
    Ok(Report {
        evidence,
        trouble,
        speed,
        ending: stop_box(running)?,
    })
}

/// Frames can be lost in the kernel's links before the box sees them: what these counted.
fn say_drops(site: &Site, say: &dyn Fn(&str)) -> Result<(), DemoError> {
    let links = [
        (&site.host, "eth0"),
        (&site.middle, "host0"),
        (&site.middle, "uplink0"),
        (&site.middle, "incoming0"),
        (&site.clearnet, "eth0"),
        (&site.tornet, "eth0"),
    ];
    for (netns, link) in links {
        let label = netns.label();
        say(&netns.ip(&format!("-s -s link show {link}"))?);
        for line in netns.command("ethtool", &["-S", link])?.lines() {
            let tells = line.contains("drop") || line.contains("error");
            if tells && !line.ends_with(": 0") {
                say(&format!("{label} {link} {}", line.trim()));
            }
        }
    }
    Ok(())
}

fn start_box(site: &Site, directory: &Path) -> Result<RunningBox, DemoError> {
    let now = SystemTime::now();
    let order = Order {
        listed: relay_endpoints().to_vec(),
        ..Order::full_size(
            Flavor::Microdesc,
            Validity {
                valid_after: now - HOUR / 2,
                fresh_until: now + HOUR / 2,
                valid_until: now + HOUR * 5 / 2,
            },
        )
    };
    let authorities = Authorities::new(9);
    let name = "cached-microdesc-consensus";
    let consensus = publish(directory, name, &order, &authorities).map_err(DemoError::Files)?;
    let text = format!(
        r#"
[ports]
host = "host0"
uplink = "uplink0"
incoming = "incoming0"

[host]
addresses = ["{HOST_V4}", "{HOST_V6}"]
listeners = [{ssh}]
resolvers = ["{SERVER_V4}", "{SERVER_V6}"]

[steer]
next_hop = "{TORNET_MAC}"

[relays]
consensus = ["{consensus}"]
{authorities}
state = "relays.state"
"#,
        ssh = plan::SSH,
        consensus = consensus.display(),
        authorities = authorities.toml(),
    );
    let configuration = directory.join("exitmark.toml");
    std::fs::write(&configuration, text).map_err(DemoError::Files)?;
    let exitmark = std::env::current_exe().map_err(DemoError::Files)?;
    Ok(site.run(&exitmark, &configuration)?)
}

fn round_trips(
    site: &Site,
    address: std::net::SocketAddr,
    interrupt: &Interrupt,
) -> Result<Histogram<u64>, DemoError> {
    let trips = traffic::ping_pong(site, address, ROUNDS, interrupt)?;
    // One microsecond to one minute, to three digits.
    let made = Histogram::new_with_bounds(1, 60_000_000, 3);
    let mut histogram = made.map_err(|error| LabError(format!("no histogram: {error}")))?;
    for trip in trips {
        histogram.saturating_record(u64::try_from(trip.as_micros()).unwrap_or(u64::MAX));
    }
    Ok(histogram)
}

fn stop_box(running: RunningBox) -> Result<Ending, DemoError> {
    let ready = running.ready.clone();
    let last = running.stop()?;
    Ok(Ending {
        ready,
        ended_well: last.status.success(),
        unaccounted: last.counters.get("unaccounted").copied(),
        counters: last.counters.into_iter().filter(|&(_, n)| n > 0).collect(),
    })
}
