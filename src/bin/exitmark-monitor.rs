//! The `exitmark-monitor` command: parse, run, exit code.

fn main() {}
