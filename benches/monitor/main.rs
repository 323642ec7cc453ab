//! What the monitor costs.

fn main() {}
