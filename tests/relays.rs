//! Relay sets from files: real documents where there are some, every kind of bad input, and the
//! exit codes of `exitmark relays`.
//!
//! Real documents are not part of this repository. `EXITMARK_REAL_DATA` names a directory whose
//! `consensus/` holds them, compressed with xz.

use exitmark::lab::consensus::Order;
use exitmark::policy::{Endpoint, EndpointSet, MAX_ENDPOINTS};
use exitmark::relays::{
    Counts, DocumentError, Flavor, LoadError, Loaded, MAX_DOCUMENT, UncheckedDocument, Validity,
    load,
};
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::BTreeSet;
use std::fmt::{Debug, Display};
use std::fs::{self, File};
use std::io::BufReader;
use std::net::IpAddr;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

const FLAVORS: [Flavor; 2] = [Flavor::Ns, Flavor::Microdesc];

/// 2021-08-29 19:00:00 UTC.
const AUGUST_29: u64 = 1_630_263_600;

// ---------------------------------------------------------------- documents to work on

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn order(flavor: Flavor, relays: u32) -> Order {
    let validity = Validity {
        valid_after: at(1_700_000_000),
        fresh_until: at(1_700_003_600),
        valid_until: at(1_700_010_800),
    };
    Order {
        relays,
        authorities: 2,
        ..Order::full_size(flavor, validity)
    }
}

/// Four relays, two of them with an `a` line, and two authorities.
fn small(flavor: Flavor) -> String {
    order(flavor, 4).write()
}

/// The small document with one line replaced, and that line's number. `pick` must accept
/// exactly the lines that `change` may change; the first is taken.
fn with_line(text: &str, keyword: &str, change: impl Fn(&str) -> String) -> (String, usize) {
    let index = text
        .lines()
        .position(|line| line.split(' ').next() == Some(keyword))
        .unwrap();
    let lines = text.lines().enumerate().map(|(i, line)| {
        let line = if i == index {
            change(line)
        } else {
            line.to_owned()
        };
        line + "\n"
    });
    (lines.collect(), index + 1)
}

/// The line with its field number `index` (the keyword is 0; negative counts from the end)
/// replaced.
fn with_field(line: &str, index: isize, value: &str) -> String {
    let mut fields: Vec<&str> = line.split(' ').collect();
    let length = isize::try_from(fields.len()).unwrap();
    let index = if index < 0 { length + index } else { index };
    fields[usize::try_from(index).unwrap()] = value;
    fields.join(" ")
}

/// Why these bytes are refused; the reason must not name an address.
fn refusal(bytes: impl AsRef<[u8]>) -> DocumentError {
    let error = UncheckedDocument::parse(bytes.as_ref()).unwrap_err();
    assert_names_no_address(&error);
    error
}

fn names_an_address(text: &str) -> bool {
    text.split(|c: char| !c.is_ascii_hexdigit() && c != '.' && c != ':')
        .flat_map(|word| [word, word.rsplit_once(':').map_or(word, |(host, _)| host)])
        .map(|word| word.trim_end_matches(['.', ':']))
        .any(|word| word.parse::<IpAddr>().is_ok())
}

fn assert_names_no_address(error: &(impl Display + Debug)) {
    for text in [error.to_string(), format!("{error:?}")] {
        assert!(!names_an_address(&text), "names an address: {text}");
    }
}

#[test]
fn the_privacy_check_finds_addresses() {
    for text in [
        "at 192.0.2.1:9001, twice",
        "\"192.0.2.1\"",
        "[2001:db8::1]:443 is",
        "relay 192.0.2.1.",
    ] {
        assert!(names_an_address(text), "{text}");
    }
    assert!(!names_an_address(
        "line 12, column 3: 10:30 is bad. See 1.2.3"
    ));
}

// ---------------------------------------------------------------- files and loading

