//! The same programs make the same packages. `make deb-reproducible` compares whole builds; this is
//! the part of `dist/deb`.

use crate::build;
use exitmark_lab::is_installed;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// What `dist/deb` packages, and the manifests that cargo needs for the list of linked crates.
const SOURCES: [&str; 11] = [
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "README.md",
    "SECURITY.md",
    "benches",
    "bpf",
    "dist",
    "docs",
    "src",
    "tests",
];

#[test]
fn packages_depend_on_neither_directory_nor_umask_nor_time_zone() {
    if !is_installed("dh") || !is_installed("python3") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let [programs, manual] = ["programs", "manual"].map(|name| directory.path().join(name));
    fs::create_dir(&programs).unwrap();
    for name in ["exitmark", "exitmark-demo", "exitmark-monitor"] {
        // Any program will do, and a small one is quickly stripped.
        fs::copy("/bin/true", programs.join(name)).unwrap();
    }
    build::write_manual(&manual);
    let pack = |place: &str, umask: &str, zone: &str| {
        let place = directory.path().join(place);
        copy_sources(&place);
        let out = place.join("out");
        let output = Command::new("sh")
            .args(["-c", "umask $0 && exec \"$@\"", umask])
            .arg(place.join("dist/deb"))
            .args([&programs, &manual, &out])
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .env("TZ", zone)
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words}");
        packages(&out)
    };
    let first = pack("first", "022", "UTC");
    let second = pack("in/a/longer/directory", "077", "NPT-5:45");
    assert_eq!(first.len(), 2);
    assert!(first.keys().eq(second.keys()));
    for (name, bytes) in &first {
        // Not by assert_eq, which prints both.
        assert!(*bytes == second[name], "two packages {name} differ");
    }
}

fn copy_sources(to: &Path) {
    fs::create_dir_all(to).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let copied = Command::new("cp")
        .arg("-R")
        .args(SOURCES.map(|name| root.join(name)))
        .arg(to)
        .status();
    assert!(copied.unwrap().success());
}

fn packages(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    (fs::read_dir(directory).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "deb"))
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(path).unwrap())
        })
        .collect()
}
