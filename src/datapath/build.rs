//! Compiles the XDP program of the kernel engine, and generates its skeleton.

#[path = "../../bpf/compile.rs"]
mod compile;

fn main() {
    let source = format!("{}/exitmark.bpf.c", compile::SOURCES);
    let skeleton = compile::out().join("exitmark.skel.rs");
    compile::compile(&source, "exitmark")
        .generate(skeleton)
        .expect("the skeleton of exitmark.bpf.o");
}
