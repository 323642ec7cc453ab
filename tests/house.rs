//! Tier: any machine. The architecture: which module may import which, the documented
//! configuration, and no allocation on the data path.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

use exitmark::datapath::memory::HeapMemory;
use exitmark::datapath::{Forwarder, Outbox, Role, Samples};
use exitmark::lab::cases::tables;
use exitmark::monitor::settings as monitor;
use exitmark::settings::Settings;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The modules that each module may import. Imports run one way: only from modules listed above.
const ARROWS: &[(&str, &[&str])] = &[
    ("packet", &[]),
    ("bpf", &[]),
    ("config", &["packet"]),
    ("process", &[]),
    ("prometheus", &[]),
    ("http", &[]),
    ("pcap", &["packet"]),
    ("policy", &["packet"]),
    ("relays", &["policy"]),
    ("nic", &["packet"]),
    ("settings", &["config", "nic", "packet", "policy", "relays"]),
    ("datapath", &["bpf", "packet", "policy"]),
    ("observe", &["prometheus"]),
    ("control", &["http", "observe", "prometheus"]),
    ("witness", &["datapath", "observe", "packet", "policy"]),
    (
        "daemon",
        &[
            "control", "datapath", "nic", "observe", "packet", "policy", "process", "relays",
            "settings", "witness",
        ],
    ),
    (
        "explain",
        &[
            "datapath", "nic", "packet", "pcap", "policy", "relays", "settings",
        ],
    ),
    (
        "doctor",
        &["bpf", "datapath", "nic", "packet", "relays", "settings"],
    ),
    (
        "lab",
        &[
            "bpf", "datapath", "nic", "packet", "policy", "relays", "settings",
        ],
    ),
    ("demo", &["lab", "packet", "policy", "relays"]),
    (
        "cli",
        &[
            "control", "daemon", "datapath", "demo", "doctor", "explain", "nic", "observe",
            "packet", "policy", "process", "relays", "settings",
        ],
    ),
    ("main", &["cli"]),
    // The other program's modules, which none of the above may import.
    ("monitor/cell", &["packet"]),
    ("monitor/row", &["monitor/cell"]),
    ("monitor/services", &["monitor/row"]),
    ("monitor/clock", &[]),
    ("monitor/ledger", &["monitor/cell", "packet"]),
    ("monitor/filter", &["packet"]),
    ("monitor/places", &["monitor/cell"]),
    (
        "monitor/tally",
        &[
            "monitor/cell",
            "monitor/filter",
            "monitor/ledger",
            "monitor/places",
            "packet",
        ],
    ),
    (
        "monitor/pcap",
        &["monitor/filter", "monitor/tally", "packet", "pcap"],
    ),
    ("monitor/tap", &["bpf", "monitor/filter", "nic", "packet"]),
    (
        "monitor/publish",
        &[
            "monitor/cell",
            "monitor/clock",
            "monitor/ledger",
            "monitor/row",
            "monitor/services",
            "packet",
        ],
    ),
    (
        "monitor/period",
        &[
            "monitor/clock",
            "monitor/ledger",
            "monitor/publish",
            "monitor/row",
        ],
    ),
    (
        "monitor/report",
        &["monitor/cell", "monitor/row", "monitor/services"],
    ),
    (
        "monitor/settings",
        &[
            "config",
            "monitor/cell",
            "monitor/clock",
            "monitor/period",
            "monitor/places",
            "monitor/publish",
            "monitor/row",
            "monitor/tap",
            "packet",
        ],
    ),
    (
        "monitor/capture",
        &[
            "http",
            "monitor/cell",
            "monitor/clock",
            "monitor/filter",
            "monitor/ledger",
            "monitor/pcap",
            "monitor/period",
            "monitor/places",
            "monitor/publish",
            "monitor/row",
            "monitor/settings",
            "monitor/tally",
            "monitor/tap",
            "packet",
            "pcap",
            "process",
            "prometheus",
        ],
    ),
    (
        "monitor/cli",
        &[
            "config",
            "monitor/capture",
            "monitor/report",
            "monitor/settings",
            "process",
        ],
    ),
    ("bin", &["monitor/cli"]),
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

/// The path of a source file's module from the crate's root.
fn module(relative: &Path) -> Vec<String> {
    let path = relative.with_extension("");
    let names = path.iter().map(|name| name.to_str().unwrap().to_owned());
    names.filter(|name| name != "mod").collect()
}

/// The most specific module of [`ARROWS`] that contains a path.
fn room(path: &[String]) -> Option<&'static str> {
    let has = |name: &str| name.split('/').zip(path).all(|(a, b)| a == b);
    let rooms = ARROWS.iter().map(|(name, _)| *name);
    rooms
        .filter(|name| name.split('/').count() <= path.len() && has(name))
        .max_by_key(|name| name.len())
}

