//! The protocol between daemon and loader: one JSON value each way, with the files' bytes after the
//! request. The daemon validates every answer.

use super::{OpenFile, OpenSource};
use crate::{Authorities, Counts, LoadError, Loaded, LoaderFailure, SourceReport, Sources, Trust};
use exitmark_policy::{Endpoint, MAX_ENDPOINTS};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, Read, Write};

/// The longest request line in bytes.
const MAX_REQUEST: u64 = 1 << 20;
/// More authorities than any network has.
const MAX_AUTHORITIES: usize = 64;
/// The longest reason for a refusal, in characters.
const MAX_REASON: usize = 500;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    /// The lengths, in bytes, of each consensus and of its certificates.
    pub(super) files: Vec<(u64, Option<u64>)>,
    /// The authorities whose signatures count; `None` if signatures are not checked.
    authorities: Option<Vec<String>>,
}

impl Request {
    pub(super) fn new(sources: &Sources, open: &[OpenSource]) -> Self {
        let lengths = |source: &OpenSource| {
            let certificates = source.certificates.as_ref().map(OpenFile::length);
            (source.consensus.length(), certificates)
        };
        Self {
            files: open.iter().map(lengths).collect(),
            authorities: match &sources.trust {
                Trust::Majority(all) => Some(all.iter().map(|one| one.to_string()).collect()),
                Trust::Unverified => None,
            },
        }
    }

    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        out.write_all(&line)
    }

    pub(super) fn read(input: &mut impl BufRead) -> io::Result<Self> {
        let mut line = Vec::new();
        input.take(MAX_REQUEST).read_until(b'\n', &mut line)?;
        Ok(serde_json::from_slice(&line)?)
    }

    /// Whose signatures are trusted.
    pub(super) fn trust(&self) -> io::Result<Trust> {
        let Some(texts) = &self.authorities else {
            return Ok(Trust::Unverified);
        };
        let identities = texts.iter().map(|text| text.parse());
        let identities: Result<Vec<_>, _> = identities.collect();
        let authorities = Authorities::new(identities.map_err(io::Error::other)?);
        Ok(Trust::Majority(authorities))
    }
}

/// The loader's answer, as one JSON value. It is not trusted: [`LoaderReply::check`] validates it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(super) enum LoaderReply {
    /// The endpoints, and one report per source.
    Set {
        sources: Vec<SourceReport>,
        endpoints: Vec<Endpoint>,
    },
    /// The loader could not confine itself.
    Failed { reason: String },
    /// This source, counted from 0, cannot be used.
    Refused {
        source: usize,
        of_certificates: bool,
        reason: String,
    },
}

impl LoaderReply {
    /// Validates the answer. Returns the set if these sources can make it.
    pub(super) fn check(self, requested: &Sources) -> Result<Loaded, LoadError> {
        let nonsense = |what| LoadError::Loader(LoaderFailure::Nonsense(what));
        let (mut sources, listed) = match self {
            Self::Set { sources, endpoints } => (sources, endpoints),
            Self::Failed { reason } => {
                let failure = LoaderFailure::Unable(printable(&reason));
                return Err(LoadError::Loader(failure));
            }
            Self::Refused {
                source,
                of_certificates,
                reason,
            } => {
                let source = requested.files.get(source);
                let source = source.ok_or_else(|| nonsense("it refuses an unknown file"))?;
                let path = match of_certificates {
                    true => source.certificates.clone(),
                    false => source.consensus.clone(),
                };
                return Err(LoadError::Reported(path, printable(&reason)));
            }
        };
        if sources.len() != requested.files.len() {
            return Err(nonsense("wrong number of files"));
        }
        if listed.len() > MAX_ENDPOINTS {
            // Each document may be valid by itself.
            return Err(LoadError::TooMany(listed.len()));
        }
        if !listed.is_sorted_by(|a, b| a < b) || listed.iter().any(|one| one.port == 0) {
            return Err(nonsense("endpoints out of order, or with port 0"));
        }
        let named = sources.iter().map(|report| report.distinct);
        if named.fold(0, usize::saturating_add) < listed.len() {
            return Err(nonsense("endpoints that no file lists"));
        }
        for (report, source) in sources.iter_mut().zip(&requested.files) {
            if !is_plausible(report, &requested.trust, listed.len()) {
                return Err(nonsense("an implausible report"));
            }
            // The loader does not know the paths.
            report.path.clone_from(&source.consensus);
        }
        Ok(Loaded { listed, sources })
    }
}

fn is_plausible(report: &SourceReport, trust: &Trust, listed: usize) -> bool {
    let Counts {
        orports,
        further,
        authorities,
    } = report.counts;
    let counted = orports.checked_add(further);
    let counted = counted.and_then(|sum| sum.checked_add(authorities));
    let signed = match (trust, report.signatures) {
        (Trust::Majority(authorities), Some(signatures)) => {
            signatures.needed == authorities.majority()
                && (signatures.needed..=authorities.iter().count()).contains(&signatures.good)
                && signatures.unknown <= MAX_AUTHORITIES
        }
        (Trust::Unverified, None) => true,
        _ => false,
    };
    signed
        && report.validity.is_ordered()
        && report.validity.is_brief()
        && (1..=listed).contains(&report.distinct)
        && counted.is_some_and(|counted| counted >= report.distinct)
}

