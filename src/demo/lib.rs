//! The whole box, run and checked on one machine: `exitmark demo`.
//!
//! Builds a Tor host, the clearnet and a relay in network namespaces of their own, runs the real
//! forwarder between them, sends real connections through it, and captures independently of it.
//! The demo must never touch the machine's own interfaces, and must remove all that it created,
//! however it ends: namespaces have no names, processes end with the threads that started them, and
//! its directory is removed when the stack unwinds.
//!
//! `plan` lists the flows and the expected treatment of each; `traffic` generates them; `captures`
//! captures; `evidence` compares the two sides frame by frame; [`Report`] is the output, as text
//! or JSON. `needs` checks the machine, `interrupt` handles Ctrl-C.

#![forbid(unsafe_code)]

mod captures;
mod evidence;
mod interrupt;
mod needs;
mod plan;
mod report;
mod traffic;

pub use report::Report;

use captures::MarkedCaptures;
use evidence::Evidence;
use exitmark_lab::authorities::Authorities;
use exitmark_lab::consensus::{ConsensusBuilder, hours_from};
use exitmark_lab::site::{
    HOST_V4, HOST_V6, Plan, RELAY_V4, SERVER_V4, SERVER_V6, Site, TORNET_MAC, relay_endpoints,
};
use exitmark_lab::{LabError, RunningBox, publish};
use exitmark_relays::Flavor;
use hdrhistogram::Histogram;
use interrupt::Interrupt;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};
use traffic::Servers;

/// Round trips over each of the two connections.
const ROUNDS: u32 = 1_000;
const HALF_AN_HOUR: Duration = Duration::from_secs(1800);

/// Why the demo did not complete.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Network namespaces require root.
    #[error("the demo creates network namespaces, which requires root: `sudo exitmark demo`")]
    NotRoot,
    /// A required program is not in `PATH`.
    #[error("`{program}` is not installed; it {purpose} in the demo: `apt install {package}`")]
    Missing {
        /// The name of its executable.
        program: &'static str,
        /// What the demo uses it for, as a clause with a verb.
        purpose: &'static str,
        /// The Debian package that contains it.
        package: &'static str,
    },
    /// An operation of the lab failed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A file cannot be written.
    #[error("cannot write the demo's files: {0}")]
    Files(#[source] io::Error),
    /// The signal handlers cannot be installed.
    #[error("cannot handle signals: {0}")]
    Signals(#[source] io::Error),
    /// A connection failed: its title, and the reason.
    #[error("{0}: {1}")]
    Traffic(String, String),
    /// The demo received this termination signal.
    #[error("ended by signal {0}; everything that the demo created is removed")]
    Interrupted(u8),
}

#[derive(Debug)]
struct Speed {
    gbit_per_s: f64,
    /// Round-trip times in microseconds.
    exit: Histogram<u64>,
    /// Round-trip times in microseconds.
    relay: Histogram<u64>,
}

#[derive(Debug)]
struct Ending {
    ready: String,
    ended_well: bool,
    /// The final counters that are not zero.
    counters: Vec<(String, u64)>,
    unaccounted: Option<u64>,
}

/// Runs the demo; `say` receives lines of progress.
///
/// # Errors
/// Fails if a prerequisite is missing, if a step fails, or on a termination signal. A box that
/// works wrongly is not an error: [`Report::holds`] is then false.
pub fn run(say: &dyn Fn(&str)) -> Result<Report, DemoError> {
    needs::check()?;
    let interrupt = Interrupt::watch()?;
    let outcome = stage(say, &interrupt);
    // Ctrl-C ends the children too, so check for it before reporting their failure.
    interrupt.check()?;
    let report = outcome?;
    say("removed     the namespaces, the processes, the files\n");
    Ok(report)
}

/// Runs all steps. Everything created here is removed when this returns.
fn stage(say: &dyn Fn(&str), interrupt: &Interrupt) -> Result<Report, DemoError> {
    say("building    Tor host, box, clearnet and Tor network, each a network namespace");
    let directory = tempfile::Builder::new()
        .prefix("exitmark-demo-")
        .tempdir()
        .map_err(DemoError::Files)?;
    let site = Site::build(Plan::default())?;
    // A web server at the relay's address, reached over the clearnet.
    let address = format!("addr add {RELAY_V4}/32 dev eth0");
    site.clearnet.ip(&address)?;
    interrupt.check()?;

    say("loading     a relay set of full size that lists the demo's relay");
    let running = start_box(&site, directory.path())?;
    say(&format!("            {}", running.ready));
    interrupt.check()?;

    let servers = Servers::start(&site)?;
    say("capturing   on the links of the Tor host, the clearnet and the relay");
    let captures = MarkedCaptures::start(&site, interrupt)?;
    // Neighbour resolution is part of the captured traffic.
    site.host.ip("neigh flush dev eth0")?;
    say("sending     exit and relay TCP over IPv4 and IPv6, DNS, ssh, ping, non-IP frames");
    captures.send_raw_frames()?;
    let trouble = match traffic::exchange(&site, interrupt) {
        Err(DemoError::Traffic(what, why)) => Some(format!("{what}: {why}")),
        done => done.map(|()| None)?,
    };
    say("comparing   sent and received frames byte by byte");
    let evidence = Evidence::weigh(&captures.finish(interrupt)?);

    if evidence.lost() > 0 {
        say_drops(&site, say)?;
    }

    let mut speed = None;
    if trouble.is_none() {
        say("timing      2,000 round trips, then two seconds at full speed, captures off");
        speed = Some(Speed {
            exit: round_trips(&site, plan::clearnet_tcp()[0], interrupt)?,
            relay: round_trips(&site, plan::tornet_tcp()[0], interrupt)?,
            gbit_per_s: traffic::bulk(&site, interrupt)?,
        });
    }
    drop(servers);
    say("stopping    the box");
    Ok(Report {
        evidence,
        trouble,
        speed,
        ending: stop_box(running)?,
    })
}

/// Prints the drop counters of all links: frames can be lost before the box receives them.
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
            let is_relevant = line.contains("drop") || line.contains("error");
            if is_relevant && !line.ends_with(": 0") {
                say(&format!("{label} {link} {}", line.trim()));
            }
        }
    }
    Ok(())
}

fn start_box(site: &Site, directory: &Path) -> Result<RunningBox, DemoError> {
    let validity = hours_from(SystemTime::now() - HALF_AN_HOUR, [0, 1, 3]);
    let builder = ConsensusBuilder {
        listed: relay_endpoints().to_vec(),
        ..ConsensusBuilder::full_size(Flavor::Microdesc, validity)
    };
    let authorities = Authorities::new(9);
    let name = "cached-microdesc-consensus";
    let consensus = publish(directory, name, &builder, &authorities).map_err(DemoError::Files)?;
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
    let own = std::env::current_exe().map_err(DemoError::Files)?;
    let exitmark = own.with_file_name("exitmark");
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
    let mut histogram = made.map_err(|error| LabError(format!("histogram: {error}")))?;
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
