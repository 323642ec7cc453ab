//! Compiles BPF programs in the build scripts of the crates that load them.

use libbpf_cargo::SkeletonBuilder;
use std::path::PathBuf;
use std::process::Command;

/// The directory of the sources and their headers.
pub(crate) const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bpf");

/// Cargo's directory for the results.
pub(crate) fn out() -> PathBuf {
    PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"))
}

/// Compiles `source` into `OUT_DIR/{name}.bpf.o` and returns the builder, for a skeleton.
pub(crate) fn compile(source: &str, name: &str) -> SkeletonBuilder {
    println!("cargo:rerun-if-changed={SOURCES}");
    println!("cargo:rerun-if-changed={source}");
    let mut arguments: Vec<String> = ["-O2", "-g", "-Wall", "-Werror", "-mcpu=v3"]
        .map(String::from)
        .into();
    arguments.extend(machine_headers());
    let mut builder = SkeletonBuilder::new();
    builder
        .source(source)
        .clang_args(&arguments)
        .obj(out().join(format!("{name}.bpf.o")));
    builder.build().unwrap_or_else(|error| {
        panic!("{source} does not compile: {error:#}\nIt requires clang: run `make setup`.")
    });
    builder
}

/// The argument for the directory of this machine's headers on Debian, e.g.
/// `-I/usr/include/x86_64-linux-gnu`. It has <asm/types.h>, and clang does not search it when it
/// compiles for BPF.
pub(crate) fn machine_headers() -> Option<String> {
    let output = Command::new("gcc").arg("-print-multiarch").output().ok()?;
    let triple = String::from_utf8(output.stdout).ok()?;
    let triple = Some(triple.trim()).filter(|triple| !triple.is_empty())?;
    Some(format!("-I/usr/include/{triple}"))
}
