//! Runs frames through the programs without a NIC (BPF_PROG_RUN), for tests.
//!
//! Source: the kernel's Documentation/bpf/bpf_prog_run.rst.

use super::{Kernel, KernelError};
use crate::Role;
use libbpf_rs::ProgramInput;

/// The result of running the program on a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// XDP_REDIRECT: to a port or a socket.
    pub redirected: bool,
    /// XDP_PASS: to the box's own network stack. If neither flag is set, the frame was dropped.
    pub passed: bool,
    /// The bytes of the frame after the run.
    pub frame: Vec<u8>,
}

impl Kernel {
    /// Runs one frame through a role's program, as if its NIC had received it on queue 0
    /// (BPF_PROG_RUN). Nothing is sent.
    ///
    /// # Errors
    /// The frame is shorter than an Ethernet header, or longer than BPF_PROG_RUN accepts.
    pub fn run(&self, role: Role, frame: &[u8]) -> Result<Ran, KernelError> {
        self.run_split(role, frame, frame.len())
    }

    /// As [`Kernel::run`], for a frame whose first buffer has only `first` bytes, as with some
    /// drivers.
    ///
    /// # Errors
    /// As [`Kernel::run`]; `first` is less than an Ethernet header.
    pub fn run_split(&self, role: Role, frame: &[u8], first: usize) -> Result<Ran, KernelError> {
        // Two tags more.
        let mut after = vec![0; frame.len() + 8];
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
        // egress_ifindex.
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&u32::try_from(first).unwrap_or(u32::MAX).to_ne_bytes());
        let input = ProgramInput {
            context_in: (first != frame.len()).then_some(&mut context[..]),
            data_in: Some(frame),
            data_out: Some(&mut after),
            ..Default::default()
        };
        let programs = &self.skeleton.progs;
        let program = match role {
            Role::Host => &programs.exitmark_host,
            Role::Uplink => &programs.exitmark_uplink,
            Role::Incoming => &programs.exitmark_incoming,
        };
        let output = program
            .test_run(input)
            .map_err(|error| KernelError::Run(frame.len(), error))?;
        Ok(Ran {
            redirected: output.return_value == libbpf_sys::XDP_REDIRECT,
            passed: output.return_value == libbpf_sys::XDP_PASS,
            frame: output.data.map_or_else(Vec::new, |bytes| bytes.to_vec()),
        })
    }
}
