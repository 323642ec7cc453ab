//! Kills a program with SIGKILL before any chosen step.
//!
//! A step is a system call that changes state that outlives the process: names in file systems, BPF
//! links and pins, NICs. Unpinned maps are freed with the process, and every write to a pinned one
//! is followed by such a call. Steps are found with ptrace(2), so the program needs no hooks for
//! this, and no step is missed.

use super::{LabError, Netns};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::thread;

/// How a program under [`killed_at`] ended.
#[derive(Debug)]
pub enum Ending {
    /// By SIGKILL, before this call.
    Killed(String),
    /// By itself, before the step: its exit status and its standard error.
    Itself(i32, String),
}

/// The steps to test, from 1 on: every fifth, or every one if `EXITMARK_EVERY_STEP` is set, which
/// takes minutes.
pub fn steps() -> impl Iterator<Item = usize> {
    let stride = match std::env::var_os("EXITMARK_EVERY_STEP") {
        Some(_) => 1,
        None => 5,
    };
    (1..).step_by(stride)
}

/// Runs a program in `netns` and kills it before its step number `step`, counted from 1. After its
/// `ready` line the program receives SIGHUP and SIGTERM.
///
/// # Errors
/// Fails if the program cannot be started or traced.
pub fn killed_at(netns: &Netns, command: &[&str], step: usize) -> Result<Ending, LabError> {
    let command: Vec<String> = command.iter().map(|&word| word.to_owned()).collect();
    // A thread of its own, so that waitpid(2) does not reap other children.
    let tracer = netns.spawn("tracer", move || run(&command, step))?;
    tracer
        .join()
        .map_err(|_| LabError("the tracer has panicked".to_owned()))?
        .map_err(|error| LabError(format!("cannot trace a program: {error}")))
}

fn run(words: &[String], step: usize) -> std::io::Result<Ending> {
    // The shell waits until it is traced.
    let mut child = Command::new("sh")
        .args(["-c", "read -r go && exec \"$@\"", "sh"])
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(std::io::Error::other)?);
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options)?;
    ptrace::interrupt(pid)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    if let Some(mut stdin) = stdin {
        stdin.write_all(b"go\n")?;
    }
    let ready = thread::spawn(move || {
        let lines = stdout.map(|stdout| BufReader::new(stdout).lines().map_while(Result::ok));
        for line in lines.into_iter().flatten() {
            if line.starts_with("ready") {
                for signal in [Signal::SIGHUP, Signal::SIGTERM] {
                    let _ = kill(pid, signal);
                }
            }
        }
    });
    let said = thread::spawn(move || {
        let mut said = String::new();
        if let Some(mut stderr) = stderr {
            let _ = stderr.read_to_string(&mut said);
        }
        said
    });
    let killed = follow(pid, step)?;
    let _ = child.wait();
    let _ = ready.join();
    let said = said.join().unwrap_or_default();
    Ok(match killed {
        Ok(call) => Ending::Killed(call),
        Err(status) => Ending::Itself(status, said),
    })
}

/// Resumes the program from call to call to its end. Returns the call before which it was killed,
/// or its exit status.
fn follow(pid: Pid, step: usize) -> nix::Result<Result<String, i32>> {
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    let mut steps = Steps::default();
    let mut killed = None;
    loop {
        let go_on = match waitpid(None, Some(flags))? {
            WaitStatus::PtraceSyscall(thread) => {
                let call = match killed {
                    None => steps.next(pid, thread),
                    Some(_) => None,
                };
                if let Some(call) = call
                    && steps.taken == step
                {
                    kill(pid, Signal::SIGKILL)?;
                    killed = Some(call);
                }
                ptrace::syscall(thread, None)
            }
            WaitStatus::PtraceEvent(thread, ..) => ptrace::syscall(thread, None),
            WaitStatus::Stopped(thread, signal) => ptrace::syscall(thread, signal),
            WaitStatus::Exited(ended, status) if ended == pid => return Ok(Err(status)),
            WaitStatus::Signaled(ended, ..) if ended == pid => {
                return Ok(killed.ok_or(-1));
            }
            _ => Ok(()),
        };
        match go_on {
            // The thread was killed meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The number of steps of one program so far.
#[derive(Default)]
struct Steps {
    taken: usize,
}

impl Steps {
    /// The call that a thread enters, if it is a step.
    fn next(&mut self, pid: Pid, thread: Pid) -> Option<String> {
        let call = entered(thread)?;
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        let name_of_program = program.file_name()?.to_string_lossy();
        if !name_of_program.starts_with("exitmark") {
            return None;
        }
        let call = name(thread, call)?;
        self.taken += 1;
        Some(format!("step {}: {call}", self.taken))
    }
}

/// The number of the call that a thread enters, and its first three arguments.
fn entered(thread: Pid) -> Option<[u64; 4]> {
    let registers = ptrace::getregs(thread).ok()?;
    // On entry of a call the result register holds -ENOSYS.
    let is_entered = registers.rax == (-i64::from(libc::ENOSYS)).cast_unsigned();
    let arguments = [registers.rdi, registers.rsi, registers.rdx];
    let [first, second, third] = arguments;
    is_entered.then_some([registers.orig_rax, first, second, third])
}

/// The name of a call that changes state that outlives the process.
fn name(thread: Pid, [number, first, second, third]: [u64; 4]) -> Option<&'static str> {
    const CREATE: u64 = libc::O_CREAT.unsigned_abs() as u64;
    Some(match i64::try_from(number).ok()? {
        // Command numbers of bpf(2).
        libc::SYS_bpf => match first {
            6 => "bpf(OBJ_PIN)",
            28 => "bpf(LINK_CREATE)",
            29 => "bpf(LINK_UPDATE)",
            34 => "bpf(LINK_DETACH)",
            _ => return None,
        },
        libc::SYS_sendto if is_order(thread, second) => "sendto",
        libc::SYS_mkdir | libc::SYS_mkdirat => "mkdir",
        libc::SYS_rmdir => "rmdir",
        libc::SYS_unlink | libc::SYS_unlinkat => "unlink",
        libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 => "rename",
        libc::SYS_open if second & CREATE != 0 => "open(O_CREAT)",
        libc::SYS_openat if third & CREATE != 0 => "open(O_CREAT)",
        _ => return None,
    })
}

/// Whether a netlink message changes state: it then asks for an acknowledgement and not for a dump
/// (netlink(7)).
fn is_order(thread: Pid, message: u64) -> bool {
    let [ack, dump] = [libc::NLM_F_ACK, libc::NLM_F_DUMP].map(i64::from);
    // Length, type and flags are the first eight bytes.
    let Ok(address) = usize::try_from(message) else {
        return false;
    };
    let header = ptrace::read(thread, std::ptr::without_provenance_mut(address));
    header.is_ok_and(|header| {
        let flags = header >> 48;
        flags & ack != 0 && flags & dump != dump
    })
}
