//! `exitmark explain`: shows the verdict on given frames, and the reason.

use super::{misused, unmet};
use crate::explain::{self, ExplainError, Explained, Explanation};
use crate::settings::Settings;
use exitmark_datapath::Role;
use exitmark_policy::packet::MacAddr;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Show how given frames would be treated, by the code that forwards frames; needs no privileges
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A frame as hexadecimal digits, or a pcap or pcapng file
    #[arg(value_name = "FRAME|PCAP")]
    frames: String,

    /// The configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// The port that receives the frames
    #[arg(long, value_name = "PORT", default_value = "host", value_parser = role)]
    port: Role,

    /// The MAC address of `ports.incoming`, if that NIC is not in this machine
    #[arg(long, value_name = "MAC")]
    incoming_mac: Option<MacAddr>,

    /// Write the frames that would leave to this pcap file
    #[arg(long, value_name = "PCAP")]
    write: Option<PathBuf>,
}

fn role(text: &str) -> Result<Role, &'static str> {
    Role::ALL
        .into_iter()
        .find(|role| role.name() == text)
        .ok_or("a port is host, uplink or incoming")
}

/// Runs the command. The exit status is 1 if the capture or the relay set cannot be read to its
/// end, 2 for a faulty configuration or frame.
pub fn run(arguments: &Arguments) -> ExitCode {
    let settings = match Settings::load(&arguments.config) {
        Ok(settings) => settings,
        Err(error) => return misused(format_args!("{}: {error}", arguments.config.display())),
    };
    let explained = explain::explain(
        &arguments.frames,
        &settings,
        arguments.port,
        arguments.incoming_mac,
    );
    let Explained { frames, fault } = match explained {
        Ok(explained) => explained,
        Err(error @ ExplainError::Input(_)) => return misused(error),
        Err(error) => return unmet(error),
    };
    let mut stdout = std::io::stdout().lock();
    for explanation in &frames {
        if writeln!(stdout, "{explanation}").is_err() {
            return ExitCode::FAILURE;
        }
    }
    if let Some(path) = &arguments.write
        && let Err(error) = Explanation::write(&frames, path)
    {
        return unmet(error);
    }
    fault.map_or(ExitCode::SUCCESS, unmet)
}
