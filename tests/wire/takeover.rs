//! Pins, and their takeover by the next process.

use crate::leaks::pins;
use crate::rig::{
    Config, EXITMARK, Rig, assert_says, both_engines, classifies, count, detach, exitmark, moved,
    needs_root, refused, silent,
};
use exitmark_datapath::Role;
use exitmark_lab::site::{INCOMING_MAC, Plan, Site};
use exitmark_lab::{Netns, poll};
use exitmark_nic::Nic;
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use nix::sys::signal::Signal;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Checks that an exit frame is marked and a relay frame steered.
#[track_caller]
fn assert_forwarded(rig: &Rig) {
    classifies(&rig.site, true, "by this box");
}

/// A site whose box was stopped.
fn stopped() -> Site {
    Rig::silent(Plan::default(), &Config::default()).leave()
}

/// Stops the box, changes what it left, and starts it again on the same site.
fn between_two_runs(change: impl FnOnce(&Site)) -> Rig {
    let rig = Rig::silent(Plan::default(), &Config::default());
    assert_forwarded(&rig);
    let site = rig.leave();
    change(&site);
    let rig = Rig::on(site, &Config::default());
    assert_forwarded(&rig);
    rig
}

fn links(site: &Site) -> String {
    site.middle.ip("-details link show").unwrap()
}

fn new_map(kind: MapType, name: &str, value_bytes: u32, entries: u32) -> MapHandle {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    MapHandle::create(kind, Some(name), 4, value_bytes, entries, &options).unwrap()
}

fn is_promiscuous(netns: &Netns, name: &str) -> bool {
    let link = netns.ip(&format!("link show {name}")).unwrap();
    link.contains("PROMISC")
}

#[test]
fn a_pin_of_a_nic_that_is_gone_is_cleaned_up() {
    both_engines(|| {
        let rig = between_two_runs(|site| {
            site.tornet.ip("link del eth0").unwrap();
            let made = site.connect(Role::Incoming, INCOMING_MAC, Plan::default());
            made.unwrap();
            site.silence().unwrap();
        });
        let log = rig.running.log();
        assert_says(&log, &["the NIC that was incoming before is gone"]);
    });
}

#[test]
fn a_port_that_is_no_longer_configured_is_detached() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    assert_forwarded(&rig);
    let rig = rig.restart(&Config::default().without_incoming());
    rig.running.wait_log(&["incoming is no longer configured"]);
    let links = rig.site.middle.ip("-d link").unwrap();
    assert_eq!(links.matches("prog/xdp").count(), 2, "{links}");
}

/// Starts exitmark after a stopped box, with a configuration that must fail. The old box then
/// continues unchanged.
#[test]
fn a_failed_start_leaves_the_old_box_unchanged() {
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &Config::default());
        assert_forwarded(&rig);
        let site = rig.leave();
        let before = links(&site);
        for more in [
            // Detected when the sockets are bound ...
            "[mark]\ndscp = 46\n[datapath]\nzero_copy = \"require\"",
            // ... and before the NICs are checked.
            "[mark]\ndscp = 46\n[pin]\non_stop = \"keep\"\n[datapath]\nring = 1",
        ] {
            refused(&site, &Config::default().more(more));
            classifies(&site, true, more);
        }
        assert_eq!(links(&site), before);
    });
}

/// The far end of the uplink stops accepting redirected frames between two runs: engine "xdp"
/// refuses after the new programs are attached, and restores the old ones.
#[test]
fn a_refusal_after_attaching_puts_the_old_programs_back() {
    needs_root!();
    let programs = |site: &Site| {
        let text = links(site);
        let words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
        let ids = words.iter().zip(words.iter().skip(2));
        ids.filter(|(word, _)| *word == "prog/xdp")
            .map(|(_, id)| id.clone())
            .collect::<Vec<_>>()
    };
    let config = Config::default().engine("xdp");
    let rig = Rig::silent(Plan::default(), &config);
    assert_forwarded(&rig);
    let site = rig.leave();
    let before = programs(&site);
    assert_eq!(before.len(), 3);
    site.clearnet.ip("link set eth0 xdp off").unwrap();
    assert_says(&refused(&site, &config), &["ndo_xdp_xmit"]);
    assert_eq!(programs(&site), before);
    poll(&site.clearnet, "eth0").unwrap();
    assert_forwarded(&Rig::on(site, &config));
}

