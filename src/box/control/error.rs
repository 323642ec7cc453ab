//! The errors of the control socket: what failed, where, and the remedy.

use exitmark_service::http::ListenError;
use std::io;
use std::path::PathBuf;

/// An error of the control socket, its server or its client.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket's directory is missing and cannot be created.
    #[error(
        "control.socket: {} cannot be created: {reason}; create it with `install -d -m 755 {}`, or \
         give another path", directory.display(), directory.display()
    )]
    Directory {
        /// The path of the directory.
        directory: PathBuf,
        /// The error of the system call.
        reason: io::Error,
    },
    /// The user of this process is not in `control.group`, so chown(2) is refused.
    #[error(
        "control.group: the user of this process is not in that group, and cannot give it {}: with \
         systemd, `systemctl edit exitmark` and add SupplementaryGroups=GROUP under [Service]; \
         otherwise `usermod -aG GROUP USER`, or leave the key out", _0.display()
    )]
    NotInGroup(PathBuf),
    /// The path is not the absolute path of a file in a directory.
    #[error(
        "control.socket: {} is not a path for a socket; give an absolute path of a file, such as \
         /run/exitmark/control.sock", .0.display()
    )]
    NoPlace(PathBuf),
    /// Another process holds the lock or answers at the socket.
    #[error(
        "control.socket: another exitmark answers at {}: give each box its own control.socket, \
         or stop the other one", .0.display()
    )]
    Live(PathBuf),
    /// The path exists and is not a socket.
    #[error(
        "control.socket: {} is not a socket and stays as it is; move it away, or give another path",
        .0.display()
    )]
    NoSocket(PathBuf),
    /// The group does not exist.
    #[error(
        "control.group: there is no group {0:?} on this machine; create it with `groupadd --system \
         {0}`, or leave the key out"
    )]
    NoGroup(String),
    /// The socket cannot be created.
    #[error(
        "control.socket: {}: cannot {step}: {reason}; this process must be able to write in that \
         directory, and the path may have at most 90 bytes", path.display()
    )]
    Bind {
        /// The path of the control socket.
        path: PathBuf,
        /// The step that failed, as a verb phrase.
        step: &'static str,
        /// The error that the operating system returned for that step.
        reason: io::Error,
    },
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
