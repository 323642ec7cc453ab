//! The path, the permissions and the removal of the socket.

use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

fn settings(socket: impl Into<PathBuf>) -> ControlSettings {
    ControlSettings {
        socket: socket.into(),
        group: None,
        metrics: None,
    }
}

fn refusal(settings: &ControlSettings) -> String {
    Listeners::open(settings).unwrap_err().to_string()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_directory_is_created_and_the_socket_is_for_owner_and_group() {
    let directory = TempDir::new().unwrap();
    let run = directory.path().join("run");
    let socket = run.join("control.sock");
    let listeners = Listeners::open(&settings(&socket)).unwrap();
    assert_eq!(mode(&run), 0o755);
    assert_eq!(mode(&socket), 0o660);
    let server = listeners.serve(Arc::new(Puppet::default()), || {}).unwrap();
    drop(server);
    let left: Vec<_> = fs::read_dir(&run)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["control.sock.lock"]);
    assert_eq!(mode(&run.join("control.sock.lock")), 0o600);
}

#[test]
fn only_the_last_directory_is_created() {
    let directory = TempDir::new().unwrap();
    let error = refusal(&settings(directory.path().join("a/b/control.sock")));
    assert!(error.contains("install -d -m 755"), "{error}");
    assert!(!directory.path().join("a").exists());
    for odd in ["control.sock", "/", "/run/.."] {
        let error = refusal(&settings(odd));
        assert!(error.contains("absolute path"), "{error}");
    }
}

#[test]
fn a_path_too_long_for_a_socket_is_refused() {
    let directory = TempDir::new().unwrap();
    let long = directory.path().join("d".repeat(120)).join("control.sock");
    let error = refusal(&settings(&long));
    assert!(error.contains("cannot bind it"), "{error}");
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("control.sock");
    drop(UnixListener::bind(&socket).unwrap());
    let listeners = Listeners::open(&settings(&socket)).unwrap();
    let server = listeners.serve(Arc::new(Puppet::default()), || {}).unwrap();

    let error = refusal(&settings(&socket));
    assert!(error.contains("another exitmark answers at"), "{error}");
    assert!(error.contains("its own control.socket"), "{error}");
    Client::new(&socket).status().unwrap();
    drop(server);
    let again = Listeners::open(&settings(&socket)).unwrap();
    assert!(socket.exists());
    drop(again);
    assert!(!socket.exists(), "an unserved socket is removed");

    // A live socket of a process that does not use the lock.
    let foreign = UnixListener::bind(&socket).unwrap();
    let error = refusal(&settings(&socket));
    assert!(error.contains("another exitmark answers at"), "{error}");
    drop(foreign);
    Listeners::open(&settings(&socket)).unwrap();
}

#[test]
fn a_file_that_is_not_a_socket_stays() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("control.sock");
    fs::write(&file, "mine").unwrap();
    let error = refusal(&settings(&file));
    assert!(error.contains("is not a socket and stays"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    // A link to a socket is not a socket either.
    let socket = directory.path().join("other.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let link = directory.path().join("link.sock");
    std::os::unix::fs::symlink(&socket, &link).unwrap();
    assert!(refusal(&settings(&link)).contains("is not a socket"));
}

#[test]
fn only_its_own_socket_is_removed() {
    let mut rig = Rig::new(Puppet::default());
    fs::remove_file(&rig.socket).unwrap();
    fs::write(&rig.socket, "not yours").unwrap();
    rig.server = None;
    assert_eq!(fs::read_to_string(&rig.socket).unwrap(), "not yours");
}

#[test]
fn a_group_must_exist_and_gets_the_socket() {
    let directory = TempDir::new().unwrap();
    let mut settings = settings(directory.path().join("control.sock"));
    settings.group = Some("exitmark-nobody-has-this".to_owned());
    let error = refusal(&settings);
    let remedy = "groupadd --system exitmark-nobody";
    assert!(error.contains(remedy), "{error}");
    assert!(!settings.socket.exists());
    // A process may always assign its own group.
    let own = nix::unistd::getegid();
    let group = nix::unistd::Group::from_gid(own).unwrap().unwrap();
    settings.group = Some(group.name);
    let _listeners = Listeners::open(&settings).unwrap();
    let gid = std::os::unix::fs::MetadataExt::gid(&fs::metadata(&settings.socket).unwrap());
    assert_eq!(gid, own.as_raw());
}

#[test]
fn metrics_need_a_free_loopback_port() {
    let directory = TempDir::new().unwrap();
    let mut settings = settings(directory.path().join("control.sock"));
    for elsewhere in ["0.0.0.0:9100", "192.0.2.1:9100", "[::]:9100"] {
        settings.metrics = Some(elsewhere.parse().unwrap());
        let error = refusal(&settings);
        assert!(error.contains("not a loopback address"), "{error}");
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    settings.metrics = Some(address);
    let error = refusal(&settings);
    assert!(error.contains("metrics.listen"), "{error}");
    let command = format!("ss -ltnp 'sport = :{}'", address.port());
    assert!(error.contains(&command), "{error}");
    assert!(!settings.socket.exists());
}