fn file(directory: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// Why this path is refused. A reader that waits for somebody to write fails here instead of
/// hanging the test.
fn load_refusal(path: &Path) -> LoadError {
    let (sender, receiver) = mpsc::channel();
    let sources = [path.to_owned()];
    std::thread::spawn(move || sender.send(load(&sources, &[]).unwrap_err()));
    let error = receiver
        .recv_timeout(Duration::from_secs(60))
        .expect("loading must not block");
    assert_names_no_address(&error);
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "names the file: {error}"
    );
    error
}

fn elements(set: &EndpointSet) -> BTreeSet<Endpoint> {
    set.iter().collect()
}

#[test]
fn unites_sources_and_extras() {
    let directory = TempDir::new().unwrap();
    let one = order(Flavor::Ns, 100);
    let other = Order {
        seed: 2,
        ..order(Flavor::Microdesc, 50)
    };
    let sources = [
        file(&directory, "cached-consensus", one.write()),
        file(&directory, "cached-microdesc-consensus", other.write()),
    ];
    let extra: Endpoint = "203.0.113.7:9030".parse().unwrap();
    let loaded = load(&sources, &[extra]).unwrap();

    let separate: Vec<_> = sources
        .iter()
        .map(|source| load(std::slice::from_ref(source), &[]).unwrap())
        .collect();
    let mut union: BTreeSet<Endpoint> = separate
        .iter()
        .flat_map(|loaded| loaded.endpoints.iter())
        .collect();
    assert!(union.insert(extra));
    assert_eq!(elements(&loaded.endpoints), union);

    assert_eq!(loaded.sources.len(), 2);
    for ((report, path), alone) in loaded.sources.iter().zip(&sources).zip(&separate) {
        assert_eq!(report.path, *path);
        assert_eq!(report.distinct, alone.endpoints.len());
    }
    assert_eq!(loaded.sources[0].flavor, Flavor::Ns);
    assert_eq!(loaded.sources[1].flavor, Flavor::Microdesc);
    assert_eq!(loaded.sources[0].validity, one.validity);
    assert_eq!(loaded.sources[1].counts.orports, 50);
}

#[test]
fn extras_alone_make_a_set() {
    let extra: Endpoint = "[2001:db8::7]:443".parse().unwrap();
    let loaded = load(&[], &[extra, extra]).unwrap();
    assert_eq!(elements(&loaded.endpoints), BTreeSet::from([extra]));

    let zero = Endpoint::new(extra.address, 0);
    let error = load(&[], &[extra, zero]).unwrap_err();
    assert!(matches!(error, LoadError::ExtraPortZero { position: 2 }));
    assert_names_no_address(&error);
}

#[test]
fn every_kind_of_endpoint_is_taken_from_its_own_field() {
    for flavor in FLAVORS {
        let text = small(flavor);
        let relay = |line: &str| {
            let line = with_field(line, -3, "198.51.100.1");
            with_field(&with_field(&line, -2, "1001"), -1, "1002")
        };
        let (text, _) = with_line(&text, "r", relay);
        let (text, _) = with_line(&text, "a", |_| "a [2001:db8:5::1]:1003".to_owned());
        let authority = |line: &str| {
            let line = with_field(line, 4, "198.51.100.2");
            with_field(&with_field(&line, 5, "1004"), 6, "1005")
        };
        let (text, _) = with_line(&text, "dir-source", authority);
        let document = UncheckedDocument::parse(text.as_bytes())
            .unwrap()
            .accept_unchecked();
        let first = |kind: &[Endpoint]| kind[0].to_string();
        assert_eq!(first(&document.orports), "198.51.100.1:1001");
        assert_eq!(first(&document.dirports), "198.51.100.1:1002");
        assert_eq!(first(&document.further), "[2001:db8:5::1]:1003");
        assert_eq!(first(&document.authorities), "198.51.100.2:1004");
        assert_eq!(document.authorities[1].to_string(), "198.51.100.2:1005");
        assert!(!names_an_address(&format!("{document:?}")));
    }
}

