//! The client, against nobody and against those who are no box.

use super::*;
use caps::{CapSet, Capability};
use exitmark::control::ControlError;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::thread;

#[test]
fn nobody_there_is_said_with_the_place() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("control.sock");
    for _ in 0..2 {
        let error = Client::new(&path).status().unwrap_err().to_string();
        assert!(error.starts_with("no exitmark answers at"), "{error}");
        assert!(error.contains("control.sock") && error.contains("`control.socket`"));
        // The second time there is a socket, and nobody behind it.
        drop(UnixListener::bind(&path));
    }
}

#[test]
fn who_may_not_ask_is_told_who_may() {
    let rig = Rig::new(Puppet::default());
    fs::set_permissions(&rig.socket, Permissions::from_mode(0o000)).unwrap();
    // Even root must obey the mode without this; it is of the test's own thread.
    let _ = caps::drop(None, CapSet::Effective, Capability::CAP_DAC_OVERRIDE);
    let error = rig.client().status().unwrap_err();
    assert!(matches!(error, ControlError::Forbidden { .. }), "{error:?}");
    assert!(error.to_string().contains("may ask"), "{error}");
}

/// Somebody who answers everything with these bytes, again and again if they shall be endless.
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
fn others_than_a_box_are_recognised() {
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
    let error = Client::new(&path).capture(&CaptureRequest::default(), &mut out);
    assert!(
        matches!(error, Err(ControlError::Broken { .. })),
        "{error:?}"
    );
    assert_eq!(out, b"abcd");
}

#[test]
fn what_cannot_be_written_is_not_the_boxs_fault() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (part, receiver) = bounded(1);
    part.send(vec![1]).unwrap();
    let (give, captures) = bounded(1);
    give.send(receiver).unwrap();
    let rig = Rig::new(Puppet {
        captures: Some(captures),
        ..Puppet::default()
    });
    let error = rig.client().capture(&CaptureRequest::default(), &mut Full);
    assert!(matches!(error, Err(ControlError::Write(_))), "{error:?}");
}
