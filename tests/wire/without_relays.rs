//! The wire does not depend on the relay set: a box without one forwards everything unmarked,
//! raises an alarm, and marks once it has one.

use crate::reload::{Tor, listing, replace};
use crate::rig::{
    Config, EXITMARK, Rig, assert_says, classifies, detach, eventually, exitmark, needs_root,
    refused, silent,
};
use exitmark_box::observe::{Report, Warning};
use exitmark_lab::authorities::Authorities;
use exitmark_lab::contained;
use exitmark_lab::process::set_mode;
use exitmark_lab::site::{Plan, Site, relay_endpoints};
use std::fs;
use std::path::Path;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);
const PRIVATE: u32 = 0o700;

/// The report of `exitmark status`, and its exit status.
fn status(site: &Site) -> (Report, Option<i32>) {
    let output = exitmark(site, &["status", "--json"]);
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (report, output.status.code())
}

fn warning<'a>(report: &'a Report, kind: &str) -> Option<&'a Warning> {
    report.warnings.iter().find(|warning| warning.kind == kind)
}

#[track_caller]
fn assert_forwarded(rig: &Rig, is_enforced: bool, when: &str) {
    classifies(&rig.site, is_enforced, when);
}

/// Reloads the configuration, which succeeds.
#[track_caller]
fn reload(rig: &Rig, config: &Config) {
    config.write(rig.directory.path()).unwrap();
    let file = rig.configuration.to_str().unwrap();
    let output = exitmark(&rig.site, &["reload", "--config", file]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

fn mode(path: &Path, mode: u32) {
    set_mode(path, mode).unwrap();
}

/// A consensus with both families of the sent frames.
fn relays() -> exitmark_lab::consensus::ConsensusBuilder {
    let [v4, v6] = relay_endpoints();
    let mut builder = listing(v4);
    builder.listed.push(v6);
    builder
}

#[test]
fn without_any_document_all_is_forwarded_unmarked_until_there_is_one() {
    needs_root!();
    let tor = Tor::with(&relays());
    let good = fs::read(tor.consensus()).unwrap();
    let certificates = tor.directory.path().join("cached-certs");
    let tor_directory = tor.directory.path().to_owned();
    let state = tor_directory.join("relays.state");
    let write = |bytes: &[u8]| replace(&tor.consensus(), bytes);
    // How the files are damaged, and a part of the message.
    let remove = || fs::remove_file(tor.consensus()).unwrap();
    let replaced_by_a_directory = || {
        remove();
        fs::create_dir(tor.consensus()).unwrap();
    };
    let others = || write(relays().sign(&Authorities::family(1, 3)).as_bytes());
    let a_day_ahead = || {
        let mut builder = relays();
        builder.validity.valid_after += DAY;
        builder.validity.fresh_until += DAY;
        builder.validity.valid_until += DAY;
        tor.publish(&builder);
    };
    #[rustfmt::skip]
    let spoil: [(&str, &dyn Fn(), &str); 9] = [
        ("no file", &remove, "No such file"),
        ("no directory", &|| fs::remove_dir_all(&tor_directory).unwrap(), "No such file"),
        ("no certificates", &|| fs::remove_file(&certificates).unwrap(), "cached-certs"),
        ("not to be read", &|| mode(&tor_directory, PRIVATE), "Permission denied"),
        ("empty", &|| write(b""), "the file is empty"),
        ("cut", &|| write(&good[..good.len() / 2]), "cut off"),
        ("no regular file", &replaced_by_a_directory, "a directory"),
        ("signed by others", &others, "authorities that are known"),
        ("the clock is a day behind", &a_day_ahead, "set the clock"),
    ];
    let mut site = silent(Plan::default());
    // Each engine gets half of them.
    let engines = ["xdp", "af_xdp"].into_iter().cycle();
    for ((what, spoil, words), engine) in spoil.into_iter().zip(engines) {
        mode(&tor_directory, 0o777);
        spoil();
        let config = tor.config("").top("user = \"nobody\"").engine(engine);
        // A service whose unit does not grant this capability.
        let less = "-dac_read_search";
        let rig = Rig::by(site, &config, |_| {
            let mut command = contained("setpriv");
            command.args(["--bounding-set", less, "--inh-caps", less, "--", EXITMARK]);
            command
        });
        assert_forwarded(&rig, false, what);
        let (report, code) = status(&rig.site);
        let alarm = warning(&report, "relay_set").unwrap_or_else(|| panic!("{report:?}"));
        println!("{what}: {}", alarm.text);
        assert_eq!((alarm.is_alarm, code), (true, Some(1)), "{what}");
        assert_says(&alarm.text, &[words, "nothing is marked"]);
        assert!(report.relay_set.is_passing && report.relay_set.is_missing);
        rig.running.wait_log(&["ALARM: there is no relay set"]);
        assert!(!state.exists(), "{what}: no set to store");
        if tor.consensus().is_dir() {
            fs::remove_dir(tor.consensus()).unwrap();
        }
        fs::create_dir_all(&tor_directory).unwrap();
        mode(&tor_directory, 0o777);
        tor.publish(&relays());
        eventually("a set", || match status(&rig.site) {
            (report, Some(0)) if report.warnings.is_empty() => Ok(()),
            (report, code) => Err(format!("{what}: {code:?} {report:?}")),
        });
        assert_forwarded(&rig, true, what);
        site = rig.leave();
        detach(&site);
        fs::remove_file(&state).unwrap();
    }
}

/// A state file that is a day ahead of the clock is kept, and used once the clock is right.
#[test]
fn the_set_of_the_last_time_is_kept_until_the_clock_is_right() {
    needs_root!();
    let tor = Tor::with(&relays());
    let config = tor.config("");
    let rig = Rig::silent(Plan::default(), &config);
    assert_forwarded(&rig, true, "at first");
    let site = rig.leave();
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
    let rig = Rig::on(site, &config);
    assert_forwarded(&rig, false, "of the future");
    assert_eq!(fs::read(&state).unwrap(), future, "it is kept");
    replace(&state, &good);
    eventually("the set", || match rig.status().relay_set {
        set if set.is_missing => Err(format!("{set:?}")),
        _ => Ok(()),
    });
    assert_forwarded(&rig, true, "the clock is right");
    rig.stop();
}

#[test]
fn the_last_refusal_is_a_warning_at_once() {
    needs_root!();
    let tor = Tor::with(&relays());
    let config = tor.config("");
    let rig = Rig::silent(Plan::default(), &config);
    assert_eq!(rig.status().warnings, []);
    let warned = |rig: &Rig, words: &str| {
        eventually(words, || {
            let (report, code) = status(&rig.site);
            match warning(&report, "relay_set_refused") {
                Some(warning) if warning.text.contains(words) && code == Some(0) => Ok(()),
                _ => Err(format!("{code:?} {:?}", report.warnings)),
            }
        });
    };
    replace(&tor.consensus(), b"");
    warned(&rig, "the file is empty");
    assert_forwarded(&rig, true, "by the set before");
    // Over a restart, with the stored state.
    let rig = rig.restart(&config);
    warned(&rig, "the file is empty");
    assert_forwarded(&rig, true, "by the set of the last time");
    tor.publish(&relays());
    eventually("nothing to warn of", || match rig.status().warnings {
        warnings if warnings.is_empty() => Ok(()),
        warnings => Err(format!("{warnings:?}")),
    });
    rig.stop();
}

/// Errors in the configuration itself are still refused.
#[test]
fn an_unusable_relays_user_is_refused() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    let tor = Tor::with(&relays());
    for (more, words) in [
        ("user = \"nosuchuser\"", "relays.user = \"nosuchuser\""),
        ("user = \"root\"", "relays.user is root"),
    ] {
        assert_says(&refused(&site, &tor.config(more)), &[words]);
    }
}

#[test]
fn a_reload_needs_no_document_for_keys_independent_of_documents() {
    needs_root!();
    let tor = Tor::with(&relays());
    let rig = Rig::silent(Plan::default(), &tor.config(""));
    replace(&tor.consensus(), b"");
    let extra = "extra = [\"198.51.100.1:9001\"]\nretain = \"5h\"";
    reload(&rig, &tor.config(extra));
    assert_eq!(status(&rig.site).0.relay_set.extra, 1);
    assert_forwarded(&rig, true, "by the documents before");

    // Without a set in force, a missing document is not a reason to refuse another path.
    let nothing = |directory: &str| {
        let consensus = format!("consensus = [\"/{directory}/cached-consensus\"]");
        Config::default().relays(consensus + "\nstate = \"/run/relays.state\"")
    };
    let rig = rig.restart(&nothing("nosuch"));
    assert_forwarded(&rig, false, "no document");
    reload(&rig, &nothing("nosuch2"));
    let (report, _) = status(&rig.site);
    let alarm = warning(&report, "relay_set").unwrap();
    assert!(alarm.text.contains("/nosuch2/"), "{alarm:?}");
    assert_forwarded(&rig, false, "still no document");
    rig.stop();
}

/// Neither the state file nor the log can be written.
#[test]
fn a_full_disk_stops_neither_the_box_nor_a_reload() {
    needs_root!();
    let site = silent(Plan::default());
    let tor = Tor::with(&relays());
    let small = ["-t", "tmpfs", "-o", "size=8k,mode=755", "small", "/mnt"];
    site.middle.command("mount", &small).unwrap();
    site.middle.run(|| {
        let _ = fs::write("/mnt/full", vec![0; 1 << 16]);
        let refused = fs::write("/mnt/more", [0; 1]).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull);
        fs::remove_file("/mnt/more").unwrap();
    });
    let audit = "mode = \"audit\"\n";
    let mut config = tor.config("").top(audit);
    let state = tor.directory.path().join("relays.state");
    let state = state.display().to_string();
    config.relays = config.relays.replace(&state, "/mnt/relays.state");
    let rig = Rig::by(site, &config, |_| {
        let mut command = contained("sh");
        command.args(["-c", "exec \"$0\" \"$@\" 2> /dev/full", EXITMARK]);
        command
    });
    assert_forwarded(&rig, false, "audit");
    let full = |rig: &Rig| {
        let (report, _) = status(&rig.site);
        let warning = warning(&report, "state").unwrap_or_else(|| panic!("{report:?}"));
        assert_says(&warning.text, &["/mnt/relays.state", "No space left"]);
    };
    full(&rig);
    config.top.clear();
    config.relays += "\nretain = \"5h\"";
    reload(&rig, &config);
    assert_forwarded(&rig, true, "enforce");
    full(&rig);
    // tor's disk is full too.
    replace(&tor.consensus(), b"");
    rig.warning("relay_set_refused");
    config.top = audit.to_owned();
    config.relays += "\nextra = [\"198.51.100.1:9001\"]";
    reload(&rig, &config);
    assert_forwarded(&rig, false, "audit again");
    rig.stop();
}
