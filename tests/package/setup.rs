//! The Debian packages that a target of the Makefile installs first. Nothing is installed here.

use std::collections::BTreeSet;
use std::process::Command;

/// The packages of all set-ups of a target.
fn installed_by(target: &str) -> BTreeSet<String> {
    let output = Command::new("make")
        .args(["-n", target])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // Do not inherit the flags of a make that runs the tests.
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lists = text.split("for p in ").skip(1);
    let lists = lists.map(|rest| rest.split_once(';').unwrap().0);
    let found: BTreeSet<_> = (lists.flat_map(str::split_whitespace))
        .map(str::to_owned)
        .collect();
    assert!(found.contains("clang"), "make {target}: {found:?}");
    found
}

#[test]
fn the_demo_and_the_packages_install_only_what_they_need() {
    let [demo, packages, tests] = ["demo", "deb", "test"].map(installed_by);
    for name in ["iproute2", "ethtool", "tcpdump", "util-linux"] {
        assert!(demo.contains(name), "the demo runs a program of {name}");
    }
    assert!(packages.contains("debhelper"));
    assert!(demo.is_subset(&tests) && packages.is_subset(&tests));
    let of_tests = [
        "tor",
        "postgresql",
        "tshark",
        "chromium-headless-shell",
        "systemd",
    ];
    for name in of_tests {
        assert!(tests.contains(name), "{name} is not for the tests any more");
        assert!(!demo.contains(name), "the demo does not run {name}");
        assert!(!packages.contains(name), "packaging does not run {name}");
    }
    assert!(!demo.contains("debhelper"));
}
