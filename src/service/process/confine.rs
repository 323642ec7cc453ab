//! Drops privileges once the process is set up: its user and its capabilities.
//!
//! Capabilities are per thread. Each thread drops those that it does not need when it starts.
//!
//! Sources: capabilities(7), the kernel's Documentation/userspace-api/no_new_privs.rst.

use super::ProcessError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::{Uid, User, initgroups, setresgid, setresuid};
use std::ffi::CString;
use std::io;

/// Whether every thread needs a capability. All current and future memory of this process is
/// locked; under a finite RLIMIT_MEMLOCK that needs CAP_IPC_LOCK.
fn is_everybodys(capability: Capability) -> bool {
    capability == Capability::CAP_IPC_LOCK
        && getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(limit, _)| limit != RLIM_INFINITY)
}

/// Drops all capabilities of this thread and its children except these.
///
/// # Errors
/// capget(2) or capset(2) fails. The thread may have dropped some capabilities then.
pub fn keep(capabilities: &[Capability]) -> io::Result<()> {
    let has = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let kept: CapsHashSet = has
        .into_iter()
        .filter(|one| capabilities.contains(one) || is_everybodys(*one))
        .collect();
    let set = |which, these: &CapsHashSet| caps::set(None, which, these).map_err(io::Error::other);
    for capability in caps::runtime::thread_all_supported() {
        if !kept.contains(&capability) {
            // Without CAP_SETPCAP the inherited bounding set stays.
            let _ = caps::drop(None, CapSet::Bounding, capability);
        }
    }
    let nothing = CapsHashSet::new();
    set(CapSet::Ambient, &nothing)?;
    set(CapSet::Inheritable, &nothing)?;
    set(CapSet::Effective, &kept)?;
    set(CapSet::Permitted, &kept)
}

/// The same, but a failure is only logged, because it leaves the thread as it was.
pub fn keep_or_say(capabilities: &[Capability]) {
    if let Err(error) = keep(capabilities) {
        tracing::warn!("a thread keeps more capabilities than it needs: {error}");
    }
}

/// Becomes that user, and keeps every capability until the threads drop them. To be called while
/// the process has one thread, because capabilities are per thread.
///
/// # Errors
/// The user does not exist or is root, or a privilege is missing.
pub fn become_user(name: &str) -> Result<(), ProcessError> {
    let user = match User::from_name(name) {
        Ok(Some(user)) if user.uid.is_root() => {
            return Err(ProcessError::UserIsRoot(name.to_owned()));
        }
        Ok(Some(user)) => user,
        Ok(None) => return Err(ProcessError::NoUser(name.to_owned())),
        Err(error) => return Err(ProcessError::System("look up `user`", error.into())),
    };
    let failed = |error: nix::Error| ProcessError::System("become `user`", error.into());
    let name = CString::new(user.name.as_str())
        .map_err(|error| ProcessError::System("become `user`", error.into()))?;
    let before = caps::read(None, CapSet::Effective).unwrap_or_default();
    prctl::set_keepcaps(true).map_err(failed)?;
    initgroups(&name, user.gid).map_err(failed)?;
    setresgid(user.gid, user.gid, user.gid).map_err(failed)?;
    setresuid(user.uid, user.uid, user.uid).map_err(failed)?;
    prctl::set_keepcaps(false).map_err(failed)?;
    // setresuid clears the effective set.
    caps::set(None, CapSet::Effective, &before)
        .map_err(|error| ProcessError::System("become `user`", io::Error::other(error)))
}

/// Runs `work` without these capabilities. Work that is repeated later, when they are dropped, must
/// not succeed only the first time.
pub fn without<T>(capabilities: &[Capability], work: impl FnOnce() -> T) -> T {
    let lower = |one: &&Capability| {
        let has = caps::has_cap(None, CapSet::Effective, **one).unwrap_or(false);
        has && caps::drop(None, CapSet::Effective, **one).is_ok()
    };
    let lowered: Vec<_> = capabilities.iter().filter(lower).collect();
    let done = work();
    for one in lowered {
        if let Err(error) = caps::raise(None, CapSet::Effective, *one) {
            tracing::warn!("a capability is lost too early: {error}");
        }
    }
    done
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    Uid::effective().is_root()
}
