//! The routes: requests and their answers.

use super::{CaptureRequest, Operations, capture};
use crate::observe::{Report, metrics};
use exitmark_service::http::Answers;
use exitmark_service::prometheus::CONTENT_TYPE;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE as TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// The largest request body in bytes.
const MAX_BODY: usize = 4 << 10;
/// Timeout for a request body, from its head on.
const BODY_TIME: Duration = Duration::from_secs(5);
const CAPTURES: usize = 4;

/// All routes, for error messages.
const ALL: &str = "GET /v1/status, POST /v1/reload, POST /v1/capture, GET /metrics";

type Content = UnsyncBoxBody<Bytes, Infallible>;
type RouteResponse = Response<Content>;

/// The listener that accepted a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listener {
    /// The control socket: everything.
    Control,
    /// The loopback port: only metrics.
    Metrics,
}

/// Answers the requests of one listener; the limits are common to both.
#[derive(Clone)]
pub(super) struct Routes {
    listener: Listener,
    operations: Arc<dyn Operations>,
    reloads: Arc<Semaphore>,
    captures: Arc<Semaphore>,
}

impl Answers for Routes {
    type Body = Content;

    async fn answer(&self, request: Request<Incoming>) -> RouteResponse {
        let answer = self.route(request).await;
        answer.unwrap_or_else(|refusal| refusal)
    }
}

impl Routes {
    /// The routes of the control socket.
    pub(super) fn new(operations: Arc<dyn Operations>) -> Self {
        Self {
            listener: Listener::Control,
            operations,
            reloads: Arc::new(Semaphore::new(1)),
            captures: Arc::new(Semaphore::new(CAPTURES)),
        }
    }

    /// The routes of the loopback port.
    pub(super) fn of_metrics(&self) -> Self {
        Self {
            listener: Listener::Metrics,
            ..self.clone()
        }
    }

    async fn route(&self, request: Request<Incoming>) -> Result<RouteResponse, RouteResponse> {
        let get = request.method() == Method::GET;
        let post = request.method() == Method::POST;
        match (self.listener, request.uri().path()) {
            (_, "/metrics") if get => self.metrics().await,
            (Listener::Metrics, "/metrics") => Err(not_allowed("GET", "GET /metrics")),
            (Listener::Metrics, _) => Err(not_found("GET /metrics")),
            (Listener::Control, "/v1/status") if get => self.status().await,
            (Listener::Control, "/v1/reload") if post => self.reload().await,
            (Listener::Control, "/v1/capture") if post => self.capture(request.into_body()).await,
            (Listener::Control, "/v1/status" | "/metrics") => Err(not_allowed("GET", ALL)),
            (Listener::Control, "/v1/reload" | "/v1/capture") => Err(not_allowed("POST", ALL)),
            (Listener::Control, _) => Err(not_found(ALL)),
        }
    }

    async fn report(&self) -> Result<Report, RouteResponse> {
        let operations = Arc::clone(&self.operations);
        let report = spawn_blocking(move || operations.report());
        report.await.map_err(|_| broken())
    }

    async fn status(&self) -> Result<RouteResponse, RouteResponse> {
        Ok(json(&self.report().await?))
    }

    async fn metrics(&self) -> Result<RouteResponse, RouteResponse> {
        let text = metrics(&self.report().await?).map_err(|_| broken())?;
        Ok(full(StatusCode::OK, CONTENT_TYPE, text))
    }

    async fn reload(&self) -> Result<RouteResponse, RouteResponse> {
        let permit = Arc::clone(&self.reloads).try_acquire_owned();
        let permit =
            permit.map_err(|_| refused("a reload is under way; try again when it has ended"))?;
        let operations = Arc::clone(&self.operations);
        let reloaded = spawn_blocking(move || {
            let reloaded = operations.reload();
            drop(permit);
            reloaded
        });
        let reloaded = reloaded.await.map_err(|_| broken())?;
        Ok(json(&reloaded.map_err(|reason| refused(&reason))?))
    }

    async fn capture(&self, body: Incoming) -> Result<RouteResponse, RouteResponse> {
        let bad = |reason: &str| text(StatusCode::BAD_REQUEST, reason);
        let body = match timeout(BODY_TIME, Limited::new(body, MAX_BODY).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let reason = format!("a request has at most {MAX_BODY} bytes");
                return Err(text(StatusCode::PAYLOAD_TOO_LARGE, &reason));
            }
            Ok(Err(_)) => return Err(bad("the request body is incomplete")),
            Err(_) => {
                let reason = "the request body timed out";
                return Err(text(StatusCode::REQUEST_TIMEOUT, reason));
            }
        };
        let request: CaptureRequest = serde_json::from_slice(&body)
            .map_err(|error| bad(&format!("not a capture request in JSON: {error}")))?;
        request.check().map_err(|reason| bad(&reason))?;
        let permit = Arc::clone(&self.captures).try_acquire_owned();
        let permit = permit.map_err(|_| {
            refused(&format!(
                "there are {CAPTURES} captures already; wait for one to end"
            ))
        })?;
        let operations = Arc::clone(&self.operations);
        let receiver = spawn_blocking(move || operations.capture(&request));
        let receiver = receiver.await.map_err(|_| broken())?;
        let receiver = receiver.map_err(|reason| refused(&reason))?;
        Ok(answer(
            StatusCode::OK,
            "application/x-pcapng",
            capture::body(receiver, permit),
        ))
    }
}

fn json(value: &impl Serialize) -> RouteResponse {
    match serde_json::to_vec(value) {
        Ok(json) => full(StatusCode::OK, "application/json", json),
        Err(_) => broken(),
    }
}

fn answer(
    status: StatusCode,
    kind: &'static str,
    body: impl Body<Data = Bytes, Error = Infallible> + Send + 'static,
) -> RouteResponse {
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    answer.headers_mut().insert(TYPE, kind);
    answer
}

fn full(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> RouteResponse {
    answer(status, kind, Full::new(body.into()))
}

fn text(status: StatusCode, line: &str) -> RouteResponse {
    full(status, "text/plain; charset=utf-8", format!("{line}\n"))
}

fn refused(reason: &str) -> RouteResponse {
    text(StatusCode::CONFLICT, reason)
}

fn broken() -> RouteResponse {
    text(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the box could not answer; its log says why",
    )
}

fn not_found(all: &str) -> RouteResponse {
    text(
        StatusCode::NOT_FOUND,
        &format!("not found; available: {all}"),
    )
}

fn not_allowed(allowed: &'static str, all: &str) -> RouteResponse {
    let mut answer = text(
        StatusCode::METHOD_NOT_ALLOWED,
        &format!("only {allowed} is allowed; available: {all}"),
    );
    let allowed = HeaderValue::from_static(allowed);
    answer.headers_mut().insert(ALLOW, allowed);
    answer
}
