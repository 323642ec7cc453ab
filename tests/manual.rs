//! Tier: any machine. The manuals and the completions of both programs: every visible command, and
//! no other, has a page; every key is in the configuration's page; groff and bash accept the files.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

#[path = "../src/tools/manual/pages/mod.rs"]
mod pages;

use exitmark_lab::is_installed;
use pages::PROGRAMS;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// A directory for each program, with its manual.
fn written() -> TempDir {
    let directory = TempDir::new().unwrap();
    pages::write(directory.path()).unwrap();
    directory
}

fn read(directory: &Path, name: &str) -> String {
    let path = directory.join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text of a page, without escapes and fonts.
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
    let mut hidden = BTreeSet::new();
    for program in PROGRAMS {
        let called = program.name;
        let directory = directory.path().join(called);
        let front_name = format!("{called}.1");
        let front = plain(&read(&directory, &front_name));
        let mut expected = BTreeSet::from([front_name, format!("{called}.toml.5")]);
        for one in (program.command)().get_subcommands() {
            let name = format!("{called}-{}", one.get_name());
            let is_named = front.contains(&format!("{name}(1)"));
            if one.is_hide_set() {
                assert!(!is_named, "{name} is hidden");
                hidden.insert(name);
                continue;
            }
            assert!(is_named, "{called}(1) does not name {name}");
            let page = plain(&read(&directory, &format!("{name}.1")));
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
            expected.insert(format!("{name}.1"));
        }
        let found: BTreeSet<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".1") || name.ends_with(".5"))
            .collect();
        assert_eq!(found, expected);
    }
    // The confined loader.
    assert_eq!(hidden, ["exitmark-load-relays".to_owned()].into());
}

#[test]
fn manual_texts_refer_to_existing_commands() {
    for program in PROGRAMS {
        let command = program.visible();
        let is_there = |name: &str| command.find_subcommand(name).is_some();
        assert!(is_there(program.service), "{}", program.service);
        for text in program.texts {
            let is_known = text.command.is_empty() || is_there(text.command);
            let (heading, name) = (text.heading, program.name);
            assert!(is_known, "{heading} of `{name} {}`", text.command);
        }
    }
}

#[test]
fn the_configurations_pages_have_every_key_of_each_example_once() {
    let directory = written();
    for program in PROGRAMS {
        let name = program.name;
        let page = read(&directory.path().join(name), &format!("{name}.toml.5"));
        let examples: Vec<_> = program.examples.iter().map(|(_, text)| *text).collect();
        has_all_of(&plain(&page), &examples.join("\n"));
    }
}

/// Fails unless a page has the keys and the words of example configurations, in order.
fn has_all_of(page: &str, example: &str) {
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
    assert!(keys(example).len() > 20);
    assert_eq!(keys(page), keys(example));
    let words = |text: &str| -> Vec<String> {
        let is_text = |line: &&str| line.starts_with("# ") && !line.contains(" = ");
        let lines = text.lines().filter(is_text);
        let words = lines.flat_map(str::split_whitespace).map(String::from);
        words.filter(|word| word != "#").collect()
    };
    let mut rest = page;
    for word in words(example) {
        let Some((_, after)) = rest.split_once(&word) else {
            panic!("{word} is missing before\n{rest}");
        };
        rest = after;
    }
}

/// Whether an optional program is installed.
fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

fn assert_content(command: &mut Command, file: &Path) {
    let output = command.arg(file).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    let is_good = output.status.success() && words.is_empty();
    assert!(is_good, "{command:?}: {}\n{words}", output.status);
}

#[test]
fn groff_and_bash_accept_the_files() {
    let directory = written();
    let (has_bash, has_groff) = (is_there("bash"), is_there("groff"));
    for program in PROGRAMS {
        let name = program.name;
        let directory = directory.path().join(name);
        assert!(directory.join(format!("_{name}")).is_file());
        assert!(directory.join(format!("{name}.fish")).is_file());
        let bash = directory.join(format!("{name}.bash"));
        assert!(!fs::read_to_string(&bash).unwrap().contains("load-relays"));
        if has_bash {
            assert_content(Command::new("bash").arg("-n"), &bash);
        }
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if has_groff && path.extension().is_some_and(|end| end == "1" || end == "5") {
                let arguments = ["-man", "-ww", "-Tutf8", "-Z", "-K", "utf8"];
                assert_content(Command::new("groff").args(arguments), &path);
            }
        }
    }
}

/// `make vm-install-test` runs the commands of docs/install.md and docs/monitor.md on virtual
/// machines, which takes root and 25 minutes. Its plan is checked without them.
#[test]
fn every_step_of_the_pages_is_known_to_the_installation_test() {
    if !is_installed("python3") {
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vm/install.py");
    let mut python = Command::new("python3");
    let output = python.args(["-B", script, "--plan"]).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}{failed}");
    assert!(printed.lines().count() > 10, "{printed}");
}

/// Packages and programs have the same version.
#[test]
fn a_packages_version_is_built_into_its_programs() {
    let recipe = |arguments: &[&str]| {
        let mut make = Command::new("make");
        make.args(["-n", "deb"]).args(arguments);
        make.current_dir(env!("CARGO_MANIFEST_DIR"));
        // Do not inherit the flags of a make that runs the tests.
        make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
        let output = make.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let is_build = |line: &&str| line.contains("cargo build --locked");
        let cargo = text.lines().filter(is_build);
        cargo.map(str::to_owned).collect::<Vec<_>>()
    };
    for line in recipe(&["VERSION=9.8+x"]) {
        assert!(line.contains("EXITMARK_VERSION=9.8+x cargo"), "{line}");
    }
    let plain = recipe(&[]);
    assert!(!plain.is_empty() && !plain.concat().contains("EXITMARK_VERSION"));
    for program in [
        env!("CARGO_BIN_EXE_exitmark"),
        env!("CARGO_BIN_EXE_exitmark-monitor"),
    ] {
        let output = Command::new(program).arg("--version").output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let version = exitmark_service::VERSION;
        assert!(said.trim_end().ends_with(version), "{said}");
    }
}
