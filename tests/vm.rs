//! Tier: guests. Every BPF program is loaded by the kernels of Debian 12 and 13, in QEMU under
//! emulation. tests/vm/ has how; `make vm-test` runs all of it.

#![allow(
    clippy::unwrap_used,
    reason = "a test's ground that is missing is the test's failure"
)]

use exitmark_lab::is_installed;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// The exit status of tests/vm/run.py where the packages cannot be had.
const SKIPPED: i32 = 77;

fn run(arguments: &[&str]) -> Output {
    Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vm/run.py"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn every_kernel_loads_every_program_within_the_limit() {
    if !is_installed("python3") {
        return;
    }
    let kernels = ["load", "--kernels=6.1,6.12,6.18", "--cloud"];
    let output = run(&[&kernels[..], &["--clang=system"]].concat());
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(SKIPPED) {
        // Not by a print macro: what a passing test prints is swallowed.
        let _ = writeln!(std::io::stderr(), "{}", said.trim());
        return;
    }
    assert!(output.status.success(), "{said}");
    for release in ["Linux 6.1.", "Linux 6.12.", "Linux 6.18."] {
        assert!(said.contains(release), "{release}: {said}");
    }
    for program in ["exitmark.exitmark_host", "monitor.exitmark_tap"] {
        assert!(said.contains(program), "{program}: {said}");
    }
}

#[test]
fn the_published_tables_are_those_of_their_data() {
    if !is_installed("python3") {
        return;
    }
    let output = run(&["publish", "--check"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
