//! `exitmark doctor`: checks the machine, and names remedies.

use super::{exit_usage_error, load};
use crate::control::Client;
use crate::doctor::{
    CheckScope, Facts, Finding, Severity, configuration, findings, of_another_wire, render,
};
use crate::observe::OWN_RESOLVER;
use exitmark_datapath::Role;
use exitmark_nic::LocalNic;
use exitmark_service::process;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Check that the machine meets the requirements, and print repair commands where one command is
/// enough
///
/// Changes nothing and sends nothing. With CAP_BPF it loads the programs of the engine as a test;
/// RUST_LOG=debug prints the log of the kernel's verifier. With a configuration of engine connect it
/// checks users, cgroups and the routes of relay connections, and no NIC. The exit status is 1 if
/// there is a fault. Without arguments it checks every NIC.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Check what this configuration names: NICs, files, users
    #[arg(long, value_name = "FILE", conflicts_with = "ports")]
    config: Option<PathBuf>,
    /// Check this NIC in this role (host, uplink or incoming); can be repeated
    #[arg(long = "port", value_name = "ROLE=NIC", value_parser = port)]
    ports: Vec<(Role, String)>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn port(text: &str) -> Result<(Role, String), String> {
    let (name, nic) = text
        .split_once('=')
        .ok_or("give a role and the name of a NIC, such as host=eth0")?;
    let role = Role::ALL.into_iter().find(|role| role.name() == name);
    match role {
        Some(role) if !nic.is_empty() => Ok((role, nic.to_owned())),
        Some(_) => Err("the name of a NIC is missing after the `=`".to_owned()),
        None => Err(format!(
            "`{name}` is not a role; roles are host, uplink and incoming"
        )),
    }
}

fn own_resolver(socket: &Path) -> Option<String> {
    let report = Client::new(socket).status().ok()?;
    let mut warnings = report.warnings.into_iter();
    let warning = warnings.find(|warning| warning.kind == OWN_RESOLVER)?;
    Some(warning.text)
}

/// Runs the command. The exit status is 0 without a fault (warnings may remain), 1 with one, 2 for
/// wrong usage or configuration.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, ExitCode> {
    let settings = arguments.config.as_deref().map(load).transpose()?;
    let scope = match &settings {
        Some(settings) => CheckScope::by(settings),
        None => {
            let of = |role| arguments.ports.iter().filter(move |(one, _)| *one == role);
            if let Some(role) = Role::ALL.into_iter().find(|&role| of(role).count() > 1) {
                return Err(exit_usage_error(format_args!(
                    "--port: {role} is named twice"
                )));
            }
            let nic = |wanted| of(wanted).map(|(_, nic)| nic).next();
            let incoming = nic(Role::Incoming);
            let shares_uplink = incoming.is_some() && incoming == nic(Role::Uplink);
            let roles = Role::ALL.into_iter();
            let roles = roles.filter(|&role| !(shares_uplink && role == Role::Incoming));
            CheckScope {
                ports: roles
                    .filter_map(|role| Some((Some(role), nic(role)?.clone())))
                    .collect(),
                shares_uplink,
                ..CheckScope::default()
            }
        }
    };
    process::log_to_stderr();
    let mut facts = Facts::look(scope);
    let socket = settings
        .as_ref()
        .map(|settings| settings.control.socket.as_path());
    facts.own_resolver = socket.and_then(own_resolver);
    let mut findings = findings(&facts);
    if let Some(settings) = &settings {
        for index in 1..settings.wires.len() {
            let facts = facts.of_wire(CheckScope::by(&settings.of_wire(index)));
            findings.extend(of_another_wire(&facts, &findings));
        }
        // If reading fails, the findings on the ports report it.
        let nics = LocalNic::all().unwrap_or_default();
        findings.extend(configuration(settings, &nics));
    }
    let text = match arguments.json {
        true => serde_json::to_string_pretty(&findings).unwrap_or_default() + "\n",
        false => render(&findings),
    };
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
    let is_fault = |finding: &Finding| finding.severity == Severity::Fault;
    Ok(match findings.iter().any(is_fault) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}