/// The paths of an import that begins here: one, or those in braces.
fn paths(text: &str) -> Vec<Vec<String>> {
    let identifier = |text: &str| -> String {
        let is_part = |c: &char| c.is_alphanumeric() || *c == '_';
        text.chars().take_while(is_part).collect()
    };
    let Some(inside) = text.strip_prefix('{') else {
        let name = identifier(text);
        let rest = text[name.len()..].strip_prefix("::");
        let more = rest.map_or(vec![vec![]], paths);
        let with_name = |tail: Vec<String>| [vec![name.clone()], tail].concat();
        return more.into_iter().map(with_name).collect();
    };
    let mut depth = 0;
    let mut items = vec![0];
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => items.push(at + 1),
            _ => {}
        }
    }
    let item = |at: usize| paths(inside[at..].trim_start());
    items.into_iter().flat_map(item).collect()
}

/// The modules that a source file names, by paths from the crate's root (`exitmark::` in the
/// binaries) or relative to a parent module.
fn named(module: &[String], text: &str) -> BTreeSet<&'static str> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut found = BTreeSet::new();
    for root in ["crate::", "exitmark::"] {
        let named = code.split(root).skip(1).flat_map(paths);
        found.extend(named.filter_map(|path| room(&path)));
    }
    for (at, above) in code.match_indices("super::") {
        if code[..at].ends_with(above) {
            continue;
        }
        let rest = code[at..].trim_start_matches(above);
        let ups = (code.len() - at - rest.len()) / above.len();
        let base = &module[..module.len().saturating_sub(ups)];
        let named = paths(rest).into_iter().map(|path| [base, &path].concat());
        found.extend(named.filter_map(|path| room(&path)));
    }
    found
}

#[test]
fn modules_import_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let allowed: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 30, "the sources have moved");
    for path in files {
        let relative = path.strip_prefix(&root).unwrap();
        let module = module(relative);
        if module == ["lib"] || module == ["monitor"] {
            continue;
        }
        let here = room(&module).unwrap_or_else(|| {
            panic!("{module:?} is a new module: list in this test what it may import")
        });
        for other in named(&module, &fs::read_to_string(&path).unwrap()) {
            assert!(
                other == here || allowed[here].contains(&other),
                "{} imports {other}, which {here} may not",
                relative.display()
            );
        }
    }
}

/// The modules that a module may import, directly or indirectly.
fn reachable(room: &'static str, found: &mut BTreeSet<&'static str>) {
    let (_, may) = ARROWS.iter().find(|(name, _)| *name == room).unwrap();
    for other in *may {
        if found.insert(other) {
            reachable(other, found);
        }
    }
}

#[test]
fn no_program_contains_code_of_modules_that_it_may_not_import() {
    for (room, program) in [
        ("main", env!("CARGO_BIN_EXE_exitmark")),
        ("bin", env!("CARGO_BIN_EXE_exitmark-monitor")),
    ] {
        let mut known = BTreeSet::from([room]);
        reachable(room, &mut known);
        let bytes = fs::read(program).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        // Mangled names of functions: each part follows its length.
        let mut there: BTreeSet<String> = BTreeSet::new();
        for (at, crate_name) in text.match_indices("8exitmark") {
            let rest = &text[at + crate_name.len()..];
            let name = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            let length: usize = rest[..rest.len() - name.len()].parse().unwrap_or_default();
            there.extend(name.get(..length).map(str::to_owned));
        }
        for (name, _) in ARROWS {
            let top = name.split('/').next().unwrap();
            let is_known = known
                .iter()
                .any(|known| known.split('/').next() == Some(top));
            assert!(
                is_known || !there.contains(top),
                "{program} has code of {top}"
            );
        }
        let rooms = ARROWS.iter().filter(|(name, _)| there.contains(*name));
        assert!(
            rooms.count() >= 5,
            "{program} has no names any more: {there:?}"
        );
    }
}

#[test]
fn every_form_of_import_is_found() {
    let text = "use super::super::cell::Cell;\nuse crate::{nic::Nic, packet::{Dscp, Version}};\n\
                fn f() { crate::policy::judge(super::tests); super::super::row::f() }\n\
                // crate::daemon\n";
    let module = ["monitor", "tally", "table"].map(String::from);
    let seen = ["monitor/cell", "monitor/row", "nic", "packet", "policy"];
    let named = named(&module, text);
    assert!(named.is_superset(&seen.into()), "{named:?}");
    assert!(!named.contains("daemon"));
}

#[test]
fn no_page_contains_a_placeholder() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = [
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "tests/README.md",
    ]
    .map(|page| root.join(page));
    let docs = fs::read_dir(root.join("docs")).unwrap();
    // docs/ also contains directories, with plots.
    let docs = docs.map(|page| page.unwrap().path());
    for page in pages.into_iter().chain(docs.filter(|page| page.is_file())) {
        let text = fs::read_to_string(&page).unwrap();
        let is_whole = !text.contains("@@") && !text.contains("TODO");
        assert!(is_whole, "{}", page.display());
    }
}

