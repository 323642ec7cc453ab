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
    #[error("no exitmark answers at {0}: is it running, and is this its `control.socket`?")]
    NobodyThere(PathBuf),
    /// The user may not connect to the socket: its path, and which users may.
    #[error("{0}: permission denied; {1}")]
    Forbidden(PathBuf, String),
    /// The box refused the request (409 Conflict).
    #[error("{0}")]
    Refused(String),
    /// The connection or the answer is broken: the path of the socket, and the failure.
    #[error("{0}: {1}; is that an exitmark of this version? Its log may say more")]
    Broken(PathBuf, String),
    /// The request's parameters are invalid.
    #[error("{0}")]
    Request(String),
    /// The capture cannot be written to the output.
    #[error("cannot write the capture: {0}")]
    Write(io::Error),
}
