//! A confined process tries what a parser that has been taken over would: this test program runs
//! itself again, confined as a loader is, and says what the kernel answered.

use crate::file;
use exitmark::relays::{Confinement, confine};
use libbpf_rs::{MapHandle, MapType};
use nix::sys::signal::{Signal, kill};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::{Pid, Uid};
use std::fs::{self, File};
use std::io;
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// Set where this is the confined one.
const INSIDE: &str = "EXITMARK_TEST_CONFINED";

fn nix<T>(result: nix::Result<T>) -> io::Result<()> {
    result.map(drop).map_err(io::Error::from)
}

fn std<T>(result: io::Result<T>) -> io::Result<()> {
    result.map(drop)
}

/// What the system says to everything that must not be. `victim` is a file that could be spoiled.
fn attempts(victim: &Path, parent: Pid) -> Vec<(&'static str, io::Result<()>)> {
    let own = nix::unistd::getpid();
    let beside = victim.with_extension("beside");
    let socket = |family, kind| socket(family, kind, SockFlag::empty(), None);
    let mut byte = [0];
    let remote = RemoteIoVec { base: 4096, len: 1 };
    vec![
        ("open a file", std(File::open(victim))),
        ("open /proc", std(File::open("/proc/self/status"))),
        ("list a directory", std(fs::read_dir("/"))),
        ("look at a file", std(fs::metadata(victim))),
        ("write a file", std(fs::write(victim, "spoiled"))),
        ("make a file", std(File::create(&beside))),
        ("remove a file", std(fs::remove_file(victim))),
        ("rename a file", std(fs::rename(victim, &beside))),
        ("link a file", std(fs::hard_link(victim, &beside))),
        ("make a directory", std(fs::create_dir(&beside))),
        ("make a FIFO", nix(nix::unistd::mkfifo(&beside, nix::sys::stat::Mode::S_IRWXU))),
        ("change directory", std(std::env::set_current_dir("/"))),
        ("change root", nix(nix::unistd::chroot("/"))),
        ("bind UDP", std(UdpSocket::bind("127.0.0.1:0"))),
        ("connect TCP", std(TcpStream::connect("127.0.0.1:9"))),
        ("connect to a local socket", std(UnixStream::connect("/run/exitmark.test"))),
        ("a local socket", std(UnixDatagram::unbound())),
        ("a pair of sockets", std(UnixStream::pair())),
        ("a raw socket", nix(socket(AddressFamily::Inet, SockType::Raw))),
        ("a packet socket", nix(socket(AddressFamily::Packet, SockType::Raw))),
        ("a netlink socket", nix(socket(AddressFamily::Netlink, SockType::Raw))),
        ("a thread", std(std::thread::Builder::new().spawn(|| ()))),
        ("a process", std(Command::new("/bin/true").spawn())),
        ("another program", nix(nix::unistd::execv(c"/bin/true", &[c"true"]))),
        ("a namespace", nix(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER))),
        ("a mount", nix(nix::mount::mount(Some("none"), "/mnt", Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>))),
        ("another process' memory", nix(process_vm_readv(parent, &mut [io::IoSliceMut::new(&mut byte)], &[remote]))),
        ("a signal to the parent", nix(kill(parent, None))),
        ("a signal to itself", nix(kill(own, Signal::SIGCONT))),
        ("another user", nix(nix::unistd::setuid(Uid::from_raw(0)))),
        ("a pipe", nix(nix::unistd::pipe())),
        ("an event file", nix(nix::sys::eventfd::EventFd::new())),
        ("memory as a file", nix(nix::sys::memfd::memfd_create(c"x", nix::sys::memfd::MFdFlags::empty()))),
        ("inotify", nix(nix::sys::inotify::Inotify::init(nix::sys::inotify::InitFlags::empty()))),
        ("poll", nix(nix::poll::poll(&mut [], 0_u8))),
        ("more of a resource", nix(nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 8, 8))),
        ("dumpable", nix(nix::sys::prctl::set_dumpable(true))),
        ("a BPF map", bpf()),
    ]
}

fn bpf() -> io::Result<()> {
    let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as u64,
        ..Default::default()
    };
    MapHandle::create(MapType::Array, Some("x"), 4, 4, 1, &options)
        .map(drop)
        .map_err(|error| match error.kind() {
            libbpf_rs::ErrorKind::PermissionDenied => Errno::EPERM.into(),
            _ => io::Error::other(error),
        })
}

/// The confined process; nothing by itself.
#[test]
fn inside() {
    let Some(victim) = std::env::var_os(INSIDE) else {
        return;
    };
    let parent = nix::unistd::getppid();
    confine(&Confinement::default()).unwrap();
    for (what, outcome) in attempts(Path::new(&victim), parent) {
        let said = match outcome {
            Ok(()) => "done".to_owned(),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => "EPERM".to_owned(),
            Err(error) => error.to_string(),
        };
        println!("{what}: {said}");
    }
    println!("the end");
}

#[test]
fn nothing_but_pipes_and_memory_is_left_to_a_confined_process() {
    let directory = TempDir::new().unwrap();
    let victim = file(&directory, "victim", "whole");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "forbidden::inside", "--nocapture"])
        .env(INSIDE, &victim)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("the end\n"), "{text}");
    let said: Vec<_> = text.lines().filter_map(|line| line.split_once(": ")).collect();
    assert!(said.len() > 30, "{text}");
    for (what, said) in said {
        assert_eq!(said, "EPERM", "{what}");
    }
    // Without the filter, some of it would have been done.
    assert_eq!(fs::read(&victim).unwrap(), b"whole");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}
