//! Passes a capture from the box, which must not block, to a client that may be slow.

use crossbeam::channel::{Receiver, RecvTimeoutError};
use futures_util::stream::poll_fn;
use http_body_util::StreamBody;
use hyper::body::{Body, Bytes, Frame};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// The most parts of a capture that wait for the client.
const WAITING: usize = 16;
/// The interval of checking for a disconnected client while nothing is captured.
const LOOK: Duration = Duration::from_millis(100);

/// The body of a response that streams a capture. A thread reads `receiver` and holds `permit`
/// until the capture or the body ends. The receiver is dropped with the body, or soon after.
pub(super) fn body(
    receiver: Receiver<Vec<u8>>,
    permit: OwnedSemaphorePermit,
) -> impl Body<Data = Bytes, Error = Infallible> + Send + 'static {
    let (sender, mut parts) = mpsc::channel(WAITING);
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        while !sender.is_closed() {
            match receiver.recv_timeout(LOOK) {
                Ok(part) => {
                    if sender.blocking_send(Bytes::from(part)).is_err() {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    });
    StreamBody::new(poll_fn(move |context| {
        let part = parts.poll_recv(context);
        part.map(|part| part.map(|part| Ok(Frame::data(part))))
    }))
}
