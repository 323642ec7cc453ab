//! Which NICs the tap refuses, with which messages, and how it leaves them.

use super::{Rig, TIMEOUT, settings};
use crate::says;
use exitmark_lab::{contained, needs_root, wait_until};
use exitmark_monitor::filter::Filter;
use exitmark_monitor::tap::{Tap, TapSettings};
use exitmark_policy::PrefixSet;
use nix::sys::signal::Signal;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::Stdio;

const HOLDER: &str = "EXITMARK_TAP_HOLDER";

/// The error for this interface; also checks that its settings are unchanged.
fn refusal(rig: &Rig, settings: TapSettings) -> String {
    let error = rig.open_with(settings).err();
    says(&rig.link(), " promiscuity 0 ");
    error.expect("it is refused").to_string()
}

fn named(interface: &str) -> TapSettings {
    TapSettings {
        interface: interface.to_owned(),
        ..settings()
    }
}

#[test]
fn a_nic_with_an_address_is_refused() {
    needs_root!();
    let rig = Rig::new(1, 1500);
    rig.monitor.ip("addr add 192.0.2.77/24 dev tap0").unwrap();
    assert_eq!(
        refusal(&rig, settings()),
        "tap0 has the address 192.0.2.77, and a tap must have none: run `ip addr flush dev tap0` \
         and `sysctl -w net.ipv6.conf.tap0.disable_ipv6=1`"
    );
    rig.monitor.ip("addr flush dev tap0").unwrap();
    let key = "net/ipv6/conf/tap0/disable_ipv6";
    let ipv6 = |value| rig.monitor.sysctl(key, value).unwrap();
    ipv6("0");
    rig.monitor.ip("addr add fe80::77/64 dev tap0").unwrap();
    let message = refusal(&rig, settings());
    assert!(
        message.starts_with("tap0 has the address fe80::"),
        "{message}"
    );
    rig.monitor.ip("addr flush dev tap0").unwrap();
    assert_eq!(
        refusal(&rig, settings()),
        "IPv6 is enabled on tap0, so the kernel sends packets there whenever the link comes up, which \
         a tap must not do: run `sysctl -w net.ipv6.conf.tap0.disable_ipv6=1`"
    );
    ipv6("1");
    rig.open().unwrap();
}

#[test]
fn detects_a_later_address() {
    needs_root!();
    let rig = Rig::new(1, 1500);
    let tap = rig.open().unwrap();
    let look = || rig.monitor.run(|| exitmark_monitor::tap::look("tap0"));
    look().unwrap();
    rig.monitor.ip("addr add 192.0.2.77/24 dev tap0").unwrap();
    let message = look().unwrap_err().to_string();
    let expected = "tap0 has the address 192.0.2.77";
    assert!(message.starts_with(expected), "{message}");
    tap.close().unwrap();
}

#[test]
fn refuses_a_nic_that_another_interface_sends_through() {
    needs_root!();
    let rig = Rig::new(1, 1500);
    let ip = |line: &str| rig.monitor.ip(line).unwrap();
    let look = || rig.monitor.run(|| exitmark_monitor::tap::look("tap0"));
    // Both make the NIC promiscuous by themselves.
    let refused = |settings| rig.open_with(settings).err().unwrap().to_string();
    let tap = rig.open().unwrap();
    // With its own MAC address, which it keeps without ports.
    ip("link add br0 address 02:00:00:00:09:99 type bridge");
    ip("link set br0 up");
    ip("link set tap0 master br0");
    let expected = "tap0 is a port of the bridge br0, which sends and receives by it: `ip link set \
                    dev tap0 nomaster` takes it out";
    // The bridge is added while the tap is open, and is there before it is opened.
    assert_eq!(look().unwrap_err().to_string(), expected);
    rig.close(tap);
    assert_eq!(refused(settings()), expected);
    ip("link set tap0 nomaster");
    let message = refused(named("br0"));
    assert!(message.starts_with("br0 is a bridge"), "{message}");
    ip("link add link tap0 name mv0 type macvlan");
    look().unwrap();
    ip("link set mv0 up");
    let message = refused(settings());
    let mend = "tap0 has the macvlan mv0 on top of it";
    assert!(message.starts_with(mend), "{message}");
    assert_eq!(look().unwrap_err().to_string(), message);
    ip("link del mv0");
    look().unwrap();
}

#[test]
fn resolves_alternative_names_of_a_nic() {
    needs_root!();
    let rig = Rig::new(1, 1500);
    let names = ["enp4s0tap", "the-port-at-the-tap"];
    for name in names {
        let line = format!("link property add dev tap0 altname {name}");
        rig.monitor.ip(&line).unwrap();
    }
    let ipv6 = "net/ipv6/conf/tap0/disable_ipv6";
    for name in names {
        rig.monitor.sysctl(ipv6, "0").unwrap();
        rig.monitor.ip("addr flush dev tap0").unwrap();
        let message = refusal(&rig, named(name));
        assert!(message.starts_with("IPv6 is enabled on tap0"), "{message}");
        rig.monitor.sysctl(ipv6, "1").unwrap();
        let tap = rig.open_with(named(name)).unwrap();
        assert_eq!(tap.interface(), "tap0");
        rig.close(tap);
    }
}

