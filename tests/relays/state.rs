//! The state file: what was saved comes back, and nothing that lies at its path or has happened to
//! it makes more of it than an error.

use crate::live::{HOUR, edition, hour, next};
use crate::site::Site;
use crate::assert_names_no_address;
use exitmark::lab::Random;
use exitmark::relays::{LiveSet, StateError, StateFile};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

/// A live set with something of everything.
fn eventful(relays: u32) -> LiveSet {
    let site = Site::of(&edition(0, relays));
    let mut live = LiveSet::default();
    live.offer(site.load().unwrap(), hour(0)).unwrap();
    let shorter = next(&site, &edition(1, relays * 3 / 4));
    live.offer(shorter, hour(1)).unwrap();
    live.refuse("it was \"too\" large\n".to_owned(), hour(2));
    assert!(live.counts().1 > 0);
    live
}

fn at_path(path: impl AsRef<Path>) -> StateFile {
    StateFile::new(path.as_ref().to_owned())
}

#[test]
fn what_was_saved_comes_back() {
    let directory = TempDir::new().unwrap();
    // Directories are made where there are none.
    let file = at_path(directory.path().join("a/b/relays.state"));
    assert!(file.load().unwrap().is_none());
    for live in [eventful(40), eventful(4), LiveSet::default()] {
        file.save(&live).unwrap();
        assert_eq!(file.load().unwrap(), Some(live.clone()));
        // Again and again.
        file.save(&file.load().unwrap().unwrap()).unwrap();
        let back = file.load().unwrap().unwrap();
        assert_eq!(back, live);
        assert_eq!(back.next_to_forget(HOUR), live.next_to_forget(HOUR));
    }
    let names = fs::read_dir(file.path().parent().unwrap()).unwrap();
    assert_eq!(names.count(), 1, "nothing is left beside it");
}

/// An error that names no address, or a set that could have been saved.
fn is_error_or_plausible(file: &StateFile) -> bool {
    match file.load() {
        Ok(None) => panic!("there is a file"),
        Ok(Some(live)) => {
            // Whatever it says, it can be asked.
            let _ = live.endpoints(&[]).map(|set| set.len());
            let _ = (live.age(hour(1)), live.next_age(hour(1)), live.next_to_forget(HOUR));
            for source in live.sources() {
                assert!(source.validity.is_ordered());
            }
            let mut live = live;
            live.forget(hour(5), HOUR);
            true
        }
        Err(error) => {
            assert_names_no_address(&error);
            assert!(error.to_string().contains("relays.state"), "{error}");
            false
        }
    }
}

#[test]
fn a_state_file_cut_anywhere_is_an_error() {
    let directory = TempDir::new().unwrap();
    let file = at_path(directory.path().join("relays.state"));
    file.save(&eventful(4)).unwrap();
    let whole = fs::read(file.path()).unwrap();
    for end in 0..whole.len() {
        fs::write(file.path(), &whole[..end]).unwrap();
        // Without its last line end it is still whole.
        assert_eq!(is_error_or_plausible(&file), end + 1 == whole.len(), "{end}");
    }
}

#[test]
fn a_state_file_with_other_bytes_is_an_error_or_another_plausible_set() {
    let directory = TempDir::new().unwrap();
    let file = at_path(directory.path().join("relays.state"));
    file.save(&eventful(4)).unwrap();
    let whole = fs::read(file.path()).unwrap();
    let mut random = Random::new(7);
    let (mut errors, mut sets) = (0, 0);
    for _ in 0..4_000 {
        let mut bytes = whole.clone();
        for _ in 0..=random.below(3) {
            let place = random.below(bytes.len());
            match random.below(3) {
                0 => bytes[place] ^= 1 + random.byte() % 255,
                1 => bytes[place] = b'0' + random.byte() % 10,
                _ => drop(bytes.drain(place..bytes.len().min(place + random.below(9)))),
            }
        }
        fs::write(file.path(), &bytes).unwrap();
        *[&mut errors, &mut sets][usize::from(is_error_or_plausible(&file))] += 1;
    }
    println!("{errors} errors, {sets} other sets that could have been saved");
    assert!(errors > 1_000 && sets > 0);
}

