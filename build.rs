//! Compiles the XDP programs and generates the box's Rust skeleton, in `OUT_DIR` only.

use libbpf_cargo::SkeletonBuilder;
use std::path::PathBuf;
use std::process::Command;

const ENGINE: &str = "bpf/exitmark.bpf.c";
/// The XDP program of the lab's far ends.
const POLL: &str = "src/lab/poll.bpf.c";
/// The XDP program of the monitor's tap.
const TAP: &str = "bpf/monitor.bpf.c";

fn main() {
    // The programs' version: a package may override it.
    println!("cargo:rerun-if-env-changed=EXITMARK_VERSION");
    let own = std::env::var("CARGO_PKG_VERSION").expect("cargo sets CARGO_PKG_VERSION");
    let given = std::env::var("EXITMARK_VERSION").ok();
    let version = given.filter(|version| !version.is_empty()).unwrap_or(own);
    println!("cargo:rustc-env=EXITMARK_VERSION={version}");
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-changed={POLL}");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut arguments: Vec<String> = ["-O2", "-g", "-Wall", "-Werror"].map(String::from).into();
    // <asm/types.h> is in the architecture's directory, which clang does not search when it compiles
    // for BPF.
    if let Some(triple) = multiarch() {
        arguments.push(format!("-I/usr/include/{triple}"));
    }
    SkeletonBuilder::new()
        .source(ENGINE)
        .clang_args(&arguments)
        .build_and_generate(out.join("exitmark.skel.rs"))
        .unwrap_or_else(|error| give_up(ENGINE, &error));
    for (source, object) in [(POLL, "poll.bpf.o"), (TAP, "monitor.bpf.o")] {
        SkeletonBuilder::new()
            .source(source)
            .clang_args(&arguments)
            .obj(out.join(object))
            .build()
            .unwrap_or_else(|error| give_up(source, &error));
    }
}

fn give_up(source: &str, error: &dyn std::fmt::Display) -> ! {
    panic!(
        "{source} does not compile: {error:#}\nIt requires clang and libbpf-dev: run `make setup`."
    )
}

/// The directory of this machine's headers on Debian, e.g. `x86_64-linux-gnu`.
fn multiarch() -> Option<String> {
    let output = Command::new("gcc").arg("-print-multiarch").output().ok()?;
    let triple = String::from_utf8(output.stdout).ok()?;
    Some(triple.trim().to_owned()).filter(|triple| !triple.is_empty())
}