#[test]
fn a_port_of_zero_is_none_where_a_port_may_lack() {
    for flavor in FLAVORS {
        let text = small(flavor);
        let counts = |text: &str| {
            UncheckedDocument::parse(text.as_bytes())
                .unwrap()
                .accept_unchecked()
                .counts()
        };
        let (with, _) = with_line(&text, "r", |line| with_field(line, -1, "9030"));
        let (without, _) = with_line(&text, "r", |line| with_field(line, -1, "0"));
        assert_eq!(counts(&with).dirports, counts(&without).dirports + 1);
        let (without, _) = with_line(&text, "dir-source", |line| with_field(line, 5, "0"));
        assert_eq!(counts(&without).authorities, counts(&text).authorities - 1);
    }
}

#[test]
fn a_superseded_authority_key_counts_as_its_authority() {
    let text = small(Flavor::Ns);
    let (text, _) = with_line(&text, "r", |line| {
        format!(
            "dir-source labauth0-legacy {} 198.51.100.3 198.51.100.3 1006 1007\n{line}",
            "AB".repeat(20)
        )
    });
    let document = UncheckedDocument::parse(text.as_bytes())
        .unwrap()
        .accept_unchecked();
    let listed: Vec<_> = document
        .authorities
        .iter()
        .map(Endpoint::to_string)
        .collect();
    assert!(listed.contains(&"198.51.100.3:1006".to_owned()));
    assert!(listed.contains(&"198.51.100.3:1007".to_owned()));
}

#[test]
fn holds_64_000_endpoints_and_refuses_70_000() {
    let directory = TempDir::new().unwrap();
    let large = file(
        &directory,
        "large",
        order(Flavor::Microdesc, 33_000).write(),
    );
    let loaded = load(&[large], &[]).unwrap();
    let count = loaded.endpoints.len();
    assert!((64_000..=MAX_ENDPOINTS).contains(&count), "{count}");

    let huge = file(&directory, "huge", order(Flavor::Microdesc, 36_000).write());
    match load_refusal(&huge) {
        LoadError::Document {
            problem: DocumentError::TooMany { count },
            ..
        } => assert!((70_000..72_000).contains(&count), "{count}"),
        other => panic!("{other}"),
    }
}

#[test]
fn a_union_beyond_the_limit_is_refused_as_a_union() {
    let directory = TempDir::new().unwrap();
    let sources = [1, 2].map(|seed| {
        let order = Order {
            seed,
            ..order(Flavor::Microdesc, 20_000)
        };
        file(&directory, &seed.to_string(), order.write())
    });
    let error = load(&sources, &[]).unwrap_err();
    assert!(
        matches!(error, LoadError::TooMany { count } if count > MAX_ENDPOINTS),
        "{error}"
    );
}

