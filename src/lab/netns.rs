//! Network namespaces, the veth pairs between them, and what runs inside.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// What can go wrong in the laboratory. Always the whole story in one sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LabError(pub String);

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, held by a thread of its own that runs whatever is to happen inside.
///
/// It has a BPF file system and a /run of its own too, so that what is pinned inside ends with it,
/// and that control sockets do not meet.
///
/// Dropping it ends the thread; the kernel then removes the namespace and the veth pairs in
/// it as soon as the last process and socket inside are gone.
pub struct Netns {
    label: String,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
    fd: File,
}

/// Takes the calling thread into a new network namespace and a new mount namespace.
fn enter() -> std::io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    let nothing = None::<&str>;
    // What is mounted here stays here.
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )?;
    mount(
        Some("bpf"),
        "/sys/fs/bpf",
        Some("bpf"),
        MsFlags::empty(),
        nothing,
    )?;
    // Where boxes have their control sockets: each site has its own.
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        MsFlags::empty(),
        nothing,
    )?;
    Ok(())
}

impl Netns {
    /// Makes a new namespace with loopback up and IPv6's duplicate address detection off.
    ///
    /// # Errors
    /// No privilege to make namespaces, or no `ip` command.
    pub fn new(label: &str) -> Result<Self, LabError> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, opened) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(label.to_owned())
            .spawn(move || {
                let namespace = enter().and_then(|()| File::open("/proc/thread-self/ns/net"));
                let made = namespace.is_ok();
                let _ = ready.send(namespace);
                if made {
                    inbox.into_iter().for_each(|job| job());
                }
            })
            .map_err(|error| {
                LabError(format!(
                    "cannot start a thread for namespace {label}: {error}"
                ))
            })?;
        let fd = opened
            .recv()
            .map_err(|_| LabError(format!("the thread of namespace {label} ended early")))?
            .map_err(|error| {
                LabError(format!(
                    "cannot make network namespace {label}: {error} (it takes root)"
                ))
            })?;
        let namespace = Self {
            label: label.to_owned(),
            jobs: Some(jobs),
            thread: Some(thread),
            fd,
        };
        namespace.ip("link set lo up")?;
        namespace.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        namespace.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
        Ok(namespace)
    }

    /// What the namespace is called in messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Runs `work` inside and waits for its result. Sockets and processes that it makes belong
    /// to this namespace for good. A panic inside goes on outside.
    ///
    /// # Panics
    /// When `work` does.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job: Job = Box::new(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            let _ = done.send(outcome);
        });
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(job));
        debug_assert!(
            matches!(sent, Some(Ok(()))),
            "the namespace's thread is gone"
        );
        match result.recv() {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => unreachable!("the namespace's thread ends only when this is dropped"),
        }
    }

    /// Starts a thread of its own inside, for work that lasts.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<T>, LabError> {
        let name = name.to_owned();
        self.run(move || {
            // A new thread starts in the namespace of the one that makes it.
            thread::Builder::new()
                .name(name)
                .spawn(work)
                .map_err(|error| LabError(format!("cannot start a thread: {error}")))
        })
    }

    /// Runs a command inside to its end and returns what it printed.
    ///
    /// # Errors
    /// The command cannot be run or fails; the error holds its words.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Result<String, LabError> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        let line = format!("{program} {}", arguments.join(" "));
        let label = self.label.clone();
        self.run(move || {
            let output = command.output().map_err(|error| {
                LabError(format!("cannot run `{line}`: {error}; is it installed?"))
            })?;
            if output.status.success() {
                Ok(String::from_utf8_lossy(&output.stdout).into_owned())
            } else {
                Err(LabError(format!(
                    "`{line}` failed in namespace {label}: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                )))
            }
        })
    }

    /// Runs `ip` with these space-separated arguments.
    ///
    /// # Errors
    /// As [`Netns::command`].
    pub fn ip(&self, arguments: &str) -> Result<String, LabError> {
        self.command("ip", &arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// Writes a kernel setting, `path` as below `/proc/sys`.
    ///
    /// # Errors
    /// No such setting, or a value that the kernel refuses.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<(), LabError> {
        let (path, value) = (format!("/proc/sys/{path}"), value.to_owned());
        self.run(move || {
            std::fs::write(&path, &value)
                .map_err(|error| LabError(format!("cannot write {value} to {path}: {error}")))
        })
    }

    /// Starts a process inside. One made by [`contained`] cannot outlive this namespace.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(&self, mut command: Command) -> Result<Child, LabError> {
        self.run(move || {
            command
                .spawn()
                .map(|process| Child { process })
                .map_err(|error| LabError(format!("cannot start {command:?}: {error}")))
        })
    }

    /// A path by which `ip … netns PATH` finds this namespace while the process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A command that the kernel ends when the thread that started it ends: with [`Netns::start`],
/// when the namespace does, even where this process is killed.
pub fn contained(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A process that is ended when it is dropped.
pub struct Child {
    process: std::process::Child,
}

impl Child {
    /// The process, for its pipes and its state.
    pub fn process(&mut self) -> &mut std::process::Child {
        &mut self.process
    }

    /// Sends a signal to this process.
    ///
    /// # Errors
    /// The process is gone.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<(), LabError> {
        let pid = i32::try_from(self.process.id())
            .map_err(|_| LabError("a pid beyond 31 bits".to_owned()))?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal)
            .map_err(|error| LabError(format!("cannot signal process {pid}: {error}")))
    }

    /// Waits for the process to end, at most this long.
    ///
    /// # Errors
    /// It is still there after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, LabError> {
        let deadline = std::time::Instant::now() + limit;
        loop {
            match self.process.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if std::time::Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(2));
                }
                Ok(None) => {
                    return Err(LabError(format!(
                        "process {} still runs after {limit:?}",
                        self.process.id()
                    )));
                }
                Err(error) => return Err(LabError(format!("cannot wait for a process: {error}"))),
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One end of a veth pair to be.
pub struct VethEnd<'a> {
    /// Where it shall be.
    pub netns: &'a Netns,
    /// Its name there, at most 15 bytes.
    pub name: &'a str,
    /// Its MAC address.
    pub mac: &'a str,
    /// How many receive and transmit queues it has.
    pub queues: u32,
}

/// Makes a veth pair between two namespaces and sets both ends up, with this MTU.
///
/// # Errors
/// `ip` refuses.
pub fn veth(a: &VethEnd<'_>, b: &VethEnd<'_>, mtu: u32) -> Result<(), LabError> {
    let queues = |end: &VethEnd<'_>| format!("numrxqueues {0} numtxqueues {0}", end.queues.max(1));
    a.netns.ip(&format!(
        "link add name {} address {} mtu {mtu} {} type veth peer name {} address {} mtu {mtu} {} netns {}",
        a.name,
        a.mac,
        queues(a),
        b.name,
        b.mac,
        queues(b),
        b.netns.path(),
    ))?;
    for end in [a, b] {
        end.netns.ip(&format!("link set {} up", end.name))?;
    }
    Ok(())
}
