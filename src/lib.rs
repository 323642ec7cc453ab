//! exitmark, an inline packet box for Tor exit hosts: it marks exit traffic with a DSCP value
//! and steers relay traffic to another NIC.
//!
//! The modules:
//!
//! - [`datapath`] receives and forwards frames in both engines.
//! - [`packet`] parses and rewrites headers.
//! - [`policy`] decides the verdict on a frame, by the operator's [`settings`] and the relay set.
//! - [`relays`] reads the relay set from Tor's consensus documents.
//! - [`nic`] reads and sets the machine's interfaces; [`bpf`] loads programs into the kernel.
//! - [`daemon`] connects these modules to a running box; [`cli`] is its command line.
//! - [`observe`] formats the reports of a running box; [`control`] serves them on a socket.
//! - [`witness`] audits samples of forwarded frames against the policy, and captures frames.
//! - [`doctor`] checks the machine, and names the remedy for each fault.
//! - [`explain`] runs the data path over frames that [`pcap`] reads from files.
//! - [`demo`] runs the box in a [`lab`] of network namespaces and verifies its output on the wire.
//!
//! [`monitor`] is a second program, for another machine: it counts the frames that the box has
//! marked.

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
