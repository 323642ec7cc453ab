//! Metrics of a running monitor: totals over everything that it has counted since it started. They
//! have no port, country or destination; only periods have those.

use crate::cell::Counts;
use crate::places::Described;
use crate::tap::TapCounters;
use exitmark_service::http::{self, Answers, AtLimit};
use exitmark_service::prometheus::{CONTENT_TYPE, Metrics, expose, labels, single};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE as TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;
use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Builder;

/// Totals, as of the last batch.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    /// What was counted since the start.
    pub(super) counted: Counts,
    /// Each tap's interface and counters.
    pub(super) taps: Vec<(String, TapCounters)>,
    /// Used and available cells. Exposed in steps: each new cell is a first connection to a place.
    pub(super) cells: (usize, usize),
    /// Whether a packet of the running period found no free cell.
    pub(super) spilled: bool,
    pub(super) period_start: Timestamp,
    /// When a period was last published.
    pub(super) published: Option<Timestamp>,
    /// Closed periods that cannot be written yet.
    pub(super) unpublished: usize,
    pub(super) given_up: u64,
    /// How often saving the running period failed.
    pub(super) state_failures: u64,
    pub(super) places: Described,
}

/// Totals that the aggregation thread writes and the metrics thread reads.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared(Arc<Mutex<Totals>>);

impl Shared {
    /// Zero totals, with these databases and taps.
    pub(super) fn of(places: &Described, interfaces: &[String]) -> Self {
        let taps = interfaces.iter();
        Self(Arc::new(Mutex::new(Totals {
            places: places.clone(),
            taps: taps
                .map(|interface| (interface.clone(), TapCounters::default()))
                .collect(),
            ..Totals::default()
        })))
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Totals)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Totals> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn text(&self) -> Result<String, fmt::Error> {
        let totals = self.lock().clone();
        expose("exitmark_monitor", totals)
    }

    /// Serves metrics at this listener until the process ends.
    ///
    /// # Errors
    /// No thread or descriptor is available.
    pub(super) fn serve(
        &self,
        listener: TcpListener,
        at_start: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let entered = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        drop(entered);
        let answers = self.clone();
        std::thread::Builder::new()
            .name("monitor-metrics".to_owned())
            .spawn(move || {
                at_start();
                let accept = async || Ok(listener.accept().await?.0);
                runtime.block_on(http::serve(answers, AtLimit::OldestCloses, accept));
            })?;
        Ok(())
    }
}

impl Answers for Shared {
    type Body = Full<Bytes>;

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        const PLAIN: &str = "text/plain; charset=utf-8";
        let (status, kind, text) = match (request.uri().path(), request.method()) {
            ("/metrics", &Method::GET) => match self.text() {
                Ok(text) => (StatusCode::OK, CONTENT_TYPE, text),
                Err(error) => (
                    StatusCode::INTERNAL_SERVER_ERROR,
                    PLAIN,
                    format!("the metrics cannot be written: {error}\n"),
                ),
            },
            ("/metrics", _) => (
                StatusCode::METHOD_NOT_ALLOWED,
                PLAIN,
                "only GET is allowed\n".to_owned(),
            ),
            _ => (
                StatusCode::NOT_FOUND,
                PLAIN,
                "not found; available: GET /metrics\n".to_owned(),
            ),
        };
        let mut answer = Response::new(Full::new(text.into()));
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert(TYPE, HeaderValue::from_static(kind));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET"));
        }
        answer
    }
}

impl Collector for Totals {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Metrics(encoder);
        let number = |size: usize| single(u64::try_from(size).unwrap_or(u64::MAX));
        out.info(
            "build",
            "The versions of the program and of its databases",
            [labels([
                ("version", exitmark_service::VERSION),
                ("countries", &self.places.countries),
                ("systems", &self.places.systems),
            ])],
        )?;
        out.counter(
            "packets",
            "Marked packets from the host that were counted",
            single(self.counted.packets),
        )?;
        out.bytes(
            "counted",
            "IP bytes of marked packets from the host that were counted",
            single(self.counted.bytes),
        )?;
        out.counter(
            "down_packets",
            "Marked packets to the host that were counted",
            single(self.counted.down_packets),
        )?;
        out.bytes(
            "down",
            "IP bytes of marked packets to the host that were counted",
            single(self.counted.down_bytes),
        )?;
        out.counter(
            "flows",
            "Marked TCP connections that were counted",
            single(self.counted.flows),
        )?;
        let (used, capacity) = self.cells;
        let fates = self.taps.iter().flat_map(|(interface, counters)| {
            let sorted = &counters.sorted;
            let fates = [
                ("passed", sorted.passed),
                ("not_ip", sorted.not_ip),
                ("malformed", sorted.malformed),
                ("unmarked", sorted.unmarked),
                ("other_source", sorted.other_source),
                ("inbound", sorted.inbound),
                ("no_socket", sorted.no_socket),
            ];
            let labelled = |(fate, frames)| {
                let labels = labels([("interface", interface.as_str()), ("fate", fate)]);
                (labels, frames)
            };
            fates.map(labelled)
        });
        let lost = self.taps.iter().map(|(interface, counters)| {
            (labels([("interface", interface.as_str())]), counters.lost())
        });
        out.counter(
            "tap_frames",
            "Frames at the tap, by the decision of the filter",
            fates,
        )?;
        out.counter(
            "lost_packets",
            "Packets that passed the filter and were lost before they were counted",
            lost,
        )?;
        out.gauge(
            "cells_percent",
            "Percentage of the table of cells in use, rounded up to a multiple of ten",
            number(used.saturating_mul(10).div_ceil(capacity.max(1)) * 10),
        )?;
        out.gauge(
            "spilling",
            "1 if the table of cells was full in the running period and statistics of two columns are incomplete, else 0",
            single(u64::from(self.spilled)),
        )?;
        out.timestamp(
            "period_start",
            "When the running period began, in seconds since 1970",
            single(seconds(self.period_start)),
        )?;
        out.timestamp(
            "published",
            "When a period was last published, in seconds since 1970",
            self.published.map(|at| (Vec::new(), seconds(at))),
        )?;
        out.gauge(
            "unpublished_periods",
            "Closed periods that could not be written yet",
            number(self.unpublished),
        )?;
        out.counter(
            "lost_periods",
            "Closed periods that were dropped because too many waited to be written",
            single(self.given_up),
        )?;
        out.counter(
            "state_failures",
            "Failed attempts to save the running period for a restart",
            single(self.state_failures),
        )
    }
}

/// Seconds since the Unix epoch.
fn seconds(at: Timestamp) -> u64 {
    at.as_second().try_into().unwrap_or_default()
}
