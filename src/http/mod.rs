//! A server for few who ask: every connection bounded in time, size and number. What is answered
//! is somebody else's.
//!
//! Whoever connects may be slow, dead or hostile, and must never hold up another one who asks.

mod connections;
mod patience;

use connections::Connections;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use patience::Patience;
use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::yield_now;
use tokio::time::sleep;

/// Connections at a time at each listener.
pub const CONNECTIONS: usize = 16;
/// A request's head is at most so long,
const MAX_HEAD: usize = 8 << 10;
/// and is there so soon after the connection, or after the answer before.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// Where no connection can be accepted (no file descriptors, say), until the next attempt.
const PAUSE: Duration = Duration::from_millis(100);

/// Why metrics cannot be served there.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// They would leave the machine.
    #[error(
        "metrics.listen: {0} is not a loopback address; give 127.0.0.1 or [::1], and let a \
         reverse proxy or an agent carry the metrics further"
    )]
    NotLoopback(SocketAddr),
    /// The port cannot be had.
    #[error(
        "metrics.listen: cannot listen on {address}: {reason}; `ss -ltnp 'sport = :{}'` shows who \
         has that port", address.port()
    )]
    Port {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        reason: io::Error,
    },
}

/// Listens on a port of the loopback interface.
///
/// # Errors
/// It is none, or somebody has it.
pub fn listen_for_metrics(address: SocketAddr) -> Result<TcpListener, ListenError> {
    if !address.ip().is_loopback() {
        return Err(ListenError::NotLoopback(address));
    }
    let open = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    open().map_err(|reason| ListenError::Port { address, reason })
}

/// Who answers.
pub trait Answers: Clone + Send + Sync + 'static {
    /// What an answer consists of.
    type Body: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static;

    /// The answer to a request.
    fn answer(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// What becomes of a connection when there are [`CONNECTIONS`] already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtLimit {
    /// It waits until another one ends: for listeners of few who are trusted.
    Waits,
    /// The oldest one is closed that has no answer being made: for listeners that anybody on the
    /// machine can connect to. A connection that asks at once has its answer before its turn comes;
    /// one that is held open keeps nobody out.
    OldestCloses,
}

/// Accepts connections for ever, as many at a time as there may be.
pub async fn serve<S>(
    answers: impl Answers,
    at_limit: AtLimit,
    accept: impl AsyncFn() -> io::Result<S>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut connections = Connections::new(at_limit);
    loop {
        if at_limit == AtLimit::Waits {
            connections.make_room().await;
        }
        match accept().await {
            Ok(stream) => {
                connections.make_room().await;
                let answers = answers.clone();
                connections.open(move |busy| async move {
                    let service = service_fn(|request| {
                        let answers = answers.clone();
                        let busy = busy.clone();
                        async move {
                            let _busy = busy.begin();
                            Ok::<_, Infallible>(answers.answer(request).await)
                        }
                    });
                    // Whoever talks rubbish or goes away is nobody's concern.
                    let _ = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEAD_TIME)
                        .max_buf_size(MAX_HEAD)
                        .serve_connection(TokioIo::new(Patience::new(stream)), service)
                        .await;
                });
                // It is read before another one is accepted.
                yield_now().await;
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}
