//! Builds packages of the programs that the tests were built with.

#[path = "../../src/tools/manual/pages/mod.rs"]
mod pages;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use tempfile::TempDir;

const EXITMARK: &str = env!("CARGO_BIN_EXE_exitmark");
const MONITOR: &str = env!("CARGO_BIN_EXE_exitmark-monitor");
/// The version of the second packages.
pub(crate) const SECOND: &str = concat!(env!("CARGO_PKG_VERSION"), "+1");

/// The packages of the two programs, and their successors.
pub(crate) struct Packages {
    pub(crate) first: Vec<PathBuf>,
    pub(crate) second: Vec<PathBuf>,
    _directory: TempDir,
}

impl Packages {
    pub(crate) fn build() -> Self {
        let directory = TempDir::new().unwrap();
        let manual = directory.path().join("manual");
        write_manual(&manual);
        let pack = |version| pack(&manual, &directory.path().join(version), version);
        let (first, second) = thread::scope(|scope| {
            let second = scope.spawn(|| pack(SECOND));
            (pack(env!("CARGO_PKG_VERSION")), second.join().unwrap())
        });
        Self {
            first,
            second,
            _directory: directory,
        }
    }
}

/// Writes the manual, as `make deb` does.
pub(crate) fn write_manual(directory: &Path) {
    pages::write(directory).unwrap();
}

/// The directory of the programs that cargo built with this test.
pub(crate) fn programs() -> &'static Path {
    let programs = Path::new(EXITMARK).parent().unwrap();
    assert_eq!(Path::new(MONITOR).parent().unwrap(), programs);
    let demo = programs.join("exitmark-demo");
    let name = demo.display();
    assert!(demo.exists(), "there is no {name}: `cargo build`");
    programs
}

fn pack(manual: &Path, out: &Path, version: &str) -> Vec<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/deb");
    let output = Command::new(script)
        .args([programs(), manual, out])
        .arg(version)
        // Compression is not worth it: each package is read once, from memory.
        .env("DPKG_DEB_COMPRESSOR_TYPE", "none")
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
    let paths = String::from_utf8(output.stdout).unwrap();
    let paths: Vec<_> = paths.lines().map(PathBuf::from).collect();
    assert_eq!(paths.len(), 2, "{paths:?}");
    paths
}
