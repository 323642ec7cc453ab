//! The plain wire, before a box and after one.

use crate::craft::{answer, exit, relay};
use crate::leaks::pins;
use crate::rig::{
    Case, Config, EXITMARK, Rig, Side, arrives, assert_says, eventually, moved, needs_root, passes,
    port, silent, timeout, wait_until, watch,
};
use exitmark_lab::site::{Plan, Site};
use exitmark_lab::{LabError, contained};
use nix::sys::signal::Signal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

fn wire(site: &Site, file: &str, more: &[&str]) -> Result<String, LabError> {
    let arguments = [&["wire", "--config", file], more].concat();
    site.middle.command(EXITMARK, &arguments)
}

/// Checks that exit traffic, relay traffic and answers are forwarded unchanged.
#[track_caller]
fn is_plain(site: &Site) {
    let [exit, relay] = [exit(0, 50), relay(1, 50)].map(|packet| packet.outbound(&[]));
    let answer = answer(0, 50).inbound(&[]);
    passes(site, &Case::untouched("exit", Side::Host, exit));
    passes(site, &Case::untouched("relay", Side::Host, relay));
    passes(site, &Case::untouched("answer", Side::Clearnet, answer));
}

/// Sends exit frames continuously while `work` runs; none may be lost.
#[track_caller]
fn nothing_is_lost(site: &Site, work: impl FnOnce()) {
    let mut eye = watch(site, Side::Clearnet);
    let port = port(site, Side::Host);
    let ends = Arc::new(AtomicBool::new(false));
    let ending = Arc::clone(&ends);
    let sender = thread::spawn(move || {
        let mut sent = 0;
        while !ending.load(Ordering::Relaxed) {
            port.send(&exit(0, sent % 1000).outbound(&[])).unwrap();
            sent += 1;
            thread::sleep(std::time::Duration::from_millis(1));
        }
        sent
    });
    work();
    ends.store(true, Ordering::Relaxed);
    let sent = sender.join().unwrap();
    eye.counts(sent);
    let captured = eye.finish().unwrap().len();
    println!("{sent} frames sent, {} lost", sent - captured);
    assert!(captured == sent && sent > 50, "{captured} of {sent}");
}

#[test]
fn a_plain_wire_needs_only_two_nics_and_a_box_takes_it_over() {
    needs_root!();
    let site = silent(Plan::default());
    // As early in boot: the NICs are down, and one does not have its name yet.
    for nic in ["host0", "uplink0"] {
        site.middle.ip(&format!("link set {nic} down")).unwrap();
        let key = format!("net/ipv6/conf/{nic}/disable_ipv6");
        site.middle.sysctl(&key, "0").unwrap();
    }
    site.middle.ip("link set uplink0 name eth9").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let nothing = "consensus = [\"/nosuch/cached-consensus\"]\nstate = \"/run/relays.state\"";
    let config = Config::default().relays(nothing);
    let configuration = config.write(directory.path()).unwrap();
    let file = configuration.to_str().unwrap();
    let refused = wire(&site, file, &[]).unwrap_err().to_string();
    assert_says(&refused, &["no network interface uplink0"]);
    assert_eq!(pins(&site), Vec::<String>::new());
    let mut command = contained(EXITMARK);
    command.args(["wire", "--wait", "20", "--config", file]);
    let mut waiting = site.middle.start(command).unwrap();
    let path = format!("/proc/{}/syscall", waiting.process().id());
    let call = || std::fs::read_to_string(&path).unwrap();
    let sleep = format!("{} ", libc::SYS_clock_nanosleep);
    let sleeps = || call().starts_with(&sleep);
    wait_until("it waits for the second NIC", sleeps, call);
    let link = site.middle.ip("link show host0").unwrap();
    assert!(!link.contains(",UP"), "changed too early: {link}");
    site.middle.ip("link set eth9 name uplink0").unwrap();
    assert!(waiting.wait(timeout()).unwrap().success());
    for nic in ["host0", "uplink0"] {
        let addresses = site.middle.ip(&format!("-6 addr show dev {nic}")).unwrap();
        assert_eq!(addresses, "", "a wire sends nothing by itself");
    }
    is_plain(&site);
    let mut running = None;
    Config::default().write(directory.path()).unwrap();
    nothing_is_lost(&site, || {
        running = Some(site.run(EXITMARK, &configuration).unwrap());
    });
    let running = running.unwrap();
    running.wait_log(&["taken over"]);
    arrives(&site, &Case::exit(0, 50));
    // A running box is not changed.
    assert_says(&wire(&site, file, &[]).unwrap(), &["stays as it is"]);
    let arguments = ["detach", "--config", file, "--keep-wire"];
    let refused = site.middle.command(EXITMARK, &arguments).unwrap_err();
    assert_says(&refused.to_string(), &["another exitmark holds"]);
    moved(&running.stop().unwrap());
    // Nor is a stopped box: systemd may run the wire's unit at any time.
    assert_says(&wire(&site, file, &[]).unwrap(), &["stays as it is"]);
    arrives(&site, &Case::exit(0, 50));
}

#[test]
fn detach_can_leave_a_plain_wire() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    let file = rig.configuration.to_str().unwrap().to_owned();
    let detach = |rig: &Rig, more: &[&str]| {
        let arguments = [&["detach", "--config", &file], more].concat();
        rig.site.middle.command(EXITMARK, &arguments)
    };
    let refused = detach(&rig, &["--keep-wire"]).unwrap_err().to_string();
    assert!(refused.contains("another exitmark holds"), "{refused}");
    passes(&rig.site, &Case::relay(1, 50));
    let site = &rig.site;
    nothing_is_lost(site, || {
        rig.running.signal(Signal::SIGTERM).unwrap();
        let said = eventually("the box has ended", || detach(&rig, &["--keep-wire"]));
        assert_eq!(said, "detached: host0 and uplink0 are a plain wire\n");
    });
    is_plain(site);
    let incoming = site.middle.ip("-details link show incoming0").unwrap();
    assert!(!incoming.contains("prog/xdp"), "{incoming}");
    detach(&rig, &[]).unwrap();
    let links = site.middle.ip("-details link show").unwrap();
    for word in ["prog/xdp", "PROMISC"] {
        assert!(!links.contains(word), "{links}");
    }
}
