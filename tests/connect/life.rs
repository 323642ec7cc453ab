//! The process ends, is replaced, detached; the programs go on.

use crate::client::{Client, shown};
use crate::rig::{
    HOST_V4, Host, MARK, RELAY, RELAY_SOURCE_V4, WEB, WEB_V6, class, ip, needs_root, plain,
    wait_until,
};
use caps::CapSet;
use exitmark_datapath::{Cgroup, Connect, Pins};
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};

const SOURCE: &str = "source = [\"203.0.113.10\"]";

#[test]
fn the_programs_go_on_without_the_process_and_the_counts_continue() {
    needs_root!();
    let host = Host::new();
    let text = host.text(SOURCE, "");
    let mut running = host.start(&text);
    let mut client = Client::start(&host.host, host.user);
    assert_eq!(client.open(WEB).0, MARK);
    running.signal(Signal::SIGKILL).unwrap();
    running.ended().unwrap();
    assert_eq!(client.open(WEB).0, MARK);
    assert_eq!(client.open(RELAY).1, ip(RELAY_SOURCE_V4));

    let running = host.start(&text);
    assert_eq!(client.open(WEB).0, MARK);
    let counts = host.connections();
    assert_eq!(class(&counts, "exit"), (3, 0));
    assert_eq!(class(&counts, "relay"), (1, 0));
    assert_eq!(running.stop().unwrap().counters["marked"], 3);
    assert_eq!(client.open(WEB).0, MARK);

    assert!(host.exitmark(&["detach"]).unwrap().starts_with("detached"));
    assert_eq!(client.open(WEB).0, 0);
    assert_eq!(client.open(RELAY).1, ip(HOST_V4));
    let again = host.exitmark(&["detach"]).unwrap();
    assert!(again.starts_with("nothing to detach"), "{again}");
}

#[test]
fn a_stop_detaches_if_the_configuration_says_so() {
    needs_root!();
    let host = Host::new();
    let running = host.start(&host.text(SOURCE, "[pin]\non_stop = \"detach\"\n"));
    let mut client = Client::start(&host.host, host.user);
    assert_eq!(client.open(WEB).0, MARK);
    running.stop_well().unwrap();
    assert_eq!(client.open(WEB).0, 0);
}

/// Connections that came in are not tor's own, and are neither counted nor marked.
#[test]
fn connections_that_were_open_before_are_found_and_marked() {
    needs_root!();
    let host = Host::new();
    let mut client = Client::start(&host.host, host.user);
    for destination in [WEB, WEB_V6, RELAY] {
        assert_eq!(client.open(destination).0, 0);
    }
    client.ask("listen 192.0.2.10:9001");
    let _inbound = plain(&host.world, "192.0.2.10:9001");
    let running = host.start(&host.text(SOURCE, ""));
    for (socket, tos) in [(0, MARK), (1, MARK), (2, 0)] {
        assert_eq!(
            shown(&client.ask(&format!("show {socket}"))).0,
            tos,
            "socket {socket}"
        );
    }
    let counts = host.connections();
    assert_eq!(class(&counts, "exit"), (0, 2));
    assert_eq!(class(&counts, "relay"), (0, 1));
    assert_eq!((counts.earlier_marked, counts.earlier_unmarked), (2, 0));
    running.stop_well().unwrap();

    // The next process finds the programs attached, and counts nothing twice.
    let running = host.start(&host.text(SOURCE, ""));
    assert_eq!(class(&host.connections(), "exit"), (0, 2));
    running.stop_well().unwrap();
}

/// Without a relay set, all of them would count as exit, and none would be marked.
#[test]
fn connections_that_were_open_before_wait_for_the_relay_set() {
    needs_root!();
    let host = Host::new();
    let mut client = Client::start(&host.host, host.user);
    for destination in [WEB, RELAY] {
        assert_eq!(client.open(destination).0, 0);
    }
    let text = host.text(SOURCE, "");
    let missing = "consensus = [\"missing\"]\nextra = [";
    let without_set = text.replace("extra = [", missing);
    host.start(&without_set).stop_well().unwrap();
    // Nor does a restart forget them.
    let running = host.start(&without_set);
    assert!(host.status().relay_set.is_missing);
    assert_eq!(class(&host.connections(), "exit"), (0, 0));
    host.write(&text);
    host.exitmark(&["reload"]).unwrap();
    wait_until(
        "they are counted",
        || class(&host.connections(), "relay") == (0, 1),
        || host.status().text().to_string(),
    );
    let counts = host.connections();
    assert_eq!(class(&counts, "exit"), (0, 1));
    assert_eq!((counts.earlier_marked, counts.earlier_unmarked), (1, 0));
    assert_eq!(shown(&client.ask("show 0")).0, MARK);
    assert_eq!(shown(&client.ask("show 1")).0, 0);
    running.stop_well().unwrap();
}

