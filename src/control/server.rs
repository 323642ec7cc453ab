//! The thread that listens: every connection bounded in time, size and number.

use super::Operations;
use super::listen::{Listeners, Owned};
use super::patience::Patience;
use super::routes::{Door, Routes};
use futures_util::future::select;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::sleep;

/// Connections at a time at each listener; others wait to be accepted.
const CONNECTIONS: usize = 16;
/// Threads for what takes time: one a connection, and the captures whose readers have just gone.
const THREADS: usize = 3 * CONNECTIONS;
/// A request's head is at most so long,
const MAX_HEAD: usize = 8 << 10;
/// and is there so soon after the connection, or after the answer before.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// What still runs when the server ends may take so long; then nobody waits for it.
const END_TIME: Duration = Duration::from_secs(1);
/// Where no connection can be accepted (no file descriptors, say), until the next attempt.
const PAUSE: Duration = Duration::from_millis(100);

/// A server at work. When it is dropped it ends and takes its socket away.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    socket: Owned,
}

impl Listeners {
    /// Answers from now on, on a thread of its own. `at_start` is the first that runs there, and
    /// all other threads of the server come from that one: whoever gives up capabilities there
    /// gives them up for all [`Operations`].
    ///
    /// # Errors
    ///
    /// If the system has no thread or no descriptors left.
    pub fn serve(
        self,
        operations: Arc<dyn Operations>,
        at_start: impl FnOnce() + Send + 'static,
    ) -> io::Result<Server> {
        let Self {
            socket,
            control,
            metrics,
        } = self;
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(THREADS)
            .thread_name("exitmark-answer")
            .build()?;
        let entered = runtime.enter();
        let control = UnixListener::from_std(control)?;
        let metrics = metrics.map(TcpListener::from_std).transpose()?;
        drop(entered);
        let (stop, stopped) = oneshot::channel();
        let routes = Arc::new(Routes::new(operations));
        let thread = std::thread::Builder::new()
            .name("exitmark-control".to_owned())
            .spawn(move || {
                at_start();
                run(runtime, &control, metrics.as_ref(), &routes, stopped);
            })?;
        Ok(Server {
            stop: Some(stop),
            thread: Some(thread),
            socket,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nobody shall begin to ask.
        self.socket.remove();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing to tell: where it panicked, the panic said so.
            let _ = thread.join();
        }
    }
}

fn run(
    runtime: Runtime,
    control: &UnixListener,
    metrics: Option<&TcpListener>,
    routes: &Arc<Routes>,
    stopped: oneshot::Receiver<()>,
) {
    runtime.block_on(async {
        let control = listen(Door::Control, routes, async || {
            Ok(control.accept().await?.0)
        });
        let metrics = async {
            match metrics {
                Some(metrics) => {
                    listen(Door::Metrics, routes, async || {
                        Ok(metrics.accept().await?.0)
                    })
                    .await;
                }
                None => pending().await,
            }
        };
        select(stopped, select(pin!(control), pin!(metrics))).await;
    });
    runtime.shutdown_timeout(END_TIME);
}

/// Accepts connections for ever, as many at a time as there may be.
async fn listen<S>(door: Door, routes: &Arc<Routes>, accept: impl AsyncFn() -> io::Result<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    // Nobody closes it.
    while let Ok(permit) = Arc::clone(&connections).acquire_owned().await {
        match accept().await {
            Ok(stream) => connect(stream, door, routes, permit),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

fn connect<S>(stream: S, door: Door, routes: &Arc<Routes>, permit: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let routes = Arc::clone(routes);
    tokio::spawn(async move {
        let service = service_fn(|request| {
            let routes = Arc::clone(&routes);
            async move { Ok::<_, Infallible>(routes.answer(door, request).await) }
        });
        // Whoever talks rubbish or goes away is nobody's concern.
        let _ = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(Patience::new(stream)), service)
            .await;
        drop(permit);
    });
}
