//! `dist/sbom`: each package's list of what is linked into its programs.

use crate::build;
use exitmark_lab::is_installed;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

const EPOCH: &str = "1700000000";
const VERSION: &str = "9.8+x";

/// The components of a list, by their names and versions joined by a dash, as in the names of the
/// directories of crates.
fn components(list: &Value) -> BTreeMap<String, &Value> {
    let all = list["components"].as_array().unwrap();
    let text = |one: &Value, key: &str| one[key].as_str().unwrap().to_owned();
    let named = |one| {
        (
            format!("{}-{}", text(one, "name"), text(one, "version")),
            one,
        )
    };
    all.iter().map(named).collect()
}

/// The crates whose sources a program names: in the positions of its panics.
fn named_by(program: &Path) -> BTreeSet<String> {
    let bytes = fs::read(program).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    let after = text.split("/registry/src/").skip(1);
    let found: BTreeSet<_> = after
        .filter_map(|rest| rest.split('/').nth(1))
        .map(str::to_owned)
        .collect();
    let program = program.display();
    assert!(found.len() > 20, "{program} names few crates: {found:?}");
    found
}

#[test]
fn each_package_lists_what_its_programs_contain() {
    if !is_installed("python3") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(root.join("dist/sbom"))
        .arg(VERSION)
        .arg(directory.path())
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");

    let lock: toml::Table = (fs::read_to_string(root.join("Cargo.lock")).unwrap())
        .parse()
        .unwrap();
    let locked: BTreeMap<_, _> = (lock["package"].as_array().unwrap().iter())
        .map(|one| {
            let text = |key: &str| one[key].as_str().unwrap();
            (format!("{}-{}", text("name"), text("version")), one)
        })
        .collect();

    for (package, programs, own, foreign) in [
        (
            "exitmark",
            &["exitmark", "exitmark-demo"][..],
            ["exitmark-datapath", "tor-netdoc", "etherparse"],
            ["exitmark-monitor", "maxminddb", "plotters"],
        ),
        (
            "exitmark-monitor",
            &["exitmark-monitor"][..],
            ["exitmark-monitor", "maxminddb", "tor-geoip"],
            ["exitmark-datapath", "tor-netdoc", "exitmark-lab"],
        ),
    ] {
        let path = directory.path().join(format!("{package}.cdx.json"));
        let list: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let metadata = &list["metadata"];
        assert_eq!(metadata["component"]["name"], package);
        assert_eq!(metadata["component"]["version"], VERSION);
        assert_eq!(metadata["timestamp"], "2023-11-14T22:13:20Z");

        let components = components(&list);
        for program in programs {
            for name in named_by(&build::programs().join(program)) {
                let is_listed = components.contains_key(&name);
                assert!(is_listed, "{name} is in {program}, and not in its list");
            }
        }
        let names: BTreeSet<_> = (components.values())
            .map(|one| one["name"].as_str().unwrap())
            .collect();
        for name in [&own[..], &["libbpf", "libxdp", "rust-std"]].concat() {
            assert!(names.contains(name), "{package}: no {name}");
        }
        // Neither the other program, nor what only runs at build time.
        for name in [&foreign[..], &["serde_derive", "libbpf-cargo", "bindgen"]].concat() {
            assert!(!names.contains(name), "{package}: {name}");
        }
        for (name, one) in &components {
            assert!(one["licenses"][0]["expression"].is_string(), "{name}");
            let checksum = locked.get(name).and_then(|crate_| crate_.get("checksum"));
            let listed = one["hashes"][0]["content"].as_str();
            assert_eq!(listed, checksum.and_then(toml::Value::as_str), "{name}");
        }
        assert_all_connected(&list);
    }
}

/// Fails unless the package depends on every component, directly or by others.
fn assert_all_connected(list: &Value) {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let edges: BTreeMap<_, _> = (list["dependencies"].as_array().unwrap().iter())
        .map(|one| (text(&one["ref"]), one["dependsOn"].as_array().unwrap()))
        .collect();
    let mut reached = BTreeSet::new();
    let mut waiting = vec![text(&list["metadata"]["component"]["bom-ref"])];
    while let Some(reference) = waiting.pop() {
        let on = edges.get(&reference).copied();
        if reached.insert(reference) {
            waiting.extend(on.into_iter().flatten().map(text));
        }
    }
    for one in list["components"].as_array().unwrap() {
        let reference = text(&one["bom-ref"]);
        assert!(reached.contains(&reference), "{reference} is unconnected");
    }
}
