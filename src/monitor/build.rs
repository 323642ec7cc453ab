//! Compiles the XDP program of the monitor's tap.

#[path = "../../bpf/compile.rs"]
mod compile;

fn main() {
    compile::compile(&format!("{}/monitor.bpf.c", compile::SOURCES), "monitor");
}
