//! Looks up endpoints in the relay set of a consensus document.
//!
//! ```sh
//! cargo run --example relay_lookup -- CONSENSUS ADDRESS:PORT...
//! ```
//!
//! Shows how a document becomes a relay set: `load` reads tor's `cached-consensus` or
//! `cached-microdesc-consensus`, and `cached-certs` in the same directory; it verifies that a
//! majority of the Tor network's directory authorities signed the document, and returns the
//! endpoints that it lists. A document that cannot be verified is an error. An old one is not: its
//! age is printed.
//!
//! The exit status is 0 if every endpoint is in the set, 1 if not or on an error, 2 for wrong
//! usage.

use exitmark_policy::Endpoint;
use exitmark_relays::{Authorities, DocumentFiles, Sources, Trust, load};
use std::error::Error;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let consensus = arguments.next();
    let endpoints: Result<Vec<Endpoint>, _> = arguments.map(|text| text.parse()).collect();
    let (Some(consensus), Ok(endpoints)) = (consensus, endpoints) else {
        eprintln!("usage: relay_lookup CONSENSUS ADDRESS:PORT...");
        return ExitCode::from(2);
    };
    let authorities = Authorities::tor_network();
    match run(
        consensus.as_ref(),
        &endpoints,
        authorities,
        &mut io::stdout(),
    ) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("relay_lookup: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes whether each endpoint is in the set of the document at `consensus`, which a majority of
/// `authorities` must have signed. Returns whether all are.
///
/// # Errors
/// The document or its certificates cannot be read, the signatures are not acceptable, or `out`
/// cannot be written.
pub(crate) fn run(
    consensus: &Path,
    endpoints: &[Endpoint],
    authorities: Authorities,
    out: &mut impl Write,
) -> Result<bool, Box<dyn Error>> {
    let files = vec![DocumentFiles::beside(consensus.to_owned())];
    let loaded = load(&Sources::of(files, Trust::Majority(authorities)))?;
    let set = loaded.with(&[])?;
    for document in &loaded.sources {
        let age = document.validity.age(SystemTime::now());
        writeln!(out, "{} endpoints, age: {age}", set.len())?;
    }
    let mut contains_all = true;
    for endpoint in endpoints {
        let is_relay = set.contains(endpoint.address, endpoint.port);
        contains_all &= is_relay;
        let answer = if is_relay { "a relay" } else { "not a relay" };
        writeln!(out, "{endpoint} is {answer}")?;
    }
    Ok(contains_all)
}
