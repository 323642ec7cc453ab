//! The capabilities that each thread of the box keeps.

use caps::Capability;

/// The thread that changes maps and NICs: CAP_BPF makes the map of the next policy, CAP_NET_ADMIN
/// attaches programs to NICs and sets these back, CAP_NET_RAW opens the sockets of a port or a tap
/// that was removed and is back.
pub(super) const OF_MAIN: &[Capability] = &[
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_BPF,
];
/// The next-hop monitor: CAP_NET_ADMIN lets it make the kernel resolve a neighbour.
pub(super) const OF_NEXT_HOP_MONITOR: &[Capability] = &[Capability::CAP_NET_ADMIN];
/// The relay service of another user than root: tor lets only its own user read its files.
pub(super) const OF_RELAY_SERVICE: &[Capability] = &[Capability::CAP_DAC_READ_SEARCH];
/// The relay service of root: reads tor's files, runs the document loader as another user, and
/// kills a loader that hangs, which takes CAP_KILL once the loader has changed its user.
pub(super) const OF_ROOTS_RELAY_SERVICE: &[Capability] = &[
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_KILL,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
];
/// All other threads keep no capability: they only use descriptors that are open already.
pub(super) const NONE: &[Capability] = &[];
