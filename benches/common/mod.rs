//! Code shared by the benches between network namespaces; each uses all of it.

pub(crate) mod bpf;
pub(crate) mod exitmark;
mod facts;
pub(crate) mod machine;
pub(crate) mod results;
pub(crate) mod rounds;
