//! Confines a loader before it reads untrusted input: closes all files except three, and drops
//! its user, its capabilities, most memory and CPU time, and most system calls.
//!
//! The process can then only read a pipe, compute, and write a pipe.

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, Uid};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::io;

/// Address space in bytes: several times what a full document needs.
const MEMORY: u64 = 512 << 20;
/// CPU time in seconds; the daemon's timeout is the same.
const SECONDS: u64 = 10;

/// The user to which a loader changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// The IDs of a user and of its only group; `None` keeps the current user. The daemon must be
    /// root to change the user.
    pub user: Option<(u32, u32)>,
}

/// Confines this process irreversibly.
///
/// # Errors
/// A step failed; then no untrusted input may be read.
pub fn confine(confinement: &Confinement) -> io::Result<()> {
    step("close files", close_all_but_three())?;
    // If memory is short, a refresh is the most dispensable process.
    let first_to_go = std::fs::write("/proc/self/oom_score_adj", "1000");
    step("offer itself to the OOM killer", first_to_go)?;
    for (resource, limit) in [
        (Resource::RLIMIT_AS, MEMORY),
        (Resource::RLIMIT_CPU, SECONDS),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_FSIZE, 0),
        (Resource::RLIMIT_NOFILE, 8),
    ] {
        // A lower hard limit stays.
        let (_, hard) = step("ask for its limits", getrlimit(resource))?;
        let limit = limit.min(hard);
        step("limit itself", setrlimit(resource, limit, limit))?;
    }
    // The parent thread may have blocked the signals that end this process.
    step("unblock signals", SigSet::all().thread_unblock())?;
    // Without CAP_SETPCAP this fails; then the bounding set is of no use either.
    let _ = caps::clear(None, caps::CapSet::Bounding);
    if let Some((uid, gid)) = confinement.user {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        step("leave its groups", nix::unistd::setgroups(&[]))?;
        step("change its group", nix::unistd::setresgid(gid, gid, gid))?;
        step("change its user", nix::unistd::setresuid(uid, uid, uid))?;
    }
    for set in [
        caps::CapSet::Ambient,
        caps::CapSet::Inheritable,
        caps::CapSet::Effective,
        caps::CapSet::Permitted,
    ] {
        let cleared = caps::clear(None, set).map_err(io::Error::other);
        step("give up capabilities", cleared)?;
    }
    // After the change of the user, which resets these two.
    step("end with its parent", prctl::set_pdeathsig(Signal::SIGKILL))?;
    step("forbid core dumps", prctl::set_dumpable(false))?;
    step("forbid new privileges", prctl::set_no_new_privs())?;
    let filter = step("make a seccomp filter", filter().map_err(io::Error::other))?;
    let applied = seccompiler::apply_filter(&filter).map_err(io::Error::other);
    step("apply a seccomp filter", applied)
}

/// Adds the name of a step to its error.
fn step<T, E: Into<io::Error>>(name: &str, outcome: Result<T, E>) -> io::Result<T> {
    outcome.map_err(|error| io::Error::other(format!("it cannot {name}: {}", error.into())))
}

/// Closes descriptors that a library left open across exec; the daemon's own are close-on-exec.
fn close_all_but_three() -> io::Result<()> {
    let numbers: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&number| number > 2)
        .collect();
    for number in numbers {
        // The directory's own descriptor is closed already; ignore that error.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}

/// Allows these system calls; all others fail with EPERM.
fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let allowed = [
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_close,
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        libc::SYS_futex,
        libc::SYS_sched_yield,
        libc::SYS_getrandom,
        libc::SYS_clock_gettime,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_restart_syscall,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    let rules = allowed.into_iter().map(|number| (number, Vec::new()));
    SeccompFilter::new(
        rules.collect(),
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?
    .try_into()
}
