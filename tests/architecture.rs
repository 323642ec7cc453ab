//! Tier: any machine. The architecture: which module may import which, the documented
//! configuration, and no allocation on the data path.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

use exitmark_box::settings::Settings;
use exitmark_datapath::memory::HeapMemory;
use exitmark_datapath::{Forwarder, Outbox, Role, Samples};
use exitmark_lab::cases::tables;
use exitmark_lab::{uncommented, with_wires};
use exitmark_monitor::settings as monitor;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// The modules that each module of a crate may import: the compiler holds the imports between crates,
/// and this table those within the two crates with many modules, and between `policy` and its headers.
/// Imports run one way, to modules of the same crate.
const ARROWS: &str = "
policy/packet:
box/settings:
box/observe:
box/control: observe
box/audit: observe
box/machine: settings
box/daemon: control machine observe settings audit
box/explain: machine settings
box/doctor: machine settings
box/cli: control daemon doctor explain observe settings
monitor/cell:
monitor/row: cell
monitor/services: row
monitor/clock:
monitor/ledger: cell
monitor/mirror:
monitor/filter: cell mirror
monitor/places: cell prefetch
monitor/prefetch:
monitor/tally: cell filter ledger places prefetch
monitor/pcap: filter tally
monitor/tap: cell filter
monitor/publish: cell clock ledger row services
monitor/period: clock ledger publish row
monitor/report: cell row services
monitor/settings: cell clock mirror period places publish row tap
monitor/capture: cell clock filter ledger pcap period places publish row settings tally tap
monitor/cli: capture report settings
";

/// The modules of [`ARROWS`], each with the names of those that it may import.
fn arrows() -> impl Iterator<Item = (&'static str, &'static str)> {
    ARROWS.lines().filter_map(|line| line.split_once(':'))
}

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
fn listed_module(path: &[String]) -> Option<&'static str> {
    let path = path.join("/") + "/";
    arrows()
        .map(|(name, _)| name)
        .filter(|name| path.starts_with(&format!("{name}/")))
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

/// The modules of its own crate that a source file names, by paths from the crate's root or relative
/// to a parent module. The path of a module begins with its crate.
fn named(module: &[String], text: &str) -> BTreeSet<&'static str> {
    let lines = text.lines();
    let code = lines.filter(|line| !line.trim_start().starts_with("//"));
    let code = code.collect::<Vec<_>>().join("\n");
    let mut found = BTreeSet::new();
    let from_root = code.split("crate::").skip(1).flat_map(paths);
    let with_crate = |path: Vec<String>| [&module[..1], &path].concat();
    found.extend(from_root.filter_map(|path| listed_module(&with_crate(path))));
    for (at, above) in code.match_indices("super::") {
        if code[..at].ends_with(above) {
            continue;
        }
        let rest = code[at..].trim_start_matches(above);
        let ups = (code.len() - at - rest.len()) / above.len();
        let base = &module[..module.len().saturating_sub(ups)];
        let named = paths(rest).into_iter().map(|path| [base, &path].concat());
        found.extend(named.filter_map(|path| listed_module(&path)));
    }
    found
}

#[test]
fn modules_import_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let allowed: BTreeMap<_, _> = arrows().collect();
    let mut files = Vec::new();
    for name in ["box", "monitor", "policy/packet"] {
        sources(&root.join(name), &mut files);
    }
    assert!(files.len() > 30, "the sources have moved");
    for path in files {
        let relative = path.strip_prefix(&root).unwrap();
        let module = module(relative);
        if ["lib", "build"].contains(&module[1].as_str()) {
            continue;
        }
        let here = listed_module(&module).unwrap_or_else(|| {
            panic!("{module:?} is a new module: list in this test what it may import")
        });
        for other in named(&module, &fs::read_to_string(&path).unwrap()) {
            let (_, name) = other.split_once('/').unwrap();
            let mut names = allowed[here].split_whitespace();
            assert!(
                other == here || names.any(|one| one == name),
                "{} imports {other}, which {here} may not",
                relative.display()
            );
        }
    }
}

