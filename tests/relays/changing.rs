//! Files that are written to while they are read: a load returns one whole version or fails, and
//! never mixes two.

use crate::site::{Site, authorities, loader, plan};
use crate::{FLAVORS, listed};
use exitmark_lab::consensus::ConsensusBuilder;
use exitmark_lab::replace;
use exitmark_relays::{Flavor, LoadError, Loaded, load};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

type Writing = fn(&Path, &str);

fn by_renaming(path: &Path, text: &str) {
    replace(path, text).unwrap();
}

fn in_place(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
}

/// Without truncating the file: the rest of the old text stays until the new one overwrites it.
fn over(path: &Path, text: &str) {
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    for piece in text.as_bytes().chunks(50_000) {
        file.write_all(piece).unwrap();
    }
    file.set_len(u64::try_from(text.len()).unwrap()).unwrap();
}

/// Truncated to half, then appended to.
fn in_halves(path: &Path, text: &str) {
    let half = text.len() / 2;
    fs::write(path, &text[..half]).unwrap();
    let mut file = OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(&text.as_bytes()[half..]).unwrap();
}

/// Loads repeatedly while another thread writes two versions in turn. Returns how many loads gave a
/// whole version, and how many were refused.
fn race(flavor: Flavor, write: Writing, rounds: u32) -> [u32; 2] {
    let builders = [1, 2].map(|seed| ConsensusBuilder {
        seed,
        relays: 400,
        ..plan(flavor)
    });
    let texts = builders.clone().map(|builder| builder.sign(&authorities()));
    let [one, other] = builders.map(|builder| listed(&Site::of(&builder).load().unwrap()));
    assert_ne!(one, other);
    let site = Site::new(flavor);
    in_place(&site.consensus, &texts[0]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for text in texts.iter().cycle() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                write(&site.consensus, text);
            }
        });
        let mut counts = [0, 0];
        let mut judge = |outcome: Result<Loaded, LoadError>| match outcome {
            Ok(loaded) => {
                let set = listed(&loaded);
                assert!(set == one || set == other, "a mix");
                counts[0] += 1;
            }
            Err(LoadError::Loader(failure)) => panic!("the loader is not at fault: {failure}"),
            Err(_) => counts[1] += 1,
        };
        let (sources, loader) = (site.sources(), loader());
        for _ in 0..rounds {
            judge(load(&sources));
            judge(loader.load(&sources));
        }
        over.store(true, Ordering::Relaxed);
        counts
    })
}

#[test]
fn a_file_that_is_replaced_while_it_is_read_is_always_whole() {
    for flavor in FLAVORS {
        let [whole, refused] = race(flavor, by_renaming, 20);
        assert_eq!((whole, refused), (40, 0));
    }
}

#[test]
fn a_file_that_is_written_in_place_is_whole_or_refused() {
    for (name, write) in [
        ("rewritten", in_place as Writing),
        ("written over", over),
        ("in halves", in_halves),
    ] {
        for flavor in FLAVORS {
            let [whole, refused] = race(flavor, write, 20);
            println!("{name}, {flavor}: {whole} whole, {refused} refused");
            assert!(refused > 0, "{name}: nothing of this was ever seen");
        }
    }
}