/// Connections of both classes while the process restarts again and again, each time with programs
/// that replace the attached ones, and while sets are swapped.
#[test]
fn no_connection_is_misjudged_while_the_service_restarts_and_reloads() {
    needs_root!();
    // Nothing answers there: each attempt costs a SYN.
    let silent = ["198.51.100.99:443", "198.51.100.98:9001"];
    let host = Host::new();
    let with = |more: &str| {
        let extra = format!("extra = [\"{}\", {more}", silent[1]);
        host.text(SOURCE, "").replace("extra = [", &extra)
    };
    let text = with("");
    let mut running = host.start(&text);
    let mut client = Client::start(&host.host, host.user);
    for address in ["198.51.100.98", "198.51.100.99"] {
        host.host
            .ip(&format!("route add {address} dev lo"))
            .unwrap();
    }
    client.send(&format!("load {}", silent.join(" ")));
    for round in 0..6 {
        let signal = [Signal::SIGKILL, Signal::SIGTERM][round % 2];
        running.signal(signal).unwrap();
        running.ended().unwrap();
        running = host.start(&text);
        host.write(&with(&format!("\"198.18.0.{}:9001\", ", 10 + round)));
        host.exitmark(&["reload"]).unwrap();
    }
    client.send("stop");
    let answer = client.answer();
    println!("opened to each, marked exits, marked relays: {answer}");
    let numbers: Vec<u64> = answer.split(' ').map(|one| one.parse().unwrap()).collect();
    let opened = numbers[0];
    assert!(opened > 0);
    assert_eq!(numbers[1..], [opened, 0]);
    assert_eq!(client.answer(), "stopped");
    let counts = host.connections();
    assert_eq!(class(&counts, "exit"), (opened, 0));
    assert_eq!(class(&counts, "relay"), (opened, 0));
    assert_eq!((counts.marked, counts.steered), (opened, opened));
    assert_eq!(counts.no_policy, 0);
    running.stop_well().unwrap();
}

#[test]
fn a_box_and_the_engine_refuse_each_others_pins() {
    needs_root!();
    let host = Host::new();
    let running = host.start(&host.text(SOURCE, ""));
    running.stop_well().unwrap();
    let path = host.write(
        "[ports]\nhost = \"h0\"\nuplink = \"u0\"\n[host]\naddresses = [\"192.0.2.77\"]\n\
         [relays]\nextra = [\"198.18.0.1:9001\"]\n",
    );
    // A box looks at its NICs first.
    host.host.ip("link add h0 type veth peer name u0").unwrap();
    host.host
        .ip_batch(&["link set h0 up".to_owned(), "link set u0 up".to_owned()])
        .unwrap();
    let refusal = host.fails(&["run", "--config", path.to_str().unwrap()]);
    assert!(refusal.contains("engine connect is attached"), "{refusal}");
    assert!(refusal.contains("exitmark detach"), "{refusal}");
}

/// A cgroup of the test's own, removed at the end.
struct TestCgroup(PathBuf);

