//! Runs `exitmark run` as shipped, as a process with a configuration file.

use exitmark_lab::site::RunningBox;
use exitmark_lab::{LabError, Netns};
use std::path::Path;

/// The difference between the compared configurations of exitmark.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    pub(crate) engine: &'static str,
    /// The lines of the table `[datapath]`.
    pub(crate) datapath: &'static str,
}

/// A running exitmark.
pub(crate) struct Running {
    running: RunningBox,
}

impl Variant {
    pub(crate) const fn new(
        name: &'static str,
        engine: &'static str,
        datapath: &'static str,
    ) -> Self {
        Self {
            name,
            engine,
            datapath,
        }
    }

    /// Starts exitmark in the namespace `netns` and returns when it is ready. `site` holds the
    /// other tables of the configuration.
    pub(crate) fn start(&self, netns: &Netns, site: &str) -> Result<Running, LabError> {
        let failed = |error| LabError(format!("cannot write exitmark's configuration: {error}"));
        let text = format!(
            "engine = \"{}\"\n\n{site}\n[datapath]\n{}\n",
            self.engine, self.datapath
        );
        let directory = tempfile::tempdir().map_err(failed)?;
        let path = directory.path().join("exitmark.toml");
        std::fs::write(&path, text).map_err(failed)?;
        let program = Path::new(env!("CARGO_BIN_EXE_exitmark"));
        let running = RunningBox::start(netns, program, &path)?;
        Ok(Running { running })
    }
}

impl Running {
    /// Stops exitmark; fails if it had ended already or does not end well.
    pub(crate) fn stop(self) -> Result<(), LabError> {
        let log = self.running.log();
        let words = self
            .running
            .stop()
            .map_err(|error| LabError(format!("exitmark: {error}; its log: {}", log.trim())))?;
        if words.status.success() {
            Ok(())
        } else {
            Err(LabError(format!(
                "exitmark stopped with {}: {}",
                words.status,
                words.log.trim()
            )))
        }
    }
}
