//! One row: a fresh site with sinks, a box, a load, an event, and the result.

use crate::cgroup::MemoryCgroup;
use crate::events::happen;
use crate::expect::{Event, Expected, IN_TEN_MS, Lost};
use crate::flows::{LISTENER, Sink, flows, place};
use crate::load::{Load, PACE, Rhythm, Sent};
use crate::report::Row;
use crate::sets::{Sets, publish};
use crate::sinks::Sinks;
use exitmark_lab::site::{Dropped, FAR_END, Plan, Site};
use exitmark_lab::{CERTIFICATES, Config, LabError, RunningBox};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) const EXITMARK: &str = env!("CARGO_BIN_EXE_exitmark");
/// The file of the relay set in force.
const CONSENSUS: &str = "cached-microdesc-consensus";
/// The length of the load before the event; it lasts twice as long after it.
const BEFORE: Duration = Duration::from_millis(300);
const AFTER: Duration = Duration::from_millis(200);

/// The parts of a run that an event acts on.
pub(crate) struct Stage<'a> {
    pub(crate) load: Load,
    /// The box, if it runs. Dropped before its cgroup.
    pub(crate) running: Option<RunningBox>,
    pub(crate) cgroup: Option<MemoryCgroup>,
    pub(crate) rhythm: Rhythm,
    pub(crate) site: &'a Site,
    pub(crate) sinks: &'a Sinks,
    pub(crate) sets: &'a Sets,
    pub(crate) directory: &'a Path,
    pub(crate) configuration: &'a Path,
    pub(crate) consensus: &'a Path,
}

/// Runs one line of the table with one engine, and returns its row.
pub(crate) fn play(
    program: &[u8],
    sets: &Sets,
    expected: &Expected,
    engine: &'static str,
) -> (Row, Option<String>) {
    let lost = expected.lost(engine);
    let mut row = Row {
        event: expected.name,
        engine,
        load: expected.rhythm.name(),
        rate_pps: match expected.rhythm {
            Rhythm::Steady | Rhythm::Bursts => PACE,
            Rhythm::Saturation => 0,
        },
        allowed: match lost {
            Lost::AtMost(limit) | Lost::AtMostEach(limit) | Lost::Beside(limit) => Some(limit),
            Lost::TenMs => Some(IN_TEN_MS),
            Lost::Any | Lost::NoneAfter => None,
        },
        ..Row::default()
    };
    if let Err(error) = measure(program, sets, expected, &mut row) {
        row.error = Some(error.0);
    }
    let complaint = row.complaint(lost);
    row.holds = complaint.is_none();
    (row, complaint)
}

fn measure(
    program: &[u8],
    sets: &Sets,
    expected: &Expected,
    row: &mut Row,
) -> Result<(), LabError> {
    let (site, sinks) = site_with_sinks(program)?;
    let directory = tempfile::tempdir().map_err(|error| LabError(error.to_string()))?;
    let consensus = directory.path().join(CONSENSUS);
    let configuration = configure(directory.path(), row.engine, sets, expected.event)?;
    let mut cgroup = None;
    let mut exitmark = PathBuf::from(EXITMARK);
    if expected.event == Event::OutOfMemory {
        let made = MemoryCgroup::new()?;
        exitmark = made.wrap(&exitmark, directory.path())?;
        cgroup = Some(made);
    }
    let running = site.run(&exitmark, &configuration)?;
    let dropped = site.dropped()?;
    let mut stage = Stage {
        load: Load::start(&site, &sinks, expected.rhythm)?,
        running: Some(running),
        cgroup,
        rhythm: expected.rhythm,
        site: &site,
        sinks: &sinks,
        sets,
        directory: directory.path(),
        configuration: &configuration,
        consensus: &consensus,
    };
    stage.load.go_on(BEFORE)?;
    let back = happen(&mut stage, expected.event)?;
    stage.load.go_on(AFTER)?;
    let late = place(stage.load.number(), expected.rhythm.flows()).1;
    stage.load.go_on(AFTER)?;
    let Stage { load, running, .. } = stage;
    let sent = load.finish()?;
    drain(&sinks, &sent)?;
    let dropped = site.dropped()?.since(&dropped);
    fill(row, &sinks, expected.rhythm, &sent, &dropped, back)?;
    let flows = expected.rhythm.flows() as usize;
    let next = sinks.next()?;
    let silent = next[..flows].iter().filter(|&&next| next <= late.into());
    row.silent_flows = silent.count() as u64;
    // A stopped process does not handle SIGTERM.
    if let (Some(running), true) = (running, expected.event != Event::Stop) {
        let last = running.stop_well()?;
        let dropped = |name: &str| name.starts_with("dropped_") || name.ends_with("_missed");
        let counters = last.counters.iter().filter(|(name, _)| dropped(name));
        row.dropped_in_box = Some(counters.map(|(_, number)| number).sum());
    }
    Ok(())
}

