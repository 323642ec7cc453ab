//! Which box a command asks.

use super::misused;
use crate::control::{Client, DEFAULT_SOCKET};
use crate::settings::Settings;
use std::path::PathBuf;
use std::process::ExitCode;

/// The box, by its configuration or its socket.
#[derive(Debug, clap::Args)]
pub(super) struct Asked {
    /// The configuration of the box, which names its control socket
    #[arg(long, value_name = "FILE", conflicts_with = "socket")]
    config: Option<PathBuf>,
    /// The control socket of the box
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

impl Asked {
    /// Asks it.
    pub(super) fn client(&self) -> Result<Client, ExitCode> {
        let Some(config) = &self.config else {
            return Ok(Client::new(&self.socket));
        };
        match Settings::load(config) {
            Ok(settings) => Ok(Client::new(socket(&settings))),
            Err(error) => Err(misused(format_args!("{}: {error}", config.display()))),
        }
    }
}

/// Where the box with this configuration answers.
fn socket(_settings: &Settings) -> PathBuf {
    DEFAULT_SOCKET.into()
}
