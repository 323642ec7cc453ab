//! `exitmark explain`: shows the verdict on given frames or connections, and the reason.

use super::{exit_failure, exit_usage_error, load, print};
use crate::explain::{self, ExplainError, Explained, Explanation, MAX_CONNECTIONS};
use crate::settings::Settings;
use exitmark_datapath::Role;
use exitmark_policy::packet::MacAddr;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

/// Show how given frames or connections would be treated, by the code of the engines; needs no
/// privileges
///
/// With the configuration of a box, it shows what happens to frames. With one of engine connect, it
/// shows what is set on the socket of a connection of tor, with the addresses of this machine; no
/// connection is opened.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A frame as hexadecimal digits, or a pcap or pcapng file
    #[arg(value_name = "FRAME|PCAP", required_unless_present = "connect")]
    frames: Option<String>,

    /// The destination of a connection of tor, such as 198.51.100.7:443 or [2001:db8::1]:443; can
    /// be repeated
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        value_parser = destination,
        conflicts_with_all = ["frames", "port", "incoming_mac", "write"]
    )]
    connect: Vec<SocketAddr>,

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

fn destination(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "give an address and a port, such as 198.51.100.7:443 or [2001:db8::1]:443")
}

/// Runs the command. The exit status is 1 if the capture or the relay set cannot be read to its
/// end, 2 for a faulty configuration, frame or destination.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, ExitCode> {
    let settings = load(&arguments.config)?;
    match &arguments.frames {
        Some(frames) => explain_frames(frames, arguments, &settings),
        None => explain_connections(&arguments.connect, &settings),
    }
}

fn refuse(error: ExplainError) -> ExitCode {
    match error {
        ExplainError::Input(_) | ExplainError::Engine | ExplainError::Frames(_) => {
            exit_usage_error(error)
        }
        error => exit_failure(error),
    }
}

fn explain_connections(
    destinations: &[SocketAddr],
    settings: &Settings,
) -> Result<ExitCode, ExitCode> {
    if destinations.len() > MAX_CONNECTIONS {
        return Err(exit_usage_error(format_args!(
            "--connect: {} destinations, more than {MAX_CONNECTIONS} at once",
            destinations.len()
        )));
    }
    let explained = explain::explain_connections(destinations, settings, SystemTime::now());
    let explained = explained.map_err(refuse)?;
    let printed = print(&explained.to_string());
    Ok(explained.fault.map_or(printed, exit_failure))
}

fn explain_frames(
    frames: &str,
    arguments: &Arguments,
    settings: &Settings,
) -> Result<ExitCode, ExitCode> {
    let explained = explain::explain(frames, settings, arguments.port, arguments.incoming_mac);
    let Explained { frames, fault } = explained.map_err(refuse)?;
    let mut stdout = std::io::stdout().lock();
    for explanation in &frames {
        writeln!(stdout, "{explanation}").map_err(|_| ExitCode::FAILURE)?;
    }
    if let Some(path) = &arguments.write {
        Explanation::write(&frames, path).map_err(exit_failure)?;
    }
    Ok(fault.map_or(ExitCode::SUCCESS, exit_failure))
}