#[test]
fn nics_may_change_their_roles_between_two_runs() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    assert_forwarded(&rig);
    let site = rig.leave();
    // Host and uplink swapped.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("swapped.toml");
    let text = Config::default().text();
    let swapped = text
        .replace("\"host0\"", "\"x\"")
        .replace("\"uplink0\"", "\"host0\"")
        .replace("\"x\"", "\"uplink0\"");
    std::fs::write(&path, swapped).unwrap();
    let running = site.run(EXITMARK, &path).unwrap();
    let state = links(&site);
    assert_eq!(state.matches("promiscuity 1").count(), 2, "{state}");
    assert_eq!(state.matches("prog/xdp").count(), 3, "{state}");
    moved(&running.stop().unwrap());
    detach(&site);
    let state = links(&site);
    assert_eq!(state.matches("promiscuity 0").count(), 4, "{state}");
    assert_eq!(state.matches("prog/xdp").count(), 0, "{state}");
}

#[test]
fn a_nic_that_left_the_namespace_stays_on_record() {
    needs_root!();
    let site = stopped();
    let middle = &site.middle;
    let away = Netns::new("away").unwrap();
    let move_away = format!("link set uplink0 netns {}", away.path());
    middle.ip(&move_away).unwrap();
    assert_says(&detach(&site), &["changed is gone", "promisc off"]);
    assert!(!is_promiscuous(middle, "host0"));
    assert!(is_promiscuous(&away, "uplink0"));
    let move_back = format!("link set uplink0 netns {}", middle.path());
    away.ip(&move_back).unwrap();
    assert_eq!(detach(&site), "detached: the NIC settings are restored\n");
    assert!(!is_promiscuous(middle, "uplink0"));
}

#[test]
fn the_root_of_a_bpf_file_system_is_refused_as_pin_directory() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    let config = Config::default().more("[pin]\ndirectory = \"/sys/fs/bpf\"");
    let error = refused(&site, &config);
    assert_says(&error, &["mount point", "/sys/fs/bpf/exitmark"]);
}

#[test]
fn settings_changed_by_an_older_build_are_restored() {
    needs_root!();
    let site = stopped();
    site.middle.run(|| {
        // It recorded two numbers per role: the NIC whose promiscuous mode it had turned on.
        let path = "/sys/fs/bpf/exitmark/undo";
        let mut older = new_map(MapType::Array, "older", 16, 3);
        let ifindex = u64::from(Nic::look("host0").unwrap().index);
        let netns = std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
        let value = [ifindex.to_ne_bytes(), netns.to_ne_bytes()].concat();
        older.update(&[0; 4], &value, MapFlags::ANY).unwrap();
        std::fs::remove_file(path).unwrap();
        older.pin(path).unwrap();
    });
    assert!(is_promiscuous(&site.middle, "host0"));
    // A run of the next build in between does not lose the record.
    let site = Rig::on(site, &Config::default()).leave();
    assert!(is_promiscuous(&site.middle, "host0"));
    detach(&site);
    assert!(!is_promiscuous(&site.middle, "host0"));
}

#[test]
fn maps_of_another_shape_are_replaced_and_the_links_taken_over() {
    both_engines(|| {
        let rig = between_two_runs(|site| {
            site.middle.run(|| {
                let directory = std::fs::read_dir("/sys/fs/bpf/exitmark").unwrap();
                let maps = directory
                    .map(|entry| entry.unwrap().path())
                    .find(|path| path.to_string_lossy().contains("maps-"))
                    .unwrap();
                let mut other = new_map(MapType::PercpuArray, "other", 8, 1);
                // The counters of a build with other counters ...
                std::fs::remove_file(maps.join("counters")).unwrap();
                other.pin(maps.join("counters")).unwrap();
                // ... and the pins of one with another layout.
                std::fs::create_dir("/sys/fs/bpf/exitmark/maps-0").unwrap();
                other.pin("/sys/fs/bpf/exitmark/maps-0/counters").unwrap();
            });
        });
        let log = rig.running.log();
        let words = [
            "pinned counters cannot be used",
            "the counters start at 0",
            "a build with layout 0",
        ];
        assert_says(&log, &words);
        let left = rig.site.middle.command("ls", &["/sys/fs/bpf/exitmark"]);
        let left = left.unwrap();
        assert_eq!(left.matches("maps-").count(), 1, "{left}");
        // They count from the second run on.
        let last = moved(&rig.running.stop().unwrap());
        assert_eq!(count(&last, "host_received"), 2, "{last:?}");
    });
}

