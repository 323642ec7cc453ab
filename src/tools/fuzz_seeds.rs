//! Writes the seeds of the fuzzers of fuzz/: the table of cases and synthetic consensus documents.
//! `make fuzz` runs it.

#![forbid(unsafe_code)]

use exitmark_lab::cases::tables;
use exitmark_lab::consensus::{ConsensusBuilder, hours_from};
use exitmark_relays::Flavor;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Creates the empty corpus directory of a target, to which fuzzing adds.
fn corpus(target: &str) -> std::io::Result<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

fn main() -> std::io::Result<()> {
    let (frame, engines) = (corpus("frame")?, corpus("engines")?);
    for (number, table) in (0_u8..).zip(tables()) {
        for (position, case) in table.cases.iter().enumerate() {
            // The first byte selects the ingress port and the table.
            let mut seed = vec![number * 3];
            seed.extend(&case.before);
            let name = format!("case-{number}-{position}");
            fs::write(frame.join(&name), &seed)?;
            seed[0] = 0;
            fs::write(engines.join(&name), &seed)?;
        }
    }
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    let validity = hours_from(start, [0, 1, 3]);
    for flavor in [Flavor::Ns, Flavor::Microdesc] {
        let builder = ConsensusBuilder {
            relays: 2,
            authorities: 1,
            ..ConsensusBuilder::full_size(flavor, validity)
        };
        fs::write(corpus("consensus")?.join(flavor.name()), builder.write())?;
    }
    Ok(())
}
