//! What tests, benchmarks and the demo need.

pub mod consensus;