#[test]
fn a_nic_that_is_down_or_missing_is_refused() {
    needs_root!();
    let rig = Rig::new(1, 1500);
    rig.monitor.ip("link set tap0 down").unwrap();
    let down = "tap0 is down: run `ip link set dev tap0 up`";
    assert_eq!(refusal(&rig, settings()), down);
    let missing = "there is no network interface tap1 here; `ip link` lists the existing ones";
    assert_eq!(refusal(&rig, named("tap1")), missing);
    // A dot in a name is escaped in sysctl keys.
    rig.monitor.ip("link set tap0 name tap.0 up").unwrap();
    rig.monitor.ip("addr add 192.0.2.77/24 dev tap.0").unwrap();
    let message = rig.open_with(named("tap.0")).err().unwrap().to_string();
    let mend = "`sysctl -w net.ipv6.conf.tap/0.disable_ipv6=1`";
    assert!(message.ends_with(mend), "{message}");
}

#[test]
fn refuses_a_nic_in_use() {
    needs_root!();
    let rig = Rig::new(1, 1500);
    let first = rig.open().unwrap();
    let second = rig.open().err().expect("it is refused");
    assert_eq!(
        second.to_string(),
        "queue 0 of tap0 belongs to another AF_XDP socket: end the program that has it \
         (`ss --xdp --all --processes` names it)"
    );
    rig.close(first);
    exitmark_lab::poll(&rig.monitor, "tap0").unwrap();
    assert_eq!(
        refusal(&rig, settings()),
        "tap0 has an XDP program already: end the program that put it there (`bpftool net` shows \
         it), or run `ip link set dev tap0 xdp off`"
    );
    rig.monitor.ip("link set dev tap0 xdp off").unwrap();
    rig.open().unwrap();
}

#[test]
fn refuses_invalid_settings() {
    needs_root!();
    let rig = Rig::new(1, 1500);
    for ring in [0, 32, 100, 16_384] {
        let message = refusal(&rig, TapSettings { ring, ..settings() });
        let expected = "packets is not possible: give a power of two, 64 to 8192";
        assert_eq!(message, format!("a ring of {ring} {expected}"));
    }
    let of = |clearnet| TapSettings {
        filter: Filter {
            clearnet,
            ..settings().filter
        },
        ..settings()
    };
    let addresses = |count: u32| {
        let numbers = (1..=count).map(|number| Ipv4Addr::from(2 * number).into());
        numbers.collect::<PrefixSet>()
    };
    let none = PrefixSet::default();
    assert!(refusal(&rig, of(none)).starts_with("no clearnet address is configured"));
    let expected = "1025 address ranges of one IP version are too many: 1024 are possible";
    assert_eq!(refusal(&rig, of(addresses(1025))), expected);
    rig.open_with(of(addresses(1024))).unwrap();
}

#[test]
fn closing_restores_the_nic() {
    needs_root!();
    let rig = Rig::new(1, 1500);
    let tap = rig.open().unwrap();
    says(&rig.link(), " promiscuity 1 ");
    says(&rig.link(), "prog/xdp");
    rig.close(tap);
    let after = rig.link();
    says(&after, " promiscuity 0 ");
    assert!(!after.contains("prog/xdp"), "{after}");
    // The same if the tap is only dropped.
    let tap = rig.open().unwrap();
    rig.monitor.run(move || drop(tap));
    says(&rig.link(), " promiscuity 0 ");
    // Settings of others stay.
    rig.monitor.ip("link set tap0 promisc on").unwrap();
    let tap = rig.open().unwrap();
    rig.close(tap);
    says(&rig.link(), " promiscuity 1 ");
}

/// Runs in the other process; does nothing unless requested.
#[test]
fn holds_a_tap() {
    if std::env::var_os(HOLDER).is_none() {
        return;
    }
    let mut tap = Tap::open(&settings()).unwrap();
    println!("\nit listens");
    loop {
        tap.receive(TIMEOUT, |_| ()).unwrap();
    }
}

#[test]
fn a_killed_monitor_leaves_no_program() {
    needs_root!();
    let rig = Rig::new(1, 1500);
    let mut command = contained(std::env::current_exe().unwrap());
    command.args(["--exact", "tapped::refused::holds_a_tap", "--nocapture"]);
    command.env(HOLDER, "1").stdout(Stdio::piped());
    let mut holder = rig.monitor.start(command).unwrap();
    let stdout = holder.process().stdout.take().unwrap();
    let mut lines = BufReader::new(stdout).lines();
    assert!(lines.any(|line| line.unwrap() == "it listens"));
    let is_attached = || rig.link().contains("prog/xdp");
    assert!(is_attached());
    holder.signal(Signal::SIGKILL).unwrap();
    holder.wait(TIMEOUT).unwrap();
    wait_until("no program", || !is_attached(), || rig.link());
    // The socket is gone, too: the queue can be bound again.
    rig.open().unwrap();
}
