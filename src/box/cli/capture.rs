//! `exitmark capture`: writes frames of a running box to a pcapng file.

use super::target::ConnectionTarget;
use super::{exit_failure, exit_usage_error};
use crate::control::CaptureRequest;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Capture frames of a running box to a pcapng file; Ctrl-C ends it and keeps the frames so far
///
/// Without --payload and --addresses the file shows the box's decisions, but neither remote
/// addresses nor content: addresses, and fields computed from them such as checksums, are 0, and
/// payload is cut off. The two options add private traffic of Tor users: neither keep nor share
/// such a file.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    of: ConnectionTarget,
    /// The file to write, or - for standard output; it appears when it is complete
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// End after this number of frames, at most 1000000
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    frames: u64,
    /// End after this number of seconds, at most 3600
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,
    /// Capture one frame in N: a power of two, at most 65536. At most about 100000 frames per
    /// second and CPU are captured; frames left out are counted
    #[arg(long, value_name = "N", default_value_t = 1)]
    one_in: u32,
    /// Include payload. EXPOSES data that users of the Tor network send and receive, which may name
    /// its destination
    #[arg(long)]
    payload: bool,
    /// Include addresses. EXPOSES the destinations of users of the Tor network
    #[arg(long)]
    addresses: bool,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

/// Runs the command. The exit status is 0 for a complete file, 1 if the box does not answer or the
/// file cannot be written, 2 for wrong options or configuration.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, ExitCode> {
    let request = CaptureRequest {
        frames: arguments.frames,
        seconds: arguments.seconds,
        one_in: arguments.one_in,
        with_payload: arguments.payload,
        with_addresses: arguments.addresses,
    };
    if let Err(reason) = request.check() {
        return Err(exit_usage_error(format_args!(
            "--{}",
            reason.replacen('_', "-", 1)
        )));
    }
    let out = &arguments.out;
    let to_stdout = out == Path::new("-");
    if !to_stdout && !arguments.force && out.symlink_metadata().is_ok() {
        return Err(exit_usage_error(format_args!(
            "--out: {} already exists; give another name, or --force",
            out.display()
        )));
    }
    let client = arguments.of.client()?;
    let stopped = stopped()
        .map_err(|error| exit_failure(format_args!("cannot wait for signals: {error}")))?;
    let mut end = Vec::new();
    let mut capture = |out: &mut dyn Write| {
        let mut out = Tail {
            out,
            last: &mut end,
        };
        client
            .capture_until(&request, &mut out, || stopped.load(Ordering::Relaxed))
            .map_err(|error| error.to_string())
    };
    let written = if to_stdout {
        capture(&mut io::stdout().lock())
    } else {
        to_file(capture, out, arguments.force)
    };
    let bytes = written.map_err(exit_failure)?;
    let place = match to_stdout {
        true => "standard output".to_owned(),
        false => out.display().to_string(),
    };
    // The capture is complete even if these lines cannot be written.
    let _ = writeln!(io::stderr(), "exitmark: {bytes} bytes of pcapng to {place}");
    if let Some(comment) = comment_of_last(&end) {
        let _ = writeln!(io::stderr(), "exitmark: {comment}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes through, and keeps the last [`TAIL`] bytes.
struct Tail<'a> {
    out: &'a mut dyn Write,
    last: &'a mut Vec<u8>,
}

/// The number of bytes kept: more than the last block has.
const TAIL: usize = 1024;

impl Write for Tail<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.last.extend_from_slice(&bytes[..written]);
        let excess = self.last.len().saturating_sub(TAIL);
        self.last.drain(..excess);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The comment of the last block, if that is the interface statistics with which a whole capture
/// ends (draft-ietf-opsawg-pcapng, section 4.6). A block repeats its length at its end.
fn comment_of_last(bytes: &[u8]) -> Option<String> {
    const STATISTICS: u32 = 5;
    /// Bytes of type, length, interface and time.
    const FIXED: usize = 20;
    const COMMENT: u16 = 1;
    let word = |bytes: &[u8]| Some(u32::from_ne_bytes(*bytes.first_chunk()?));
    let half = |bytes: &[u8]| Some(u16::from_ne_bytes(*bytes.first_chunk()?));
    let length = usize::try_from(word(bytes.last_chunk::<4>()?)?).ok()?;
    let block = bytes.get(bytes.len().checked_sub(length)?..bytes.len() - 4)?;
    if word(block)? != STATISTICS {
        return None;
    }
    let mut options = block.get(FIXED..)?;
    loop {
        let size = usize::from(half(options.get(2..)?)?);
        let value = options.get(4..)?.get(..size)?;
        if half(options)? == COMMENT {
            return Some(String::from_utf8_lossy(value).into_owned());
        }
        options = options.get(4 + size.next_multiple_of(4)..)?;
    }
}

/// A flag that SIGINT (Ctrl-C) and SIGTERM set.
fn stopped() -> io::Result<Arc<AtomicBool>> {
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stopped))?;
    }
    Ok(stopped)
}

/// Captures to a file of mode 600 that gets its name when it is complete.
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
    let kept = match force {
        true => file.persist(out),
        false => file.persist_noclobber(out),
    };
    kept.map_err(|error| failed(error.error))?;
    Ok(written)
}
