//! Documents are read by a process of their own: with another user, no network, no capability and
//! little memory. Whatever a document does to its parser, it costs the daemon one refresh.
//!
//! The daemon opens the files, because tor keeps them to itself, and copies their bytes into a
//! pipe without looking at them. What comes back is compact, and checked again here. One process
//! for each load: nothing lives on from one document to the next.

mod confine;
mod serve;
mod wire;

use super::files::{self, OpenFile};
use super::{LoadError, Loaded, LoaderFailure, Source, Sources, Trust};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use wire::{Answer, Request};

pub use confine::{Confinement, confine};
pub use serve::serve;

/// The command that makes this program a loader.
pub const COMMAND: &str = "load-relays";
/// Far more than the slowest machine takes for a full document.
const DEADLINE: Duration = Duration::from_secs(10);
/// 65,536 endpoints take less than 4 MB as text.
const MAX_ANSWER: usize = 8 << 20;

/// How a loader is started.
#[derive(Clone, Debug)]
pub struct Loader {
    program: PathBuf,
    arguments: Vec<OsString>,
    deadline: Duration,
}

impl Loader {
    /// This program, confined like this.
    pub fn new(confinement: Confinement) -> Self {
        let mut arguments = vec![COMMAND.into()];
        if let Some((uid, gid)) = confinement.user {
            arguments.extend([format!("--uid={uid}").into(), format!("--gid={gid}").into()]);
        }
        // Even where the file has been replaced meanwhile by another version.
        Self::of("/proc/self/exe".into(), arguments, DEADLINE)
    }

    /// Any program that reads a request from its standard input and answers on its standard
    /// output before `deadline`; else it is ended.
    pub const fn of(program: PathBuf, arguments: Vec<OsString>, deadline: Duration) -> Self {
        Self {
            program,
            arguments,
            deadline,
        }
    }

    /// Loads a relay set in a process of its own, and waits for it.
    ///
    /// # Errors
    /// A source that cannot be used, or the process failed; what is too large together.
    pub fn load(&self, sources: &Sources) -> Result<Loaded, LoadError> {
        let mut open = Vec::with_capacity(sources.files.len());
        for source in &sources.files {
            open.push(OpenSource::open(source, &sources.trust)?);
        }
        let loaded = match open.is_empty() {
            true => Loaded::default(),
            false => self.ask(sources, open)?,
        };
        loaded.with(&sources.extra)?;
        sources.warn();
        Ok(loaded)
    }

    fn ask(&self, sources: &Sources, open: Vec<OpenSource>) -> Result<Loaded, LoadError> {
        let deadline = Instant::now() + self.deadline;
        // Nothing is set between fork and exec, so that the standard library need not copy this
        // process' page tables, which are large: the loader confines itself.
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| LoadError::Loader(LoaderFailure::Start(error)))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let request = Request::new(sources, &open);
        let (fed, heard) = std::thread::scope(|scope| {
            let feeder = scope.spawn(move || match stdin {
                Some(pipe) => feed(pipe, &request, open),
                None => Ok(()),
            });
            let heard = match stdout {
                Some(pipe) => listen(pipe, deadline),
                None => Ok(Vec::new()),
            };
            // Ends the feeder too, whose pipe nobody reads any more. Whoever has ended by itself
            // keeps the status that it ended with.
            let ended = end(&mut child);
            let heard = match heard {
                Ok(answer) if answer.is_empty() => match ended {
                    Ok(status) => Err(LoaderFailure::Died(status)),
                    Err(error) => Err(LoaderFailure::Start(error)),
                },
                heard => heard.map_err(|silence| match silence {
                    Silence::Slow => LoaderFailure::Slow(self.deadline),
                    Silence::TooMuch => LoaderFailure::Nonsense("it never ends"),
                    Silence::Failed(error) => LoaderFailure::Start(error),
                }),
            };
            (feeder.join().unwrap_or(Ok(())), heard)
        });
        match fed {
            // The loader's own end is better told by how it ended.
            Err(LoadError::Read { reason, .. }) if reason.kind() == io::ErrorKind::BrokenPipe => {}
            Err(LoadError::Certificates { reason, .. })
                if reason.kind() == io::ErrorKind::BrokenPipe => {}
            fed => fed?,
        }
        let answer: Answer =
            serde_json::from_slice(&heard.map_err(LoadError::Loader)?).map_err(|_| {
                LoadError::Loader(LoaderFailure::Nonsense("no answer can be read in it"))
            })?;
        answer.check(sources)
    }
}

/// A source whose files are open.
pub(super) struct OpenSource {
    consensus: OpenFile,
    certificates: Option<OpenFile>,
}

impl OpenSource {
    fn open(source: &Source, trust: &Trust) -> Result<Self, LoadError> {
        let consensus = OpenFile::open(&source.consensus)?;
        let certificates = match trust {
            Trust::MostOf(_) => {
                Some(OpenFile::open(&source.certificates).map_err(files::about_certificates)?)
            }
            Trust::Anybody => None,
        };
        Ok(Self {
            consensus,
            certificates,
        })
    }
}

fn feed(mut pipe: impl Write, request: &Request, open: Vec<OpenSource>) -> Result<(), LoadError> {
    // Who does not listen is told by its end.
    if request.write(&mut pipe).is_err() {
        return Ok(());
    }
    for mut source in open {
        source.consensus.copy_to(&mut pipe)?;
        if let Some(mut certificates) = source.certificates {
            certificates.copy_to(&mut pipe)?;
        }
    }
    Ok(())
}

/// Why there is no answer.
enum Silence {
    Slow,
    TooMuch,
    Failed(io::Error),
}

/// All that comes out of the pipe before the deadline.
fn listen(mut pipe: ChildStdout, deadline: Instant) -> Result<Vec<u8>, Silence> {
    let mut heard = Vec::new();
    let mut piece = [0; 1 << 16];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Asked here too: who always has a byte more never lets the poll run out of time.
        if left.is_zero() {
            return Err(Silence::Slow);
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut waiting = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waiting, timeout) {
            // Rounded to whole milliseconds, it may be too early to give up.
            Ok(0) => continue,
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(Silence::Failed(error.into())),
        }
        match pipe.read(&mut piece) {
            Ok(0) => return Ok(heard),
            Ok(length) => heard.extend_from_slice(piece.get(..length).unwrap_or_default()),
            Err(error) => return Err(Silence::Failed(error)),
        }
        if heard.len() > MAX_ANSWER {
            return Err(Silence::TooMuch);
        }
    }
}

fn end(child: &mut Child) -> io::Result<std::process::ExitStatus> {
    let _ = child.kill();
    child.wait()
}
