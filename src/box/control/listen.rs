//! Opens the sockets, while the process still has the privileges.

use super::ControlError;
use exitmark_service::http;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::{Gid, Group, chown};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// The control socket and the metrics port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlSettings {
    /// The absolute path of the control socket.
    pub socket: PathBuf,
    /// The group that may use the socket besides root; by default the process' own.
    pub group: Option<String>,
    /// The loopback address on which metrics are also served.
    pub metrics: Option<SocketAddr>,
}

/// Listening sockets that are not served yet.
#[derive(Debug)]
pub struct Listeners {
    pub(super) socket: Owned,
    pub(super) control: UnixListener,
    pub(super) metrics: Option<TcpListener>,
}

/// A socket in the file system, and the lock file beside it that marks its owner.
#[derive(Debug)]
pub(super) struct Owned {
    path: PathBuf,
    /// Device and inode of the socket.
    file: (u64, u64),
    /// Held for as long as the socket is served, so that two starts cannot race.
    _lock: Flock<File>,
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.remove();
    }
}

impl Owned {
    /// Removes the socket file, if it is still this socket.
    pub(super) fn remove(&self) {
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            // If removing fails, the next start replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Listeners {
    /// Opens both sockets.
    ///
    /// # Errors
    ///
    /// If a path or address cannot be used, or another process listens there.
    pub fn open(settings: &ControlSettings) -> Result<Self, ControlError> {
        let metrics = settings.metrics.map(http::listen_for_metrics).transpose()?;
        let group = settings.group.as_deref().map(find_group).transpose()?;
        let (socket, control) = open_socket(&settings.socket, group)?;
        Ok(Self {
            socket,
            control,
            metrics,
        })
    }
}

fn find_group(name: &str) -> Result<Gid, ControlError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        _ => Err(ControlError::Socket(format!(
            "control.group: there is no group {name:?} on this machine; create it with `groupadd \
             --system {name}`, or leave the key out"
        ))),
    }
}

fn open_socket(path: &Path, group: Option<Gid>) -> Result<(Owned, UnixListener), ControlError> {
    let (Some(directory), Some(name), true) = (path.parent(), path.file_name(), path.is_absolute())
    else {
        return Err(ControlError::Socket(format!(
            "control.socket: {} is not a path for a socket; give an absolute path of a file, such \
             as /run/exitmark/control.sock",
            path.display()
        )));
    };
    make(directory).map_err(|reason| {
        ControlError::Socket(format!(
            "control.socket: {0} cannot be created: {reason}; create it with `install -d -m 755 \
             {0}`, or give another path",
            directory.display()
        ))
    })?;
    let shown = &path.display();
    let failed = |step| {
        move |reason: io::Error| {
            ControlError::Socket(format!(
                "control.socket: {shown}: cannot {step}: {reason}; this process must be able to \
                 write in that directory, and the path may have at most 90 bytes"
            ))
        }
    };
    let live = || {
        ControlError::Socket(format!(
            "control.socket: another exitmark answers at {shown}: give each box its own \
             control.socket, or stop the other one"
        ))
    };

    let mut beside = name.to_owned();
    beside.push(".lock");
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(directory.join(beside))
        .map_err(failed("make the lock beside it"))?;
    let lock = match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, Errno::EWOULDBLOCK)) => return Err(live()),
        Err((_, errno)) => return Err(failed("lock the file beside it")(errno.into())),
    };

    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at it")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ControlError::Socket(format!(
                "control.socket: {shown} is not a socket and stays as it is; move it away, or give \
                 another path"
            )));
        }
        Ok(_) => match is_answered(path) {
            Ok(false) => {}
            Ok(true) => return Err(live()),
            Err(errno) => return Err(failed("connect to it")(errno.into())),
        },
    }

    // Created in a private directory, and renamed once group and mode are set.
    let making = tempfile::Builder::new()
        .prefix(".exitmark-")
        .tempdir_in(directory)
        .map_err(failed("make a directory beside it"))?;
    let made = making.path().join("s");
    let listener = UnixListener::bind(&made).map_err(failed("bind it"))?;
    listener
        .set_nonblocking(true)
        .map_err(failed("make it non-blocking"))?;
    if group.is_some() {
        chown(&made, None, group).map_err(|errno| match errno {
            Errno::EPERM => ControlError::Socket(format!(
                "control.group: the user of this process is not in that group, and cannot give it \
                 {shown}: with systemd, `systemctl edit exitmark` and add \
                 SupplementaryGroups=GROUP under [Service]; otherwise `usermod -aG GROUP USER`, or \
                 leave the key out"
            )),
            other => failed("give it to control.group")(other.into()),
        })?;
    }
    fs::set_permissions(&made, Permissions::from_mode(0o660))
        .map_err(failed("set its permissions"))?;
    let file = identity(&made).map_err(failed("look at it"))?;
    fs::rename(&made, path).map_err(failed("put it in its place"))?;
    let owned = Owned {
        path: path.to_owned(),
        file,
        _lock: lock,
    };
    Ok((owned, listener))
}

/// Creates the last directory of a path with mode 755 if it is missing.
fn make(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o755).create(directory) {
        // Independent of the umask.
        Ok(()) => fs::set_permissions(directory, Permissions::from_mode(0o755)),
        Err(_) if directory.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether a box listens at a control socket. Does not block; true if that cannot be determined.
pub fn answers(path: &Path) -> bool {
    is_answered(path).unwrap_or(true)
}

fn is_answered(path: &Path) -> Result<bool, Errno> {
    let probe = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        // EAGAIN: a listener with a full backlog.
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}
