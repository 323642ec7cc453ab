//! `exitmark-monitor capture`.

use super::{exit_failure, exit_usage_error, faulty, print};
use crate::capture::{files, live};
use crate::settings::{Overrides, Settings, net};
use exitmark_service::process;
use ipnet::IpNet;
use std::path::PathBuf;
use std::process::ExitCode;

/// Count marked packets at a tap until SIGTERM, or in captured files, and write one file per period
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration; without one, every key has its default
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// A tap's NIC, in place of `interface` and `tap.interfaces`; can be repeated
    #[arg(long, value_name = "NIC", conflicts_with = "pcap")]
    interface: Vec<String>,

    /// Capture files (pcap or pcapng); give all files of a period in one run
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pcap: Vec<PathBuf>,

    /// A clearnet address of the Tor host, or a prefix, in place of `addresses`; can be repeated
    #[arg(long, value_name = "ADDRESS", value_parser = net)]
    address: Vec<IpNet>,

    /// Directory for period files, in place of `period.directory`; created when counting captured
    /// files
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Runs the command. The exit status is 0 after SIGTERM or the last file, 1 if a precondition is
/// not met, 2 for wrong usage or configuration.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let overrides = Overrides {
        interfaces: arguments.interface.clone(),
        addresses: arguments.address.clone(),
        directory: arguments.out.clone(),
    };
    let settings = match Settings::load(arguments.config.as_deref(), &overrides) {
        Ok(settings) => settings,
        Err(error) => return faulty(arguments.config.as_deref(), &error),
    };
    process::log_to_stderr();
    let outcome = match (arguments.pcap.as_slice(), settings.interfaces.as_slice()) {
        ([], []) => {
            return exit_usage_error(
                "no packets to count are named: give the tap's NIC with --interface or `interface` in \
                 the configuration, or captured files with --pcap",
            );
        }
        ([], _) => live::run(&settings).map(|()| ExitCode::SUCCESS),
        (files, _) => files::run(&settings, files).map(|summary| print(&summary.to_string())),
    };
    outcome.unwrap_or_else(exit_failure)
}
