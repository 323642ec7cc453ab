//! Real documents. They are not part of this repository: `EXITMARK_REAL_DATA` names a directory
//! whose `consensus/` holds them, compressed with xz.

use crate::{FLAVORS, at, elements};
use exitmark::relays::{Counts, UncheckedDocument, Validity, load};
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// 2021-08-29 19:00:00 UTC.
const AUGUST_29: u64 = 1_630_263_600;

/// The decompressed real document of this name, or None, said aloud, where there is none.
fn real(directory: &TempDir, name: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("EXITMARK_REAL_DATA") else {
        eprintln!("SKIPPED: EXITMARK_REAL_DATA is unset, so there is no real {name}");
        return None;
    };
    let packed = Path::new(&root)
        .join("consensus")
        .join(name)
        .with_extension("xz");
    let mut packed = BufReader::new(File::open(&packed).unwrap_or_else(|error| {
        panic!(
            "EXITMARK_REAL_DATA is set, but {}: {error}",
            packed.display()
        )
    }));
    let path = directory.path().join(name);
    lzma_rs::xz_decompress(&mut packed, &mut File::create(&path).unwrap()).unwrap();
    Some(path)
}

#[test]
fn real_documents_give_exact_counts_and_both_flavours_the_same_set() {
    let directory = TempDir::new().unwrap();
    let names = [
        "2021-08-29T19-consensus",
        "2021-08-29T19-consensus-microdesc",
    ];
    let mut sets = Vec::new();
    for (name, flavor) in names.into_iter().zip(FLAVORS) {
        let Some(path) = real(&directory, name) else {
            return;
        };
        let loaded = load(&[path], &[]).unwrap();
        let report = &loaded.sources[0];
        assert_eq!(report.flavor, flavor);
        assert_eq!(
            report.counts,
            Counts {
                orports: 6_727,
                further: 2_404,
                dirports: 4_022,
                authorities: 18,
            }
        );
        // The nine authorities are relays too, with the same two ports.
        assert_eq!(report.distinct, 6_727 + 2_404 + 4_022);
        assert_eq!(
            report.validity,
            Validity {
                valid_after: at(AUGUST_29),
                fresh_until: at(AUGUST_29 + 3_600),
                valid_until: at(AUGUST_29 + 3 * 3_600),
            }
        );
        sets.push(elements(&loaded.endpoints));
    }
    assert_eq!(sets[0], sets[1]);
}

#[test]
fn a_real_document_of_another_day_gives_exact_counts() {
    let directory = TempDir::new().unwrap();
    let Some(path) = real(&directory, "2021-08-26T19-consensus-microdesc") else {
        return;
    };
    let loaded = load(&[path], &[]).unwrap();
    assert_eq!(
        loaded.sources[0].counts,
        Counts {
            orports: 6_768,
            further: 2_411,
            dirports: 4_047,
            authorities: 18,
        }
    );
}

#[test]
fn a_real_document_cut_at_any_line_is_refused() {
    let directory = TempDir::new().unwrap();
    let Some(path) = real(&directory, "2021-08-29T19-consensus-microdesc") else {
        return;
    };
    let text = fs::read_to_string(path).unwrap();
    let ends = text.match_indices('\n').map(|(offset, _)| offset + 1);
    // Every 499th line of the many, and every line of the end.
    let tail = text.find("directory-footer").unwrap();
    for (number, end) in ends.enumerate() {
        if end >= tail || number % 499 == 0 {
            let part = &text[..end];
            let result = UncheckedDocument::parse(part.as_bytes());
            let whole = part.ends_with("-----END SIGNATURE-----\n");
            assert_eq!(result.is_ok(), whole, "cut after line {}", number + 1);
        }
    }
}
