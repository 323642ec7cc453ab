//! Confinement from inside: this program confines itself as a loader does, and tries what a
//! compromised parser would try.

use crate::tried::{self, Try};
use exitmark_relays::{Confinement, confine};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use nix::sys::inotify::{InitFlags, Inotify};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl;
use nix::unistd::{Pid, geteuid};
use std::fs::{self, File};
use std::io;
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::Command;

/// The environment variable that makes the process confine itself.
const INSIDE: &str = "EXITMARK_CONFINE_THIS_TEST";

fn tries() -> Vec<Try> {
    fn nothing<T>(_: T) {}
    let nix = |result: Result<(), Errno>| result.map_err(io::Error::from);
    let own = Pid::from_raw(i32::try_from(std::process::id()).unwrap());
    let thread = std::thread::Builder::new();
    vec![
        ("open", File::open("/dev/null").map(nothing)),
        ("create", File::create("/tmp/exitmark-never").map(nothing)),
        ("stat", fs::metadata("/").map(nothing)),
        ("read a directory", fs::read_dir("/").map(nothing)),
        ("read a link", fs::read_link("/proc/self/exe").map(nothing)),
        ("make a directory", fs::create_dir("/tmp/exitmark-never")),
        ("remove", fs::remove_file("/tmp/exitmark-never")),
        (
            "rename",
            fs::rename("/tmp/exitmark-never", "/tmp/exitmark-too"),
        ),
        ("change directory", std::env::set_current_dir("/")),
        ("TCP", TcpStream::connect("127.0.0.1:9").map(nothing)),
        ("UDP", UdpSocket::bind("127.0.0.1:0").map(nothing)),
        ("a socket pair", UnixStream::pair().map(nothing)),
        ("a pipe", io::pipe().map(nothing)),
        ("a process", Command::new("/bin/true").spawn().map(nothing)),
        ("a thread", thread.spawn(|| ()).map(nothing)),
        ("a signal", nix(nix::sys::signal::kill(own, None))),
        ("prctl", nix(prctl::get_dumpable().map(nothing))),
        (
            "inotify",
            nix(Inotify::init(InitFlags::empty()).map(nothing)),
        ),
        ("eventfd", nix(EventFd::new().map(nothing))),
        (
            "memfd",
            nix(memfd_create(c"x", MFdFlags::empty()).map(nothing)),
        ),
        ("chroot", nix(nix::unistd::chroot("/"))),
        ("uname", nix(nix::sys::utsname::uname().map(nothing))),
    ]
}

/// Runs in the confined process; does nothing unless [`INSIDE`] is set.
#[test]
fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let user = geteuid().is_root().then_some((65_534, 65_534));
    confine(&Confinement { user }).unwrap();
    tried::print(&tries());
}

#[test]
fn system_calls_that_a_loader_does_not_need_fail_with_eperm() {
    tried::all_are_refused("forbidden::inside", INSIDE, 20);
}
