//! Runs `exitmark run` as shipped, as a process with a configuration file.

use exitmark_lab::{Config, LabError, Netns, RunningBox};

/// The difference between the compared configurations of exitmark.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    pub(crate) engine: &'static str,
    /// The lines of the table `[datapath]`.
    pub(crate) datapath: &'static str,
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

    /// Starts exitmark in the namespace `netns` and returns when it is ready.
    pub(crate) fn start(&self, netns: &Netns, config: Config) -> Result<RunningBox, LabError> {
        let failed = |error| LabError(format!("cannot write exitmark's configuration: {error}"));
        let directory = tempfile::tempdir().map_err(failed)?;
        let config = config.engine(self.engine).datapath(self.datapath);
        let path = config.write(directory.path())?;
        RunningBox::start(netns, env!("CARGO_BIN_EXE_exitmark"), &path)
    }
}
