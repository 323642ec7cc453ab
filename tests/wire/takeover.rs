//! Pins, and their takeover by the next process.

use crate::craft::{AF11, exit, relay};
use crate::leaks::pins;
use crate::rig::{Config, EXITMARK, PATIENCE, Rig, Side, both_engines, moved, needs_root, silence};
use exitmark_lab::site::{INCOMING_MAC, Plan, Site, TORNET_MAC};
use exitmark_lab::{Capture, Netns, RawPort, VethEnd, poll, veth};
use exitmark_nic::Nic;
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use nix::sys::signal::Signal;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

/// Checks that an exit frame is marked and a relay frame steered.
#[track_caller]
fn crosses(rig: &Rig) {
    let (mut uplink, mut incoming) = (rig.watch(Side::Clearnet), rig.watch(Side::Tornet));
    let port = rig.port(Side::Host);
    port.send(&exit(0, 60).outbound(&[])).unwrap();
    port.send(&relay(1, 60).outbound(&[])).unwrap();
    let marked = exit(0, 60).tos(AF11).outbound(&[]);
    let steered = relay(1, 60).framed(TORNET_MAC, INCOMING_MAC, &[]);
    assert!(uplink.wait_until(PATIENCE, |seen| seen.len() == 1 && seen[0].bytes == marked));
    assert!(incoming.wait_until(PATIENCE, |seen| seen.len() == 1 && seen[0].bytes == steered));
}

/// Stops the box, changes what it left, and starts it again on the same site.
fn between_two_runs(first: &Config, second: &Config, change: impl FnOnce(&Site)) -> Rig {
    let rig = Rig::silent(Plan::default(), first);
    crosses(&rig);
    moved(&rig.running.stop().unwrap());
    change(&rig.site);
    let rig = Rig::on(rig.site, second);
    crosses(&rig);
    rig
}

#[test]
fn a_pin_of_a_nic_that_is_gone_is_cleaned_up() {
    needs_root!();
    both_engines(|| {
        let rig = between_two_runs(&Config::default(), &Config::default(), |site| {
            site.tornet.ip("link del eth0").unwrap();
            let end = |netns, name, mac| VethEnd {
                netns,
                name,
                mac,
                queues: 1,
            };
            veth(
                &end(&site.tornet, "eth0", TORNET_MAC),
                &end(&site.middle, "incoming0", INCOMING_MAC),
                1500,
            )
            .unwrap();
            poll(&site.tornet, "eth0").unwrap();
            silence(site);
        });
        let log = rig.running.log();
        assert!(
            log.contains("the NIC that was incoming before is gone"),
            "{log}"
        );
    });
}

#[test]
fn a_port_that_is_no_longer_configured_is_detached() {
    needs_root!();
    let without = Config {
        incoming: None,
        ..Config::default()
    };
    let rig = Rig::silent(Plan::default(), &Config::default());
    crosses(&rig);
    moved(&rig.running.stop().unwrap());
    let rig = Rig::on(rig.site, &without);
    let log = rig.running.log();
    assert!(log.contains("there is no incoming any more"), "{log}");
    let links = rig.site.middle.ip("-d link").unwrap();
    assert_eq!(links.matches("prog/xdp").count(), 2, "{links}");
}

/// Starts exitmark after a stopped box, with a configuration that must fail. The old box then
/// continues unchanged.
#[test]
fn a_failed_start_leaves_the_old_box_unchanged() {
    needs_root!();
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &Config::default());
        crosses(&rig);
        moved(&rig.running.stop().unwrap());
        let before = rig.site.middle.ip("-details link show").unwrap();
        let tables = [
            // Detected when the sockets are bound ...
            "[mark]\ndscp = 46\n[datapath]\nzero_copy = \"require\"",
            // ... and before the NICs are checked.
            "[mark]\ndscp = 46\n[pin]\non_stop = \"keep\"\n[datapath]\nring = 1",
        ];
        for more in tables {
            let directory = tempfile::tempdir().unwrap();
            let config = Config {
                more,
                ..Config::default()
            };
            let configuration = config.write(directory.path());
            let refused = rig.site.run(std::path::Path::new(EXITMARK), &configuration);
            assert!(refused.is_err(), "{more}");
            let (mut uplink, mut incoming) = (
                Capture::start(&rig.site.clearnet, "eth0", "in", "").unwrap(),
                Capture::start(&rig.site.tornet, "eth0", "in", "").unwrap(),
            );
            let port = RawPort::open(&rig.site.host, "eth0").unwrap();
            port.send(&exit(0, 60).outbound(&[])).unwrap();
            port.send(&relay(1, 60).outbound(&[])).unwrap();
            let marked = exit(0, 60).tos(AF11).outbound(&[]);
            let steered = relay(1, 60).framed(TORNET_MAC, INCOMING_MAC, &[]);
            assert!(uplink.wait_until(PATIENCE, |seen| seen.len() == 1 && seen[0].bytes == marked));
            assert!(incoming.wait_until(PATIENCE, |seen| {
                seen.len() == 1 && seen[0].bytes == steered
            }));
        }
        assert_eq!(rig.site.middle.ip("-details link show").unwrap(), before);
    });
}

