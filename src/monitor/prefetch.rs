//! Prefetching: unsafe, because the processor's instruction has no safe function.
#![allow(unsafe_code, reason = "calls an intrinsic function of the processor")]

/// Loads the first cache line of a value into the cache, without waiting for it. Does nothing on
/// other processors than x86-64.
#[inline(always)]
pub(crate) fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction (SSE, which every x86-64 has) has no visible effect and faults on no
    // address, and this one is valid.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>((&raw const *value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
