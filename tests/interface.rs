//! Tier: any machine. The interface for users, compared with the list in `interface.txt`: an item
//! that disappears or changes breaks a configuration, a script, a dashboard or an alert.
//!
//! Items are the commands, arguments and options of both programs (with the default, and whether it
//! is required), the keys of the example configurations with their types, the documented metrics
//! with their types and labels, and the documented exit statuses.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

use clap::{Arg, ArgAction, Command};
use exitmark_lab::{uncommented, with_wires};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

const PROGRAMS: [&str; 2] = ["exitmark", "exitmark-monitor"];

fn text(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The items of a command and of its subcommands. `path` is the program with the names of the
/// commands above this one.
fn add_command(command: &Command, path: &str, is_hidden: bool, found: &mut BTreeSet<String>) {
    let hidden = if is_hidden { ", hidden" } else { "" };
    if command.get_version().is_some() {
        found.insert(format!("option {path} --version"));
    }
    for argument in command.get_arguments() {
        let is_hidden = is_hidden || argument.is_hide_set();
        found.insert(described(argument, path, is_hidden));
    }
    for command in command.get_subcommands() {
        let path = format!("{path} {}", command.get_name());
        let is_hidden = is_hidden || command.is_hide_set();
        add_command(command, &path, is_hidden, found);
    }
    if path.contains(' ') {
        found.insert(format!("command {path}{hidden}"));
    }
}

/// An argument or option as an item, such as `option exitmark top --interval SECONDS, default 1`.
fn described(argument: &Arg, path: &str, is_hidden: bool) -> String {
    let mut names = Vec::new();
    names.extend(argument.get_short().map(|short| format!("-{short}")));
    names.extend(argument.get_long().map(|long| format!("--{long}")));
    let kind = if names.is_empty() {
        "argument"
    } else {
        "option"
    };
    let takes_values = argument.get_action().takes_values();
    if takes_values {
        let values = argument.get_value_names().unwrap_or_default();
        names.extend(values.iter().map(|value| value.as_str().to_owned()));
    }
    let mut item = format!("{kind} {path} {}", names.join(" "));
    if argument.is_required_set() {
        item += ", required";
    }
    if matches!(argument.get_action(), ArgAction::Append | ArgAction::Count) {
        item += ", repeatable";
    }
    for value in argument.get_default_values() {
        if takes_values {
            let _ = write!(item, ", default {}", value.to_string_lossy());
        }
    }
    if is_hidden {
        item += ", hidden";
    }
    item
}

/// The example configurations, each with its program.
const EXAMPLES: [(&str, &str); 3] = [
    ("exitmark", "dist/exitmark.example.toml"),
    ("exitmark", "dist/exitmark-connect.example.toml"),
    ("exitmark-monitor", "dist/exitmark-monitor.example.toml"),
];

/// The keys of a configuration, such as `key exitmark mark.dscp: string`.
fn add_keys(program: &str, example: &str, found: &mut BTreeSet<String>) {
    let example = text(example);
    let wires = with_wires(&example);
    for text in [Some(example), wires].into_iter().flatten() {
        let all: toml::Table = uncommented(&text).parse().unwrap();
        add_table(&all, &format!("key {program} "), found);
    }
}

fn add_table(table: &toml::Table, prefix: &str, found: &mut BTreeSet<String>) {
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => add_table(inner, &format!("{prefix}{key}."), found),
            toml::Value::Array(tables) if tables.iter().any(toml::Value::is_table) => {
                for table in tables.iter().filter_map(toml::Value::as_table) {
                    add_table(table, &format!("{prefix}{key}."), found);
                }
            }
            value => {
                found.insert(format!("{prefix}{key}: {}", value.type_str()));
            }
        }
    }
}

/// The metrics of the table in a page, such as `metric exitmark_engine_frames_total{engine}:
/// counter`. Other tests compare the pages with the programs.
fn add_metrics(page: &str, found: &mut BTreeSet<String>) {
    let text = text(page);
    for row in text.lines().filter(|line| line.starts_with("| `exitmark_")) {
        let cells: Vec<_> = row.trim_matches(['|', ' ']).split(" | ").collect();
        let [name, kind, labels, _] = cells[..] else {
            panic!("{page}: a row without four cells: {row}");
        };
        let labels = match labels {
            "none" => String::new(),
            labels => format!("{{{}}}", labels.replace(' ', "")),
        };
        found.insert(format!("metric {name}{labels}: {kind}").replace('`', ""));
    }
}

/// The exit statuses in the first paragraph or table behind `beginning` in a page.
fn add_statuses(program: &str, page: &str, beginning: &str, found: &mut BTreeSet<String>) {
    let text = text(page);
    let (_, rest) = text
        .split_once(beginning)
        .unwrap_or_else(|| panic!("{page}: {beginning}"));
    let part = rest.trim_start().split("\n\n").next().unwrap_or_default();
    let words = part.split_whitespace();
    for status in words.filter_map(|word| word.parse::<u8>().ok()) {
        found.insert(format!("status {program} {status}"));
    }
}