/// The far end of the uplink stops accepting redirected frames between two runs: engine "xdp"
/// refuses after the new programs are attached, and restores the old ones.
#[test]
fn a_refusal_after_attaching_puts_the_old_programs_back() {
    needs_root!();
    let programs = |site: &Site| {
        let text = site.middle.ip("-details link show").unwrap();
        let words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
        let ids = words.iter().zip(words.iter().skip(2));
        ids.filter(|(word, _)| *word == "prog/xdp")
            .map(|(_, id)| id.clone())
            .collect::<Vec<_>>()
    };
    let config = Config {
        top: "engine = \"xdp\"",
        ..Config::default()
    };
    let rig = Rig::silent(Plan::default(), &config);
    crosses(&rig);
    moved(&rig.running.stop().unwrap());
    let before = programs(&rig.site);
    assert_eq!(before.len(), 3);
    rig.site.clearnet.ip("link set eth0 xdp off").unwrap();
    let refused = rig
        .site
        .run(std::path::Path::new(EXITMARK), &rig.configuration);
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("ndo_xdp_xmit"), "{refused}");
    assert_eq!(programs(&rig.site), before);
    poll(&rig.site.clearnet, "eth0").unwrap();
    let rig = Rig::on(rig.site, &config);
    crosses(&rig);
}

#[test]
fn nics_may_change_their_roles_between_two_runs() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    crosses(&rig);
    moved(&rig.running.stop().unwrap());
    // Host and uplink swapped.
    let directory = tempfile::tempdir().unwrap();
    let path = Config::default().write(directory.path());
    let text = std::fs::read_to_string(&path).unwrap();
    let swapped = text
        .replace("\"host0\"", "\"x\"")
        .replace("\"uplink0\"", "\"host0\"")
        .replace("\"x\"", "\"uplink0\"");
    std::fs::write(&path, swapped).unwrap();
    let running = rig.site.run(std::path::Path::new(EXITMARK), &path).unwrap();
    let state = rig.site.middle.ip("-details link show").unwrap();
    assert_eq!(state.matches("promiscuity 1").count(), 2, "{state}");
    assert_eq!(state.matches("prog/xdp").count(), 3, "{state}");
    moved(&running.stop().unwrap());
    rig.site.middle.command(EXITMARK, &["detach"]).unwrap();
    let state = rig.site.middle.ip("-details link show").unwrap();
    assert_eq!(state.matches("promiscuity 0").count(), 4, "{state}");
    assert_eq!(state.matches("prog/xdp").count(), 0, "{state}");
}

#[test]
fn a_nic_that_left_the_namespace_stays_on_record() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    let middle = &rig.site.middle;
    moved(&rig.running.stop().unwrap());
    let away = Netns::new("away").unwrap();
    middle
        .ip(&format!("link set uplink0 netns {}", away.path()))
        .unwrap();
    let detached = middle.command(EXITMARK, &["detach"]).unwrap();
    assert!(detached.contains("changed is gone"), "{detached}");
    assert!(detached.contains("promisc off"), "{detached}");
    assert!(!middle.ip("link show host0").unwrap().contains("PROMISC"));
    assert!(away.ip("link show uplink0").unwrap().contains("PROMISC"));
    away.ip(&format!("link set uplink0 netns {}", middle.path()))
        .unwrap();
    let detached = middle.command(EXITMARK, &["detach"]).unwrap();
    assert_eq!(detached, "detached: the NIC settings are restored\n");
    assert!(!middle.ip("link show uplink0").unwrap().contains("PROMISC"));
}

