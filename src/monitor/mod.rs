//! The monitor: what a passive tap on the uplink shows of the marked packets, as statistics that
//! name nobody.
//!
//! The other program of this package, `exitmark-monitor`, is all in this room. It knows how a
//! packet is read ([`crate::packet`]) and what a NIC is ([`crate::nic`]), and nothing of the box;
//! the box knows nothing of it.
//!
//! A packet's way, and what becomes of it:
//!
//! - [`tap`] receives what the filter in the kernel lets through, [`pcap`] counts it out of files;
//! - [`filter`] says what counts, [`places`] in which country and autonomous system its
//!   destination is, and [`tally`] adds it up; from here on there is no address any more, only
//! - a [`ledger`]: exact counts of a period, by [`cell`], which nobody ever publishes.
//! - [`period`] keeps it over restarts and closes it when the [`clock`] says so; [`publish`] makes [`row`]s of it
//!   that may be shown; [`report`] makes a page of those.
//!
//! [`capture`] is the only wiring, [`cli`] how it is asked for, by its [`settings`].

pub mod capture;
pub mod cell;
pub mod cli;
pub mod clock;
pub mod filter;
pub mod ledger;
pub mod pcap;
pub mod period;
pub mod places;
pub mod publish;
pub mod report;
pub mod row;
pub mod services;
pub mod settings;
pub mod tally;
pub mod tap;
