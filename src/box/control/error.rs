//! The errors of the control socket: what failed, where, and the remedy.

use exitmark_service::http::ListenError;
use std::io;
use std::path::PathBuf;

/// An error of the control socket, its server or its client.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The control socket cannot be opened: the key, the reason, and the remedy.
    #[error("{0}")]
    Socket(String),
    /// The metrics port cannot be opened.
    #[error(transparent)]
    Metrics(#[from] ListenError),
    /// No process listens at the socket.
    #[error(
        "no exitmark answers at {}: is it running, and is this its `control.socket`?", .0.display()
    )]
    NobodyThere(PathBuf),
    /// The user may not connect to the socket.
    #[error(
        "{}: permission denied; {who}", path.display()
    )]
    Forbidden {
        /// The path of the control socket.
        path: PathBuf,
        /// The users with access, and how to get it.
        who: String,
    },
    /// The box refused the request (409 Conflict).
    #[error("{0}")]
    Refused(String),
    /// The connection or the answer is broken.
    #[error("{}: {what}; is that an exitmark of this version? Its log may say more", path.display())]
    Broken {
        /// The path of the control socket.
        path: PathBuf,
        /// The failure, as a clause.
        what: String,
    },
    /// The request's parameters are invalid.
    #[error("{0}")]
    Request(String),
    /// The capture cannot be written to the output.
    #[error("cannot write the capture: {0}")]
    Write(io::Error),
}
