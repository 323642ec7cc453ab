//! Tier: any machine. What holds the house together: which room may know which, the documented
//! configuration, and no allocation on the packet path.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

use exitmark::datapath::memory::HeapMemory;
use exitmark::datapath::{Forwarder, Outbox, Role, Samples};
use exitmark::lab::cases::tables;
use exitmark::settings::Settings;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Which rooms each room may import. Imports run one way: whoever stands here may only name what
/// stands above.
const ARROWS: [(&str, &[&str]); 16] = [
    ("packet", &[]),
    ("policy", &["packet"]),
    ("relays", &["policy"]),
    ("nic", &["packet"]),
    ("settings", &["nic", "packet", "policy", "relays"]),
    ("datapath", &["packet", "policy"]),
    ("observe", &[]),
    ("control", &["observe"]),
    ("witness", &["datapath", "observe", "packet", "policy"]),
    (
        "daemon",
        &[
            "control", "datapath", "nic", "observe", "packet", "policy", "relays", "settings",
            "witness",
        ],
    ),
    (
        "explain",
        &["datapath", "nic", "packet", "policy", "relays", "settings"],
    ),
    ("doctor", &["datapath", "nic", "packet", "settings"]),
    (
        "lab",
        &["datapath", "nic", "packet", "policy", "relays", "settings"],
    ),
    ("demo", &["lab", "packet", "policy", "relays"]),
    (
        "cli",
        &[
            "control", "daemon", "datapath", "demo", "doctor", "explain", "observe", "packet",
            "policy", "relays", "settings",
        ],
    ),
    ("main", &["cli"]),
];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The rooms that a file names, by `crate::` paths (`exitmark::` in the binary).
fn named(text: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    code.split("crate::")
        .chain(code.split("exitmark::"))
        .skip(1)
        .map(|rest| {
            rest.chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect()
        })
        .filter(|room: &String| ARROWS.iter().any(|(name, _)| name == room))
        .collect()
}

#[test]
fn rooms_import_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let allowed: BTreeMap<_, _> = ARROWS.into_iter().collect();
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 30, "the sources are where they were");
    for path in files {
        let relative = path.strip_prefix(&root).unwrap();
        let first = relative.components().next().unwrap().as_os_str();
        let room = Path::new(first).file_stem().unwrap().to_str().unwrap();
        if room == "lib" {
            continue;
        }
        let may = allowed
            .get(room)
            .unwrap_or_else(|| panic!("{room} is a new room: say in this test what it may import"));
        for other in named(&fs::read_to_string(&path).unwrap()) {
            assert!(
                other == room || may.contains(&other.as_str()),
                "{} imports {other}, which {room} may not",
                relative.display()
            );
        }
    }
}

#[test]
fn no_page_has_a_gap_left_in_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(|page| root.join(page));
    let docs = fs::read_dir(root.join("docs")).unwrap();
    // Beside the pages there are plots, in a directory.
    let docs = docs.map(|page| page.unwrap().path());
    for page in pages.into_iter().chain(docs.filter(|page| page.is_file())) {
        let text = fs::read_to_string(&page).unwrap();
        let is_whole = !text.contains("@@") && !text.contains("TODO");
        assert!(is_whole, "{}", page.display());
    }
}

