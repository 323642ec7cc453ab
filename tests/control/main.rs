//! Tier: any machine. The control socket: its answers, hostile clients, its path and permissions.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

mod answers;
mod client;
mod command;
mod hostile;
mod place;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use exitmark_box::control::{
    CaptureRequest, Client, ControlSettings, Listeners, Operations, Reloaded, Server,
};
use exitmark_box::observe::{Report, Warning};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// A timeout that only a hang exceeds.
const LONG: Duration = Duration::from_secs(60);

/// A box controlled by the test: every call is sent to `calls`, and then waits for `reports` or
/// `reloads`, if that is set.
#[derive(Default)]
struct Puppet {
    calls: Option<Sender<&'static str>>,
    reports: Option<Receiver<()>>,
    reloads: Option<Receiver<Result<Reloaded, String>>>,
    captures: Option<Receiver<Receiver<Vec<u8>>>>,
    warnings: Vec<Warning>,
}

impl Puppet {
    fn called(&self, what: &'static str) {
        if let Some(calls) = &self.calls {
            calls.send(what).unwrap();
        }
    }
}

impl Operations for Puppet {
    fn report(&self) -> Report {
        self.called("report");
        if let Some(reports) = &self.reports {
            reports.recv_timeout(LONG).unwrap();
        }
        Report {
            version: "1.2.3".to_owned(),
            generation: u64::MAX,
            warnings: self.warnings.clone(),
            ..Report::default()
        }
    }

    fn reload(&self) -> Result<Reloaded, String> {
        self.called("reload");
        match &self.reloads {
            Some(reloads) => reloads.recv_timeout(LONG).unwrap(),
            None => Err("mark.dscp: 77 is no DSCP".to_owned()),
        }
    }

    fn capture(&self, _: &CaptureRequest) -> Result<Receiver<Vec<u8>>, String> {
        self.called("capture");
        match &self.captures {
            Some(captures) => Ok(captures.try_recv().unwrap()),
            None => Err("the box is stopping".to_owned()),
        }
    }
}

/// A server in a directory of its own.
struct Rig {
    server: Option<Server>,
    socket: PathBuf,
    directory: TempDir,
}

impl Rig {
    fn new(puppet: Puppet) -> Self {
        Self::with_metrics(puppet, None)
    }

    fn reloading(reloads: Receiver<Result<Reloaded, String>>) -> Self {
        Self::new(Puppet {
            reloads: Some(reloads),
            ..Puppet::default()
        })
    }

    /// A box with one capture, and the sender of its bytes.
    fn capturing(room: usize) -> (Self, Sender<Vec<u8>>) {
        let (part, receiver) = bounded(room);
        (Self::with_captures([receiver]), part)
    }

    fn with_captures(all: impl IntoIterator<Item = Receiver<Vec<u8>>>) -> Self {
        let (give, captures) = unbounded();
        for capture in all {
            give.send(capture).unwrap();
        }
        Self::new(Puppet {
            captures: Some(captures),
            ..Puppet::default()
        })
    }

    fn with_metrics(puppet: Puppet, metrics: Option<SocketAddr>) -> Self {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("control.sock");
        let settings = ControlSettings {
            socket: socket.clone(),
            group: None,
            metrics,
        };
        let listeners = Listeners::open(&settings).unwrap();
        let server = listeners.serve(Arc::new(puppet), || {}).unwrap();
        Self {
            server: Some(server),
            socket,
            directory,
        }
    }

    fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        stream
    }

    /// Sends these bytes, and returns everything received until the server closes.
    fn say(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // The server may close before everything is written.
        let _ = stream.write_all(bytes);
        rest(&mut stream)
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> String {
        let length = body.len();
        let question = format!(
            "{method} {path} HTTP/1.1\r\nhost: box\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        self.say(question.as_bytes())
    }
}

/// A free port: bound and released.
fn free_address() -> SocketAddr {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap()
}

/// Reads until the connection is closed or reset.
fn rest(stream: &mut impl Read) -> String {
    let mut answer = Vec::new();
    // On an error, everything before it is in `answer`.
    if let Err(error) = stream.read_to_end(&mut answer) {
        let is_reset = error.kind() == std::io::ErrorKind::ConnectionReset;
        assert!(is_reset, "{error} after {answer:?}");
    }
    String::from_utf8(answer).unwrap()
}