// ---------------------------------------------------------------- bad files

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let directory = TempDir::new().unwrap();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&fifo, &link).unwrap();
    let socket = directory.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for (path, kind) in [
        (fifo.as_path(), "a FIFO"),
        (&link, "a FIFO"),
        (&socket, "a socket"),
        (directory.path(), "a directory"),
        (Path::new("/dev/zero"), "a device"),
    ] {
        match load_refusal(path) {
            LoadError::NotRegular { kind: found, .. } => assert_eq!(found, kind),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let directory = TempDir::new().unwrap();
    let missing = directory.path().join("missing");
    match load_refusal(&missing) {
        LoadError::Read { reason, .. } => {
            assert_eq!(reason.kind(), std::io::ErrorKind::NotFound);
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_file_beyond_the_limit_is_refused_unread() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("sparse");
    File::create(&path).unwrap().set_len(40 << 20).unwrap();
    assert!(matches!(load_refusal(&path), LoadError::TooLarge { .. }));

    // At the limit it is read, and the zeros are found.
    File::create(&path).unwrap().set_len(MAX_DOCUMENT).unwrap();
    assert!(matches!(
        load_refusal(&path),
        LoadError::Document {
            problem: DocumentError::Nul { line: 1 },
            ..
        }
    ));
}

#[test]
fn a_bad_file_leaves_the_set_in_use_as_it_was() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, "cached-consensus", small(Flavor::Ns));
    let sources = [path.clone()];
    let in_use: Loaded = load(&sources, &[]).unwrap();
    let before = elements(&in_use.endpoints);
    fs::write(&path, "").unwrap();
    load(&sources, &[]).unwrap_err();
    assert_eq!(elements(&in_use.endpoints), before);
    fs::write(&path, small(Flavor::Ns)).unwrap();
    let again = load(&sources, &[]).unwrap();
    assert_eq!(elements(&again.endpoints), before);
}

#[test]
fn one_bad_source_among_good_ones_is_the_one_that_is_named() {
    let directory = TempDir::new().unwrap();
    let good = file(&directory, "good", small(Flavor::Ns));
    let bad = file(&directory, "bad", "");
    let error = load(&[good, bad.clone()], &[]).unwrap_err();
    match error {
        LoadError::Document {
            path,
            problem: DocumentError::Empty,
        } => assert_eq!(path, bad),
        other => panic!("{other}"),
    }
}

// ---------------------------------------------------------------- bad documents

#[test]
fn a_document_that_is_cut_anywhere_is_refused() {
    for flavor in FLAVORS {
        let text = small(flavor);
        let whole = |text: &str| text.ends_with("-----END SIGNATURE-----\n");
        let mut accepted = 0;
        for end in 0..=text.len() {
            let part = &text[..end];
            match UncheckedDocument::parse(part.as_bytes()) {
                // Only what is missing signatures alone may still be read.
                Ok(_) => {
                    assert!(whole(part), "accepted {end} of {} bytes", text.len());
                    accepted += 1;
                }
                Err(error) => {
                    assert!(!whole(part), "refused {end} of {} bytes", text.len());
                    assert_names_no_address(&error);
                    let header = part.lines().count() <= 1;
                    let named = match error {
                        DocumentError::Cut { line, .. } => line == part.lines().count(),
                        DocumentError::Empty => end == 0,
                        // So little is left that nobody can tell what it was.
                        _ => header,
                    };
                    assert!(named, "{end} bytes: {error}");
                }
            }
        }
        assert_eq!(accepted, 2, "one per signature");
    }
}

#[test]
fn bytes_that_no_directory_writes_are_named_with_their_line() {
    for flavor in FLAVORS {
        let text = small(flavor);
        let third = text.match_indices('\n').nth(1).unwrap().0 + 1;
        let with_byte = |byte: u8| {
            let mut bytes = text.clone().into_bytes();
            bytes[third] = byte;
            bytes
        };
        assert_eq!(refusal(""), DocumentError::Empty);
        assert_eq!(refusal(with_byte(0)), DocumentError::Nul { line: 3 });
        assert_eq!(refusal(with_byte(0xff)), DocumentError::NotUtf8 { line: 3 });
        assert_eq!(
            refusal(text.replace('\n', "\r\n")),
            DocumentError::CrLf { line: 1 }
        );
        assert_eq!(refusal("hello\n"), DocumentError::NotConsensus);
        assert_eq!(refusal(format!("\n{text}")), DocumentError::NotConsensus);
        assert_eq!(
            refusal(text.replace("vote-status consensus", "vote-status vote")),
            DocumentError::OtherDocument {
                line: 2,
                found: "an authority's vote"
            }
        );
    }
}

#[test]
fn a_line_of_a_megabyte_is_read_or_refused_and_nothing_else() {
    let long = "x".repeat(1 << 20);
    for flavor in FLAVORS {
        let text = small(flavor);
        // A contact may be of any length.
        let (fine, _) = with_line(&text, "contact", |_| format!("contact {long}"));
        UncheckedDocument::parse(fine.as_bytes()).unwrap();
        // A keyword may not; a nickname may not either.
        let (bad, line) = with_line(&text, "params", |_| long.clone());
        let error = refusal(bad);
        assert!(
            matches!(error, DocumentError::Unparsable { line: found, .. } if found.abs_diff(line) <= 1),
            "line {line}: {error}"
        );
        let (bad, line) = with_line(&text, "r", |text| with_field(text, 1, &long));
        let error = refusal(bad);
        assert!(
            matches!(error, DocumentError::Unparsable { line: found, .. } if found == line),
            "line {line}: {error}"
        );
        assert!(error.to_string().len() < 300);
    }
    assert_eq!(refusal(long), DocumentError::NotConsensus);
}

#[test]
fn entries_of_another_flavour_than_announced_are_named() {
    for (announced, found) in [
        (Flavor::Ns, Flavor::Microdesc),
        (Flavor::Microdesc, Flavor::Ns),
    ] {
        let (header, _) = {
            let text = small(announced);
            let (first, rest) = text.split_once('\n').unwrap();
            (first.to_owned(), rest.len())
        };
        let text = small(found);
        let line = 1 + text
            .lines()
            .position(|line| line.starts_with("r "))
            .unwrap();
        let (_, rest) = text.split_once('\n').unwrap();
        assert_eq!(
            refusal(format!("{header}\n{rest}")),
            DocumentError::WrongFlavor {
                line,
                announced,
                found
            }
        );
    }
    let text = small(Flavor::Ns).replacen("version 3", "version 3 shiny", 1);
    assert_eq!(refusal(text), DocumentError::UnknownFlavor);
}

#[test]
fn a_port_of_zero_is_named_with_line_and_field() {
    for flavor in FLAVORS {
        let text = small(flavor);
        let (bad, line) = with_line(&text, "r", |line| with_field(line, -2, "0"));
        match refusal(bad) {
            DocumentError::PortZero { line: found, field } => {
                assert_eq!(found, line);
                assert!(field.contains("ORPort"), "{field}");
            }
            other => panic!("{other}"),
        }
        let (bad, line) = with_line(&text, "a", |_| "a [2001:db8::1]:0".to_owned());
        match refusal(bad) {
            DocumentError::PortZero { line: found, field } => {
                assert_eq!(found, line);
                assert!(field.contains("`a` line"), "{field}");
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn what_cannot_be_parsed_is_named_with_its_line() {
    for flavor in FLAVORS {
        let text = small(flavor);
        for (keyword, field, value) in [
            ("r", -2, "65536"),
            ("r", -2, "https"),
            ("r", -3, "192.0.2.256"),
            ("r", -3, "relay.example"),
            ("r", 2, "!"),
            ("a", 1, "192.0.2.1"),
            ("dir-source", 4, "192.0.2"),
            ("dir-source", 6, "-1"),
            ("valid-after", 1, "yesterday"),
        ] {
            let (bad, line) = with_line(&text, keyword, |line| with_field(line, field, value));
            match refusal(bad) {
                DocumentError::Unparsable { line: found, .. } => {
                    assert_eq!(found, line, "{keyword} {field} {value}");
                }
                other => panic!("{keyword} {field} {value}: {other}"),
            }
        }
        let twice = format!("{text}{text}");
        assert!(matches!(refusal(twice), DocumentError::Unparsable { .. }));
    }
}

#[test]
fn times_out_of_order_and_an_empty_network_are_refused() {
    let text = small(Flavor::Ns);
    let (bad, _) = with_line(&text, "fresh-until", |_| {
        "fresh-until 2000-01-01 00:00:00".to_owned()
    });
    assert_eq!(refusal(bad), DocumentError::Lifetime);
    for flavor in FLAVORS {
        assert_eq!(refusal(order(flavor, 0).write()), DocumentError::NoRelays);
    }
}

// ---------------------------------------------------------------- any input at all

/// One way to spoil a document.
#[derive(Clone, Debug)]
enum Spoil {
    Byte(Index, u8),
    Remove(Index, usize),
    Word(Index, &'static str),
    DoubleLine(Index),
    RemoveLine(Index),
    SwapLines(Index, Index),
}

fn spoil() -> impl Strategy<Value = Spoil> {
    let words = prop::sample::select(vec![
        "",
        "0",
        "-1",
        "65536",
        "99999999999999999999",
        "r",
        "a",
        "m",
        "dir-source",
        "-legacy",
        "x-legacy",
        "directory-footer",
        "directory-signature",
        "-----BEGIN SIGNATURE-----",
        "-----END SIGNATURE-----",
        "-",
        "[::]:0",
        "[2001:db8::1]:443",
        "192.0.2.1",
        "\u{b}",
        "\u{c}",
        "\t",
        "\u{e4}\u{4e2d}",
        "9999-12-31 23:59:59",
        "0000-00-00",
        "=",
        "A=",
        "a=b=c",
        "network-status-version",
        "opt",
        "1-99999999999",
        "Cons=1-4294967295",
    ]);
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Spoil::Byte(at, byte)),
        (any::<Index>(), 1..200_usize).prop_map(|(at, length)| Spoil::Remove(at, length)),
        (any::<Index>(), words).prop_map(|(at, word)| Spoil::Word(at, word)),
        any::<Index>().prop_map(Spoil::DoubleLine),
        any::<Index>().prop_map(Spoil::RemoveLine),
        (any::<Index>(), any::<Index>()).prop_map(|(one, other)| Spoil::SwapLines(one, other)),
    ]
}

fn spoiled(mut bytes: Vec<u8>, spoil: &Spoil) -> Vec<u8> {
    let in_lines = |bytes: &[u8], change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut lines: Vec<Vec<u8>> = bytes
            .split_inclusive(|&byte| byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect();
        change(&mut lines);
        lines.concat()
    };
    if bytes.is_empty() {
        return bytes;
    }
    match spoil {
        Spoil::Byte(at, byte) => {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
            bytes
        }
        Spoil::Remove(at, length) => {
            let at = at.index(bytes.len());
            bytes.drain(at..(at + length).min(bytes.len()));
            bytes
        }
        Spoil::Word(at, word) => {
            let mut words: Vec<&[u8]> = bytes
                .split_inclusive(|&byte| byte == b' ' || byte == b'\n')
                .collect();
            let at = at.index(words.len());
            let end = [*words[at].last().unwrap()];
            let word = [word.as_bytes(), &end].concat();
            words[at] = &word;
            words.concat()
        }
        Spoil::DoubleLine(at) => in_lines(&bytes, &|lines| {
            let at = at.index(lines.len());
            lines.insert(at, lines[at].clone());
        }),
        Spoil::RemoveLine(at) => in_lines(&bytes, &|lines| {
            lines.remove(at.index(lines.len()));
        }),
        Spoil::SwapLines(one, other) => in_lines(&bytes, &|lines| {
            let (one, other) = (one.index(lines.len()), other.index(lines.len()));
            lines.swap(one, other);
        }),
    }
}

proptest! {
    #[test]
    fn a_spoiled_document_is_read_or_refused(
        microdesc: bool,
        spoils in prop::collection::vec(spoil(), 1..6),
    ) {
        let flavor = FLAVORS[usize::from(microdesc)];
        let bytes = spoils.iter().fold(small(flavor).into_bytes(), spoiled);
        match UncheckedDocument::parse(&bytes) {
            Ok(document) => {
                let document = document.accept_unchecked();
                prop_assert!(document.endpoints().all(|endpoint| endpoint.port != 0));
                let shown = format!("{document:?}");
                prop_assert!(!names_an_address(&shown));
            }
            Err(error) => assert_names_no_address(&error),
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes: Vec<u8>) {
        assert_names_no_address(&UncheckedDocument::parse(&bytes).unwrap_err());
    }
}

// ---------------------------------------------------------------- real documents

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
    // Every 97th line of the many, and every line of the end.
    let tail = text.find("directory-footer").unwrap();
    for (number, end) in ends.enumerate() {
        if end >= tail || number % 97 == 0 {
            let part = &text[..end];
            let result = UncheckedDocument::parse(part.as_bytes());
            let whole = part.ends_with("-----END SIGNATURE-----\n");
            assert_eq!(result.is_ok(), whole, "cut after line {}", number + 1);
        }
    }
}

// ---------------------------------------------------------------- the command

fn exitmark(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_exitmark"))
        .arg("relays")
        .args(arguments)
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

#[test]
fn the_command_shows_what_a_file_holds() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, "consensus", small(Flavor::Microdesc));
    let path = path.to_str().unwrap();
    let output = exitmark(&[path]);
    assert_eq!(code(&output), 0, "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        path,
        "microdesc",
        "2023-11-14 22:13:20 UTC",
        "2023-11-14 23:13:20 UTC",
        "2023-11-15 01:13:20 UTC",
        "stale",
        "not checked",
        "The relay set of 1 file has",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!names_an_address(&text), "{text}");
    assert!(output.stderr.is_empty());
}

#[test]
fn the_command_writes_json() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, "consensus", small(Flavor::Ns));
    let path = path.to_str().unwrap();
    let output = exitmark(&["--json", path]);
    assert_eq!(code(&output), 0);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["contains"], serde_json::Value::Null);
    let source = &json["sources"][0];
    assert_eq!(source["flavor"], "ns");
    assert_eq!(source["orports"], 4);
    assert_eq!(source["further_orports"], 2);
    assert_eq!(source["authority_ports"], 4);
    assert_eq!(source["valid_after"], "2023-11-14 22:13:20");
    assert_eq!(source["signatures_checked"], false);
    assert_eq!(source["distinct"], json["distinct"]);
}

