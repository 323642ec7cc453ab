//! Judges every frame of a capture, and prints a table of classes.
//!
//! ```sh
//! cargo run --example judge_pcap -- CONFIGURATION CAPTURE
//! ```
//!
//! Shows the path of a frame through the library: a configuration becomes rules, the consensus
//! documents that it names become a verified relay set, both become a snapshot, and `judge` decides
//! each frame by the snapshot. Frames are judged as if they had arrived at the port `host`, so
//! those of other hosts are of the class `foreign`. The table contains no address.
//!
//! The exit status is 0 after the last frame, 1 if a file cannot be used, 2 for wrong usage.

use exitmark_box::settings::Settings;
use exitmark_pcap::{Link, Reader};
use exitmark_policy::packet::parse;
use exitmark_policy::{Class, FragmentTable, Snapshot, judge};
use exitmark_relays::Trust;
use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [configuration, capture] = arguments.as_slice() else {
        eprintln!("usage: judge_pcap CONFIGURATION CAPTURE");
        return ExitCode::from(2);
    };
    match run(configuration.as_ref(), capture.as_ref(), &mut io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("judge_pcap: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Judges the frames of `capture` by `configuration`, and writes the table to `out`.
///
/// # Errors
/// The configuration, a document that it names, or the capture cannot be read; or `out` cannot be
/// written. Errors contain no address of a frame or a relay.
pub(crate) fn run(
    configuration: &Path,
    capture: &Path,
    out: &mut impl Write,
) -> Result<(), Box<dyn Error>> {
    let settings = Settings::load(configuration)?;
    let sources = &settings.relays.sources;
    if sources.trust == Trust::Unverified && sources.names_documents() {
        writeln!(
            out,
            "WARNING: relays.verify = false: signatures are not checked"
        )?;
    }
    let relays = exitmark_relays::load_newest(sources)?.with(&sources.extra)?;
    let snapshot = Snapshot::new(1, Arc::clone(&settings.rules), relays);

    let mut fragments = FragmentTable::default();
    let mut counts = BTreeMap::from(Class::ALL.map(|class| (class, (0_u64, 0_u64))));
    let mut others = 0_u64;
    let mut reader = Reader::open(capture)?;
    while let Some(packet) = reader.read_packet()? {
        if packet.link != Link::Ethernet {
            others += 1;
            continue;
        }
        let headers = parse(packet.bytes, packet.whole);
        let now = Duration::from_nanos(packet.time.unwrap_or(0));
        let verdict = judge(&headers, &snapshot, &mut fragments, now);
        let (frames, bytes) = counts.entry(verdict.class()).or_default();
        *frames += 1;
        *bytes += packet.whole as u64;
    }

    writeln!(out, "{:<10} {:>12} {:>16}", "class", "frames", "bytes")?;
    for (class, (frames, bytes)) in counts {
        writeln!(out, "{:<10} {frames:>12} {bytes:>16}", class.name())?;
    }
    if others > 0 {
        writeln!(
            out,
            "{others} packets are of another link type than Ethernet"
        )?;
    }
    Ok(())
}
