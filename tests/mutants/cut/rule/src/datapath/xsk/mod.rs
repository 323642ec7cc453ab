//! A stub without sockets.

pub(super) const fn prefetch(_: &u8) {}