#[test]
fn the_command_answers_whether_an_endpoint_is_contained() {
    let directory = TempDir::new().unwrap();
    let order = Order {
        listed: vec![
            "203.0.113.9:22".parse().unwrap(),
            "[2001:db8:9::9]:25".parse().unwrap(),
        ],
        ..order(Flavor::Ns, 4)
    };
    let path = file(&directory, "consensus", order.write());
    let path = path.to_str().unwrap();
    for (endpoint, expected) in [
        ("203.0.113.9:22", 0),
        ("203.0.113.9:23", 1),
        ("203.0.113.8:22", 1),
        ("[2001:db8:9::9]:25", 0),
        ("[2001:db8:9::9]:26", 1),
    ] {
        let output = exitmark(&[path, "--contains", endpoint]);
        assert_eq!(code(&output), expected, "{endpoint}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.starts_with(["Yes, ", "No, "][usize::from(expected != 0)]),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);

        let output = exitmark(&[path, "--json", "--contains", endpoint]);
        assert_eq!(code(&output), expected, "{endpoint}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["contains"], expected == 0);
    }
}

#[test]
fn the_command_tells_wrong_usage_from_bad_files() {
    let directory = TempDir::new().unwrap();
    let good = file(&directory, "good", small(Flavor::Ns));
    let bad = file(&directory, "bad", "hello\n");
    let (good, bad) = (good.to_str().unwrap(), bad.to_str().unwrap());
    for arguments in [
        &[][..],
        &["--contains", "203.0.113.9:22"],
        &[good, "--contains", "203.0.113.9"],
        &[good, "--contains", "203.0.113.9:0"],
        &[good, "--contains", "203.0.113.9:65536"],
        &[good, "--contains", "relay.example:9001"],
        &[good, "--contains"],
        &[good, "--verify"],
    ] {
        assert_eq!(code(&exitmark(arguments)), 2, "{arguments:?}");
    }
    for arguments in [
        &[bad][..],
        &[good, bad],
        &["/nonexistent/consensus"],
        &[bad, "--contains", "203.0.113.9:22"],
    ] {
        let output = exitmark(arguments);
        assert_eq!(code(&output), 1, "{arguments:?}");
        assert!(output.stdout.is_empty());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.starts_with("exitmark: "), "{error}");
        assert!(!names_an_address(&error), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
}
