//! Loads documents in a separate process with another user, no network, no capabilities and little
//! memory. A document that breaks the parser costs the daemon only one refresh.
//!
//! The daemon opens the files, because tor restricts access to them, and copies their bytes into a
//! pipe without parsing them. The answer is compact and is validated here. Each load runs in a new
//! process, so no state persists from one load to the next; the daemon loads each document by itself.

mod confine;
mod serve;
mod wire;

use super::files::{self, OpenFile};
use super::{DocumentFiles, LoadError, Loaded, LoadedDocument, LoaderFailure, Sources, Trust};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use wire::{LoaderReply, Request};

pub use confine::{Confinement, confine};
pub use serve::serve;

/// The subcommand that runs this program as a loader.
pub const COMMAND: &str = "load-relays";
/// Timeout of a load; far more than a slow machine needs for a full document.
const DEADLINE: Duration = Duration::from_secs(10);
/// The longest answer in bytes; 65,536 endpoints take less than 4 MB as text.
const MAX_ANSWER: usize = 8 << 20;

/// The program that loads documents, its arguments, and the time that it has.
#[derive(Clone, Debug)]
pub struct Loader {
    program: PathBuf,
    arguments: Vec<OsString>,
    deadline: Duration,
}

impl Loader {
    /// A loader that runs this program with this confinement.
    pub fn new(confinement: Confinement) -> Self {
        let mut arguments = vec![COMMAND.into()];
        if let Some((uid, gid)) = confinement.user {
            arguments.extend([format!("--uid={uid}").into(), format!("--gid={gid}").into()]);
        }
        // The running version, even if the file has been replaced meanwhile.
        Self::of("/proc/self/exe".into(), arguments, DEADLINE)
    }

    /// A loader that runs any program which reads a request from standard input and answers on
    /// standard output. It is killed after `deadline`.
    pub const fn of(program: PathBuf, arguments: Vec<OsString>, deadline: Duration) -> Self {
        Self {
            program,
            arguments,
            deadline,
        }
    }

    /// Loads a relay set in a new process, and waits for it: the union of all documents of the
    /// sources.
    ///
    /// # Errors
    /// A source cannot be used, the process fails, or the union is too large.
    pub fn load(&self, sources: &Sources) -> Result<Loaded, LoadError> {
        let files = sources.all()?;
        sources.checked(match files.is_empty() {
            true => Loaded::default(),
            false => self.ask(&Sources::of(files, sources.trust.clone()))?,
        })
    }

    /// Loads one document in a new process, and waits for it.
    ///
    /// # Errors
    /// The document cannot be used, or the process fails.
    pub fn load_document(
        &self,
        files: &DocumentFiles,
        trust: &Trust,
    ) -> Result<LoadedDocument, LoadError> {
        let one = Sources::of(vec![files.clone()], trust.clone());
        let Loaded { listed, sources } = self.ask(&one)?;
        let report = sources.into_iter().next();
        let report = report.ok_or(LoadError::Loader(LoaderFailure::Nonsense("no file")))?;
        Ok(LoadedDocument { report, listed })
    }

    /// The answer of a new process for the files of these sources.
    fn ask(&self, sources: &Sources) -> Result<Loaded, LoadError> {
        let open = sources.files.iter();
        let open = open.map(|files| OpenSource::open(files, &sources.trust));
        let open: Vec<_> = open.collect::<Result<_, _>>()?;
        let deadline = Instant::now() + self.deadline;
        // The loader confines itself, so nothing needs to run between fork and exec, and the
        // standard library can avoid copying the large page tables of this process.
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
        let (fed, received) = std::thread::scope(|scope| {
            let feeder = scope.spawn(move || match stdin {
                Some(pipe) => feed(pipe, &request, open),
                None => Ok(()),
            });
            let received = match stdout {
                Some(pipe) => self.listen(pipe, deadline),
                None => Ok(Vec::new()),
            };
            // This also ends the feeder, whose pipe then has no reader. A process that has ended by
            // itself keeps its exit status.
            let _ = child.kill();
            let ended = child.wait();
            let received = match received {
                Ok(answer) if answer.is_empty() => match ended {
                    Ok(status) => Err(LoaderFailure::Died(status)),
                    Err(error) => Err(LoaderFailure::Start(error)),
                },
                received => received,
            };
            (feeder.join().unwrap_or(Ok(())), received)
        });
        match fed {
            // The loader ended early: its exit status is the better error.
            Err(LoadError::Read(_, reason) | LoadError::Certificates(_, reason))
                if reason.kind() == io::ErrorKind::BrokenPipe => {}
            fed => fed?,
        }
        let answer: LoaderReply = serde_json::from_slice(&received.map_err(LoadError::Loader)?)
            .map_err(|_| LoadError::Loader(LoaderFailure::Nonsense("it cannot be parsed")))?;
        answer.check(sources)
    }

    /// Reads the pipe up to its end, or until the deadline.
    fn listen(&self, mut pipe: ChildStdout, deadline: Instant) -> Result<Vec<u8>, LoaderFailure> {
        let mut received = Vec::new();
        let mut piece = [0; 1 << 16];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Checked here too: if the process keeps writing, the poll never times out.
            if left.is_zero() {
                return Err(LoaderFailure::Slow(self.deadline));
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut waiting = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
            match poll(&mut waiting, timeout) {
                // The timeout was rounded to whole milliseconds, so the deadline may not be reached.
                Ok(0) => continue,
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(LoaderFailure::Start(error.into())),
            }
            match pipe.read(&mut piece) {
                Ok(0) => return Ok(received),
                Ok(length) => received.extend_from_slice(piece.get(..length).unwrap_or_default()),
                Err(error) => return Err(LoaderFailure::Start(error)),
            }
            if received.len() > MAX_ANSWER {
                return Err(LoaderFailure::Nonsense("it is too long"));
            }
        }
    }
}

/// A source whose files are open: the daemon opens them, because the loader's user may not.
pub(super) struct OpenSource {
    consensus: OpenFile,
    certificates: Option<OpenFile>,
}

impl OpenSource {
    fn open(source: &DocumentFiles, trust: &Trust) -> Result<Self, LoadError> {
        let consensus = OpenFile::open(&source.consensus)?;
        let mut certificates = None;
        if *trust != Trust::Unverified {
            let opened = OpenFile::open(&source.certificates);
            certificates = Some(opened.map_err(files::about_certificates)?);
        }
        Ok(Self {
            consensus,
            certificates,
        })
    }
}

fn feed(mut pipe: impl Write, request: &Request, open: Vec<OpenSource>) -> Result<(), LoadError> {
    // If the loader does not read, its exit status is the better error.
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
