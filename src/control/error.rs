//! Why the control socket could not be opened or asked: what, where, and what to do.

use crate::http::ListenError;
use std::io;
use std::path::PathBuf;

/// What went wrong with the control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The directory of the socket's directory is missing.
    #[error(
        "control.socket: {} cannot be made: {reason}; make it with `install -d -m 755 {}`, or \
         give another path", directory.display(), directory.display()
    )]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// Whom this process runs as may not give a file to that group.
    #[error(
        "control.group: the user of this process is no member of that group, and cannot give it {}: \
         with systemd, `systemctl edit exitmark` and add SupplementaryGroups=GROUP under [Service]; \
         otherwise `usermod -aG GROUP USER`, or leave the key out", _0.display()
    )]
    NotInGroup(PathBuf),
    /// The path names no file in a directory.
    #[error(
        "control.socket: {} is no place for a socket; give an absolute path of a file, such as \
         /run/exitmark/control.sock", .0.display()
    )]
    NoPlace(PathBuf),
    /// Another one has the socket.
    #[error(
        "control.socket: another exitmark answers at {}: give each box its own control.socket, \
         or stop the other one", .0.display()
    )]
    Live(PathBuf),
    /// There is something else.
    #[error(
        "control.socket: {} is no socket and stays as it is; move it away, or give another path",
        .0.display()
    )]
    NoSocket(PathBuf),
    /// The group does not exist.
    #[error(
        "control.group: there is no group {0:?} on this machine; make it with `groupadd --system \
         {0}`, or leave the key out"
    )]
    NoGroup(String),
    /// The socket cannot be made.
    #[error(
        "control.socket: {}: cannot {step}: {reason}; this process must be able to write in that \
         directory, and the path may have 90 bytes", path.display()
    )]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What was about to be done.
        step: &'static str,
        /// What the system said.
        reason: io::Error,
    },
    /// The port for metrics cannot be had.
    #[error(transparent)]
    Metrics(#[from] ListenError),
    /// There is nobody to ask.
    #[error(
        "no exitmark answers at {}: is it running? `control.socket` in its configuration names \
         the place", .0.display()
    )]
    NobodyThere(PathBuf),
    /// The one who asks may not.
    #[error(
        "{}: permission denied; {who}", path.display()
    )]
    Forbidden {
        /// The socket.
        path: PathBuf,
        /// Who may.
        who: String,
    },
    /// The box said no.
    #[error("{0}")]
    Refused(String),
    /// The conversation broke off or made no sense.
    #[error("{}: {what}; is that an exitmark of this version? Its log may say more", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        what: String,
    },
    /// The request would be refused.
    #[error("{0}")]
    Request(String),
    /// What was captured cannot be written.
    #[error("cannot write the capture: {0}")]
    Write(io::Error),
}
