//! The documents of several tor instances, named by a pattern: the box follows instances that come
//! and go, and a bad document never holds the others back.

use crate::reload::{AUTHORITIES, Prober, REPLACED, Treatment, listing, relay, replace, servers};
use crate::rig::{Config, Rig, both_engines, eventually, exitmark};
use exitmark_box::observe::{Report, SourceState};
use exitmark_lab::consensus::hours_from;
use exitmark_lab::publish;
use exitmark_lab::site::Plan;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

const NAME: &str = "cached-microdesc-consensus";
const HOUR: Duration = Duration::from_secs(3600);

/// The instances of one directory, and the time of their first documents.
struct Instances {
    directory: TempDir,
    first: SystemTime,
}

impl Instances {
    /// Publishes a document of this instance, this many hours newer than the first.
    fn publish(&self, instance: &str, listed: IpAddr, hours: u32) -> PathBuf {
        let directory = self.directory.path().join(instance);
        fs::create_dir_all(&directory).unwrap();
        let mut builder = listing(relay(listed));
        builder.validity = hours_from(self.first + HOUR * hours, [0, 2, 3]);
        publish(&directory, NAME, &builder, &AUTHORITIES).unwrap()
    }

    fn remove(&self, instance: &str) {
        fs::remove_dir_all(self.directory.path().join(instance)).unwrap();
    }

    /// A box that follows them, and `more` sources.
    fn config(&self, more: &str) -> Config {
        let directory = self.directory.path().display();
        Config::default().relays(format!(
            "consensus = [\"{directory}/*/{NAME}\"{more}]\n{}\nstate = \"{directory}/relays.state\"",
            AUTHORITIES.toml(),
        ))
    }
}

/// The instances, their states, and whether they are refused.
fn sources(report: &Report) -> Vec<(String, SourceState, bool)> {
    let sources = report.relay_set.sources.iter();
    sources
        .map(|source| {
            let directory = Path::new(&source.path).parent().unwrap();
            let name = directory.file_name().unwrap().to_str().unwrap();
            (name.to_owned(), source.state, source.refusal.is_some())
        })
        .collect()
}

/// Waits until the status has these sources, and returns its warnings.
#[track_caller]
fn has(rig: &Rig, expected: &[(&str, SourceState, bool)]) -> Vec<String> {
    let of =
        |(name, state, refused): &(&str, SourceState, bool)| ((*name).to_owned(), *state, *refused);
    let expected: Vec<_> = expected.iter().map(of).collect();
    eventually("the sources", || match sources(&rig.status()) {
        found if found == expected => Ok(()),
        found => Err(format!("{found:?} instead of {expected:?}")),
    });
    let warnings = rig.status().warnings.into_iter();
    let refused = warnings.filter(|warning| warning.kind == "relay_set_refused");
    refused.map(|warning| warning.text).collect()
}

#[test]
fn instances_are_followed_and_a_bad_document_holds_none_back() {
    both_engines(|| {
        use SourceState::{InForce, Older, Refused};
        let [first, second] = servers();
        let instances = Instances {
            directory: tempfile::tempdir().unwrap(),
            first: SystemTime::now() - HOUR,
        };
        instances.publish("a", first, 0);
        let usual = instances.config("");
        let rig = Rig::silent(Plan::default(), &usual);
        let mut prober = Prober::new(&rig);
        prober.expect(first, Treatment::Steered, "the first instance");
        prober.expect(second, Treatment::Marked, "not listed");
        assert_eq!(has(&rig, &[("a", InForce, false)]), [""; 0]);

        // An instance comes, with a newer document.
        let newest = instances.publish("b", second, 1);
        rig.said(REPLACED, 1..=1);
        prober.expect(first, Treatment::Steered, "remembered");
        prober.expect(second, Treatment::Steered, "the newest");
        assert_eq!(
            has(&rig, &[("a", Older, false), ("b", InForce, false)]),
            [""; 0]
        );

        // One comes that is bad.
        let bad = instances.directory.path().join("c");
        fs::create_dir(&bad).unwrap();
        replace(&bad.join(NAME), b"");
        let with_bad = [
            ("a", Older, false),
            ("b", InForce, false),
            ("c", Refused, true),
        ];
        let [warning] = has(&rig, &with_bad).try_into().unwrap();
        assert!(warning.contains("/c/cached-certs"), "{warning}");
        rig.said("the others are used", 1..=1);
        // It does not hold the next document back, and is not logged again.
        instances.publish("a", first, 1);
        has(
            &rig,
            &[
                ("a", InForce, false),
                ("b", InForce, false),
                ("c", Refused, true),
            ],
        );
        rig.said("the others are used", 1..=1);

        // A set was accepted at each load.
        assert_eq!(rig.status().relay_set.refused, 0);

        // The newest documents go or turn bad: the set stays, also over a restart.
        instances.remove("a");
        has(&rig, &[("b", InForce, false), ("c", Refused, true)]);
        instances.remove("c");
        assert_eq!(has(&rig, &[("b", InForce, false)]), [""; 0]);
        replace(&newest, b"x");
        let kept = [("b", InForce, true)];
        let [warning] = has(&rig, &kept).try_into().unwrap();
        assert!(
            warning.contains("the previous set stays in force"),
            "{warning}"
        );
        assert!(rig.status().relay_set.refused > 0);
        prober.expect(second, Treatment::Steered, "by the set before");
        prober.check();
        let rig = rig.restart(&usual);
        let mut prober = Prober::new(&rig);
        has(&rig, &kept);
        prober.expect(first, Treatment::Steered, "of the last time");
        prober.expect(second, Treatment::Steered, "of the last time");

        // A reload with a source that does not exist, which is refused alone.
        instances.publish("b", second, 1);
        let more = instances.config(", \"/nosuch/cached-consensus\"");
        more.write(rig.directory.path()).unwrap();
        let file = rig.configuration.to_str().unwrap();
        let output = exitmark(&rig.site, &["reload", "--config", file]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let found = has(&rig, &[("b", InForce, false), ("nosuch", Refused, true)]);
        let [warning] = found.try_into().unwrap();
        assert!(warning.contains("/nosuch/cached-consensus"), "{warning}");
        prober.expect(first, Treatment::Steered, "remembered");
        prober.expect(second, Treatment::Steered, "in force");
        prober.check();
        rig.stop();
    });
}
