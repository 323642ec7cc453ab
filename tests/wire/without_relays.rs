//! The wire does not depend on the relay set: a box without one forwards everything unmarked,
//! raises an alarm, and marks once it has one.

use crate::craft::{AF11, exit, relay};
use crate::reload::{Tor, listing, replace};
use crate::rig::{Config, EXITMARK, PATIENCE, Rig, Side, eventually, moved, needs_root, silence};
use exitmark_box::observe::{Report, Warning};
use exitmark_lab::authorities::Authorities;
use exitmark_lab::site::{INCOMING_MAC, Plan, RELAY_V4, RunningBox, Site, TORNET_MAC};
use exitmark_lab::{LabError, contained};
use exitmark_policy::Endpoint;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);
const PRIVATE: u32 = 0o700;

fn ask(site: &Site, arguments: &[&str]) -> Output {
    let mut command = Command::new(EXITMARK);
    command.args(arguments);
    site.middle.run(move || command.output().unwrap())
}

/// The report of `exitmark status`, and its exit status.
fn status(site: &Site) -> (Report, Option<i32>) {
    let output = ask(site, &["status", "--json"]);
    let report = serde_json::from_slice(&output.stdout);
    (
        report.unwrap_or_else(|error| panic!("{error}: {output:?}")),
        output.status.code(),
    )
}

fn warning<'a>(report: &'a Report, kind: &str) -> Option<&'a Warning> {
    report.warnings.iter().find(|warning| warning.kind == kind)
}

/// Checks that an exit frame and a relay frame leave marked and steered, or both unchanged by the
/// uplink.
#[track_caller]
fn crosses(rig: &Rig, is_marked: bool, when: &str) {
    let (mut uplink, mut incoming) = (rig.watch(Side::Clearnet), rig.watch(Side::Tornet));
    let port = rig.port(Side::Host);
    let frames = [exit(0, 60), relay(1, 60)].map(|packet| packet.outbound(&[]));
    for frame in &frames {
        port.send(frame).unwrap();
    }
    let (by_uplink, by_incoming) = match is_marked {
        true => (
            vec![exit(0, 60).tos(AF11).outbound(&[])],
            vec![relay(1, 60).framed(TORNET_MAC, INCOMING_MAC, &[])],
        ),
        false => (frames.to_vec(), Vec::new()),
    };
    for (eye, expected) in [(&mut uplink, by_uplink), (&mut incoming, by_incoming)] {
        let arrived = eye.wait_until(PATIENCE, |seen| {
            seen.iter().map(|one| &one.bytes).eq(&expected)
        });
        assert!(arrived, "{when}: marked: {is_marked}");
    }
}

fn mode(path: &Path, mode: u32) {
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
    fs::set_permissions(path, permissions).unwrap();
}

fn relays() -> exitmark_lab::consensus::Order {
    let mut order = listing(Endpoint::new(RELAY_V4.into(), 9001));
    // Both families of the sent frames.
    order
        .listed
        .push(Endpoint::new(exitmark_lab::site::RELAY_V6.into(), 9001));
    order
}

