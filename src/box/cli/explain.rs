//! `exitmark explain`: shows the verdict on given frames, and the reason.

use super::{exit_failure, exit_usage_error, load};
use crate::explain::{self, ExplainError, Explained, Explanation};
use exitmark_datapath::Role;
use exitmark_policy::packet::MacAddr;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Show how given frames would be treated, by the code that forwards frames; needs no privileges
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
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
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, ExitCode> {
    let settings = load(&arguments.config)?;
    let explained = explain::explain(
        &arguments.frames,
        &settings,
        arguments.port,
        arguments.incoming_mac,
    );
    let Explained { frames, fault } = explained.map_err(|error| match error {
        ExplainError::Input(_) | ExplainError::Engine => exit_usage_error(error),
        error => exit_failure(error),
    })?;
    let mut stdout = std::io::stdout().lock();
    for explanation in &frames {
        writeln!(stdout, "{explanation}").map_err(|_| ExitCode::FAILURE)?;
    }
    if let Some(path) = &arguments.write {
        Explanation::write(&frames, path).map_err(exit_failure)?;
    }
    Ok(fault.map_or(ExitCode::SUCCESS, exit_failure))
}