/// Truncates a reason, and replaces all but printable ASCII, to protect terminals and logs.
fn printable(reason: &str) -> String {
    let shown = |letter| match letter {
        ' '..='~' => letter,
        _ => '?',
    };
    reason.chars().take(MAX_REASON).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DocumentFiles, Flavor, Signatures, Validity};
    use std::time::{Duration, UNIX_EPOCH};

    fn requested() -> Sources {
        let identity = |number| crate::Identity::new([number; 20]);
        Sources::of(
            vec![DocumentFiles::beside("/somewhere/cached-consensus".into())],
            Trust::Majority(Authorities::new([1, 2, 3].map(identity))),
        )
    }

    fn signatures(good: usize, needed: usize) -> Signatures {
        Signatures {
            good,
            needed,
            unknown: 0,
        }
    }

    fn report() -> SourceReport {
        let at = |hours: u64| UNIX_EPOCH + Duration::from_secs(3600 * hours);
        SourceReport {
            path: std::path::PathBuf::new(),
            flavor: Flavor::Microdesc,
            validity: Validity {
                valid_after: at(1),
                fresh_until: at(2),
                valid_until: at(4),
            },
            signatures: Some(signatures(3, 2)),
            counts: Counts {
                orports: 2,
                ..Counts::default()
            },
            distinct: 2,
            parse_time: Duration::ZERO,
        }
    }

    fn endpoints() -> Vec<Endpoint> {
        ["192.0.2.1:9001", "192.0.2.2:9001"]
            .map(|text| text.parse().unwrap())
            .into()
    }

    fn checked(
        change: impl FnOnce(&mut SourceReport, &mut Vec<Endpoint>),
    ) -> Result<Loaded, LoadError> {
        let (mut report, mut endpoints) = (report(), endpoints());
        change(&mut report, &mut endpoints);
        let answer = LoaderReply::Set {
            sources: vec![report],
            endpoints,
        };
        // Encoded, as it arrives by the pipe.
        let text = serde_json::to_vec(&answer).unwrap();
        let answer: LoaderReply = serde_json::from_slice(&text).unwrap();
        answer.check(&requested())
    }

    fn is_nonsense(error: &LoadError) -> bool {
        matches!(error, LoadError::Loader(LoaderFailure::Nonsense(_)))
    }

    #[test]
    fn a_valid_answer_is_accepted() {
        let loaded = checked(|_, _| {}).unwrap();
        assert_eq!(loaded.listed.len(), 2);
        assert_eq!(loaded.sources[0].path, requested().files[0].consensus);
    }

    #[test]
    fn invalid_answers_are_refused() {
        type Change = fn(&mut SourceReport, &mut Vec<Endpoint>);
        let changes: [(&str, Change); 12] = [
            ("countless others", |report, _| {
                let signatures = report.signatures.as_mut().unwrap();
                signatures.unknown = MAX_AUTHORITIES + 1;
            }),
            ("unsigned", |report, _| report.signatures = None),
            ("too few good", |report, _| {
                report.signatures = Some(signatures(1, 2));
            }),
            ("fewer needed", |report, _| {
                report.signatures = Some(signatures(1, 1));
            }),
            ("more than there are", |report, _| {
                report.signatures = Some(signatures(4, 2));
            }),
            ("times", |report, _| {
                report.validity.valid_until = report.validity.valid_after;
            }),
            ("no relay", |report, _| report.distinct = 0),
            ("more than it lists", |report, _| report.distinct = 1),
            ("counts", |report, _| report.counts.orports = 1),
            ("order", |_, endpoints| endpoints.reverse()),
            ("twice", |_, endpoints| endpoints[1] = endpoints[0]),
            ("port 0", |_, endpoints| endpoints[0].port = 0),
        ];
        for (what, change) in changes {
            let error = checked(change).unwrap_err();
            assert!(is_nonsense(&error), "{what}: {error}");
        }
        let many = (0..=65_536_u32).map(|n| Endpoint::new(std::net::Ipv4Addr::from(n).into(), 1));
        let error = checked(|_, endpoints| *endpoints = many.collect()).unwrap_err();
        assert!(matches!(error, LoadError::TooMany(65_537)));
        let other = LoaderReply::Refused {
            source: 1,
            of_certificates: false,
            reason: String::new(),
        };
        assert!(is_nonsense(&other.check(&requested()).unwrap_err()));
    }

    #[test]
    fn reasons_are_printable_and_short() {
        let refused = LoaderReply::Refused {
            source: 0,
            of_certificates: true,
            reason: format!("\x1b[2J\n{}", "é".repeat(5_000)),
        };
        let LoadError::Reported(path, reason) = refused.check(&requested()).unwrap_err() else {
            panic!("another error");
        };
        assert_eq!(path, requested().files[0].certificates);
        assert_eq!(reason.len(), MAX_REASON);
        assert!(reason.starts_with("?[2J?"));
    }
}
