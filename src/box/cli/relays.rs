//! `exitmark relays`: shows the relay set in force, or the content of documents. Arguments only;
//! the work is done in `relays`.
//!
//! Prints no endpoint except the one that the user gave.

use super::{exit_failure, load, print};
use crate::settings::Settings;
use exitmark_policy::Endpoint;
use exitmark_relays::{
    Authorities, Churn, Confinement, DocumentFiles, Identity, LiveSet, Loaded, Loader, Sources,
    StateFile, Status, Survey, Trust,
};
use nix::unistd::{Uid, User};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

/// Show the relay set in force, or the content of consensus documents
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["files", "config", "diff"]))]
pub(super) struct Arguments {
    /// tor's cached-consensus or cached-microdesc-consensus; several are merged
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Show the relay set in force, from the state file of the box with this configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Show how the relay set changed from one document to another
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"])]
    diff: Option<Vec<PathBuf>>,

    /// Print whether this endpoint is in the set: exit status 0 if it is, 1 if not
    #[arg(long, value_name = "ADDR:PORT", value_parser = endpoint, conflicts_with = "diff")]
    contains: Option<Endpoint>,

    /// tor's cached-certs [default: beside each document]
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    certificates: Option<PathBuf>,

    /// An authority of another network than Tor's, by its v3 identity; can be repeated
    #[arg(long = "authority", value_name = "IDENTITY", conflicts_with = "config")]
    authorities: Vec<Identity>,

    /// Accept the documents without checking their signatures
    #[arg(long, conflicts_with_all = ["config", "certificates", "authorities"])]
    no_verify: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The output, and the answer to `--contains`; true without that option.
struct RelaysOutput {
    text: String,
    is_contained: bool,
}

/// Runs the command. The exit status is 1 for a file that cannot be used, and for an endpoint that
/// is not in the set.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, ExitCode> {
    let now = SystemTime::now();
    let answer = match (&arguments.config, &arguments.diff) {
        (Some(config), _) => arguments.live(&load(config)?, now),
        (None, Some(files)) => arguments.churn(files),
        (None, None) => arguments.documents(now),
    };
    let answer = answer.map_err(exit_failure)?;
    Ok(match print(&answer.text) {
        ExitCode::SUCCESS if !answer.is_contained => ExitCode::FAILURE,
        code => code,
    })
}

impl Arguments {
    fn documents(&self, now: SystemTime) -> Result<RelaysOutput, String> {
        let loaded = self.load(&self.files)?;
        let survey = Survey::new(&loaded, now);
        let contained = self.contains.map(|endpoint| survey.contains(endpoint));
        Ok(self.answer(
            contained,
            survey.count(),
            survey.json(self.contains),
            &survey,
        ))
    }

    fn live(&self, settings: &Settings, now: SystemTime) -> Result<RelaysOutput, String> {
        let file = StateFile::new(settings.relays.state.clone());
        let live = file.load().map_err(|error| error.to_string())?;
        let live = match live {
            Some(live) => live,
            // Without configured documents no state file is written.
            None if !settings.relays.sources.names_documents() => LiveSet::default(),
            None => {
                let path = file.path().display();
                return Err(format!(
                    "{path}: does not exist; the box with this configuration has had no relay set \
                     yet, or cannot write this file: `exitmark status` shows why"
                ));
            }
        };
        let status = Status::new(&live, &settings.relays.sources.extra, now);
        let contained = self.contains.map(|endpoint| status.contains(endpoint));
        Ok(self.answer(
            contained,
            status.count(),
            status.json(self.contains),
            &status,
        ))
    }

    fn churn(&self, files: &[PathBuf]) -> Result<RelaysOutput, String> {
        let [old, new] = files else {
            return Err("--diff takes two documents".to_owned());
        };
        let [old, new] = [old, new].map(|path| self.load(std::slice::from_ref(path)));
        let churn = Churn::between(&old?, &new?);
        Ok(self.answer(None, 0, churn.json(), &churn))
    }

    fn load(&self, files: &[PathBuf]) -> Result<Loaded, String> {
        let source = |path: &PathBuf| {
            let mut source = DocumentFiles::beside(path.clone());
            if let Some(certificates) = &self.certificates {
                source.certificates.clone_from(certificates);
            }
            source
        };
        let trust = match (self.no_verify, self.authorities.as_slice()) {
            (true, _) => Trust::Unverified,
            (false, []) => Trust::Majority(Authorities::tor_network()),
            (false, authorities) => Trust::Majority(Authorities::new(authorities.iter().copied())),
        };
        let sources = Sources::of(files.iter().map(source).collect(), trust);
        // The user may be root, because only tor's user and root can read tor's files.
        let loader = Loader::new(Confinement { user: nobody() });
        loader.load(&sources).map_err(|error| error.to_string())
    }

    fn answer(
        &self,
        contained: Option<bool>,
        count: usize,
        json: serde_json::Value,
        text: &dyn std::fmt::Display,
    ) -> RelaysOutput {
        let text = match (self.contains, contained) {
            _ if self.json => format!("{json:#}\n"),
            (Some(endpoint), Some(true)) => {
                format!("Yes, {endpoint} is one of the {count} endpoints of the relay set.\n")
            }
            (Some(endpoint), _) => {
                format!("No, {endpoint} is not among the {count} endpoints of the relay set.\n")
            }
            (None, _) => text.to_string(),
        };
        RelaysOutput {
            text,
            is_contained: contained.unwrap_or(true),
        }
    }
}

/// The IDs of the unprivileged user `nobody`, if this process is root and can become it.
fn nobody() -> Option<(u32, u32)> {
    let user = User::from_name("nobody").ok()??;
    let ids = (user.uid.as_raw(), user.gid.as_raw());
    Uid::effective().is_root().then_some(ids)
}

fn endpoint(text: &str) -> Result<Endpoint, &'static str> {
    match text.parse() {
        Ok(Endpoint { port: 0, .. }) => Err("no relay listens on port 0"),
        Ok(endpoint) => Ok(endpoint),
        Err(_) => Err("give an address and a port, such as 192.0.2.1:9001 or [2001:db8::1]:9001"),
    }
}
