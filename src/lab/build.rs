//! Compiles the XDP program of the lab's far ends.

#[path = "../../bpf/compile.rs"]
mod compile;

fn main() {
    compile::compile("poll.bpf.c", "poll");
}
