//! System calls that a confined process tries, in a process of the test's program.

use nix::errno::Errno;
use std::io;
use std::process::Command;

/// What was tried, and its outcome.
pub(crate) type Try = (&'static str, io::Result<()>);

/// Prints each outcome, and how many there are, as [`all_are_refused`] reads it.
pub(crate) fn print(tries: &[Try]) {
    for (what, outcome) in tries {
        let error = outcome.as_ref().map_err(io::Error::raw_os_error);
        println!("{what}: {error:?}");
    }
    println!("{} tried", tries.len());
}

/// Runs a test in a process of its own with this environment variable, and asserts that more than
/// `few` tries were made, and that all of them failed with EPERM.
pub(crate) fn all_are_refused(test: &str, variable: &str, few: usize) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .arg("--test-threads=1")
        .env(variable, "1")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let refused = format!("Err(Some({}))", Errno::EPERM as i32);
    let is_try = |line: &&str| line.contains(": Ok(") || line.contains(": Err(");
    let tried: Vec<_> = text.lines().filter(is_try).collect();
    for line in &tried {
        assert!(line.ends_with(&refused), "{line}");
    }
    assert!(text.contains(&format!("{} tried", tried.len())), "{text}");
    assert!(tried.len() > few, "{text}");
}
