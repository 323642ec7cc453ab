//! Network namespaces, veth pairs between them, and threads and processes inside.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// An error of the lab, as one complete message.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LabError(pub String);

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, held by a thread that runs jobs inside.
///
/// It has a BPF file system and a /run of its own too, so that pins end with it and that control
/// sockets do not collide.
///
/// Dropping it ends the thread; the kernel removes the namespace and its veth pairs when the last
/// process and socket inside are gone.
pub struct Netns {
    label: String,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
    fd: File,
}

/// Moves the calling thread into a new network namespace and a new mount namespace.
fn enter() -> std::io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    let nothing = None::<&str>;
    // Keep mounts private to this namespace.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, private, nothing)?;
    // Boxes create their control sockets in /run.
    for (kind, place) in [("bpf", "/sys/fs/bpf"), ("tmpfs", "/run")] {
        mount(Some(kind), place, Some(kind), MsFlags::empty(), nothing)?;
    }
    Ok(())
}

impl Netns {
    /// Creates a namespace with loopback up and IPv6 duplicate address detection off.
    ///
    /// # Errors
    /// Fails without the privilege to create namespaces, or without the `ip` command.
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
                    "cannot make network namespace {label}: {error} (requires root)"
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

    /// The name of the namespace in messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Runs `work` inside and waits for its result. Sockets and processes that it creates stay in
    /// this namespace.
    ///
    /// # Panics
    /// If `work` panics.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job: Job = Box::new(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            let _ = done.send(outcome);
        });
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(job));
        let is_sent = matches!(sent, Some(Ok(())));
        debug_assert!(is_sent, "the namespace's thread is gone");
        match result.recv() {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => unreachable!("the namespace's thread ends only when this is dropped"),
        }
    }

    /// Starts a thread inside, for long-running work.
    ///
    /// # Errors
    /// Fails if the thread cannot be started.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<T>, LabError> {
        let name = name.to_owned();
        self.run(move || {
            // A new thread inherits the namespace.
            thread::Builder::new()
                .name(name)
                .spawn(work)
                .map_err(|error| LabError(format!("cannot start a thread: {error}")))
        })
    }

    /// Runs a command inside to its end and returns its standard output.
    ///
    /// # Errors
    /// Fails if the command cannot be run or fails; the error contains its messages.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Result<String, LabError> {
        self.command_with(program, arguments, String::new())
    }

    fn command_with(
        &self,
        program: &str,
        arguments: &[&str],
        input: String,
    ) -> Result<String, LabError> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let line = format!("{program} {}", arguments.join(" "));
        let label = self.label.clone();
        self.run(move || {
            let mut run = || {
                let mut child = command.spawn()?;
                if let Some(mut stdin) = child.stdin.take() {
                    // A program that ends early tells why by its status.
                    let _ = stdin.write_all(input.as_bytes());
                }
                child.wait_with_output()
            };
            let output = run().map_err(|error| {
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

    /// Runs `ip` once with a command per line, up to the first that fails.
    ///
    /// # Errors
    /// As [`Netns::command`].
    pub fn ip_batch(&self, commands: &[String]) -> Result<(), LabError> {
        self.command_with("ip", &["-batch", "-"], commands.join("\n"))
            .map(drop)
    }

    /// Writes a sysctl; `path` is relative to `/proc/sys`.
    ///
    /// # Errors
    /// Fails if the sysctl does not exist or the kernel rejects the value.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<(), LabError> {
        let (path, value) = (format!("/proc/sys/{path}"), value.to_owned());
        self.run(move || {
            std::fs::write(&path, &value)
                .map_err(|error| LabError(format!("cannot write {value} to {path}: {error}")))
        })
    }

    /// Starts a process inside. A command of [`contained`] cannot outlive this namespace.
    ///
    /// # Errors
    /// Fails if the program cannot be started.
    pub fn start(&self, mut command: Command) -> Result<Child, LabError> {
        self.run(move || {
            command
                .spawn()
                .map(|process| Child { process })
                .map_err(|error| LabError(format!("cannot start {command:?}: {error}")))
        })
    }

    /// The path of this namespace for `ip … netns PATH`, valid while this process runs.
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

/// Waits for a thread and returns its result; `who` names the thread if it panicked.
///
/// # Errors
/// Fails if the thread panicked.
pub fn join<T>(thread: thread::JoinHandle<T>, who: &str) -> Result<T, LabError> {
    let joined = thread.join();
    joined.map_err(|_| LabError(format!("{who} panicked")))
}

/// A command that the kernel kills when the thread that started it ends: with [`Netns::start`],
/// when the namespace ends, even if this process is killed.
pub fn contained(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A process that is killed when this is dropped.
pub struct Child {
    process: std::process::Child,
}

impl Child {
    /// The underlying process, for its pipes and its state.
    pub fn process(&mut self) -> &mut std::process::Child {
        &mut self.process
    }

    /// Sends a signal to this process.
    ///
    /// # Errors
    /// Fails if the process has ended.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<(), LabError> {
        let pid = i32::try_from(self.process.id())
            .map_err(|_| LabError("a pid beyond 31 bits".to_owned()))?;
        nix::sys::signal::kill(Pid::from_raw(pid), signal)
            .map_err(|error| LabError(format!("cannot signal process {pid}: {error}")))
    }

    /// Waits up to `limit` for the process to end.
    ///
    /// # Errors
    /// Fails if the process still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, LabError> {
        let deadline = std::time::Instant::now() + limit;
        loop {
            match self.process.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if std::time::Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(2));
                }
                Ok(None) => {
                    let pid = self.process.id();
                    return Err(LabError(format!(
                        "process {pid} still runs after {limit:?}"
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

/// What an interface has sent so far.
#[derive(Clone, Copy, Debug)]
pub struct Transmitted {
    /// Frames handed to the other end.
    pub frames: u64,
    /// Frames that the other end had no room for, or that found the link down.
    pub dropped: u64,
}

impl Netns {
    /// The transmit counters of an interface.
    ///
    /// # Errors
    /// Fails if the interface does not exist.
    pub fn transmitted(&self, interface: &str) -> Result<Transmitted, LabError> {
        let text = self.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"));
        let text = text.unwrap_or_default();
        let name = format!("{interface}:");
        let transmitted = text.lines().find_map(|line| {
            let numbers = line.trim_start().strip_prefix(&name)?;
            // Eight numbers of received frames, then bytes, packets, errors and drops of sent ones.
            let mut numbers = numbers.split_whitespace().skip(9);
            Some(Transmitted {
                frames: numbers.next()?.parse().ok()?,
                dropped: numbers.nth(1)?.parse().ok()?,
            })
        });
        transmitted.ok_or_else(|| LabError(format!("{interface} has no counters")))
    }

    /// Runs a command inside to its end, whatever its exit status.
    ///
    /// # Errors
    /// Fails if the command cannot be run.
    pub fn output(&self, mut command: Command) -> std::io::Result<Output> {
        self.run(move || command.output())
    }

    /// Lets new interfaces have no IPv6, so that the stack sends nothing by itself.
    ///
    /// # Errors
    /// As [`Netns::sysctl`].
    pub fn disable_ipv6(&self) -> Result<(), LabError> {
        self.sysctl("net/ipv6/conf/default/disable_ipv6", "1")
    }

    /// Removes every address of an interface: a stack without one neither sends nor answers.
    ///
    /// # Errors
    /// As [`Netns::ip`].
    pub fn silence(&self, interface: &str) -> Result<(), LabError> {
        self.sysctl(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "1")?;
        self.ip(&format!("addr flush dev {interface}")).map(drop)
    }
}

/// Keeps the calling thread, and processes that it starts, on these cores.
///
/// # Errors
/// Fails if one of them does not exist.
pub fn pin_to(cores: impl IntoIterator<Item = usize>) -> Result<(), LabError> {
    let mut cpus = CpuSet::new();
    cores
        .into_iter()
        .try_for_each(|core| cpus.set(core))
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpus))
        .map_err(|error| LabError(format!("cannot pin a thread to its cores: {error}")))
}

/// The parameters of one end of a veth pair.
pub struct VethEnd<'a> {
    /// The namespace of this end.
    pub netns: &'a Netns,
    /// The name of the interface, at most 15 bytes.
    pub name: &'a str,
    /// The MAC address in `ip link` notation.
    pub mac: &'a str,
    /// The number of receive and of transmit queues.
    pub queues: u32,
}

impl<'a> VethEnd<'a> {
    /// An end with one queue.
    pub const fn new(netns: &'a Netns, name: &'a str, mac: &'a str) -> Self {
        Self {
            netns,
            name,
            mac,
            queues: 1,
        }
    }
}

/// Creates a veth pair with this MTU between two namespaces and sets both ends up.
///
/// # Errors
/// Fails if `ip` fails.
pub fn veth(a: &VethEnd<'_>, b: &VethEnd<'_>, mtu: u32) -> Result<(), LabError> {
    let [one, other] = [a, b].map(|end| {
        let (name, mac, queues) = (end.name, end.mac, end.queues.max(1));
        format!("name {name} address {mac} mtu {mtu} numrxqueues {queues} numtxqueues {queues}")
    });
    let there = b.netns.path();
    a.netns.ip(&format!(
        "link add {one} type veth peer {other} netns {there}"
    ))?;
    for end in [a, b] {
        end.netns.ip(&format!("link set {} up", end.name))?;
    }
    Ok(())
}