/// The crates whose code is in a program, by the mangled names of its functions.
fn crates_of(program: &str) -> BTreeSet<String> {
    let bytes = fs::read(program).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    let mut found = BTreeSet::new();
    for (at, name) in text.match_indices("exitmark_") {
        let rest = &text[at + name.len()..];
        let end = rest.find(|c: char| !c.is_ascii_lowercase());
        let whole = &rest[..end.unwrap_or(rest.len())];
        // A mangled name follows its length.
        let length = (name.len() + whole.len()).to_string();
        if text[..at].ends_with(&length) || text[..at].ends_with(&format!("{length}_")) {
            found.insert(whole.to_owned());
        }
    }
    found
}

/// Both programs are of one package, so cargo alone does not hold this.
#[test]
fn no_program_contains_code_of_the_other() {
    let box_crates = crates_of(env!("CARGO_BIN_EXE_exitmark"));
    let monitor_crates = crates_of(env!("CARGO_BIN_EXE_exitmark-monitor"));
    let of_box = ["box", "datapath", "relays", "policy"];
    let of_monitor = ["monitor", "nic", "pcap", "policy"];
    for (crates, own, foreign) in [
        (&box_crates, of_box, ["monitor", "lab", "demo"]),
        (&monitor_crates, of_monitor, ["box", "datapath", "relays"]),
    ] {
        for name in own {
            assert!(crates.contains(name), "no names of {name}: {crates:?}");
        }
        for name in foreign {
            assert!(!crates.contains(name), "code of {name}: {crates:?}");
        }
    }
}

/// The packages that a package depends on outside its tests.
fn dependencies(package: &str, edges: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--prefix=none"])
        .args(["--format={p}", "--edges", edges, "--package", package])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().filter_map(|line| line.split(' ').next());
    names.map(str::to_owned).collect()
}

fn manifest(directory: &str) -> toml::Table {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let text = fs::read_to_string(path.join("Cargo.toml")).unwrap();
    text.parse().unwrap()
}

#[test]
fn the_programs_link_nothing_of_the_lab() {
    let shipped = dependencies("exitmark", "normal");
    for name in ["exitmark-box", "exitmark-monitor", "tor-netdoc"] {
        assert!(shipped.contains(name), "{name}: {shipped:?}");
    }
    for name in ["lab", "demo", "tools"].map(|name| format!("exitmark-{name}")) {
        assert!(!shipped.contains(&name), "{name} is linked");
    }
    assert!(!shipped.contains("etherparse"), "etherparse is linked");
    // RSA keys and SHA-1 are in the programs only as tor-netdoc's means to verify a consensus.
    for (package, only_in) in [
        ("tor-netdoc", "exitmark-relays"),
        ("rsa", "exitmark-lab"),
        ("sha1", "exitmark-lab"),
        ("askama", "exitmark-monitor"),
        ("jiff", "exitmark-monitor"),
        ("maxminddb", "exitmark-monitor"),
    ] {
        let named = |member: &&&str| {
            let manifest = manifest(&format!("src/{member}"));
            manifest["dependencies"].get(package).is_some()
        };
        let members: Vec<_> = MEMBERS.iter().filter(named).collect();
        assert_eq!(members, [&&only_in["exitmark-".len()..]], "{package}");
    }
}

const MEMBERS: &[&str] = &[
    "bpf", "policy", "pcap", "relays", "nic", "service", "datapath", "box", "monitor", "lab",
    "demo", "tools",
];

#[test]
fn every_form_of_import_is_found() {
    let text = "use super::super::cell::Cell;\nuse crate::{tap::Tap, period::{Clock, State}};\n\
                fn f() { crate::publish::publish(super::tests); super::super::row::f() }\n\
                // crate::report\n";
    let module = ["monitor", "tally", "table"].map(String::from);
    let expected = ["cell", "row", "tap", "period", "publish"];
    let expected = expected.map(|name| format!("monitor/{name}"));
    let named = named(&module, text);
    let all = expected.iter().all(|name| named.contains(name.as_str()));
    assert!(all, "{named:?}");
    assert!(!named.contains("monitor/report"));
}

