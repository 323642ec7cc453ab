//! The tap of a monitor: a NIC that only receives, and the network whose frames it receives.

use super::{LabError, Netns, RawPort, RunningBox, VethEnd, contained, veth};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// The name of the tap, a NIC of the monitor's machine.
pub const TAP: &str = "tap0";
/// The name of the network's end of the tap's cable.
pub const SPAN: &str = "span0";

/// The monitor's machine, and the network at its tap. Neither stack sends by itself.
pub struct TapSite {
    /// The machine of the monitor, with [`TAP`].
    pub monitor: Netns,
    /// The network, with [`SPAN`].
    pub network: Netns,
}

impl TapSite {
    /// Creates both, and a cable with this number of queues and this MTU.
    ///
    /// # Errors
    /// Fails without privilege, or if `ip` is missing or fails.
    pub fn build(queues: u32, mtu: u32) -> Result<Self, LabError> {
        let site = Self {
            monitor: Netns::new("monitor")?,
            network: Netns::new("network")?,
        };
        for netns in [&site.monitor, &site.network] {
            netns.disable_ipv6()?;
        }
        let end = |netns, name, mac| VethEnd {
            queues,
            ..VethEnd::new(netns, name, mac)
        };
        veth(
            &end(&site.monitor, TAP, "02:00:00:00:09:01"),
            &end(&site.network, SPAN, "02:00:00:00:09:02"),
            mtu,
        )?;
        Ok(site)
    }

    /// Opens the network's end of the cable.
    ///
    /// # Errors
    /// As [`RawPort::open`].
    pub fn port(&self) -> Result<RawPort, LabError> {
        RawPort::open(&self.network, SPAN)
    }

    /// The state of the tap, from `ip -details`.
    ///
    /// # Errors
    /// Fails if the NIC does not exist.
    pub fn link(&self) -> Result<String, LabError> {
        self.monitor.ip(&format!("-details link show dev {TAP}"))
    }

    /// Starts `exitmark-monitor capture` and returns when it is ready.
    ///
    /// # Errors
    /// As [`start_monitor`].
    pub fn start(
        &self,
        program: impl AsRef<OsStr>,
        configuration: &Path,
    ) -> Result<RunningBox, LabError> {
        start_monitor(&self.monitor, program, configuration)
    }
}

/// Starts `exitmark-monitor capture` in a namespace and returns when it is ready.
///
/// # Errors
/// Fails if the monitor does not become ready; the error contains its log.
pub fn start_monitor(
    netns: &Netns,
    program: impl AsRef<OsStr>,
    configuration: &Path,
) -> Result<RunningBox, LabError> {
    let mut command = contained(program);
    command.args(["capture", "--config"]).arg(configuration);
    RunningBox::start_by(netns, command)
}

/// The path of the only state file in the directory of a monitor's state.
///
/// # Errors
/// Fails if the state file is missing.
pub fn state_file(directory: &Path) -> Result<PathBuf, LabError> {
    let failed = |why: &str| LabError(format!("no state in {}: {why}", directory.display()));
    let entries = fs::read_dir(directory).map_err(|error| failed(&error.to_string()))?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_state = |path: &PathBuf| path.extension().is_some_and(|is| is == "state");
    paths.find(is_state).ok_or_else(|| failed("no such file"))
}
