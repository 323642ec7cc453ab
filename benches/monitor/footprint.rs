//! The memory that all of it takes: in a process of its own, with both databases, a full table of
//! cells, what spills out of it, and a buffer for captures.

use crate::systems::{self, Databases};
use crate::traffic::{Kind, Traffic, filter};
use crate::{Row, Sample, Unit};
use exitmark::lab::LabError;
use exitmark::monitor::filter::Arrived;
use exitmark::monitor::tally::{Counter, DEFAULT_CELLS};
use std::fs;
use std::process::Command;
use std::sync::Arc;

const FIELDS: [(&str, &str); 2] = [("memory-now", "VmRSS:"), ("memory-at-most", "VmHWM:")];

pub(crate) fn rows() -> impl Iterator<Item = Row> {
    FIELDS.into_iter().map(|(name, field)| Row {
        name,
        measure: Box::new(move |_| measure(field)),
    })
}

fn measure(field: &str) -> Result<Sample, LabError> {
    let failed = |error| LabError(format!("cannot start another process: {error}"));
    let program = std::env::current_exe().map_err(failed)?;
    let output = Command::new(program).arg("--footprint").output();
    let text = String::from_utf8(output.map_err(failed)?.stdout).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    let kib = kib.ok_or_else(|| LabError("the other process said nothing".to_owned()))?;
    Ok(Sample {
        value: kib / 1024.0,
        unit: Unit::Mebibytes,
    })
}

/// What the other process does.
pub(crate) fn tell() {
    let status = || fs::read_to_string("/proc/self/status").unwrap();
    // Addresses for the packets, few of them, so that they do not count.
    let databases = Databases {
        places: Arc::new(systems::places()),
        v4: Arc::new((1..224).map(|byte| byte << 24).collect()),
        v6: Arc::new((0x2a00..0x2a20).map(|word| word << 112).collect()),
    };
    let mut counter = Counter::new(filter(), Arc::clone(&databases.places), DEFAULT_CELLS);
    let kind = Kind {
        v6: 30,
        worst: true,
    };
    let mut traffic = Traffic::new(&databases, kind);
    while counter.tally().occupancy().spilled < 100_000 {
        let (bytes, whole) = traffic.next();
        let bytes = bytes.as_slice();
        counter.count(&[Arrived { bytes, whole }]);
    }
    println!("{}", status());
}