#[test]
fn the_root_of_a_bpf_file_system_is_refused_as_pin_directory() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let config = Config {
        more: "[pin]\ndirectory = \"/sys/fs/bpf\"",
        ..Config::default()
    };
    let configuration = config.write(directory.path());
    let error = site.run(std::path::Path::new(EXITMARK), &configuration);
    let error = error.err().unwrap().to_string();
    assert!(
        error.contains("mount point") && error.contains("/sys/fs/bpf/exitmark"),
        "{error}"
    );
}

#[test]
fn settings_changed_by_an_older_build_are_restored() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    moved(&rig.running.stop().unwrap());
    let middle = &rig.site.middle;
    middle.run(|| {
        // It recorded two numbers per role: the NIC whose promiscuous mode it had turned on.
        let path = "/sys/fs/bpf/exitmark/undo";
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
            ..Default::default()
        };
        let mut older =
            MapHandle::create(MapType::Array, Some("older"), 4, 16, 3, &options).unwrap();
        let ifindex = u64::from(Nic::look("host0").unwrap().index);
        let netns = std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
        let value = [ifindex.to_ne_bytes(), netns.to_ne_bytes()].concat();
        older.update(&[0; 4], &value, MapFlags::ANY).unwrap();
        std::fs::remove_file(path).unwrap();
        older.pin(path).unwrap();
    });
    assert!(middle.ip("link show host0").unwrap().contains("PROMISC"));
    // A run of the next build in between does not lose the record.
    let rig = Rig::on(rig.site, &Config::default());
    moved(&rig.running.stop().unwrap());
    let middle = &rig.site.middle;
    assert!(middle.ip("link show host0").unwrap().contains("PROMISC"));
    middle.command(EXITMARK, &["detach"]).unwrap();
    assert!(!middle.ip("link show host0").unwrap().contains("PROMISC"));
}

#[test]
fn maps_of_another_shape_are_replaced_and_the_links_taken_over() {
    needs_root!();
    both_engines(|| {
        let rig = between_two_runs(&Config::default(), &Config::default(), |site| {
            site.middle.run(|| {
                let directory = std::fs::read_dir("/sys/fs/bpf/exitmark").unwrap();
                let maps = directory
                    .map(|entry| entry.unwrap().path())
                    .find(|path| path.to_string_lossy().contains("maps-"))
                    .unwrap();
                let options = libbpf_sys::bpf_map_create_opts {
                    sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
                    ..Default::default()
                };
                let mut other =
                    MapHandle::create(MapType::PercpuArray, Some("other"), 4, 8, 1, &options)
                        .unwrap();
                // The counters of a build with other counters ...
                std::fs::remove_file(maps.join("counters")).unwrap();
                other.pin(maps.join("counters")).unwrap();
                // ... and the pins of one with another layout.
                std::fs::create_dir("/sys/fs/bpf/exitmark/maps-0").unwrap();
                other.pin("/sys/fs/bpf/exitmark/maps-0/counters").unwrap();
            });
        });
        let log = rig.running.log();
        for words in [
            "pinned counters cannot be used",
            "the counters start at 0",
            "a build with layout 0",
        ] {
            assert!(log.contains(words), "{words} is not in {log}");
        }
        let left = rig
            .site
            .middle
            .command("ls", &["/sys/fs/bpf/exitmark"])
            .unwrap();
        assert_eq!(left.matches("maps-").count(), 1, "{left}");
        // They count from the second run on.
        let last = moved(&rig.running.stop().unwrap());
        assert!(last.contains(&("host_received".to_owned(), 2)), "{last:?}");
    });
}

/// A box whose uplink accepts no redirected frames: a veth end whose peer does not poll.
fn without_redirects(engine: &'static str) -> Rig {
    let site = Site::build(Plan::default()).unwrap();
    silence(&site);
    site.clearnet.ip("link set eth0 xdp off").unwrap();
    let config = Config {
        top: engine,
        ..Config::default()
    };
    Rig::on(site, &config)
}

