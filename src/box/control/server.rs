//! The thread that serves the sockets.

use super::Operations;
use super::listen::{Listeners, Owned};
use super::routes::Routes;
use exitmark_service::http::{self, AtLimit};
use futures_util::future::select;
use std::future::pending;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

/// The most blocking threads: one per connection, and captures whose client has just disconnected.
const THREADS: usize = 3 * http::CONNECTIONS;
/// Timeout for blocking threads when the server stops; then they are abandoned.
const END_TIME: Duration = Duration::from_secs(1);
/// A running server. Dropping it stops it and removes its socket.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    socket: Owned,
}

impl Listeners {
    /// Starts the server's thread. `at_start` runs there first; all other threads of the server are
    /// its children, so capabilities dropped in `at_start` are dropped for all [`Operations`].
    ///
    /// # Errors
    ///
    /// If no thread or file descriptor can be created.
    pub fn serve(
        self,
        operations: Arc<dyn Operations>,
        at_start: impl FnOnce() + Send + 'static,
    ) -> io::Result<Server> {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(THREADS)
            .thread_name("exitmark-answer")
            .build()?;
        let entered = runtime.enter();
        let control = UnixListener::from_std(self.control)?;
        let metrics = self.metrics.map(TcpListener::from_std).transpose()?;
        drop(entered);
        let (stop, stopped) = oneshot::channel();
        let routes = Routes::new(operations);
        let thread = std::thread::Builder::new()
            .name("exitmark-control".to_owned())
            .spawn(move || {
                at_start();
                run(runtime, &control, metrics.as_ref(), routes, stopped);
            })?;
        Ok(Server {
            stop: Some(stop),
            thread: Some(thread),
            socket: self.socket,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // First, so that no client connects any more.
        self.socket.remove();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has already been logged.
            let _ = thread.join();
        }
    }
}

fn run(
    runtime: Runtime,
    control: &UnixListener,
    metrics: Option<&TcpListener>,
    routes: Routes,
    stopped: oneshot::Receiver<()>,
) {
    runtime.block_on(async {
        let of_metrics = routes.of_metrics();
        let control = http::serve(routes, AtLimit::Waits, async || {
            Ok(control.accept().await?.0)
        });
        let metrics = async {
            match metrics {
                Some(metrics) => {
                    let accept = async || Ok(metrics.accept().await?.0);
                    http::serve(of_metrics, AtLimit::OldestCloses, accept).await;
                }
                None => pending().await,
            }
        };
        select(stopped, select(pin!(control), pin!(metrics))).await;
    });
    runtime.shutdown_timeout(END_TIME);
}
