//! Writes a synthetic consensus in tor's file format, valid from the current hour and signed by the
//! lab's authorities: `consensus DIRECTORY`. Prints their identities, one per line.
//!
//! For guests that run the commands of docs/install.md without a real document; see
//! tests/vm/install.py.

#![forbid(unsafe_code)]

use exitmark_lab::authorities::Authorities;
use exitmark_lab::consensus::{ConsensusBuilder, hours_from};
use exitmark_relays::Flavor;
use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, fs};

const HOUR: u64 = 3600;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = env::args_os().nth(1).map(PathBuf::from);
    let directory = directory.ok_or("usage: consensus DIRECTORY")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let valid_after = UNIX_EPOCH + Duration::from_secs(now - now % HOUR);
    let validity = hours_from(valid_after, [0, 1, 3]);
    let builder = ConsensusBuilder::full_size(Flavor::Microdesc, validity);
    let authorities = Authorities::new(builder.authorities);
    fs::create_dir_all(&directory)?;
    let write = |name, text| fs::write(directory.join(name), text);
    write("cached-microdesc-consensus", builder.sign(&authorities))?;
    write("cached-certs", authorities.certificates_for(validity))?;
    for identity in authorities.identities() {
        println!("{identity}");
    }
    Ok(())
}
