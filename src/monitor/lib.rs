//! The monitor: turns the marked packets at a passive tap on the uplink into anonymised statistics.
//!
//! This crate is the program `exitmark-monitor`. It uses the packet parser
//! ([`exitmark_policy::packet`]) and the NIC code ([`exitmark_nic`]), but no code of the box; the
//! box does not use the monitor.
//!
//! The path of a packet:
//!
//! - [`tap`] receives what the kernel's filter passes; [`pcap`] reads packets from files;
//! - [`filter`] selects the packets that count, [`places`] maps the destination to a country and an
//!   autonomous system, and [`tally`] adds up. Addresses end here;
//! - a [`ledger`] holds the exact counts of a period by [`cell`]. It is never published;
//! - [`period`] keeps the ledger over restarts and closes it by the [`clock`], [`publish`] makes
//!   [`row`]s of it that may be shown, and [`report`] makes a page of rows.
//!
//! [`capture`] wires all of this; [`cli`] and [`settings`] are its interface.

pub mod capture;
pub mod cell;
pub mod cli;
pub mod clock;
pub mod filter;
pub mod ledger;
pub mod mirror;
pub mod pcap;
pub mod period;
pub mod places;
mod prefetch;
pub mod publish;
pub mod report;
pub mod row;
pub mod services;
pub mod settings;
pub mod tally;
pub mod tap;
