//! `exitmark detach`: detaches the programs and restores the NIC settings.

use super::wire::plain_wires;
use super::{exit_failure, load, print};
use crate::control::DEFAULT_SOCKET;
use crate::daemon::{self, BY_HAND, Detached, Existing};
use exitmark_service::process;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Detach the box from its NICs, after `run` has ended; this ends forwarding, except with
/// --keep-wire
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration that names the pins
    #[arg(long, value_name = "FILE", conflicts_with = "pins")]
    config: Option<PathBuf>,
    /// The directory of the pins, used without --config
    #[arg(long, value_name = "DIRECTORY", default_value = "/sys/fs/bpf/exitmark")]
    pins: PathBuf,
    /// Leave a plain wire between host and uplink: everything is forwarded, unmarked
    #[arg(long, requires = "config")]
    keep_wire: bool,
}

/// Runs the command. The exit status is 0 also if nothing was attached, 1 if the box still runs or
/// a NIC could not be restored, 2 for a faulty configuration.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, ExitCode> {
    let (directory, socket) = match &arguments.config {
        None => (arguments.pins.clone(), PathBuf::from(DEFAULT_SOCKET)),
        Some(path) => {
            let settings = load(path)?;
            if arguments.keep_wire {
                process::log_to_stderr();
                let wires = daemon::wires(&settings, Duration::ZERO, Existing::Replace);
                let wires = wires.map_err(exit_failure)?;
                return Ok(print(&plain_wires("detached: ", &wires)));
            }
            (settings.pin.directory, settings.control.socket)
        }
    };
    Ok(
        match daemon::detach(&directory, &socket).map_err(exit_failure)? {
            Detached::All => print("detached: the NIC settings are restored\n"),
            Detached::Absent => print(&format!(
                "detached; a NIC whose settings the box changed is gone. If it is in another network \
             namespace, it is still in promiscuous mode and has offloads off: {BY_HAND}\n"
            )),
            Detached::Partly => exit_failure(format_args!(
                "detached, but NICs in another network namespace than this one stay in promiscuous mode \
             and with offloads off: {BY_HAND}"
            )),
            Detached::Nothing => print(&format!(
                "nothing to detach: {} does not exist\n",
                directory.display()
            )),
        },
    )
}
