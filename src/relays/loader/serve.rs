//! The loader process: confines itself, reads a request, answers, and exits.

use super::wire::{LoaderReply, Request};
use super::{Confinement, Loaded, confine};
use crate::load::{Problem, verify};
use std::io::{self, BufRead, Read, Write};
use std::path::Path;

/// Confines this process, then reads a request from standard input and answers on standard output.
///
/// # Errors
/// The request is invalid or cut off, or the answer cannot be written.
pub fn serve(confinement: &Confinement) -> io::Result<()> {
    let answer = match confine(confinement) {
        Ok(()) => answer(&mut io::BufReader::new(io::stdin().lock()))?,
        Err(error) => LoaderReply::Failed {
            reason: error.to_string(),
        },
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    serde_json::to_writer(&mut out, &answer)?;
    out.flush()
}

fn answer(input: &mut impl BufRead) -> io::Result<LoaderReply> {
    let request = Request::read(input)?;
    let trust = request.trust()?;
    let mut documents = Vec::new();
    for (source, &(length, certificates)) in request.files.iter().enumerate() {
        let consensus = bytes(input, length)?;
        let certificates = certificates.map(|length| bytes(input, length));
        let certificates = certificates.transpose()?;
        let nameless = Path::new("");
        match verify(nameless, &consensus, certificates.as_deref(), &trust) {
            Ok(document) => documents.push(document),
            Err(problem) => {
                return Ok(LoaderReply::Refused {
                    source,
                    of_certificates: matches!(problem, Problem::Certificates(_)),
                    reason: match problem {
                        Problem::Document(one) | Problem::Certificates(one) => one.to_string(),
                        Problem::Signatures(one) => one.to_string(),
                    },
                });
            }
        }
    }
    let Loaded { listed, sources } = documents.into_iter().collect();
    Ok(LoaderReply::Set {
        sources,
        endpoints: listed,
    })
}

fn bytes(input: &mut impl Read, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(length).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()) != Ok(length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}
