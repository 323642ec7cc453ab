//! (to be written)

use std::path::{Path, PathBuf};

/// (to be written)
#[derive(Debug)]
pub struct Statistics;

/// (to be written)
///
/// # Errors
/// (to be written)
pub fn read(_: &[PathBuf]) -> Result<Statistics, String> {
    Err("to be written".to_owned())
}

/// (to be written)
///
/// # Errors
/// (to be written)
pub fn write(_: &Statistics, _: &Path) -> Result<String, String> {
    Err("to be written".to_owned())
}

/// (to be written)
pub fn json(_: &Statistics) -> String {
    String::new()
}
