//! There is no socket here.

pub(super) const fn prefetch(_: &u8) {}
