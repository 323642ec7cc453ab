//! What the benches between network namespaces share. Each of them uses all of it.

pub(crate) mod bpf;
pub(crate) mod exitmark;
mod facts;
pub(crate) mod machine;
pub(crate) mod results;
pub(crate) mod rounds;