#[test]
fn unsafe_code_stays_in_three_modules() {
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

/// There are two programs, and `make demo` relies on the default.
#[test]
fn cargo_runs_the_box() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest: toml::Table = fs::read_to_string(manifest).unwrap().parse().unwrap();
    let runs = manifest["package"].get("default-run");
    assert_eq!(runs.and_then(toml::Value::as_str), Some("exitmark"));
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

/// The example with every optional key uncommented: lines with `#` directly before a key.
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

/// Every key of the box's configuration.
const KEYS: &[&str] = &[
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
    "datapath.frags",
    "datapath.spill",
    "datapath.inbound",
    "datapath.sample",
    "pin.directory",
    "pin.on_stop",
    "control.socket",
    "control.group",
    "metrics.listen",
];

/// Every key of the monitor's configuration.
const MONITOR_KEYS: &[&str] = &[
    "exit",
    "interface",
    "addresses",
    "user",
    "mark.dscp",
    "mark.tos",
    "places.countries",
    "places.systems",
    "period.length",
    "period.directory",
    "period.state",
    "publish.top",
    "publish.threshold_flows",
    "publish.bin_flows",
    "publish.bin_bytes",
    "publish.bin_packets",
    "publish.cross",
    "noise.epsilon",
    "noise.flows",
    "noise.bytes",
    "noise.packets",
    "memory.cells",
    "memory.ring",
    "metrics.listen",
];

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist");
    fs::read_to_string(path.join(name)).unwrap()
}

/// Fails unless a configuration with every key has exactly these, and its parser accepts no other.
fn has_every_key<T>(all: &str, known: &[&str], parse: impl Fn(&str) -> Result<T, String>) {
    let documented = keys(&all.parse().unwrap(), "");
    let known: BTreeSet<String> = known.iter().map(|&key| key.to_owned()).collect();
    assert_eq!(documented, known);
    // For an unknown key, a table's parser lists all keys that it accepts: `known` cannot fall
    // behind.
    let tables: BTreeSet<&str> = known
        .iter()
        .map(|key| key.split_once('.').map_or("", |(table, _)| table))
        .collect();
    for &table in &tables {
        let text = match table {
            "" => format!("zzz = 1\n{all}"),
            _ => all.replace(&format!("[{table}]\n"), &format!("[{table}]\nzzz = 1\n")),
        };
        let Err(error) = parse(&text) else {
            panic!("[{table}] takes zzz");
        };
        let (_, accepted) = error
            .split_once("expected")
            .unwrap_or_else(|| panic!("{error}"));
        let accepted = accepted.lines().next().unwrap();
        for key in accepted.split('`').skip(1).step_by(2) {
            let name = match table {
                "" => key.to_owned(),
                _ => format!("{table}.{key}"),
            };
            assert!(
                known.contains(&name) || table.is_empty() && tables.contains(key),
                "{name} is not in the example"
            );
        }
    }
}

#[test]
fn the_example_configuration_is_valid_and_has_every_key() {
    let parse = |text: &str| {
        let parsed = Settings::parse(text, Path::new(""));
        parsed.map_err(|error| error.to_string())
    };
    let example = example("exitmark.example.toml");
    parse(&example).unwrap();

    // With every key set it is valid, too, except for the unused host's mark and for each mark
    // given in two ways.
    let all = uncommented(&example);
    let refusal = |text: &str| parse(text).unwrap_err();
    assert!(refusal(&all).contains("host.dscp"), "{}", refusal(&all));
    let read = all.replace("classify_by = \"relay-set\"", "classify_by = \"host-mark\"");
    assert!(refusal(&read).contains("host.tos"), "{}", refusal(&read));
    let of_host = read.replacen("dscp = \"af11\"\n", "", 1);
    assert!(
        refusal(&of_host).contains("mark.tos"),
        "{}",
        refusal(&of_host)
    );
    parse(&of_host.replacen("dscp = \"af11\"\n", "", 1)).unwrap();
    has_every_key(&all, KEYS, parse);
}

#[test]
fn the_monitors_example_configuration_is_valid_and_has_every_key() {
    let parse = |text: &str| {
        let nothing_else = monitor::Overrides::default();
        let parsed = monitor::Settings::parse(text, Path::new(""), &nothing_else);
        parsed.map_err(|error| error.to_string())
    };
    let example = example("exitmark-monitor.example.toml");
    let settings = parse(&example).unwrap();

    // With every key set it is valid, too, except for the mark given in two ways.
    let all = uncommented(&example);
    let refused = parse(&all).unwrap_err();
    assert!(refused.contains("mark.tos"), "{refused}");
    let mut shown = parse(&all.replacen("dscp = \"af11\"\n", "", 1)).unwrap();
    has_every_key(&all, MONITOR_KEYS, parse);

    // The values shown are the defaults; these three have none.
    shown.user = None;
    shown.places.systems = None;
    shown.publish.noise = None;
    assert_eq!(format!("{shown:?}"), format!("{settings:?}"));
}

#[test]
fn the_data_path_allocates_nothing() {
    for table in tables() {
        let settings = table.settings().unwrap();
        // Every decision is sampled, which must not allocate either.
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