/// The kernel may preempt a program at connect(2) for another one on the same CPU, whose count an
/// increment in several instructions would lose.
#[test]
fn engine_connect_counts_atomically() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf/connect.bpf.c");
    let text = fs::read_to_string(path).unwrap();
    let is_count = |line: &&str| line.contains("counts->");
    let counts: Vec<_> = text.lines().filter(is_count).collect();
    assert!(counts.len() > 10);
    for line in counts {
        assert!(line.contains("count(&counts->"), "{line}");
    }
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
fn unsafe_code_stays_in_four_modules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut allowed = BTreeSet::new();
    for member in MEMBERS {
        let mut files = Vec::new();
        sources(&root.join(member), &mut files);
        let mut forbids = false;
        for path in files {
            let text = fs::read_to_string(&path).unwrap();
            let squeezed: String = text.split_whitespace().collect();
            forbids |= squeezed.contains("#![forbid(unsafe_code)]");
            if squeezed.contains("allow(unsafe_code") {
                allowed.insert(path.strip_prefix(&root).unwrap().to_owned());
            }
        }
        // The other crates forbid it, so that their modules cannot allow it.
        let may_allow = ["datapath", "monitor"].contains(member);
        assert_eq!(!forbids, may_allow, "{member}");
    }
    let four = [
        "datapath/kernel/sys.rs",
        "datapath/xsk/mod.rs",
        "monitor/prefetch.rs",
        "monitor/tap/sys.rs",
    ];
    assert_eq!(allowed, four.map(PathBuf::from).into());
}

/// There are several programs; `cargo run` means the box.
/// The path of the sources would make each directory's build of a package another one.
#[test]
fn no_package_contains_the_path_of_the_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    // The tools make the manual and are in no package.
    for member in MEMBERS.iter().filter(|&&member| member != "tools") {
        sources(&root.join(member), &mut found);
    }
    let variable = concat!("CARGO_MANIFEST", "_DIR");
    for path in found {
        let is_build_script = path.file_name().is_some_and(|name| name == "build.rs");
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            is_build_script || !text.contains(variable),
            "{}: read {variable} at run time, or find the directory otherwise",
            path.display()
        );
    }
}

#[test]
fn cargo_runs_the_box() {
    let manifest = manifest("");
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
            toml::Value::Array(tables) if tables.iter().any(toml::Value::is_table) => {
                let tables = tables.iter().filter_map(toml::Value::as_table);
                found.extend(tables.flat_map(|inner| keys(inner, &format!("{name}."))));
            }
            _ => found.extend([name]),
        }
    }
    found
}

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist");
    fs::read_to_string(path.join(name)).unwrap()
}

/// Fails unless configurations with every key have exactly those that `interface.txt` lists for the
/// program, and its parser accepts no other.
fn have_every_key<T>(all: &[&str], program: &str, parse: impl Fn(&str) -> Result<T, String>) {
    let of_each = all.iter().map(|text| keys(&text.parse().unwrap(), ""));
    let documented: BTreeSet<String> = of_each.flatten().collect();
    let prefix = format!("key {program} ");
    let lines = include_str!("interface.txt").lines();
    let known: BTreeSet<String> = lines
        .filter_map(|line| line.strip_prefix(&prefix)?.split_once(':'))
        .map(|(key, _)| key.to_owned())
        .collect();
    assert_eq!(documented, known);
    // For an unknown key, a table's parser lists all keys that it accepts: `known` cannot fall
    // behind.
    let tables: BTreeSet<&str> = known
        .iter()
        .map(|key| key.rsplit_once('.').map_or("", |(table, _)| table))
        .collect();
    for &table in &tables {
        let headings = [format!("[{table}]\n"), format!("[[{table}]]\n")];
        let with_unknown = |text: &&str| {
            let heading = headings.iter().find(|heading| text.contains(*heading))?;
            Some(text.replace(heading, &format!("{heading}zzz = 1\n")))
        };
        let text = match table {
            "" => format!("zzz = 1\n{}", all[0]),
            _ => all.iter().find_map(with_unknown).unwrap(),
        };
        let Err(error) = parse(&text) else {
            panic!("[{table}] takes zzz");
        };
        let accepted = error.split_once("expected").expect(&error).1;
        let accepted = accepted.lines().next().unwrap();
        for key in accepted.split('`').skip(1).step_by(2) {
            let name = match table {
                "" => key.to_owned(),
                _ => format!("{table}.{key}"),
            };
            assert!(
                known.contains(&name) || tables.contains(&*name),
                "{name} is not in the example"
            );
        }
    }
}