#[test]
fn without_any_document_all_is_forwarded_unmarked_until_there_is_one() {
    needs_root!();
    let tor = Tor::with(&relays());
    let good = fs::read(tor.consensus()).unwrap();
    let certificates = tor.directory.path().join("cached-certs");
    let [tor_directory, state] = [
        tor.directory.path().to_owned(),
        tor.directory.path().join("relays.state"),
    ];
    let write = |bytes: &[u8]| replace(&tor.consensus(), bytes);
    // How the files are damaged, and a part of the message.
    let spoil: [(&str, &dyn Fn(), &str); 9] = [
        (
            "no file",
            &|| fs::remove_file(tor.consensus()).unwrap(),
            "No such file",
        ),
        (
            "no directory",
            &|| fs::remove_dir_all(&tor_directory).unwrap(),
            "No such file",
        ),
        (
            "no certificates",
            &|| fs::remove_file(&certificates).unwrap(),
            "cached-certs",
        ),
        (
            "not to be read",
            &|| mode(&tor_directory, PRIVATE),
            "Permission denied",
        ),
        ("empty", &|| write(b""), "the file is empty"),
        ("cut", &|| write(&good[..good.len() / 2]), "cut off"),
        (
            "no regular file",
            &|| {
                fs::remove_file(tor.consensus()).unwrap();
                fs::create_dir(tor.consensus()).unwrap();
            },
            "a directory",
        ),
        (
            "signed by others",
            &|| {
                write(relays().sign(&Authorities::family(1, 3)).as_bytes());
            },
            "authorities that are known",
        ),
        (
            "the clock is a day behind",
            &|| {
                let mut order = relays();
                for time in [
                    &mut order.validity.valid_after,
                    &mut order.validity.fresh_until,
                    &mut order.validity.valid_until,
                ] {
                    *time += DAY;
                }
                tor.publish(&order);
            },
            "set the clock",
        ),
    ];
    let mut site = Site::build(Plan::default()).unwrap();
    silence(&site);
    // Each engine gets half of them.
    let engines = [
        "user = \"nobody\"\nengine = \"xdp\"",
        "user = \"nobody\"\nengine = \"af_xdp\"",
    ];
    for ((what, spoil, words), top) in spoil.into_iter().zip(engines.into_iter().cycle()) {
        mode(&tor_directory, 0o777);
        spoil();
        let config = Config {
            top,
            ..tor.config("")
        };
        let rig = Rig::on(site, &config);
        crosses(&rig, false, what);
        let (report, code) = status(&rig.site);
        let alarm = warning(&report, "relay_set").unwrap_or_else(|| panic!("{report:?}"));
        println!("{what}: {}", alarm.text);
        assert!(
            alarm.is_alarm && code == Some(1),
            "{what}: {alarm:?}, {code:?}"
        );
        assert!(alarm.text.contains(words), "{what}: {}", alarm.text);
        assert!(alarm.text.contains("unmarked"), "{what}: {}", alarm.text);
        assert!(report.relay_set.is_passing && report.relay_set.is_missing);
        let log = rig.running.log();
        assert!(
            log.contains("ALARM: there is no relay set"),
            "{what}: {log}"
        );
        assert!(!state.exists(), "{what}: no set to store");
        if tor.consensus().is_dir() {
            fs::remove_dir(tor.consensus()).unwrap();
        }
        fs::create_dir_all(&tor_directory).unwrap();
        mode(&tor_directory, 0o777);
        tor.publish(&relays());
        eventually("a set", || match status(&rig.site) {
            (report, Some(0)) if report.warnings.is_empty() => Ok(()),
            (report, code) => Err(LabError(format!("{what}: {code:?} {report:?}"))),
        });
        crosses(&rig, true, what);
        moved(&rig.running.stop().unwrap());
        rig.site.middle.command(EXITMARK, &["detach"]).unwrap();
        fs::remove_file(&state).unwrap();
        site = rig.site;
    }
}

/// A state file that is a day ahead of the clock is kept, and used once the clock is right.
#[test]
fn the_set_of_the_last_time_is_kept_until_the_clock_is_right() {
    needs_root!();
    let tor = Tor::with(&relays());
    let config = tor.config("");
    let rig = Rig::silent(Plan::default(), &config);
    crosses(&rig, true, "at first");
    moved(&rig.running.stop().unwrap());
    let state = tor.directory.path().join("relays.state");
    let good = fs::read(&state).unwrap();
    let mut future: serde_json::Value = serde_json::from_slice(&good).unwrap();
    for time in ["valid_after", "fresh_until", "valid_until"] {
        let time = &mut future["sources"][0]["validity"][time];
        *time = (time.as_u64().unwrap() + DAY.as_secs()).into();
    }
    let future = serde_json::to_vec(&future).unwrap();
    replace(&state, &future);
    fs::remove_file(tor.consensus()).unwrap();
    let rig = Rig::on(rig.site, &config);
    crosses(&rig, false, "of the future");
    assert_eq!(fs::read(&state).unwrap(), future, "it is kept");
    replace(&state, &good);
    eventually("the set", || match status(&rig.site).0.relay_set {
        set if set.is_missing => Err(LabError(format!("{set:?}"))),
        _ => Ok(()),
    });
    crosses(&rig, true, "the clock is right");
    moved(&rig.running.stop().unwrap());
}

#[test]
fn the_last_refusal_is_a_warning_at_once() {
    needs_root!();
    let tor = Tor::with(&relays());
    let config = tor.config("");
    let rig = Rig::silent(Plan::default(), &config);
    assert_eq!(status(&rig.site).0.warnings, []);
    let warned = |rig: &Rig, words: &str| {
        eventually(words, || {
            let (report, code) = status(&rig.site);
            match warning(&report, "relay_set_refused") {
                Some(warning) if warning.text.contains(words) && code == Some(0) => Ok(()),
                _ => Err(LabError(format!("{code:?} {:?}", report.warnings))),
            }
        });
    };
    replace(&tor.consensus(), b"");
    warned(&rig, "the file is empty");
    crosses(&rig, true, "by the set before");
    // Over a restart, with the stored state.
    let rig = rig.restart(&config);
    warned(&rig, "the file is empty");
    crosses(&rig, true, "by the set of the last time");
    tor.publish(&relays());
    eventually("nothing to warn of", || {
        let (report, _) = status(&rig.site);
        match report.warnings.is_empty() {
            true => Ok(()),
            false => Err(LabError(format!("{:?}", report.warnings))),
        }
    });
    moved(&rig.running.stop().unwrap());
}

