//! The machine and the configuration change while the engine runs.

use crate::client::Client;
use crate::rig::{
    HOST_V4, Host, MARK, RELAY, RELAY_SOURCE_V4, WEB, class, ip, needs_root, wait_until,
};
use exitmark_datapath::Pins;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const SOURCE: &str = "source = [\"203.0.113.10\"]";

fn has(host: &Host, kind: &str) -> bool {
    host.status()
        .warnings
        .iter()
        .any(|one| one.kind == kind && one.is_alarm)
}

#[test]
fn new_addresses_of_the_machine_are_exempt() {
    needs_root!();
    let host = Host::new();
    let running = host.start(&host.text(SOURCE, ""));
    let mut client = Client::start(&host.host, host.user);
    assert_eq!(client.ask("try 192.0.2.99:80"), "0x28");
    let generation = host.status().generation;
    host.host.ip("addr add 192.0.2.99/24 dev eth0").unwrap();
    wait_until(
        "the address is known",
        || host.status().generation > generation,
        || host.status().text().to_string(),
    );
    assert_eq!(client.ask("try 192.0.2.99:80"), "0x0");
    assert_eq!(class(&host.connections(), "exempt"), (1, 0));
    running.stop_well().unwrap();
}

/// A start that waits, here for the pins of another process, must not miss what happens meanwhile.
#[test]
fn addresses_that_appear_during_the_start_are_exempt() {
    needs_root!();
    let host = Host::new();
    let holding = host.host.spawn("holding", || {
        let pins = Pins::open(Path::new("/sys/fs/bpf/exitmark")).unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        let add = ["addr", "add", "192.0.2.99/24", "dev", "eth0"];
        assert!(Command::new("ip").args(add).status().unwrap().success());
        drop(pins);
    });
    std::thread::sleep(Duration::from_millis(500));
    let running = host.start(&host.text(SOURCE, ""));
    holding.unwrap().join().unwrap();
    let mut client = Client::start(&host.host, host.user);
    assert_eq!(client.ask("try 192.0.2.99:80"), "0x0");
    running.stop_well().unwrap();
}

#[test]
fn a_source_that_the_machine_does_not_have_is_an_alarm_until_it_is_there() {
    needs_root!();
    let host = Host::new();
    host.host.ip("addr del 203.0.113.10/32 dev eth0").unwrap();
    let running = host.start(&host.text(SOURCE, ""));
    assert!(has(&host, "steering"));
    let mut client = Client::start(&host.host, host.user);
    // The connection goes on, from another address.
    assert_eq!(client.open(RELAY), (0, ip(HOST_V4)));
    assert_eq!(host.connections().unsteered, 1);
    assert!(has(&host, "unsteered"));
    host.host.ip("addr add 203.0.113.10/32 dev eth0").unwrap();
    wait_until(
        "the address is known",
        || !has(&host, "steering"),
        || host.status().text().to_string(),
    );
    assert_eq!(client.open(RELAY), (0, ip(RELAY_SOURCE_V4)));
    assert!(has(&host, "unsteered"));
    running.stop_well().unwrap();

    // The counters continue; what they counted before must not raise an alarm.
    let running = host.start(&host.text(SOURCE, ""));
    assert_eq!(host.connections().unsteered, 1);
    assert!(!has(&host, "unsteered"), "{}", host.status().text());
    running.stop_well().unwrap();
}

#[test]
fn a_reload_changes_users_relays_and_steering_at_once() {
    needs_root!();
    let host = Host::new();
    let text = host.text(SOURCE, "");
    let running = host.start(&text);
    let other = host.user + 0x80;
    let mut clients = [host.user, other].map(|user| Client::start(&host.host, user));
    let users = format!("users = [{}]", host.user);
    let changed = text
        .replace(&users, &format!("users = [{other}]"))
        .replace("\"198.18.0.1:9001\"", "\"198.51.100.7:80\"")
        .replace(SOURCE, "");
    host.write(&changed);
    let said = host.exitmark(&["reload"]).unwrap();
    for key in ["tor.users", "relays.extra", "steer.source"] {
        assert!(said.contains(key), "{said}");
    }
    assert_eq!(clients[0].open(WEB).0, 0);
    assert_eq!(clients[1].open(WEB), (0, ip(HOST_V4)));
    assert_eq!(clients[1].open(RELAY), (MARK, ip(HOST_V4)));
    let counts = host.connections();
    assert_eq!(class(&counts, "relay"), (1, 0));
    assert_eq!(class(&counts, "exit"), (1, 0));

    host.write(&changed.replace(
        "engine = \"connect\"",
        "engine = \"connect\"\nuser = \"daemon\"",
    ));
    let refusal = host.fails(&["reload"]);
    assert!(
        refusal.contains("user") && refusal.contains("restart"),
        "{refusal}"
    );
    running.stop_well().unwrap();
}

#[test]
fn users_that_do_not_exist_are_an_alarm() {
    needs_root!();
    let host = Host::new();
    let users = format!("users = [{}]", host.user);
    let text = host.text(SOURCE, "");
    let running = host.start(&text.replace(&users, "users = [\"_exitmark-no-such-*\"]"));
    assert!(has(&host, "users"));
    assert_eq!(host.connections().users, 0);
    let text = host.status().text().to_string();
    assert!(text.contains("\nusers       none\n"), "{text}");
    running.stop_well().unwrap();
}

#[test]
fn status_and_metrics_show_connections_and_no_address() {
    needs_root!();
    let host = Host::new();
    let running = host.start(&host.text(SOURCE, ""));
    let mut client = Client::start(&host.host, host.user);
    assert_eq!(client.open(WEB).0, MARK);
    let status = host.exitmark(&["status"]).unwrap();
    let metrics = host.host.run(|| {
        exitmark_box::control::Client::new(exitmark_box::control::DEFAULT_SOCKET).metrics()
    });
    let metrics = metrics.unwrap();
    assert!(status.contains("engine      connect"), "{status}");
    for line in [
        "exitmark_class_connections_total{class=\"exit\"} 1",
        "exitmark_marked_connections_total 1",
        "exitmark_users 1",
    ] {
        assert!(metrics.contains(line), "no {line} in {metrics}");
    }
    assert!(!metrics.contains("exitmark_steering_up"), "{metrics}");
    for text in [&status, &metrics, &running.log()] {
        assert!(!text.contains("198.51.100.7"), "{text}");
    }
    running.stop_well().unwrap();
}