#[test]
fn what_is_no_state_file_is_named() {
    let directory = TempDir::new().unwrap();
    let file = at_path(directory.path().join("relays.state"));
    file.save(&eventful(4)).unwrap();
    let text = fs::read_to_string(file.path()).unwrap();
    let replaced = |what: &str, by: &str| {
        assert!(text.contains(what), "{what}: {text}");
        text.replacen(what, by, 1)
    };
    let endpoint = "\"192.0.2.1:9001\"";
    for (text, words) in [
        (String::new(), "no such file"),
        ("hello\n".to_owned(), "no such file"),
        ("{}".to_owned(), "no such file"),
        (replaced("\"format\":1", "\"format\":2"), "another version"),
        (replaced("\"format\":1", "\"shape\":1"), "no such file"),
        (replaced("\"format\":1", "\"format\":1,\"new\":1"), "no such file"),
        (replaced(endpoint, "\"192.0.2.1:0\""), "port 0"),
        (replaced(endpoint, "\"255.0.2.1:9001\""), "out of order"),
        (replaced(endpoint, "\"relay:9001\""), "no such file"),
        (format!("{text}{text}"), "no such file"),
        ("[".repeat(1_000_000), "no such file"),
    ] {
        fs::write(file.path(), text).unwrap();
        let error = file.load().unwrap_err();
        assert!(matches!(error, StateError::Unusable { .. }), "{error}");
        assert!(error.to_string().contains(words), "{words}: {error}");
        assert_names_no_address(&error);
    }
    file.save(&eventful(4)).unwrap();
    assert!(is_error_or_plausible(&file));
}

#[test]
fn what_lies_at_its_path_is_replaced_or_in_the_way_but_never_waited_for() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("relays.state");
    let file = at_path(&path);
    let live = eventful(4);

    fs::create_dir(&path).unwrap();
    assert!(matches!(file.load(), Err(StateError::Read(_))));
    assert!(matches!(file.save(&live), Err(StateError::Write { .. })));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    fs::remove_dir(&path).unwrap();

    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(file.load(), Err(StateError::Read(_))));
    file.save(&live).unwrap();
    assert_eq!(file.load().unwrap().as_ref(), Some(&live));

    // A link is replaced, and what it leads to is left alone.
    let other = crate::file(&directory, "other", "mine");
    fs::remove_file(&path).unwrap();
    symlink(&other, &path).unwrap();
    file.save(&live).unwrap();
    assert_eq!(fs::read_to_string(&other).unwrap(), "mine");
    assert_eq!(file.load().unwrap().as_ref(), Some(&live));
}

#[test]
fn what_lies_beside_it_is_never_written_through() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("relays.state");
    let new = directory.path().join("relays.state.new");
    let file = at_path(&path);
    let live = eventful(4);
    let victim = crate::file(&directory, "victim", "mine");
    let obstacles: [&dyn Fn(); 4] = [
        &|| fs::write(&new, "half").unwrap(),
        &|| symlink(&victim, &new).unwrap(),
        &|| fs::hard_link(&victim, &new).unwrap(),
        &|| nix::unistd::mkfifo(&new, nix::sys::stat::Mode::S_IRWXU).unwrap(),
    ];
    for put in obstacles {
        put();
        file.save(&live).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
        assert_eq!(file.load().unwrap().as_ref(), Some(&live));
        assert!(fs::symlink_metadata(&new).is_err(), "nothing is left");
    }
    fs::create_dir(&new).unwrap();
    assert!(matches!(file.save(&live), Err(StateError::Write { .. })));
    assert_eq!(file.load().unwrap().as_ref(), Some(&live), "untouched");
}

#[test]
fn a_place_that_cannot_be_written_to_is_named() {
    let directory = TempDir::new().unwrap();
    let no_directory = crate::file(&directory, "file", "x").join("relays.state");
    for path in [
        Path::new("/proc/relays.state"),
        Path::new("/dev/full/relays.state"),
        &no_directory,
    ] {
        let error = at_path(path).save(&eventful(4)).unwrap_err();
        assert!(matches!(error, StateError::Write { .. }), "{error}");
        assert!(error.to_string().contains("relays.state"), "{error}");
    }
}

#[test]
fn a_reader_never_sees_half_a_state_file() {
    let directory = TempDir::new().unwrap();
    let file = at_path(directory.path().join("relays.state"));
    let versions = [eventful(40), eventful(200)];
    file.save(&versions[0]).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for live in versions.iter().cycle() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                file.save(live).unwrap();
            }
        });
        let mut seen = [0, 0];
        while seen.iter().any(|&count| count < 20) {
            let live = file.load().unwrap().unwrap();
            let version = versions.iter().position(|version| *version == live);
            seen[version.unwrap()] += 1;
        }
        over.store(true, Ordering::Relaxed);
    });
}
