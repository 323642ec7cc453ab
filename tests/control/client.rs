//! The client without a server, and with servers that are not a box.

use super::*;
use caps::{CapSet, Capability};
use exitmark_box::control::ControlError;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::thread;

#[test]
fn a_missing_server_is_reported_with_the_path() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("control.sock");
    for _ in 0..2 {
        let error = Client::new(&path).status().unwrap_err().to_string();
        assert!(error.starts_with("no exitmark answers at"), "{error}");
        assert!(error.contains("control.sock") && error.contains("`control.socket`"));
        // The second time the socket exists, but no process listens.
        drop(UnixListener::bind(&path));
    }
}

#[test]
fn permission_denied_names_the_users_with_access() {
    let rig = Rig::new(Puppet::default());
    fs::set_permissions(&rig.socket, Permissions::from_mode(0o000)).unwrap();
    // Without this capability root must obey the mode, too. Only this thread drops it.
    let _ = caps::drop(None, CapSet::Effective, Capability::CAP_DAC_OVERRIDE);
    let error = rig.client().status().unwrap_err();
    assert!(matches!(error, ControlError::Forbidden { .. }), "{error:?}");
    assert!(error.to_string().contains("access"), "{error}");
}

/// A server that answers everything with these bytes, repeated endlessly if `is_endless`.
fn foreign(answer: &'static [u8], is_endless: bool) -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("control.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut question = [0; 4096];
            let _ = stream.read(&mut question).unwrap();
            while stream.write_all(answer).is_ok() && is_endless {}
        }
    });
    (directory, path)
}

#[test]
fn answers_of_other_servers_are_errors() {
    for (answer, is_endless) in [
        (&b"220 mail.example ESMTP\r\n"[..], false),
        (b"", false),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n[1]", false),
        (
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            false,
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n                    ", true),
        (b"x-header: again and again\r\n", true),
    ] {
        let (_directory, path) = foreign(answer, is_endless);
        let error = Client::new(&path).status().unwrap_err();
        assert!(matches!(error, ControlError::Broken { .. }), "{error:?}");
    }
}

#[test]
fn a_capture_that_breaks_off_is_an_error() {
    let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n";
    let (_directory, path) = foreign(answer, false);
    let mut out = Vec::new();
    let (client, request) = (Client::new(&path), CaptureRequest::default());
    let error = client.capture(&request, &mut out).unwrap_err();
    assert!(matches!(error, ControlError::Broken { .. }), "{error:?}");
    assert_eq!(out, b"abcd");
}

#[test]
fn a_failed_write_of_a_capture_is_a_write_error() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (rig, part) = Rig::capturing(1);
    part.send(vec![1]).unwrap();
    let error = rig.client().capture(&CaptureRequest::default(), &mut Full);
    assert!(matches!(error, Err(ControlError::Write(_))), "{error:?}");
}
