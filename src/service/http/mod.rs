//! An HTTP server for few clients. Every connection is bounded in time, size and number; the
//! answers come from an [`Answers`] implementation.
//!
//! A client may be slow, dead or hostile, and must not hold up the others.

mod connections;
mod write_timeout;

use connections::Connections;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::yield_now;
use tokio::time::sleep;
use write_timeout::WriteTimeout;

/// Concurrent connections at each listener.
pub const CONNECTIONS: usize = 16;
/// The longest request head, in bytes.
const MAX_HEAD: usize = 8 << 10;
/// Time for a request head to arrive, after the connection or the previous answer.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// Pause after a failed accept, for example when file descriptors run out.
const PAUSE: Duration = Duration::from_millis(100);

/// Why metrics cannot be served at this address.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is not a loopback address: metrics must not leave the machine.
    #[error(
        "metrics.listen: {0} is not a loopback address; give 127.0.0.1 or [::1], and let a \
         reverse proxy or an agent carry the metrics further"
    )]
    NotLoopback(SocketAddr),
    /// The port cannot be opened, for example because another process listens on it.
    #[error(
        "metrics.listen: cannot listen on {0}: {1}; `ss -ltnp 'sport = :{port}'` shows what uses \
         that port", port = .0.port()
    )]
    Port(SocketAddr, io::Error),
}

/// Listens on a port of the loopback interface.
///
/// # Errors
/// The address is not a loopback address, or the port is in use.
pub fn listen_for_metrics(address: SocketAddr) -> Result<TcpListener, ListenError> {
    if !address.ip().is_loopback() {
        return Err(ListenError::NotLoopback(address));
    }
    let open = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    open().map_err(|error| ListenError::Port(address, error))
}

/// Answers the requests of a server.
pub trait Answers: Clone + Send + Sync + 'static {
    /// The body of an answer; an error in it closes the connection.
    type Body: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static;

    /// Answers a request. Errors are responses with a status of their own.
    fn answer(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// What happens to a connection when [`CONNECTIONS`] are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtLimit {
    /// It waits until another one ends. For listeners with few, trusted clients.
    Waits,
    /// The oldest connection without a pending answer is closed. For listeners that any process on
    /// the machine can connect to: a client that sends its request at once gets its answer before
    /// its connection is the oldest, and an idle connection cannot keep others out.
    OldestCloses,
}

/// Accepts connections for ever; `at_limit` decides what happens at [`CONNECTIONS`].
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
                    // Malformed requests and disconnects are not reported.
                    let _ = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEAD_TIME)
                        .max_buf_size(MAX_HEAD)
                        .serve_connection(TokioIo::new(WriteTimeout::new(stream)), service)
                        .await;
                });
                // Lets the request be read before the next connection is accepted.
                yield_now().await;
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}