fn interface() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let commands = [
        exitmark_box::cli::command(),
        exitmark_monitor::cli::command(),
    ];
    for (program, command) in PROGRAMS.iter().zip(&commands) {
        assert_eq!(command.get_name(), *program);
        add_command(command, program, false, &mut found);
    }
    for (program, example) in EXAMPLES {
        add_keys(program, example, &mut found);
    }
    add_metrics("docs/metrics.md", &mut found);
    add_metrics("docs/monitor.md", &mut found);
    for (program, page, beginning) in [
        ("exitmark", "docs/operating.md", "### Exit status"),
        ("exitmark-monitor", "docs/monitor.md", "Exit status"),
    ] {
        add_statuses(program, page, beginning, &mut found);
    }
    found
}

/// The items of `interface.txt` in its order, each with its release.
fn listed(text: &str) -> Vec<(&str, &str)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let item = |line| {
        let parts = str::rsplit_once(line, "; since ");
        parts.unwrap_or_else(|| panic!("tests/interface.txt: no release in: {line}"))
    };
    lines.map(item).collect()
}

/// The differences between the interface and the list, with what to do; empty if there are none.
fn differences(interface: &BTreeSet<String>, listed: &BTreeMap<&str, &str>) -> String {
    let line = |item: &str, release: &str| format!("  {item}; since {release}\n");
    let gone = listed
        .iter()
        .filter(|(item, _)| !interface.contains(**item));
    let gone: String = gone.map(|(item, since)| line(item, since)).collect();
    let new = interface
        .iter()
        .filter(|item| !listed.contains_key(item.as_str()));
    let new: String = new
        .map(|item| line(item, env!("CARGO_PKG_VERSION")))
        .collect();
    let mut text = String::new();
    if !gone.is_empty() {
        text += "These items have disappeared or changed, which breaks what users have built on \
                 them. Restore them; if the break is intended, remove the lines from \
                 tests/interface.txt, and describe in CHANGELOG.md what users have to change:\n";
        text += &gone;
    }
    if !new.is_empty() {
        text += "These items are new. Add the lines to tests/interface.txt, sorted, with the \
                 release that will have them first:\n";
        text += &new;
    }
    text
}

#[test]
fn the_interface_is_the_listed_one() {
    let list = text("tests/interface.txt");
    let listed = listed(&list).into_iter().collect();
    let differences = differences(&interface(), &listed);
    assert!(differences.is_empty(), "\n{differences}");
}

#[test]
fn the_list_is_sorted_and_names_releases_of_the_change_log() {
    let list = text("tests/interface.txt");
    let listed = listed(&list);
    for pair in listed.windows(2) {
        assert!(pair[0].0 < pair[1].0, "not in order: {pair:?}");
    }
    let changes = text("CHANGELOG.md");
    let releases: BTreeSet<_> = listed.iter().map(|(_, release)| *release).collect();
    for release in releases {
        let heading = format!("\n## {release}");
        assert!(changes.contains(&heading), "CHANGELOG.md has no {release}");
    }
}

#[test]
fn every_kind_of_item_is_found() {
    let found = interface();
    for item in [
        "argument exitmark explain FRAME|PCAP",
        "command exitmark load-relays, hidden",
        "key exitmark classify_by: string",
        "key exitmark tor.users: array",
        "key exitmark wire.link_loss: string",
        "metric exitmark_port_carrier{interface,port}: gauge",
        "metric exitmark_marked_frames_total: counter",
        "option exitmark --version",
        "option exitmark doctor --port ROLE=NIC, repeatable",
        "option exitmark load-relays --uid UID, hidden",
        "option exitmark run --config FILE, required",
        "option exitmark top --interval SECONDS, default 1",
        "status exitmark 2",
        "status exitmark-monitor 0",
    ] {
        assert!(found.contains(item), "{item}: {found:#?}");
    }
}

#[test]
fn a_difference_is_reported_with_what_to_do() {
    let interface = BTreeSet::from(["a".to_owned(), "c".to_owned()]);
    let listed = BTreeMap::from([("a", "0.1.0"), ("b", "0.1.0")]);
    let text = differences(&interface, &listed);
    let gone = "\n  b; since 0.1.0\n";
    assert!(
        text.contains("Restore them") && text.contains(gone),
        "{text}"
    );
    let new = format!("\n  c; since {}\n", env!("CARGO_PKG_VERSION"));
    assert!(text.contains("are new") && text.contains(&new), "{text}");
    assert_eq!(differences(&BTreeSet::new(), &BTreeMap::new()), "");
}
