//! The command `growth`.

use crate::common::rounds;
use exitmark::lab::LabError;

#[derive(clap::Args)]
pub(crate) struct Growth {
    #[command(flatten)]
    options: rounds::Options,
}

/// Runs everything; false when a forwarder failed.
pub(crate) fn bench(arguments: &Growth) -> Result<bool, LabError> {
    let _ = &arguments.options;
    Ok(false)
}
