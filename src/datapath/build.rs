//! Compiles the programs of the engines in the kernel, and generates their skeletons and interfaces.

#[path = "../../bpf/compile.rs"]
mod compile;

/// Each program, with the types and the constants of its interface, as regular expressions.
const PROGRAMS: [(&str, &str, &str); 2] = [
    (
        "exitmark",
        "exitmark_.*",
        "ACTION_(CLEAR|SET|STEER)|GOLDEN(_OF_LOW)?|\
         HOP_(NONE|UPLINK)|HOST_(CHANGES|PROBES|SEEN_BIT|SLOTS|SLOT_BITS)|KEEP_PRIORITY|MAC_BYTES_BITS|\
         MAX_(GROUPS|QUEUES|TAGS)|NEXT_HOPS|NO_GROUP|PILOT_MULTIPLIER|RANGE_STEPS|SAMPLES_A_LOOK|SLOT_MULTIPLIER|\
         SAMPLE_BYTES|TAG_PRESENT|TAP_(BYTES|FLAGS_AT|IN|LENGTH_AT|MARK_AT|OUT|SLOTS|UNJUDGED)|\
         TRANSLATED_V6_WORDS",
    ),
    (
        "connect",
        "exitmark_connections",
        "MAX_USERS|USER_FILTER_WORDS",
    ),
];

fn main() {
    // Cargo sets it from libbpf-sys's build script; libbpf-cargo has the same headers of its own.
    let libbpf = std::env::var("DEP_BPF_INCLUDE").expect("libbpf-sys is a direct dependency");
    let out = compile::out();
    for (name, types, variables) in PROGRAMS {
        let source = format!("{}/{name}.bpf.c", compile::SOURCES);
        compile::compile(&source, name)
            .generate(out.join(format!("{name}.skel.rs")))
            .expect("libbpf-cargo reads what it has compiled");
        bindgen::builder()
            .header(&source)
            // As the program is compiled: the layouts are those of the kernel.
            .clang_args(compile::machine_headers())
            .clang_arg(format!("-I{libbpf}"))
            .clang_arg("--target=bpf")
            .allowlist_type(types)
            .allowlist_var(variables)
            .prepend_enum_name(false)
            .derive_debug(false)
            .generate()
            .expect("what clang compiles, bindgen reads")
            .write_to_file(out.join(format!("{name}.contract.rs")))
            .expect("OUT_DIR is writable");
    }
}
