//! The `exitmark` command.
fn main() {}
