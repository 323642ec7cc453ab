//! Writes metric families in the OpenMetrics text format, with prometheus-client's encoders for
//! constant metrics.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;

/// The media type of what [`expose`] writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of a collector, their names prefixed with `prefix` and `_`.
///
/// # Errors
/// The collector returns an error. Writing to a `String` does not fail.
pub fn expose(prefix: &str, collected: impl Collector) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix(prefix);
    registry.register_collector(Box::new(collected));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// Label names and values of one metric.
pub type Labels = Vec<(&'static str, String)>;

/// Builds the labels of a value.
pub fn labels<const N: usize>(pairs: [(&'static str, &str); N]) -> Labels {
    pairs.map(|(name, value)| (name, value.to_owned())).into()
}

/// The values of a metric that has one value and no labels.
pub fn single<T>(value: T) -> [(Labels, T); 1] {
    [(Vec::new(), value)]
}

/// Encoder that the metric families are written to.
pub struct Metrics<'a>(pub DescriptorEncoder<'a>);

impl Metrics<'_> {
    /// A counter, which only grows; its name gets `_total`.
    ///
    /// # Errors
    /// The encoder cannot write to its text. A `String` takes everything.
    pub fn counter(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let kind = MetricType::Counter;
        self.family(name, None, help, kind, values, ConstCounter::new)
    }

    /// A counter of bytes; its name gets `_bytes_total`.
    ///
    /// # Errors
    /// As [`Metrics::counter`].
    pub fn bytes(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let (kind, unit) = (MetricType::Counter, Some(&Unit::Bytes));
        self.family(name, unit, help, kind, values, ConstCounter::new)
    }

    /// A gauge: a number that can fall.
    ///
    /// # Errors
    /// As [`Metrics::counter`].
    pub fn gauge(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        self.family(name, None, help, MetricType::Gauge, values, ConstGauge::new)
    }

    /// A time in seconds since the Unix epoch; its name gets `_timestamp_seconds`.
    ///
    /// # Errors
    /// As [`Metrics::counter`].
    pub fn timestamp(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let name = format!("{name}_timestamp");
        let (kind, unit) = (MetricType::Gauge, Some(&Unit::Seconds));
        self.family(&name, unit, help, kind, values, ConstGauge::new)
    }

    fn family<M: EncodeMetric>(
        &mut self,
        name: &str,
        unit: Option<&Unit>,
        help: &str,
        kind: MetricType,
        values: impl IntoIterator<Item = (Labels, u64)>,
        metric: fn(u64) -> M,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in values {
            // A family without labels would be written with empty braces.
            if labels.is_empty() {
                return metric(value).encode(encoder);
            }
            metric(value).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// Text values, as labels of a metric whose value is 1; its name gets `_info`.
    ///
    /// # Errors
    /// As [`Metrics::counter`].
    pub fn info(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = Labels>,
    ) -> fmt::Result {
        let kind = MetricType::Info;
        let mut encoder = self.0.encode_descriptor(name, help, None, kind)?;
        for labels in values {
            encoder.encode_info(&labels)?;
        }
        Ok(())
    }
}