#[test]
fn without_redirects_the_ingress_has_xdp_in_generic_mode() {
    needs_root!();
    for engine in ["engine = \"auto\"", "engine = \"xdp\""] {
        let mut rig = without_redirects(engine);
        let (ready, log) = (rig.running.ready.clone(), rig.running.log());
        for words in [
            "engine=xdp",
            "host=host0 xdp=generic",
            "uplink=uplink0 xdp=native",
        ] {
            assert!(ready.contains(words), "{ready}");
        }
        assert!(log.contains("host0 has XDP in generic mode"), "{log}");
        assert!(!log.contains("by this process alone"), "{log}");
        crosses(&rig);
        // The policy outlives the process.
        rig.running.signal(Signal::SIGKILL).unwrap();
        rig.running.ended().unwrap();
        crosses(&rig);
        // The next process keeps the mode without an option.
        let config = Config {
            top: engine,
            ..Config::default()
        };
        let rig = Rig::on(rig.site, &config);
        assert!(rig.running.ready.contains("host=host0 xdp=generic"));
        crosses(&rig);
        moved(&rig.running.stop().unwrap());
        rig.site.middle.command(EXITMARK, &["detach"]).unwrap();
    }
}

#[test]
fn without_redirects_af_xdp_forwards_by_its_process_alone() {
    needs_root!();
    let rig = without_redirects("engine = \"af_xdp\"");
    let (ready, log) = (&rig.running.ready, rig.running.log());
    assert!(ready.contains("engine=af_xdp"), "{ready}");
    assert!(ready.contains("host=host0 xdp=native"), "{ready}");
    assert!(log.contains("by this process alone"), "{log}");
    crosses(&rig);
    moved(&rig.running.stop().unwrap());
}

#[test]
fn a_native_program_is_not_detached_to_make_it_generic() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    moved(&rig.running.stop().unwrap());
    // The old program stays: switching to generic mode would leave the NIC without one for a
    // moment.
    rig.site.clearnet.ip("link set eth0 xdp off").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let config = Config {
        top: "engine = \"xdp\"",
        ..Config::default()
    };
    let configuration = config.write(directory.path());
    let refused = rig.site.run(std::path::Path::new(EXITMARK), &configuration);
    let refused = refused.err().unwrap().to_string();
    for words in [
        "ndo_xdp_xmit",
        "gro on",
        "`exitmark detach`",
        "engine = \"af_xdp\"",
    ] {
        assert!(refused.contains(words), "{refused}");
    }
    assert_eq!(pins(&rig.site), ["exitmark"]);
    let links = rig.site.middle.ip("-details link show").unwrap();
    assert_eq!(links.matches("prog/xdp ").count(), 3, "{links}");
    assert!(!links.contains("xdpgeneric"), "{links}");
}

#[test]
fn without_a_bpf_file_system_the_error_says_how_to_mount_one() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let config = Config {
        more: "[pin]\ndirectory = \"/run/exitmark-pins\"",
        ..Config::default()
    };
    let configuration = config.write(directory.path());
    let error = site.run(std::path::Path::new(EXITMARK), &configuration);
    let error = error.err().unwrap().to_string();
    assert!(error.contains("mount -t bpf bpf /sys/fs/bpf"), "{error}");
    assert!(!std::path::Path::new("/run/exitmark-pins").exists());
}

#[test]
fn a_running_box_is_not_detached() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    let mut command = Command::new(EXITMARK);
    command.args(["detach", "--config"]).arg(&rig.configuration);
    let output = rig.site.middle.run(move || command.output().unwrap());
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("another exitmark holds"), "{words}");
    crosses(&rig);
}

/// The packet memory in MiB, from the log.
fn packet_memory(rig: &Rig) -> u64 {
    let log = rig.running.log();
    let (_, after) = log.split_once("umem_mib=").unwrap();
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

#[test]
fn rings_are_small_where_the_kernel_decides_and_large_where_it_may_not() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    let small = packet_memory(&rig);
    moved(&rig.running.stop().unwrap());
    // An existing native program stays, and frames that it cannot redirect need a worker.
    rig.site.clearnet.ip("link set eth0 xdp off").unwrap();
    let rig = Rig::on(rig.site, &Config::default());
    let log = rig.running.log();
    assert!(log.contains("by this process alone"), "{log}");
    assert!(packet_memory(&rig) > 3 * small, "{small}: {log}");
    crosses(&rig);
    moved(&rig.running.stop().unwrap());
}
