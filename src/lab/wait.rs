//! Waiting for what other processes and the kernel do.

use std::fmt::Display;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// The timeout of tests, longer than the box's own ones, such as that of a hung loader (10 s). An
/// emulated machine is slower: `EXITMARK_SLOWNESS`, a number, multiplies it there.
pub fn timeout() -> Duration {
    static SLOWNESS: LazyLock<u32> = LazyLock::new(|| {
        let given = std::env::var("EXITMARK_SLOWNESS").ok();
        given.and_then(|text| text.parse().ok()).unwrap_or(1)
    });
    Duration::from_secs(20) * *SLOWNESS
}

/// Repeats an attempt until it succeeds, and returns its value.
///
/// # Panics
/// After [`timeout`], with `what` and the last error.
#[track_caller]
pub fn eventually<T, E: Display>(what: &str, mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + timeout();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < deadline, "{what}: {error}"),
        }
        std::thread::yield_now();
    }
}

/// Repeats a check until it holds. `state` describes what is there instead.
///
/// # Panics
/// After [`timeout`], with `what` and the last state.
#[track_caller]
pub fn wait_until<S: Display>(what: &str, mut holds: impl FnMut() -> bool, state: impl Fn() -> S) {
    eventually(what, || match holds() {
        true => Ok(()),
        false => Err(state()),
    });
}
