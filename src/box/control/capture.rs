//! Passes a capture from the box, which must not block, to a client that may be slow.

use crossbeam::channel::{Receiver, RecvTimeoutError};
use hyper::body::{Body, Bytes, Frame};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// The most parts of a capture that wait for the client.
const WAITING: usize = 16;
/// The interval of checking for a disconnected client while nothing is captured.
const LOOK: Duration = Duration::from_millis(100);

/// The body of a response that streams a capture.
pub(super) struct Captured(mpsc::Receiver<Bytes>);

impl Captured {
    /// Starts a thread that reads `receiver` and holds `permit` until the capture or the body ends.
    /// The receiver is dropped with the body, or soon after.
    pub(super) fn new(receiver: Receiver<Vec<u8>>, permit: OwnedSemaphorePermit) -> Self {
        let (sender, body) = mpsc::channel(WAITING);
        tokio::task::spawn_blocking(move || {
            hand_on(&receiver, &sender);
            drop(permit);
        });
        Self(body)
    }
}

fn hand_on(receiver: &Receiver<Vec<u8>>, sender: &mpsc::Sender<Bytes>) {
    while !sender.is_closed() {
        match receiver.recv_timeout(LOOK) {
            Ok(part) => {
                if sender.blocking_send(part.into()).is_err() {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

impl Body for Captured {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|part| part.map(|part| Ok(Frame::data(part))))
    }
}
