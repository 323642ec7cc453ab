//! The manual: a page for every visible command, made of what clap knows of it and of the few
//! texts here, that it cannot know; a page for the configuration; completions.

use super::configuration;
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use exitmark::cli;
use std::fs;
use std::io;
use std::path::Path;

/// A section that clap has no place for.
pub(crate) struct Text {
    /// The command whose page has it; all pages have it where this is empty.
    pub(crate) command: &'static str,
    /// Its heading.
    pub(crate) heading: &'static str,
    /// Paragraphs; one with a tag is a tag, a tab, and what it means.
    pub(crate) paragraphs: &'static [&'static str],
}

/// What clap cannot know, in the order of the pages.
pub(crate) const TEXTS: &[Text] = &[
    Text {
        command: "run",
        heading: "SIGNALS",
        paragraphs: &[
            "SIGTERM, SIGINT\tDrain the rings, print the counters, end. What is attached stays, \
             and the kernel goes on marking and steering, unless pin.on_stop says otherwise.",
            "SIGHUP\tRead the relay files now, not when they change. What cannot be used changes \
             nothing.",
            "SIGUSR1\tPrint a line of counters.",
        ],
    },
    Text {
        command: "run",
        heading: "ENVIRONMENT",
        paragraphs: &[
            "RUST_LOG\tWhat is logged to standard error: error, warn, info (the default), debug \
             or trace. No level names a destination address.",
        ],
    },
    Text {
        command: "",
        heading: "EXIT STATUS",
        paragraphs: &[
            "0\tAll is fine.",
            "1\tThe machine is not as required, or the answer is no; the message says what to do.",
            "2\tWrong usage or configuration.",
        ],
    },
    Text {
        command: "",
        heading: "FILES",
        paragraphs: &[
            "/etc/exitmark/exitmark.toml\tThe configuration that the service uses.",
            "/usr/share/exitmark/exitmark.example.toml\tAn example to start from, with every key.",
            "/var/lib/exitmark/relays.state\tThe relay set in force, with who has left it.",
            "/run/bpf/exitmark/box\tWhat the service has pinned: as long as it is there, frames \
             are marked and steered.",
        ],
    },
];

/// Writes all of it into a directory, which is made if need be.
///
/// # Errors
/// That of the file system.
pub(crate) fn write(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut command = visible();
    for (name, page) in pages(&command) {
        fs::write(directory.join(name), page)?;
    }
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "exitmark", directory)?;
    }
    Ok(())
}

/// The command line without what is not for people.
pub(crate) fn visible() -> Command {
    let whole = cli::command();
    let mut command = Command::new("exitmark")
        .version(env!("CARGO_PKG_VERSION"))
        .about(whole.get_about().cloned().unwrap_or_default())
        .subcommand_required(true)
        .disable_help_subcommand(true)
        .args(whole.get_arguments())
        .subcommands(whole.get_subcommands().filter(|one| !one.is_hide_set()));
    command.build();
    command
}

/// Every page, with the name of its file.
fn pages(command: &Command) -> Vec<(String, Vec<u8>)> {
    let names: Vec<String> = std::iter::once(command)
        .chain(command.get_subcommands())
        .map(|one| format!("{}(1)", page_name(one)))
        .collect();
    let mut pages = vec![
        page(command, &names[1..]),
        ("exitmark.toml.5".to_owned(), configuration::page()),
    ];
    for one in command.get_subcommands() {
        pages.push(page(one, &names[..1]));
    }
    pages
}

fn page_name(command: &Command) -> String {
    let name = command.get_display_name();
    name.unwrap_or_else(|| command.get_name()).to_owned()
}

fn page(command: &Command, others: &[String]) -> (String, Vec<u8>) {
    let name = page_name(command);
    // clap's own line of usage has the values' names.
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").to_owned();
    let man = Man::new(command.clone().override_usage(usage))
        .title(name.to_uppercase())
        .source(source())
        .manual("exitmark");
    let mut text = Vec::new();
    // Writing to memory does not fail.
    let _ = man.render(&mut text);
    let mut roff = Roff::new();
    for section in TEXTS {
        if section.command.is_empty() || section.command == command.get_name() {
            add(&mut roff, section);
        }
    }
    see_also(&mut roff, others.iter().map(String::as_str));
    let _ = roff.to_writer(&mut text);
    (format!("{name}.1"), text)
}

fn add(roff: &mut Roff, section: &Text) {
    roff.control("SH", [section.heading]);
    for paragraph in section.paragraphs {
        match paragraph.split_once('\t') {
            Some((tag, meaning)) => roff
                .control("TP", [])
                .text([bold(tag)])
                .text([roman(meaning)]),
            None => roff.control("PP", []).text([roman(*paragraph)]),
        };
    }
}

fn see_also<'a>(roff: &mut Roff, others: impl Iterator<Item = &'a str>) {
    let others: Vec<_> = others.chain(["exitmark.toml(5)"]).collect();
    roff.control("SH", ["SEE ALSO"])
        .text([roman(others.join(", "))]);
}

/// Of which program, in the foot of a page.
pub(crate) fn source() -> String {
    format!("exitmark {}", env!("CARGO_PKG_VERSION"))
}
