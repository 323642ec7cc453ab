//! What processes may do and do: users, core dumps, `/proc`, and HTTP on loopback.

use super::{Netns, contained};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The user ID of nobody.
pub const NOBODY: u32 = 65_534;

/// A command of [`contained`] that runs as the user nobody, without capabilities.
pub fn as_nobody(program: impl AsRef<OsStr>) -> Command {
    as_user(NOBODY, program)
}

/// A command of [`contained`] that runs as this user, in the group of the same number, without
/// capabilities.
pub fn as_user(user: u32, program: impl AsRef<OsStr>) -> Command {
    // In one step: a change of the user cancels an earlier signal at the parent's death.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    let user = user.to_string();
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
    command.args(["--inh-caps", "-all", "--"]).arg(program);
    command
}

/// A command of [`contained`] that runs as root without CAP_PERFMON, and without CAP_SYS_ADMIN, which
/// includes it.
pub fn without_perfmon(program: impl AsRef<OsStr>) -> Command {
    let less = "-perfmon,-sys_admin";
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--inh-caps", less]);
    command.args(["--bounding-set", less, "--"]).arg(program);
    command
}

/// A command of [`contained`] that runs in this directory and may dump a core there.
pub fn dumping_in(directory: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = contained("sh");
    let script = "ulimit -c unlimited && cd \"$1\" && shift && exec \"$@\"";
    command.args(["-c", script, "sh"]);
    command.arg(directory).arg(program);
    command
}

/// Sets the mode of a file or directory.
///
/// # Errors
/// Fails if this process may not change it.
pub fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Copies a program into a directory, and opens that for all users: the build directory may be
/// private. Returns the path of the copy.
///
/// # Errors
/// Fails if the directory cannot be written.
pub fn public_copy(program: impl AsRef<Path>, directory: &Path) -> io::Result<PathBuf> {
    let copy = directory.join(program.as_ref().file_name().unwrap_or_default());
    copy_program(program.as_ref(), &copy)?;
    set_mode(directory, 0o755)?;
    Ok(copy)
}

/// Copies a program that is to be executed. Not by this process: a child that another thread forks
/// meanwhile would have the copy open for writing, and it could not be executed (ETXTBSY).
///
/// # Errors
/// cp(1) fails.
pub fn copy_program(program: &Path, copy: &Path) -> io::Result<()> {
    let status = contained("cp").args([program, copy]).status()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "cp to {}: {status}",
            copy.display()
        ))),
    }
}

/// The fields of a process' or thread's `status` in `/proc`.
pub type Status = BTreeMap<String, String>;

fn fields(text: &str) -> Status {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

/// The status of a process.
///
/// # Errors
/// Fails if the process has ended.
pub fn status_of(pid: u32) -> io::Result<Status> {
    fs::read_to_string(format!("/proc/{pid}/status")).map(|text| fields(&text))
}

/// The status of every thread of a process, except those that end meanwhile.
///
/// # Errors
/// Fails if the process has ended.
pub fn threads_of(pid: u32) -> io::Result<Vec<Status>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
    let texts = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
    Ok(texts.map(|text| fields(&text)).collect())
}

/// The answer of an HTTP server on a loopback port to a request line such as `GET /metrics`.
///
/// # Errors
/// Fails if no server answers.
pub fn http(port: u16, request: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(format!("{request} HTTP/1.0\r\nHost: box\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

impl Netns {
    /// As [`http`], in this namespace.
    ///
    /// # Errors
    /// Fails if no server answers.
    pub fn http(&self, port: u16, request: &str) -> io::Result<String> {
        let request = request.to_owned();
        self.run(move || http(port, &request))
    }
}