/// Errors in the configuration itself are still refused.
#[test]
fn an_unusable_relays_user_is_refused() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    let tor = Tor::with(&relays());
    let directory = tempfile::tempdir().unwrap();
    for (more, words) in [
        ("user = \"nosuchuser\"", "relays.user = \"nosuchuser\""),
        ("user = \"root\"", "relays.user is root"),
    ] {
        let configuration = tor.config(more).write(directory.path());
        let refused = site.run(Path::new(EXITMARK), &configuration);
        let error = refused.err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_reload_needs_no_document_for_keys_independent_of_documents() {
    needs_root!();
    let tor = Tor::with(&relays());
    let rig = Rig::silent(Plan::default(), &tor.config(""));
    replace(&tor.consensus(), b"");
    let file = rig.configuration.to_str().unwrap();
    let extra = tor.config("extra = [\"198.51.100.1:9001\"]\nretain = \"5h\"");
    extra.write(rig.directory.path());
    let output = ask(&rig.site, &["reload", "--config", file]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let contains = ask(&rig.site, &["status", "--json"]);
    let report: Report = serde_json::from_slice(&contains.stdout).unwrap();
    assert_eq!(report.relay_set.extra, 1);
    crosses(&rig, true, "by the documents before");
    moved(&rig.running.stop().unwrap());

    // Without a set in force, a missing document is not a reason to refuse another path.
    let nothing = Config {
        relays: "consensus = [\"/nosuch/cached-consensus\"]\nstate = \"/run/relays.state\""
            .to_owned(),
        ..Config::default()
    };
    let rig = Rig::on(rig.site, &nothing);
    crosses(&rig, false, "no document");
    let file = rig.configuration.to_str().unwrap();
    let other = Config {
        relays: nothing.relays.replace("nosuch", "nosuch2"),
        ..Config::default()
    };
    other.write(rig.directory.path());
    let output = ask(&rig.site, &["reload", "--config", file]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let (report, _) = status(&rig.site);
    let alarm = warning(&report, "relay_set").unwrap();
    assert!(alarm.text.contains("/nosuch2/"), "{alarm:?}");
    crosses(&rig, false, "still no document");
    moved(&rig.running.stop().unwrap());
}

/// Neither the state file nor the log can be written.
#[test]
fn a_full_disk_stops_neither_the_box_nor_a_reload() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    silence(&site);
    let tor = Tor::with(&relays());
    let small = ["-t", "tmpfs", "-o", "size=8k,mode=755", "small", "/mnt"];
    site.middle.command("mount", &small).unwrap();
    site.middle.run(|| {
        let _ = fs::write("/mnt/full", vec![0; 1 << 16]);
        let refused = fs::write("/mnt/more", [0; 1]).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull);
        fs::remove_file("/mnt/more").unwrap();
    });
    let mut config = tor.config("");
    config.top = "mode = \"audit\"";
    let state = tor.directory.path().join("relays.state");
    config.relays = config
        .relays
        .replace(&state.display().to_string(), "/mnt/relays.state");
    let directory = tempfile::tempdir().unwrap();
    let configuration = config.write(directory.path());
    let mut command = contained("sh");
    command
        .args([
            "-c",
            "exec \"$0\" run --config \"$1\" 2> /dev/full",
            EXITMARK,
        ])
        .arg(&configuration);
    let running = RunningBox::start_by(&site.middle, command).unwrap();
    let rig = Rig {
        site,
        running,
        directory,
        configuration,
    };
    crosses(&rig, false, "audit");
    let full = |rig: &Rig| {
        let (report, _) = status(&rig.site);
        let warning = warning(&report, "state").unwrap_or_else(|| panic!("{report:?}"));
        assert!(warning.text.contains("/mnt/relays.state"), "{warning:?}");
        assert!(warning.text.contains("No space left"), "{warning:?}");
    };
    full(&rig);
    config.top = "";
    config.relays += "\nretain = \"5h\"";
    config.write(rig.directory.path());
    let file = rig.configuration.to_str().unwrap();
    let output = ask(&rig.site, &["reload", "--config", file]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    crosses(&rig, true, "enforce");
    full(&rig);
    // tor's disk is full too.
    replace(&tor.consensus(), b"");
    eventually("a warning", || {
        let (report, _) = status(&rig.site);
        match warning(&report, "relay_set_refused") {
            Some(_) => Ok(()),
            None => Err(LabError(format!("{:?}", report.warnings))),
        }
    });
    config.top = "mode = \"audit\"";
    config.relays += "\nextra = [\"198.51.100.1:9001\"]";
    config.write(rig.directory.path());
    let output = ask(&rig.site, &["reload", "--config", file]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    crosses(&rig, false, "audit again");
    moved(&rig.running.stop().unwrap());
}
