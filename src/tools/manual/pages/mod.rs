//! The manual: a page for every visible command of a program, generated from its clap definition
//! and a few additional texts; a page for the configuration; completions.

mod configuration;
mod programs;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
pub(crate) use programs::PROGRAMS;
use programs::{Program, Text};
use std::fs;
use std::io;
use std::path::Path;

/// Writes all pages and completions, into a subdirectory for each program.
///
/// # Errors
/// Fails if a file or directory cannot be written.
pub(crate) fn write(directory: &Path) -> io::Result<()> {
    for program in PROGRAMS {
        program.write(&directory.join(program.name))?;
    }
    Ok(())
}

impl Program {
    fn write(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        let mut command = self.visible();
        for (name, page) in self.pages(&command) {
            fs::write(directory.join(name), page)?;
        }
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut command, self.name, directory)?;
        }
        Ok(())
    }

    /// The command line without hidden commands.
    pub(crate) fn visible(&self) -> Command {
        let whole = (self.command)();
        let mut command = Command::new(self.name)
            .version(exitmark_service::VERSION)
            .about(whole.get_about().cloned().unwrap_or_default())
            .subcommand_required(true)
            .disable_help_subcommand(true)
            .args(whole.get_arguments())
            .subcommands(whole.get_subcommands().filter(|one| !one.is_hide_set()));
        command.build();
        command
    }

    fn pages(&self, command: &Command) -> Vec<(String, Vec<u8>)> {
        let names: Vec<String> = std::iter::once(command)
            .chain(command.get_subcommands())
            .map(|one| format!("{}(1)", page_name(one)))
            .collect();
        let mut pages = vec![
            self.page(command, &names[1..]),
            (format!("{}.toml.5", self.name), self.configuration()),
        ];
        for one in command.get_subcommands() {
            pages.push(self.page(one, &names[..1]));
        }
        pages
    }

    fn page(&self, command: &Command, others: &[String]) -> (String, Vec<u8>) {
        let name = page_name(command);
        // clap's usage line contains the value names.
        let usage = command.clone().render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ").to_owned();
        let man = Man::new(command.clone().override_usage(usage))
            .title(name.to_uppercase())
            .source(self.source())
            .manual(self.name);
        let mut text = Vec::new();
        // Writing to memory does not fail.
        let _ = man.render(&mut text);
        let mut roff = Roff::new();
        for section in self.texts {
            if section.command.is_empty() || section.command == command.get_name() {
                add(&mut roff, section);
            }
        }
        let others: Vec<_> = others
            .iter()
            .cloned()
            .chain([format!("{}.toml(5)", self.name)])
            .collect();
        roff.control("SH", ["SEE ALSO"])
            .text([roman(others.join(", "))]);
        let _ = roff.to_writer(&mut text);
        (format!("{name}.1"), text)
    }

    /// The program and its version, for the footer of a page.
    fn source(&self) -> String {
        format!("{} {}", self.name, exitmark_service::VERSION)
    }
}

fn page_name(command: &Command) -> String {
    let name = command.get_display_name();
    name.unwrap_or_else(|| command.get_name()).to_owned()
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
