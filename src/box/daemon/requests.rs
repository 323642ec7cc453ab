//! Passes requests on the control socket to the main thread, which answers them.

use super::{Daemon, Event};
use crate::control::{CaptureRequest, Operations, Reloaded};
use crate::observe::Report;
use crossbeam::channel::{self, Receiver, Sender};

/// A request to the main thread, and the channel for its answer.
pub(super) enum Request {
    Report(Sender<Report>),
    Reload(Sender<Result<Reloaded, String>>),
    Capture(CaptureRequest, Sender<Result<Receiver<Vec<u8>>, String>>),
}

pub(super) struct Requests(pub(super) Sender<Event>);

impl Requests {
    /// Sends a request and waits for its answer; `None` if the box is about to end.
    fn ask<T>(&self, request: impl FnOnce(Sender<T>) -> Request) -> Option<T> {
        let (answer, answered) = channel::bounded(1);
        self.0.send(Event::Request(request(answer))).ok()?;
        answered.recv().ok()
    }
}

const ENDING: &str = "the box is about to end";

impl Operations for Requests {
    fn report(&self) -> Report {
        self.ask(Request::Report).unwrap_or_default()
    }

    fn reload(&self) -> Result<Reloaded, String> {
        self.ask(Request::Reload)
            .unwrap_or_else(|| Err(ENDING.to_owned()))
    }

    fn capture(&self, request: &CaptureRequest) -> Result<Receiver<Vec<u8>>, String> {
        self.ask(|answer| Request::Capture(*request, answer))
            .unwrap_or_else(|| Err(ENDING.to_owned()))
    }
}

impl Daemon {
    /// Answers a request; the answer is dropped if the client has disconnected.
    pub(super) fn answer(&mut self, request: Request) {
        match request {
            Request::Report(answer) => {
                let _ = answer.send(self.report());
            }
            Request::Reload(answer) => {
                self.in_force.reload(&mut self.wires, Some(answer));
            }
            Request::Capture(request, answer) => {
                let knows_relays = self.in_force.relay_service.knows_relays();
                let _ = answer.send(self.wires.capture(request, knows_relays));
            }
        }
    }
}
