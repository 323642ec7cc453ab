//! What both programs share.
//!
//! [`config`] has the values of configuration files, [`process`] privileges, exit status, logging and
//! the service manager, [`http`] a bounded server, [`prometheus`] metrics as text, [`grouped`] numbers.

#![forbid(unsafe_code)]

pub mod config;
pub mod http;
pub mod process;
pub mod prometheus;

/// A number with separators: `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The version of the programs: Cargo's, unless a package sets `EXITMARK_VERSION` for the build.
pub const VERSION: &str = match option_env!("EXITMARK_VERSION") {
    Some(version) if !version.is_empty() => version,
    _ => env!("CARGO_PKG_VERSION"),
};
