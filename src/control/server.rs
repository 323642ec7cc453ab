//! The thread that listens.

use super::Operations;
use super::listen::{Listeners, Owned};
use super::routes::{Caller, Door, Routes};
use crate::http::{self, AtLimit};
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

/// Threads for what takes time: one a connection, and the captures whose readers have just gone.
const THREADS: usize = 3 * http::CONNECTIONS;
/// What still runs when the server ends may take so long; then nobody waits for it.
const END_TIME: Duration = Duration::from_secs(1);
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
        let by_control = Caller::new(Door::Control, routes);
        let control = http::serve(by_control, AtLimit::Waits, async || {
            Ok(control.accept().await?.0)
        });
        let metrics = async {
            match metrics {
                Some(metrics) => {
                    let by_metrics = Caller::new(Door::Metrics, routes);
                    let accept = async || Ok(metrics.accept().await?.0);
                    http::serve(by_metrics, AtLimit::OldestCloses, accept).await;
                }
                None => pending().await,
            }
        };
        select(stopped, select(pin!(control), pin!(metrics))).await;
    });
    runtime.shutdown_timeout(END_TIME);
}