/// A site with a sink at every far end, whose far ends neither send nor answer.
pub(crate) fn site_with_sinks(program: &[u8]) -> Result<(Site, Sinks), LabError> {
    let site = Site::build(Plan::default())?;
    site.silence()?;
    let sinks = Sinks::load(program)?;
    sinks.attach(Sink::Uplink, &site.clearnet, FAR_END)?;
    sinks.attach(Sink::Incoming, &site.tornet, FAR_END)?;
    sinks.attach(Sink::Host, &site.host, FAR_END)?;
    Ok((site, sinks))
}

/// Writes the configuration for an event, and the documents that it names.
pub(crate) fn configure(
    directory: &Path,
    engine: &str,
    sets: &Sets,
    event: Event,
) -> Result<PathBuf, LabError> {
    let first = match event {
        Event::Swap => &sets.large[0],
        _ => &sets.small[0],
    };
    publish(&directory.join(CERTIFICATES), &sets.certificates)?;
    publish(&directory.join(CONSENSUS), first)?;
    let mut config = Config::default()
        .engine(engine)
        .host(format_args!("listeners = [{LISTENER}]"))
        .relays(format!(
            "consensus = [\"{CONSENSUS}\"]\nstate = \"relays.state\"\nretain = \"0s\"\n{}",
            sets.authorities.toml()
        ));
    if event == Event::FullRings {
        config = config.datapath("ring = 64\nbatch = 64");
    }
    // The sinks expect no relay frames at the uplink.
    if let Event::LinkDown(_) | Event::PortBack(_) = event {
        config = config.steer("on_unavailable = \"drop\"");
    }
    config.write(directory)
}

/// Waits until every frame has arrived, or none arrives any more.
pub(crate) fn drain(sinks: &Sinks, sent: &Sent) -> Result<(), LabError> {
    let wanted = sent.numbers - sent.refused.len() as u64;
    sinks.settle(|_| Ok(sinks.distinct()? >= wanted)).map(drop)
}

/// Writes the numbers of sent and received frames into a row.
pub(crate) fn fill(
    row: &mut Row,
    sinks: &Sinks,
    rhythm: Rhythm,
    sent: &Sent,
    dropped: &Dropped,
    back: Option<u64>,
) -> Result<(), LabError> {
    if rhythm == Rhythm::Saturation {
        let length = u64::try_from(sent.length.as_micros()).unwrap_or(u64::MAX);
        row.rate_pps = sent.numbers * 1_000_000 / length.max(1);
        // At saturation, a list of lost frames would be too long.
        row.sent = sent.numbers;
        row.lost = sent.numbers - sinks.distinct()?;
    } else {
        let mut lost = sinks.missing(sent.numbers, rhythm.flows())?;
        lost.retain(|number| sent.refused.binary_search(number).is_err());
        row.sent = sent.numbers - sent.refused.len() as u64;
        row.lost = lost.len() as u64;
        let flows = flows();
        let flow_of = |number| &flows[place(number, rhythm.flows()).0 as usize];
        let inbound = lost.iter().filter(|&&number| flow_of(number).is_inbound());
        row.lost_inbound = inbound.count() as u64;
        let time = |number: Option<&u64>| number.and_then(|&number| sent.time(number));
        if let (Some(first), Some(last)) = (time(lost.first()), time(lost.last())) {
            row.outage_ms = u64::try_from((last - first).as_millis()).ok();
        }
        let outages = outages(lost.iter().filter_map(|&number| sent.time(number)));
        row.longest_outage_ms = outages.iter().map(Outage::ms).max();
        row.most_lost_at_once = outages.iter().map(|outage| outage.lost).max();
        row.lost_after = back.map(|from| {
            let late = lost.iter().filter(|&&number| number >= from);
            late.count() as u64
        });
    }
    row.dropped_before_box = dropped.before_box;
    row.dropped_behind_box = dropped.behind_box;
    let total = sinks.total()?;
    row.duplicated = total.duplicated;
    row.reordered = total.reordered;
    row.mismarked = total.mismarked;
    row.missteered = total.missteered;
    row.garbled = total.garbled;
    Ok(())
}

/// A sequence of lost frames less than a pause apart.
#[derive(Debug, PartialEq, Eq)]
struct Outage {
    begin: Duration,
    end: Duration,
    lost: u64,
}

impl Outage {
    fn ms(&self) -> u64 {
        u64::try_from((self.end - self.begin).as_millis()).unwrap_or(u64::MAX)
    }
}

/// The outages of lost frames, whose sending times are given in order.
fn outages(sent: impl Iterator<Item = Duration>) -> Vec<Outage> {
    const PAUSE: Duration = Duration::from_millis(50);
    let mut outages: Vec<Outage> = Vec::new();
    for moment in sent {
        match outages.last_mut() {
            Some(last) if moment < last.end + PAUSE => {
                last.end = moment;
                last.lost += 1;
            }
            _ => outages.push(Outage {
                begin: moment,
                end: moment,
                lost: 1,
            }),
        }
    }
    outages
}

#[test]
fn an_outage_ends_after_50_ms_without_loss() {
    let sent = [10, 12, 61, 111, 300].map(Duration::from_millis);
    let outages = outages(sent.into_iter());
    let found: Vec<_> = outages.iter().map(|one| (one.ms(), one.lost)).collect();
    assert_eq!(found, [(51, 3), (0, 1), (0, 1)]);
}
