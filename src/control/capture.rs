//! A capture on its way from the box, which must not wait, to a reader who may be slow.

use crossbeam::channel::{Receiver, RecvTimeoutError};
use hyper::body::{Body, Bytes, Frame};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Parts of a capture that wait for the reader at most.
const WAITING: usize = 16;
/// A reader who has gone away is noticed so soon, where nothing is captured.
const LOOK: Duration = Duration::from_millis(100);

/// The body of a response: what is captured, as it comes.
pub(super) struct Captured(mpsc::Receiver<Bytes>);

impl Captured {
    /// A thread takes from `receiver` for as long as the body is there; `permit` is kept until it
    /// ends. The receiver is dropped with the body, or soon after.
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
