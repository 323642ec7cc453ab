//! `exitmark capture`: frames of a running box, as the box saw them.

use super::asking::Asked;
use super::{misused, unmet};
use crate::control::CaptureRequest;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Capture frames of a running box to a pcapng file; Ctrl-C ends it and keeps what there is
///
/// Without --payload and --addresses the file tells how the box decided, and not who talked to
/// whom about what: addresses, and all that can be computed from them such as checksums, are 0, and
/// what follows the headers is cut off. What the two add is the traffic of people; do not keep it,
/// and do not hand it on.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    of: Asked,
    /// The file to write, or - for standard output; it is there when it is complete
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// End after so many frames, at most 1000000
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    frames: u64,
    /// End after so many seconds, at most 3600
    #[arg(long, value_name = "S", default_value_t = 60)]
    seconds: u64,
    /// Take one frame in so many: a power of two, at most 65536
    #[arg(long, value_name = "N", default_value_t = 1)]
    one_in: u32,
    /// Keep what follows the headers. EXPOSES what users of the Tor network send and receive, which
    /// may name the other side
    #[arg(long)]
    payload: bool,
    /// Keep the addresses. EXPOSES whom users of the Tor network talk to
    #[arg(long)]
    addresses: bool,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
}

/// Captures.
pub fn run(arguments: &Arguments) -> ExitCode {
    let request = CaptureRequest {
        frames: arguments.frames,
        seconds: arguments.seconds,
        one_in: arguments.one_in,
        with_payload: arguments.payload,
        with_addresses: arguments.addresses,
    };
    if let Err(reason) = request.check() {
        return misused(format_args!("--{}", reason.replacen('_', "-", 1)));
    }
    let out = &arguments.out;
    let to_stdout = out == Path::new("-");
    if !to_stdout && !arguments.force && out.symlink_metadata().is_ok() {
        return misused(format_args!(
            "--out: {} is there already; give another name, or --force",
            out.display()
        ));
    }
    let client = match arguments.of.client() {
        Ok(client) => client,
        Err(code) => return code,
    };
    let stopped = match stopped() {
        Ok(stopped) => stopped,
        Err(error) => return unmet(format_args!("cannot wait for signals: {error}")),
    };
    let capture = |out: &mut dyn Write| {
        client
            .capture_until(&request, &mut { out }, || stopped.load(Ordering::Relaxed))
            .map_err(|error| error.to_string())
    };
    let written = if to_stdout {
        capture(&mut io::stdout().lock())
    } else {
        to_file(capture, out, arguments.force)
    };
    match written {
        Ok(bytes) => {
            let place = if to_stdout {
                "standard output".to_owned()
            } else {
                out.display().to_string()
            };
            // Where that cannot be said, the frames are there all the same.
            let _ = writeln!(io::stderr(), "exitmark: {bytes} bytes of pcapng to {place}");
            ExitCode::SUCCESS
        }
        Err(error) => unmet(error),
    }
}

/// Whether somebody wants no more, by Ctrl-C say.
fn stopped() -> io::Result<Arc<AtomicBool>> {
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stopped))?;
    }
    Ok(stopped)
}

/// To a file that has its name when it is complete, and that its owner alone may read.
fn to_file(
    capture: impl FnOnce(&mut dyn Write) -> Result<u64, String>,
    out: &Path,
    force: bool,
) -> Result<u64, String> {
    let failed = |error: io::Error| format!("--out: cannot write {}: {error}", out.display());
    let directory = match out.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".exitmark-")
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(directory)
        .map_err(failed)?;
    let written = capture(&mut file)?;
    file.flush().map_err(failed)?;
    let kept = if force {
        file.persist(out)
    } else {
        file.persist_noclobber(out)
    };
    match kept {
        Ok(_) => Ok(written),
        Err(error) => Err(failed(error.error)),
    }
}