/// A box whose uplink accepts no redirected frames: a veth end whose peer does not poll.
fn without_redirects(engine: &str) -> Rig {
    let site = silent(Plan::default());
    site.clearnet.ip("link set eth0 xdp off").unwrap();
    Rig::on(site, &Config::default().engine(engine))
}

#[test]
fn without_redirects_the_ingress_has_xdp_in_generic_mode() {
    needs_root!();
    for engine in ["auto", "xdp"] {
        let mut rig = without_redirects(engine);
        let words = [
            "engine=xdp",
            "host=host0 xdp=generic",
            "uplink=uplink0 xdp=native",
        ];
        assert_says(&rig.running.ready, &words);
        let log = rig.running.log();
        assert_says(&log, &["host0 has XDP in generic mode"]);
        assert!(!log.contains("by this process alone"), "{log}");
        assert_forwarded(&rig);
        // The policy outlives the process.
        rig.running.signal(Signal::SIGKILL).unwrap();
        rig.running.ended().unwrap();
        assert_forwarded(&rig);
        // The next process keeps the mode without an option.
        let rig = Rig::on(rig.site, &Config::default().engine(engine));
        assert!(rig.running.ready.contains("host=host0 xdp=generic"));
        assert_forwarded(&rig);
        detach(&rig.leave());
    }
}

#[test]
fn without_redirects_af_xdp_forwards_by_its_process_alone() {
    needs_root!();
    let rig = without_redirects("af_xdp");
    let words = ["engine=af_xdp", "host=host0 xdp=native"];
    assert_says(&rig.running.ready, &words);
    rig.running.wait_log(&["by this process alone"]);
    assert_forwarded(&rig);
    rig.stop();
}

#[test]
fn a_native_program_is_not_detached_to_make_it_generic() {
    needs_root!();
    let site = stopped();
    // The old program stays: switching to generic mode would leave the NIC without one for a
    // moment.
    site.clearnet.ip("link set eth0 xdp off").unwrap();
    let refused = refused(&site, &Config::default().engine("xdp"));
    let words = [
        "ndo_xdp_xmit",
        "gro on",
        "`exitmark detach`",
        "engine = \"af_xdp\"",
    ];
    assert_says(&refused, &words);
    assert_eq!(pins(&site), ["exitmark"]);
    let links = links(&site);
    assert_eq!(links.matches("prog/xdp ").count(), 3, "{links}");
    assert!(!links.contains("xdpgeneric"), "{links}");
}

#[test]
fn without_a_bpf_file_system_the_error_says_how_to_mount_one() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    let config = Config::default().more("[pin]\ndirectory = \"/run/exitmark-pins\"");
    assert_says(&refused(&site, &config), &["mount -t bpf bpf /sys/fs/bpf"]);
    assert!(!Path::new("/run/exitmark-pins").exists());
}

#[test]
fn a_running_box_is_not_detached() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    let file = rig.configuration.to_str().unwrap();
    let output = exitmark(&rig.site, &["detach", "--config", file]);
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("another exitmark holds"), "{words}");
    assert_forwarded(&rig);
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
    let site = rig.leave();
    // An existing native program stays, and frames that it cannot redirect need a worker.
    site.clearnet.ip("link set eth0 xdp off").unwrap();
    let rig = Rig::on(site, &Config::default());
    let log = rig.running.log();
    assert!(log.contains("by this process alone"), "{log}");
    assert!(packet_memory(&rig) > 3 * small, "{small}: {log}");
    assert_forwarded(&rig);
    rig.stop();
}
