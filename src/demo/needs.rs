//! The demo's prerequisites, checked before anything is created.

use super::DemoError;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Programs that the lab runs, their purpose, and their Debian packages.
const PROGRAMS: [(&str, &str, &str); 4] = [
    ("ip", "creates links and addresses", "iproute2"),
    ("ethtool", "sets offloads", "ethtool"),
    ("tcpdump", "captures frames", "tcpdump"),
    ("setpriv", "ends processes with their parent", "util-linux"),
];

/// Fails with the first prerequisite that is missing.
pub(super) fn check() -> Result<(), DemoError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(DemoError::NotRoot);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    for (program, purpose, package) in PROGRAMS {
        let mut places = std::env::split_paths(&path);
        if !places.any(|directory| is_executable(&directory.join(program))) {
            return Err(DemoError::Missing {
                program,
                purpose,
                package,
            });
        }
    }
    Ok(())
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}
