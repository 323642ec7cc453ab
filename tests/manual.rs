//! Tier: any machine. The manual and the completions: every command that people see has a page,
//! no other has, every key is in the configuration's page, and the tools that read them are
//! content.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

#[path = "../examples/manual/configuration.rs"]
mod configuration;
#[path = "../examples/manual/pages.rs"]
mod pages;

use exitmark::cli;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

fn written() -> TempDir {
    let directory = TempDir::new().unwrap();
    pages::write(directory.path()).unwrap();
    directory
}

fn read(directory: &TempDir, name: &str) -> String {
    let path = directory.path().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The page as a reader sees it, without escapes and fonts.
fn plain(page: &str) -> String {
    ["\\fR", "\\fB", "\\fI"]
        .iter()
        .fold(page.to_owned(), |text, font| text.replace(font, ""))
        .replace("\\-", "-")
        .replace("\\*(Aq", "'")
        .replace("\\&", "")
}

#[test]
fn every_visible_command_has_a_page_and_no_other() {
    let directory = written();
    let mut expected: BTreeSet<String> = ["exitmark.1", "exitmark.toml.5"].map(String::from).into();
    let mut hidden = 0;
    let front = plain(&read(&directory, "exitmark.1"));
    for one in cli::command().get_subcommands() {
        let name = one.get_name();
        let is_named = front.contains(&format!("exitmark-{name}(1)"));
        if one.is_hide_set() {
            hidden += 1;
            assert!(!is_named, "{name} is not for people");
            continue;
        }
        assert!(is_named, "exitmark(1) does not name {name}");
        let page = plain(&read(&directory, &format!("exitmark-{name}.1")));
        for argument in one.get_arguments().filter(|one| !one.is_hide_set()) {
            let shown = match argument.get_long() {
                Some(long) => format!("--{long}"),
                None => argument.get_value_names().unwrap()[0].to_string(),
            };
            assert!(page.contains(&shown), "{name}: {shown}\n{page}");
        }
        for heading in ["NAME", "SYNOPSIS", "EXIT STATUS", "FILES", "SEE ALSO"] {
            let line = [format!(".SH {heading}\n"), format!(".SH \"{heading}\"\n")];
            let is_there = line.iter().any(|line| page.contains(line));
            assert!(is_there, "{name}: {heading}\n{page}");
        }
        expected.insert(format!("exitmark-{name}.1"));
    }
    assert!(hidden > 0, "the confined loader is hidden");
    let found: BTreeSet<String> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".1") || name.ends_with(".5"))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn no_text_is_about_a_command_that_is_gone() {
    let command = pages::visible();
    for text in pages::TEXTS {
        assert!(
            text.command.is_empty() || command.find_subcommand(text.command).is_some(),
            "{} of `{}`",
            text.heading,
            text.command
        );
    }
}

#[test]
fn the_configurations_page_has_every_key_once() {
    let page = plain(&read(&written(), "exitmark.toml.5"));
    let example = include_str!("../dist/exitmark.example.toml");
    let keys = |text: &str| -> Vec<String> {
        let keys = text.lines().filter_map(|line| {
            let (key, _) = line.split_once(" = ")?;
            let name = key.trim_start_matches('#');
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
                .then(|| line.to_owned())
        });
        keys.collect()
    };
    assert!(keys(example).len() > 30);
    assert_eq!(keys(&page), keys(example));
    let words = |text: &str| -> Vec<String> {
        let lines = text
            .lines()
            .filter(|line| line.starts_with("# ") && !line.contains(" = "));
        let words = lines.flat_map(str::split_whitespace).map(String::from);
        words.filter(|word| word != "#").collect()
    };
    let mut rest = page.as_str();
    for word in words(example) {
        let (_, after) = rest
            .split_once(word.as_str())
            .unwrap_or_else(|| panic!("{word} is missing before\n{rest}"));
        rest = after;
    }
}

/// Whether a program that is not needed is there.
fn is_there(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    found.is_ok()
}

fn assert_content(command: &mut Command, file: &Path) {
    let output = command.arg(file).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && words.is_empty(),
        "{command:?}: {}\n{words}",
        output.status
    );
}

#[test]
fn groff_and_bash_are_content() {
    let directory = written();
    assert!(fs::metadata(directory.path().join("_exitmark")).is_ok());
    assert!(fs::metadata(directory.path().join("exitmark.fish")).is_ok());
    let bash = directory.path().join("exitmark.bash");
    assert!(!fs::read_to_string(&bash).unwrap().contains("load-relays"));
    if is_there("bash") {
        assert_content(Command::new("bash").arg("-n"), &bash);
    }
    if !is_there("groff") {
        return;
    }
    for entry in fs::read_dir(directory.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "1" || end == "5") {
            assert_content(
                Command::new("groff").args(["-man", "-ww", "-Tutf8", "-Z", "-K", "utf8"]),
                &path,
            );
        }
    }
}
