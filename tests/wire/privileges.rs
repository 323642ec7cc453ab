//! What a running box may still do: in the kernel's words, and by trying what it may not.

#[path = "../relays/tried.rs"]
mod tried;

use crate::craft::exit;
use crate::reload::{AUTHORITIES, REPLACED, Tor, listing, relay, servers};
use crate::rig::{Case, Config, Rig, Side, classifies, eventually, needs_root, passes, refused};
use caps::Capability;
use exitmark_lab::process::{Status, set_mode, threads_of};
use exitmark_lab::site::{Plan, Site, relay_endpoints};
use exitmark_service::process::forbid_system_calls;
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use tried::Try;

/// Set for the process that is to forbid itself what a box forbids itself.
const INSIDE: &str = "EXITMARK_FORBID_THIS_TEST";

fn bits(capabilities: &[Capability]) -> u64 {
    capabilities.iter().map(|one| one.bitmask()).sum()
}

/// What each thread may have at most. Where memory can be locked up to a limit only, every thread
/// keeps what gets past it.
fn allowed(pid: u32, thread: &str, relay_service: &[Capability]) -> u64 {
    let of_thread = match thread {
        "exitmark" => &[
            Capability::CAP_NET_ADMIN,
            Capability::CAP_NET_RAW,
            Capability::CAP_BPF,
        ][..],
        "exitmark-hop" => &[Capability::CAP_NET_ADMIN],
        "exitmark-relays" => relay_service,
        _ => &[],
    };
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let locked = limits.lines().find(|line| line.contains("locked memory"));
    match locked.unwrap().contains("unlimited") {
        true => bits(of_thread),
        false => bits(of_thread) | bits(&[Capability::CAP_IPC_LOCK]),
    }
}

/// A thread gives up what it does not need as the first thing that it does: on a busy machine that
/// may be a moment after the box is ready.
fn check_threads(pid: u32, relay_service: &[Capability]) {
    eventually("every thread has given it up", || {
        let threads = threads_of(pid).unwrap();
        let mut excesses = threads
            .iter()
            .map(|thread| excess(pid, thread, relay_service));
        match excesses.find_map(|excess| excess) {
            None if threads.len() > 5 => Ok(()),
            None => Err(format!("too few threads: {threads:?}")),
            Some(excess) => Err(excess),
        }
    });
}

/// What this thread may do, and should not.
fn excess(pid: u32, thread: &Status, relay_service: &[Capability]) -> Option<String> {
    let name = &thread["Name"];
    let allowed = allowed(pid, name, relay_service);
    for set in ["CapPrm", "CapEff", "CapInh", "CapAmb", "CapBnd"] {
        let has = u64::from_str_radix(&thread[set], 16).unwrap();
        if has & !allowed != 0 {
            return Some(format!("{name} has {set} {has:x}"));
        }
    }
    let is_bound = thread["NoNewPrivs"] == "1" && thread["Seccomp"] == "2";
    (!is_bound).then(|| format!("{name} may do what it likes"))
}

/// What the relay service of root keeps.
const OF_ROOT: [Capability; 4] = [
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_KILL,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
];

#[test]
fn every_thread_has_given_up_what_it_does_not_need() {
    needs_root!();
    let tor = Tor::with(&listing(relay(servers()[0])));
    let with = |documents: &[PathBuf]| {
        Config::default().relays(format!(
            "consensus = {documents:?}\nextra = [\"198.51.100.9:9001\"]\nstate = {:?}\n{}",
            tor.directory.path().join("relays.state"),
            AUTHORITIES.toml(),
        ))
    };
    let mut rig = Rig::silent(Plan::default(), &with(&[]));
    check_threads(rig.running.pid(), &OF_ROOT);
    passes(&rig.site, &Case::exit(0, 30));
    // Documents that a reload adds are still loaded, by another user.
    let config = with(&[tor.consensus()]);
    config.write(rig.directory.path()).unwrap();
    rig.running.signal(Signal::SIGHUP).unwrap();
    rig.said("configuration replaced", 1..);
    rig.stop();
}

/// tor creates its files with mode 0600 in a directory of mode 2700.
#[test]
fn another_user_reads_files_that_only_tor_may_read() {
    needs_root!();
    let [v4, v6] = relay_endpoints();
    let mut builder = listing(v4);
    builder.listed.push(v6);
    let tor = Tor::with(&builder);
    let directory = tor.directory.path();
    for entry in fs::read_dir(directory).unwrap() {
        set_mode(&entry.unwrap().path(), 0o600).unwrap();
    }
    set_mode(directory, 0o700).unwrap();
    let config = tor.config("").top("user = \"nobody\"");
    let mut rig = Rig::silent(Plan::default(), &config);
    check_threads(rig.running.pid(), &[Capability::CAP_DAC_READ_SEARCH]);
    classifies(&rig.site, true, "with tor's own modes");
    builder.listed.push(relay(servers()[0]));
    tor.publish(&builder);
    rig.said(REPLACED, 1..);
    rig.stop();
}

