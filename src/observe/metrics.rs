//! The report as metrics, in the OpenMetrics text format.

use super::Report;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::fmt;

/// The media type of [`metrics`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every metric there is, of this report.
///
/// # Errors
///
/// If they cannot be written as text.
pub fn metrics(_report: &Report) -> Result<String, fmt::Error> {
    let registry = Registry::default();
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}