impl TestCgroup {
    fn new(name: &str) -> Self {
        let mount = exitmark_datapath::cgroup_mount().unwrap();
        let path = mount.join(format!("exitmark-test-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn take(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl TestCgroup {
    /// The path below the mount of cgroup2.
    fn name(&self) -> String {
        format!("/{}", self.0.file_name().unwrap().to_str().unwrap())
    }

    fn remove(&self) {
        wait_until(
            "the cgroup is empty",
            || std::fs::remove_dir(&self.0).is_ok(),
            || "it has processes",
        );
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_cgroup_names_connections_of_any_user_and_may_come_and_go() {
    needs_root!();
    let host = Host::new();
    let cgroup = TestCgroup::new("cgroup");
    let users = format!("users = [{}]", host.user);
    let text = host
        .text(SOURCE, "")
        .replace(&users, &format!("cgroups = [\"{}\"]", cgroup.name()));
    let running = host.start(&text);
    let mut client = Client::start(&host.host, host.user);
    assert_eq!(client.open(WEB).0, 0);
    cgroup.take(client.pid());
    assert_eq!(client.open(WEB).0, MARK);
    // The test's own connections are in another cgroup.
    drop(plain(&host.host, WEB));
    let counts = host.connections();
    assert_eq!((class(&counts, "exit"), counts.users), ((1, 0), 0));

    drop(client);
    cgroup.remove();
    wait_until(
        "an alarm",
        || {
            host.status()
                .warnings
                .iter()
                .any(|one| one.kind == "cgroup" && one.is_alarm)
        },
        || host.status().text().to_string(),
    );
    std::fs::create_dir(&cgroup.0).unwrap();
    wait_until(
        "the end of the alarm",
        || {
            !host
                .status()
                .warnings
                .iter()
                .any(|one| one.kind == "cgroup")
        },
        || host.status().text().to_string(),
    );
    let mut client = Client::start(&host.host, host.user);
    cgroup.take(client.pid());
    assert_eq!(client.open(WEB).0, MARK);
    running.stop_well().unwrap();
}

/// An open socket keeps a removed cgroup, and what is attached to it, as when a unit of tor restarts
/// while its last packets are on the way. Another cgroup that stays away does not matter.
#[test]
fn a_cgroup_that_is_made_again_is_attached_although_the_old_one_has_sockets() {
    needs_root!();
    let host = Host::new();
    let (cgroup, absent) = (TestCgroup::new("again"), TestCgroup::new("absent"));
    let users = format!("users = [{}]", host.user);
    let cgroups = format!("cgroups = [\"{}\", \"{}\"]", absent.name(), cgroup.name());
    let running = host.start(&host.text(SOURCE, "").replace(&users, &cgroups));
    let elsewhere = TestCgroup::new("elsewhere");
    let remade = || {
        let mut old = Client::start(&host.host, host.user);
        cgroup.take(old.pid());
        assert_eq!(old.open(WEB).0, MARK);
        elsewhere.take(old.pid());
        cgroup.remove();
        std::fs::create_dir(&cgroup.0).unwrap();
        let mut new = Client::start(&host.host, host.user);
        cgroup.take(new.pid());
        wait_until(
            "connections of the new cgroup are marked",
            || new.open(WEB).0 == MARK,
            || host.status().text().to_string(),
        );
        (old, new)
    };
    drop(remade());
    absent.remove();
    let (old, mut new) = remade();
    let missing = |host: &Host| {
        let status = host.status();
        let mut alarms = status.warnings.iter().filter(|one| one.kind == "cgroup");
        alarms.any(|one| one.is_alarm && one.text.contains(&absent.name()))
    };
    assert!(missing(&host), "{}", host.status().text());
    drop(old);
    running.stop_well().unwrap();

    // Nor does it keep the engine from starting.
    let running = host.start(&host.text(SOURCE, "").replace(&users, &cgroups));
    assert_eq!(new.open(WEB).0, MARK);
    assert!(missing(&host), "{}", host.status().text());
    std::fs::create_dir(&absent.0).unwrap();
    wait_until(
        "the end of the alarm",
        || !missing(&host),
        || host.status().text().to_string(),
    );
    drop(new);
    running.stop_well().unwrap();
}

/// The kernel asks for capabilities when it loads the programs, not when it attaches them.
#[test]
fn loaded_programs_are_attached_without_a_capability() {
    needs_root!();
    let host = Host::new();
    let cgroup = TestCgroup::new("capabilities");
    let path = cgroup.0.clone();
    let attached = host.host.spawn("attaching", move || {
        let connect = Connect::load(false).unwrap();
        let pins = Pins::open(Path::new("/sys/fs/bpf/exitmark")).unwrap();
        caps::clear(None, CapSet::Effective).unwrap();
        let cgroups = [Cgroup::open(&path).unwrap()];
        let attached = connect.attach(&pins, &cgroups);
        let is_attached = attached.map(|links| links.are_at(&cgroups));
        (is_attached, Connect::load(false).map(drop))
    });
    let (is_attached, loaded_again) = attached.unwrap().join().unwrap();
    assert!(is_attached.unwrap());
    let error = loaded_again.unwrap_err().to_string();
    assert!(
        error.contains("CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"),
        "{error}"
    );
}
