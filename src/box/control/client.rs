//! The client of the control socket. The peer is untrusted: answers are bounded in size and time.

use super::{CaptureRequest, ControlError, Reloaded};
use crate::observe::Report;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use nix::unistd::{Gid, Group};
use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::fs;
use std::future::Future;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::runtime::Builder;
use tokio::time::timeout;

/// The largest answer in bytes, except for a capture.
const MAX_ANSWER: usize = 8 << 20;
/// Timeout for an answer, except for a reload.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Timeout for a reload, which may wait for relay documents.
const RELOAD_TIME: Duration = Duration::from_secs(60);
/// The longest interval between two calls of a capture's `is_enough`.
const LOOK: Duration = Duration::from_millis(100);

/// A client of the box behind a control socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client of the socket at `path`. Each request opens a connection.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Requests the current status.
    ///
    /// # Errors
    ///
    /// If no process answers, or the answer is not a box's.
    pub fn status(&self) -> Result<Report, ControlError> {
        self.json(Method::GET, "/v1/status", ANSWER_TIME)
    }

    /// Makes the box reload its configuration.
    ///
    /// # Errors
    ///
    /// If no process answers, or the box refuses the configuration and keeps the one in force.
    pub fn reload(&self) -> Result<Reloaded, ControlError> {
        self.json(Method::POST, "/v1/reload", RELOAD_TIME)
    }

    /// Requests the metrics, in the OpenMetrics text format.
    ///
    /// # Errors
    ///
    /// If no process answers, or the answer is not a box's.
    pub fn metrics(&self) -> Result<String, ControlError> {
        let bytes = self.whole(Method::GET, "/metrics", ANSWER_TIME)?;
        String::from_utf8(bytes.into()).map_err(|error| self.broken(error))
    }

    /// Captures frames to `out`, in pcapng, until a limit of `request` is reached. Returns the
    /// number of bytes written.
    ///
    /// # Errors
    ///
    /// If no process answers, the box refuses, or `out` cannot be written.
    pub fn capture(
        &self,
        request: &CaptureRequest,
        out: &mut impl Write,
    ) -> Result<u64, ControlError> {
        self.capture_until(request, out, || false)
    }

    /// The same, or until `is_enough` returns true; it is polled at least every 100 ms.
    pub(crate) fn capture_until(
        &self,
        request: &CaptureRequest,
        out: &mut impl Write,
        is_enough: impl Fn() -> bool,
    ) -> Result<u64, ControlError> {
        request.check().map_err(ControlError::Request)?;
        let json = serde_json::to_vec(request).map_err(|error| self.broken(error))?;
        self.run(async {
            let request = self.ask(Method::POST, "/v1/capture", json.into());
            let answer = timeout(ANSWER_TIME, request)
                .await
                .map_err(|_| self.broken("no answer"))??;
            let mut body = answer.into_body();
            let mut written = 0;
            while !is_enough() {
                let frame = match timeout(LOOK, body.frame()).await {
                    Ok(Some(frame)) => frame.map_err(|error| self.broken(error))?,
                    Ok(None) => break,
                    Err(_) => continue,
                };
                let Ok(part) = frame.into_data() else {
                    continue;
                };
                out.write_all(&part).map_err(ControlError::Write)?;
                written += part.len() as u64;
            }
            out.flush().map_err(ControlError::Write)?;
            Ok(written)
        })
    }

    fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        route: &str,
        time: Duration,
    ) -> Result<T, ControlError> {
        let bytes = self.whole(method, route, time)?;
        serde_json::from_slice(&bytes).map_err(|error| self.broken(error))
    }

    fn whole(&self, method: Method, route: &str, time: Duration) -> Result<Bytes, ControlError> {
        self.run(async {
            let whole = async {
                let answer = self.ask(method, route, Bytes::new()).await?;
                self.collect(answer).await
            };
            timeout(time, whole)
                .await
                .map_err(|_| self.broken("no answer"))?
        })
    }

    async fn collect(&self, answer: Response<Incoming>) -> Result<Bytes, ControlError> {
        let limited = Limited::new(answer.into_body(), MAX_ANSWER).collect();
        let collected = limited.await.map_err(|error| self.broken(error))?;
        Ok(collected.to_bytes())
    }

    /// Sends a request and returns the response if its status is 200.
    async fn ask(
        &self,
        method: Method,
        route: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ControlError> {
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(error))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(route)
            .header(HOST, "exitmark")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken(error))?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(error))?;
        let status = answer.status();
        if status == StatusCode::OK {
            return Ok(answer);
        }
        let reason = self.collect(answer).await?;
        let reason = String::from_utf8_lossy(&reason);
        Err(match (status, reason.trim_end()) {
            (StatusCode::CONFLICT, reason) => ControlError::Refused(reason.to_owned()),
            (_, reason) => self.broken(format_args!("answers {status}: {reason}")),
        })
    }

    fn run<T>(
        &self,
        request: impl Future<Output = Result<T, ControlError>>,
    ) -> Result<T, ControlError> {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| self.broken(error))?;
        runtime.block_on(request)
    }

    fn broken(&self, what: impl Display) -> ControlError {
        ControlError::Broken(self.path.clone(), what.to_string())
    }

    fn unreachable(&self, error: &io::Error) -> ControlError {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ControlError::NobodyThere(self.path.clone())
            }
            io::ErrorKind::PermissionDenied => {
                ControlError::Forbidden(self.path.clone(), self.who())
            }
            _ => self.broken(error),
        }
    }

    /// The users with access to the socket, by its group, for the error message.
    fn who(&self) -> String {
        let group = fs::metadata(&self.path)
            .ok()
            .and_then(|metadata| Group::from_gid(Gid::from_raw(metadata.gid())).ok()?);
        match group {
            Some(group) if group.gid.as_raw() != 0 => format!(
                "only root and the group {0} have access: `usermod -aG {0} USER`, and log in again",
                group.name
            ),
            _ => "only root has access: use sudo, or set a group in `control.group`".to_owned(),
        }
    }
}