#[test]
fn the_example_configurations_are_valid_and_have_every_key() {
    let parse = |text: &str| {
        let parsed = Settings::parse(text, Path::new(""));
        parsed.map_err(|error| error.to_string())
    };
    let example = example("exitmark.example.toml");
    parse(&example).unwrap();
    let wires = with_wires(&example).unwrap();
    assert_eq!(parse(&wires).unwrap().wires.len(), 1);

    // With every key set it is valid, too, except for the unused host's mark and for each mark
    // given in two ways.
    let all = uncommented(&example);
    let refusal = |text: &str| parse(text).unwrap_err();
    assert!(refusal(&all).contains("host.dscp"), "{}", refusal(&all));
    let read = all.replace("classify_by = \"relay-set\"", "classify_by = \"host-mark\"");
    assert!(refusal(&read).contains("host.tos"), "{}", refusal(&read));
    let once = read.replacen("dscp = \"af11\"\n", "", 1);
    assert!(refusal(&once).contains("mark.tos"), "{}", refusal(&once));
    let twice = once.replacen("dscp = \"af11\"\n", "", 1);
    let refused = refusal(&twice);
    assert!(refused.contains("host.mark.tos"), "{refused}");
    let other = twice.replacen("dscp = \"le\"\n", "", 1);
    assert!(
        refusal(&other).contains("tap.directions"),
        "{}",
        refusal(&other)
    );
    parse(&other.replace("directions = \"both\"", "directions = \"out\"")).unwrap();

    // The same on a Tor host, except for the other way to name tor's connections.
    let example = self::example("exitmark-connect.example.toml");
    let settings = parse(&example).unwrap();
    let all_of_connect = uncommented(&example);
    let refused = refusal(&all_of_connect);
    assert!(refused.contains("tor.cgroups"), "{refused}");
    let one = all_of_connect.replacen("users = [\"debian-tor\"]\n", "", 1);
    assert!(refusal(&one).contains("mark.tos"), "{}", refusal(&one));
    let shown = parse(&one.replacen("dscp = \"af11\"\n", "", 1)).unwrap();
    // The values shown are the defaults; these keys have none.
    assert_eq!(
        settings.change_to(&shown).keys,
        [
            "control.group",
            "mark.dscp",
            "mark.tos",
            "relays.authorities",
            "relays.certificates",
            "steer.fwmark",
            "steer.interface",
            "steer.source",
            "tor.cgroups",
            "tor.users",
            "user",
        ]
    );
    let all_of_wires = uncommented(&wires);
    have_every_key(&[&all, &all_of_connect, &all_of_wires], "exitmark", parse);
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

    // With every key set it is valid, too, except for NICs and mark given in two ways.
    let all = uncommented(&example);
    let refused = parse(&all).unwrap_err();
    assert!(refused.contains("interface = "), "{refused}");
    let one = all.replacen("interface = \"enp4s0\"\n", "", 1);
    let refused = parse(&one).unwrap_err();
    assert!(refused.contains("mark.tos"), "{refused}");
    let mut shown = parse(&one.replacen("dscp = \"af11\"\n", "", 1)).unwrap();
    have_every_key(&[&all], "exitmark-monitor", parse);

    // The values shown are the defaults; these have none.
    shown.interfaces.truncate(1);
    shown.unwrap = settings.unwrap;
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
            .sampled_into(Arc::clone(&samples));
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
        let (now, queues) = (Duration::ZERO, &mut outbox);
        let allocations = allocation_counter::measure(|| {
            forwarder.process_batch(Role::Host, &mut arrived, &mut memory, queues, now);
        });
        assert!(frames > 0 && arrived.is_empty());
        assert_eq!(samples.waiting(), frames, "{}", table.name);
        let count = allocations.count_total;
        assert_eq!(count, 0, "{}: {frames} frames", table.name);
    }
}