#[test]
fn unsafe_code_stays_in_its_three_rooms() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let unsafe_rooms: BTreeSet<_> = files
        .iter()
        .filter(|path| {
            let text = fs::read_to_string(path).unwrap();
            let squeezed: String = text.split_whitespace().collect();
            squeezed.contains("allow(unsafe_code")
        })
        .map(|path| {
            path.strip_prefix(&root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let three = [
        "datapath/kernel/sys.rs",
        "datapath/xsk/mod.rs",
        "monitor/tap/sys.rs",
    ];
    assert_eq!(unsafe_rooms, three.map(String::from).into());
}

/// The keys of a TOML table, `a.b` for `b` in table `a`.
fn keys(table: &toml::Table, prefix: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (key, value) in table {
        let name = format!("{prefix}{key}");
        match value {
            toml::Value::Table(inner) => found.extend(keys(inner, &format!("{name}."))),
            _ => {
                found.insert(name);
            }
        }
    }
    found
}

/// The example with every optional key uncommented: a comment sign right before a key.
fn uncommented(example: &str) -> String {
    let is_key = |rest: &str| {
        rest.split_once(" = ")
            .is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
    };
    example
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if is_key(rest) => rest,
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn the_example_configuration_is_valid_and_has_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/exitmark.example.toml");
    Settings::load(&path).unwrap();

    // With every key given: valid too, but for a host's mark that is not read, and the two ways
    // to say each mark.
    let example = fs::read_to_string(&path).unwrap();
    let all = uncommented(&example);
    let refusal = |text: &str| {
        let error = Settings::parse(text, Path::new("")).unwrap_err();
        error.to_string()
    };
    assert!(refusal(&all).contains("host.dscp"), "{}", refusal(&all));
    let read = all.replace("classify_by = \"relay-set\"", "classify_by = \"host-mark\"");
    assert!(refusal(&read).contains("host.tos"), "{}", refusal(&read));
    let of_host = read.replacen("dscp = \"af11\"\n", "", 1);
    assert!(
        refusal(&of_host).contains("mark.tos"),
        "{}",
        refusal(&of_host)
    );
    let one_mark = of_host.replacen("dscp = \"af11\"\n", "", 1);
    Settings::parse(&one_mark, Path::new("")).unwrap();

    let documented = keys(&all.parse().unwrap(), "");
    let known: BTreeSet<String> = [
        "engine",
        "mode",
        "classify_by",
        "user",
        "ports.host",
        "ports.uplink",
        "ports.incoming",
        "host.addresses",
        "host.relay_addresses",
        "host.listeners",
        "host.resolvers",
        "host.exempt",
        "host.mac",
        "host.dscp",
        "host.tos",
        "mark.dscp",
        "mark.tos",
        "mark.protocols",
        "mark.at_uplink",
        "steer.next_hop",
        "steer.on_unavailable",
        "relays.consensus",
        "relays.certificates",
        "relays.authorities",
        "relays.verify",
        "relays.extra",
        "relays.retain",
        "relays.when_stale",
        "relays.state",
        "relays.user",
        "datapath.ring",
        "datapath.batch",
        "datapath.spin",
        "datapath.zero_copy",
        "datapath.spill",
        "datapath.inbound",
        "datapath.sample",
        "pin.directory",
        "pin.on_stop",
        "control.socket",
        "control.group",
        "metrics.listen",
    ]
    .map(String::from)
    .into();
    assert_eq!(documented, known);
    // A table's parser names all the keys that it accepts when it meets another one: the list
    // above cannot fall behind.
    for table in [
        "", "ports", "host", "mark", "steer", "relays", "datapath", "pin", "control", "metrics",
    ] {
        let text = if table.is_empty() {
            format!("zzz = 1\n{one_mark}")
        } else {
            one_mark.replace(&format!("[{table}]\n"), &format!("[{table}]\nzzz = 1\n"))
        };
        let error = Settings::parse(&text, Path::new(""))
            .unwrap_err()
            .to_string();
        let (_, accepted) = error
            .split_once("expected")
            .unwrap_or_else(|| panic!("{error}"));
        let accepted = accepted.lines().next().unwrap();
        for key in accepted.split('`').skip(1).step_by(2) {
            let name = if table.is_empty() {
                key.to_owned()
            } else {
                format!("{table}.{key}")
            };
            let is_table = known
                .iter()
                .any(|known| known.starts_with(&format!("{key}.")));
            assert!(
                known.contains(&name) || table.is_empty() && is_table,
                "{name} is not in the example"
            );
        }
    }
}

#[test]
fn the_packet_path_allocates_nothing() {
    for table in tables() {
        let settings = table.settings().unwrap();
        // Every decision is told of: that must not allocate either.
        let links = Arc::new(table.links(&settings));
        links.sample(1);
        let samples = Arc::<Samples>::default();
        let mut forwarder = Forwarder::new(Arc::new(table.snapshot(&settings)), links)
            .witnessed(Arc::clone(&samples));
        let (mut memory, mut pool) = HeapMemory::new(64, 2048);
        let mut arrived = Vec::with_capacity(64);
        let mut outbox = Outbox::default();
        for (_, leaving) in outbox.leaving.iter_mut() {
            leaving.reserve(64);
        }
        outbox.dropped.reserve(64);
        for case in &table.cases {
            arrived.extend(memory.load(&case.before, &mut pool));
        }
        let frames = arrived.len();
        let allocations = allocation_counter::measure(|| {
            forwarder.process_batch(
                Role::Host,
                &mut arrived,
                &mut memory,
                &mut outbox,
                Duration::ZERO,
            );
        });
        assert!(frames > 0 && arrived.is_empty());
        assert_eq!(samples.waiting(), frames, "{}", table.name);
        assert_eq!(
            allocations.count_total, 0,
            "{}: {frames} frames",
            table.name
        );
    }
}
