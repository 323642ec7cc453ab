//! exitmark, an inline packet box for Tor exit hosts: it marks exit traffic with a DSCP value
//! and steers relay traffic to another NIC.
//!
//! A tour, in the order in which a frame meets the rooms:
//!
//! - [`datapath`] receives it, and hands its bytes to
//! - [`packet`], which reads the headers, and
//! - [`policy`], which says what shall happen to it, by the operator's
//! - [`settings`] and the relay set that
//! - [`relays`] reads from Tor's consensus documents.
//! - [`nic`] looks at the machine's interfaces, [`bpf`] loads programs into the kernel,
//! - [`daemon`] wires all of that together, and [`cli`] is how it is asked to.
//! - [`observe`] shows what the running box tells of itself, and [`control`] is the socket by which
//!   it is asked.
//! - [`witness`] holds some of the frames that left against the policy, and captures them.
//! - [`doctor`] says what on the machine is not as the box needs it, and what mends it.
//! - [`explain`] runs the data path over frames that [`pcap`] reads from files, and [`demo`] runs the whole of it in a
//!   [`lab`] of network namespaces and proves on the wire what it did.
//!
//! [`monitor`] is another program, for another machine: it counts what the box has marked.

pub mod bpf;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod demo;
pub mod doctor;
pub mod explain;
pub mod http;
pub mod lab;
pub mod monitor;
pub mod nic;
pub mod observe;
pub mod packet;
pub mod pcap;
pub mod policy;
pub mod process;
pub mod prometheus;
pub mod relays;
pub mod settings;
pub mod witness;
