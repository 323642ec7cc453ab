//! Which capabilities each thread of the box keeps.

use caps::Capability;

/// The thread that changes maps and NICs: CAP_BPF makes the map of the next policy, CAP_NET_ADMIN
/// attaches programs to NICs and sets these back, CAP_NET_RAW opens the sockets of a port that was
/// removed and is back.
pub(super) const OF_MAIN: &[Capability] = &[
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_BPF,
];
/// The thread that has neighbours resolved.
pub(super) const OF_WAY: &[Capability] = &[Capability::CAP_NET_ADMIN];
/// The thread that reads tor's files as root, makes the reader of documents another user, and ends a
/// reader that hangs: one that is another user cannot be ended without CAP_KILL.
pub(super) const OF_ROOTS_KEEPER: &[Capability] = &[
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_KILL,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
];
/// Any other.
pub(super) const OF_NOBODY: &[Capability] = &[];
