//! Identities: data directories, the relays' fingerprints, and the keys of the authorities.

use crate::ground::{DIR_PORT, Dual, OR_PORT};
use crate::network::{COMMON, listening};
use std::fs;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Creates a directory with mode 0700, which tor requires.
pub(crate) fn make_private(path: &Path) {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path).unwrap();
}

/// The identity of the relay with this data directory.
pub(crate) fn fingerprint(directory: &Path) -> String {
    let text = fs::read_to_string(directory.join("fingerprint")).unwrap();
    text.split_whitespace().nth(1).unwrap().to_owned()
}

/// Creates the keys of an authority. Returns its `DirAuthority` line, and the fingerprint of its
/// identity key.
pub(crate) fn authority(
    directory: &Path,
    name: &str,
    address: Dual,
    role: &str,
) -> (String, String) {
    let own = directory.join(name);
    let keys = own.join("keys");
    make_private(&own);
    make_private(&keys);
    let mut generator = Command::new("tor-gencert")
        .args(["--create-identity-key", "--passphrase-fd", "0", "-m", "1"])
        .args(["-a", &format!("{}:{DIR_PORT}", address.v4)])
        .current_dir(&keys)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    generator.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(generator.wait().unwrap().success(), "tor-gencert failed");
    let certificate = fs::read_to_string(keys.join("authority_certificate")).unwrap();
    let identity = certificate
        .lines()
        .find_map(|line| line.strip_prefix("fingerprint "))
        .unwrap()
        .to_owned();

    // tor creates the relay's own key when its fingerprint is requested. This requires a complete
    // configuration, so it gets a nonexistent authority.
    let nobody = "A".repeat(40);
    let torrc = directory.join(format!("{name}.torrc"));
    let text = format!(
        "{COMMON}{}DataDirectory {}\n{role}\
         DirAuthority nobody orport=1 v3ident={nobody} {}:1 {nobody}\n",
        listening(name, address),
        own.display(),
        address.v4
    );
    fs::write(&torrc, text).unwrap();
    let status = Command::new("tor")
        .args(["--list-fingerprint", "--hush", "--defaults-torrc"])
        .arg(directory.join("defaults"))
        .arg("-f")
        .arg(&torrc)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "tor --list-fingerprint failed");
    let line = format!(
        "DirAuthority {name} orport={OR_PORT} v3ident={identity} {}:{DIR_PORT} {}\n",
        address.v4,
        fingerprint(&own)
    );
    (line, identity)
}
