//! Real documents. They are not part of this repository: `EXITMARK_REAL_DATA` names a directory
//! whose `consensus/` holds them, compressed with xz, and the certificates that belong to them.

use crate::site::{both, unchecked};
use crate::{FLAVORS, at, file, listed, valid_from};
use exitmark_relays::{
    Authorities, Certificates, Counts, DocumentFiles, Signatures, Sources, Trust,
    UncheckedDocument, load,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once};
use tempfile::TempDir;

pub(crate) const NS: &str = "2021-08-29T19-consensus";
pub(crate) const MICRODESC: &str = "2021-08-29T19-consensus-microdesc";
pub(crate) const EARLIER: &str = "2021-08-26T19-consensus-microdesc";
pub(crate) const CERTIFICATES: &str = "2021-08-29-cached-certs";

/// 2021-08-29 19:00:00 UTC.
const AUGUST_29: u64 = 1_630_263_600;

/// The decompressed real file of this name; `None` with a message if there is none.
pub(crate) fn real(name: &'static str) -> Option<Arc<Vec<u8>>> {
    static KNOWN: Mutex<BTreeMap<&str, Arc<Vec<u8>>>> = Mutex::new(BTreeMap::new());
    static SAID: Once = Once::new();
    let Some(root) = std::env::var_os("EXITMARK_REAL_DATA") else {
        // Not by a print macro: the output of a passing test is captured.
        SAID.call_once(|| {
            let reason = "EXITMARK_REAL_DATA is unset, so there are no real documents";
            let _ = writeln!(std::io::stderr(), "SKIPPED: {reason}");
        });
        return None;
    };
    let mut known = KNOWN.lock().unwrap();
    let bytes = known.entry(name).or_insert_with(|| {
        let path = Path::new(&root).join(format!("consensus/{name}.xz"));
        let packed = File::open(&path).unwrap_or_else(|error| {
            let path = path.display();
            panic!("EXITMARK_REAL_DATA is set, but {path}: {error}")
        });
        let mut bytes = Vec::new();
        lzma_rs::xz_decompress(&mut BufReader::new(packed), &mut bytes).unwrap();
        Arc::new(bytes)
    });
    Some(Arc::clone(bytes))
}

/// Real documents and their certificates in a directory, as tor keeps them.
pub(crate) struct RealSite {
    _directory: TempDir,
    pub(crate) paths: Vec<PathBuf>,
}

impl RealSite {
    pub(crate) fn new(names: &[&'static str]) -> Option<Self> {
        let directory = TempDir::new().unwrap();
        let write = |name, as_: &str| Some(file(&directory, as_, &*real(name)?));
        write(CERTIFICATES, "cached-certs")?;
        Some(Self {
            paths: names
                .iter()
                .map(|name| write(name, name))
                .collect::<Option<_>>()?,
            _directory: directory,
        })
    }

    fn sources(&self) -> Sources {
        let files = self.paths.iter().cloned().map(DocumentFiles::beside);
        let trust = Trust::Majority(Authorities::tor_network());
        Sources::of(files.collect(), trust)
    }
}

/// The nine authorities have two ports each.
fn counts(orports: usize, further: usize) -> Counts {
    Counts {
        orports,
        further,
        authorities: 18,
    }
}

#[test]
fn both_ways_accept_real_documents_with_exact_counts() {
    for (name, flavor) in [NS, MICRODESC].into_iter().zip(FLAVORS) {
        let Some(site) = RealSite::new(&[name]) else {
            return;
        };
        let loaded = both(&site.sources()).unwrap();
        let report = &loaded.sources[0];
        assert_eq!(report.flavor, flavor);
        assert_eq!(report.counts, counts(6_727, 2_404));
        // The nine authorities are relays too, with the same ORPort; only their DirPorts count.
        assert_eq!(report.distinct, 6_727 + 2_404 + 9);
        assert_eq!(report.validity, valid_from(at(AUGUST_29)));
        // Three of the signers of 2021 have other identities today.
        let signatures = Signatures {
            good: 6,
            needed: 5,
            unknown: 3,
        };
        assert_eq!(report.signatures, Some(signatures), "{name}");
    }
}

#[test]
fn both_flavours_of_a_real_document_list_the_same() {
    let Some(site) = RealSite::new(&[NS, MICRODESC]) else {
        return;
    };
    let set = |path| listed(&load(&unchecked([path])).unwrap());
    let sets: Vec<_> = site.paths.iter().map(set).collect();
    assert_eq!(sets[0], sets[1]);
    let together = load(&site.sources()).unwrap();
    assert_eq!(listed(&together), sets[0]);
}

#[test]
fn a_real_document_of_another_day_gives_exact_counts() {
    let Some(site) = RealSite::new(&[EARLIER]) else {
        return;
    };
    let loaded = load(&site.sources()).unwrap();
    assert_eq!(loaded.sources[0].counts, counts(6_768, 2_411));
}

#[test]
fn a_real_document_cut_at_any_line_is_refused() {
    let Some((bytes, certificates)) = real(MICRODESC).zip(real(CERTIFICATES)) else {
        return;
    };
    let certificates = Certificates::parse(&certificates).unwrap();
    let authorities = Authorities::tor_network();
    let text = std::str::from_utf8(&bytes).unwrap();
    let ends = text.match_indices('\n').map(|(offset, _)| offset + 1);
    // Every 499th line of the entries, and every line of the end.
    let tail = text.find("directory-footer").unwrap();
    let mut signatures = 0;
    for (number, end) in ends.enumerate() {
        if end >= tail || number % 499 == 0 {
            let part = &text[..end];
            let document = UncheckedDocument::parse(part.as_bytes());
            let is_whole = part.ends_with("-----END SIGNATURE-----\n");
            assert_eq!(document.is_ok(), is_whole, "cut after line {}", number + 1);
            let Ok(document) = document else { continue };
            signatures += 1;
            let verified = document.verify(&certificates, &authorities);
            let good = verified.map(|(_, signatures)| signatures.good);
            assert!(good.is_ok() || signatures < 9, "{good:?}");
            assert!(good.is_err() || signatures >= 5, "{good:?}");
        }
    }
}
