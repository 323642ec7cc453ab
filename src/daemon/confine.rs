//! What the process gives up once the box is there: its user, its capabilities, and most of the
//! kernel.
//!
//! Capabilities belong to threads. Each gives up what it does not need where it begins; all of
//! them share the filter of system calls, which what they start inherits.
//!
//! Sources: capabilities(7), seccomp(2), the kernel's Documentation/userspace-api/no_new_privs.rst.

use super::DaemonError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::{Uid, User, initgroups, setresgid, setresuid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use std::ffi::CString;
use std::io;

/// The thread that changes maps and NICs: CAP_BPF makes the map of the next policy, CAP_NET_ADMIN
/// sets NICs back.
pub(super) const OF_MAIN: &[Capability] = &[Capability::CAP_NET_ADMIN, Capability::CAP_BPF];
/// The thread that has neighbours resolved.
pub(super) const OF_WAY: &[Capability] = &[Capability::CAP_NET_ADMIN];
/// The thread that reads tor's files as root, and makes the reader of documents another user.
pub(super) const OF_ROOTS_KEEPER: &[Capability] = &[
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
];
/// Any other.
pub(super) const OF_NOBODY: &[Capability] = &[];

/// Whether every thread needs a capability: all memory of this process is locked, also what is
/// yet to come, and where there is a limit to that, only CAP_IPC_LOCK gets past it.
fn is_everybodys(capability: Capability) -> bool {
    capability == Capability::CAP_IPC_LOCK
        && getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(limit, _)| limit != RLIM_INFINITY)
}

/// Leaves this thread, and what it runs, no capability but these, as far as it has them.
///
/// # Errors
/// The kernel refuses.
pub(super) fn keep(capabilities: &[Capability]) -> io::Result<()> {
    let has = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let kept: CapsHashSet = has
        .into_iter()
        .filter(|one| capabilities.contains(one) || is_everybodys(*one))
        .collect();
    let set = |which, these: &CapsHashSet| caps::set(None, which, these).map_err(io::Error::other);
    for capability in caps::runtime::thread_all_supported() {
        if !kept.contains(&capability) {
            // Without CAP_SETPCAP the bounds are whoever's that started this process.
            let _ = caps::drop(None, CapSet::Bounding, capability);
        }
    }
    let nothing = CapsHashSet::new();
    set(CapSet::Ambient, &nothing)?;
    set(CapSet::Inheritable, &nothing)?;
    set(CapSet::Effective, &kept)?;
    set(CapSet::Permitted, &kept)
}

/// The same where failing means nothing worse than before; it is said.
pub(super) fn keep_or_say(capabilities: &[Capability]) {
    if let Err(error) = keep(capabilities) {
        tracing::warn!("a thread keeps more capabilities than it needs: {error}");
    }
}

/// Becomes that user, and keeps every capability until the threads give them up. To be called
/// while there is one thread: another one would have to become somebody else, too.
///
/// # Errors
/// There is no such user, or no privilege.
pub(super) fn become_user(name: &str) -> Result<(), DaemonError> {
    let user = match User::from_name(name) {
        Ok(Some(user)) if user.uid.is_root() => {
            return Err(DaemonError::UserIsRoot(name.to_owned()));
        }
        Ok(Some(user)) => user,
        Ok(None) => return Err(DaemonError::NoUser(name.to_owned())),
        Err(error) => return Err(DaemonError::System("look up `user`", error.into())),
    };
    let failed = |error: nix::Error| DaemonError::System("become `user`", error.into());
    let name = CString::new(user.name.as_str())
        .map_err(|error| DaemonError::System("become `user`", error.into()))?;
    let before = caps::read(None, CapSet::Effective).unwrap_or_default();
    prctl::set_keepcaps(true).map_err(failed)?;
    initgroups(&name, user.gid).map_err(failed)?;
    setresgid(user.gid, user.gid, user.gid).map_err(failed)?;
    setresuid(user.uid, user.uid, user.uid).map_err(failed)?;
    prctl::set_keepcaps(false).map_err(failed)?;
    // The change takes them out of effect.
    caps::set(None, CapSet::Effective, &before)
        .map_err(|error| DaemonError::System("become `user`", io::Error::other(error)))
}

/// Does something with no more access to files than this user has: what will be done again later
/// must not succeed now alone.
pub(super) fn by_own_right<T>(work: impl FnOnce() -> T) -> T {
    let reach = [
        Capability::CAP_DAC_OVERRIDE,
        Capability::CAP_DAC_READ_SEARCH,
    ];
    let lowered = reach.map(|one| {
        let had = caps::has_cap(None, CapSet::Effective, one).unwrap_or(false);
        had && caps::drop(None, CapSet::Effective, one).is_ok()
    });
    let done = work();
    for (one, _) in reach.into_iter().zip(lowered).filter(|&(_, had)| had) {
        if let Err(error) = caps::raise(None, CapSet::Effective, one) {
            tracing::warn!("a capability is lost too early: {error}");
        }
    }
    done
}

/// Whether this process is root's.
pub(super) fn is_root() -> bool {
    Uid::effective().is_root()
}

/// Forbids every thread, from now on and for ever, all system calls but those that a running box
/// and the reader of documents make. Others fail with EPERM.
///
/// # Errors
/// The kernel has no seccomp, or a thread has a filter of its own.
pub fn forbid_system_calls() -> io::Result<()> {
    let filter = filter().map_err(io::Error::other)?;
    seccompiler::apply_filter_all_threads(&filter).map_err(io::Error::other)
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|&call| (call, Vec::new())).collect();
    let families = [
        libc::AF_UNIX,
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
    ];
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        let rules_of_call = families.iter().map(|&family| {
            let family = u64::from(family.unsigned_abs());
            SeccompRule::new(vec![SeccompCondition::new(
                0,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::Eq,
                family,
            )?])
        });
        rules.insert(call, rules_of_call.collect::<Result<_, _>>()?);
    }
    SeccompFilter::new(
        rules,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?
    .try_into()
}

/// What is left of the kernel, by what it is for.
const ALLOWED: &[i64] = &[
    // Files: the configuration, the relay documents and their state, what is pinned.
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_fchmod,
    libc::SYS_flock,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_umask,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    // The kernel's engine.
    libc::SYS_bpf,
    // Sockets: packets, netlink, the control socket, metrics, the service manager.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pipe,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    // Time and chance.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    // Threads, signals, and the process that reads documents.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_execve,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_kill,
    libc::SYS_tgkill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_sched_getaffinity,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_prlimit64,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getrlimit,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_setrlimit,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    // What that process gives up in its turn.
    libc::SYS_prctl,
    libc::SYS_seccomp,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_setgroups,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
];
