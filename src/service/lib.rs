//! What both programs share.
//!
//! [`config`] has the values of configuration files, [`process`] privileges, exit status, logging and
//! the service manager, [`http`] a bounded server, [`prometheus`] metrics as text.

#![forbid(unsafe_code)]

pub mod config;
pub mod http;
pub mod process;
pub mod prometheus;

/// The version of the programs: Cargo's, unless a package sets `EXITMARK_VERSION` for the build.
pub const VERSION: &str = match option_env!("EXITMARK_VERSION") {
    Some(version) if !version.is_empty() => version,
    _ => env!("CARGO_PKG_VERSION"),
};
