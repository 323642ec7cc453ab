//! Compiles the XDP program of the kernel engine, and generates its skeleton and its interface.

#[path = "../../bpf/compile.rs"]
mod compile;

fn main() {
    // Cargo sets it from libbpf-sys's build script; libbpf-cargo has the same headers of its own.
    let libbpf = std::env::var("DEP_BPF_INCLUDE").expect("libbpf-sys is a direct dependency");
    let source = format!("{}/exitmark.bpf.c", compile::SOURCES);
    let out = compile::out();
    compile::compile(&source, "exitmark")
        .generate(out.join("exitmark.skel.rs"))
        .expect("the skeleton of exitmark.bpf.o");
    bindgen::builder()
        .header(&source)
        // As the program is compiled: the layouts are those of the kernel engine.
        .clang_args(compile::machine_headers())
        .clang_arg(format!("-I{libbpf}"))
        .clang_arg("--target=bpf")
        .allowlist_type("exitmark_.*")
        .allowlist_var("ACTION_(CLEAR|SET|STEER)|BITS_PER_SLOT|GOLDEN")
        .allowlist_var("HOST_(KEY_BITS|SLOTS|TAG_BITS)|MAC_BYTES_BITS|MAX_(PROBES|QUEUES|TAGS)")
        .allowlist_var("RANGE_STEPS|SAMPLES_A_LOOK|SAMPLE_BYTES|SEVERAL_CHANGES")
        .prepend_enum_name(false)
        .derive_debug(false)
        .generate()
        .expect("the interface of exitmark.bpf.c")
        .write_to_file(out.join("contract.rs"))
        .expect("OUT_DIR is writable");
}
