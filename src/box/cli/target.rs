//! The arguments that select the running box to connect to.

use super::load;
use crate::control::{Client, DEFAULT_SOCKET};
use std::path::PathBuf;
use std::process::ExitCode;

/// Selects a box by its configuration or its control socket.
#[derive(Debug, clap::Args)]
pub(super) struct ConnectionTarget {
    /// The configuration of the box, which names its control socket
    #[arg(long, value_name = "FILE", conflicts_with = "socket")]
    config: Option<PathBuf>,
    /// The control socket of the box
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

impl ConnectionTarget {
    pub(super) fn client(&self) -> Result<Client, ExitCode> {
        let Some(config) = &self.config else {
            return Ok(Client::new(&self.socket));
        };
        Ok(Client::new(load(config)?.control.socket))
    }
}