#[test]
fn root_can_become_another_user_and_the_box_goes_on() {
    needs_root!();
    let config = Config::default().top("user = \"nobody\"");
    let mut rig = Rig::silent(Plan::default(), &config);
    let pid = rig.running.pid();
    check_threads(pid, &[Capability::CAP_DAC_READ_SEARCH]);
    for thread in threads_of(pid).unwrap() {
        let is_nobody = thread["Uid"].starts_with("65534\t65534\t65534");
        assert!(is_nobody, "{thread:?}");
    }
    passes(&rig.site, &Case::exit(0, 30));
    // A directory that this user can enter, with a configuration that it can read.
    set_mode(rig.directory.path(), 0o755).unwrap();
    set_mode(&rig.configuration, 0o644).unwrap();
    let text = fs::read_to_string(&rig.configuration).unwrap();
    fs::write(&rig.configuration, format!("mode = \"audit\"\n{text}")).unwrap();
    rig.running.signal(Signal::SIGHUP).unwrap();
    rig.said("configuration replaced", 1..);
    let unmarked = exit(0, 30).outbound(&[]);
    passes(&rig.site, &Case::untouched("audit", Side::Host, unmarked));
    rig.stop();
}

#[test]
fn a_user_that_is_none_is_refused() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    let error = refused(&site, &Config::default().top("user = \"nosuchuser\""));
    assert!(error.contains("useradd --system nosuchuser"), "{error}");
}

#[rustfmt::skip]
fn tries() -> Vec<Try> {
    fn nothing<T>(_: T) {}
    let nix = |result: Result<(), Errno>| result.map_err(io::Error::from);
    let raw = |family, kind| nix(socket(family, kind, SockFlag::empty(), None).map(nothing));
    let none = None::<&str>;
    let flags = nix::mount::MsFlags::empty();
    vec![
        ("mount", nix(nix::mount::mount(none, "/", none, flags, none))),
        ("unmount", nix(nix::mount::umount("/nosuch"))),
        ("unshare", nix(nix::sched::unshare(CloneFlags::CLONE_NEWNS))),
        ("setns", nix(nix::sched::setns(io::stdin(), CloneFlags::CLONE_NEWNET))),
        ("chroot", nix(nix::unistd::chroot("/"))),
        ("pivot_root", nix(nix::unistd::pivot_root("/", "/"))),
        (
            "another process' memory",
            nix(
                nix::sys::uio::process_vm_readv(nix::unistd::Pid::parent(), &mut [], &[])
                    .map(nothing),
            ),
        ),
        ("a packet socket", raw(AddressFamily::Packet, SockType::Raw)),
        ("a Bluetooth socket", raw(AddressFamily::Bluetooth, SockType::Raw)),
        ("a file's mode", set_mode(Path::new("/nosuch"), 0o777)),
        ("a file's owner", std::os::unix::fs::chown("/nosuch", None, Some(0))),
        ("a link", fs::hard_link("/nosuch", "/nosuch2")),
        ("a symbolic link", std::os::unix::fs::symlink("/", "/nosuch2")),
        (
            "a device",
            nix(nix::sys::stat::mknod(
                "/nosuch2",
                nix::sys::stat::SFlag::S_IFCHR,
                nix::sys::stat::Mode::empty(),
                0,
            )),
        ),
        ("the scheduler", {
            let cpus = nix::sched::CpuSet::new();
            nix(nix::sched::sched_setaffinity(
                nix::unistd::Pid::from_raw(0),
                &cpus,
            ))
        }),
        ("a session", nix(nix::unistd::setsid().map(nothing))),
    ]
}

/// What happens in the other process; nothing where nobody asks for it.
#[test]
fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    forbid_system_calls(&[], &[]).unwrap();
    let mut tries = tries();
    let other = std::thread::spawn(|| nix::unistd::chroot("/"));
    let on_other = other.join().unwrap().map_err(io::Error::from);
    tries.push(("another thread", on_other));
    tried::print(&tries);
}

#[test]
fn all_that_a_box_does_not_need_fails_with_eperm() {
    tried::all_are_refused("privileges::inside", INSIDE, 15);
}
