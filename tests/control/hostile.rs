//! Clients that send invalid, slow or too many requests, or disconnect.

use super::*;
use crossbeam::channel::TrySendError;
use std::net::TcpStream;
use std::thread;
use std::time::Instant;

/// Asserts that the connection was closed without an answer, or with a status that begins so.
fn assert_refused(answer: &str, status: &str) {
    let is_refusal = answer.starts_with(&format!("HTTP/1.1 {status}"));
    assert!(answer.is_empty() || is_refusal, "{answer}");
}

#[test]
fn rubbish_is_refused_and_the_server_goes_on() {
    let rig = Rig::new(Puppet::default());
    for rubbish in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        &[0; 20_000],
    ] {
        assert_refused(&rig.say(rubbish), "4");
    }
    rig.client().status().unwrap();
}

#[test]
fn a_giant_head_is_refused() {
    let rig = Rig::new(Puppet::default());
    let long = "x".repeat(100_000);
    let giant = format!("GET /v1/status HTTP/1.1\r\nx: {long}\r\n\r\n");
    assert_refused(&rig.say(giant.as_bytes()), "431");
    // A head that never ends is cut off, too.
    let mut stream = rig.connect();
    let line = [b'x'; 4096];
    while stream.write_all(&line).is_ok() {}
    rig.client().status().unwrap();
}

#[test]
fn a_slow_head_is_cut_off() {
    let rig = Rig::new(Puppet::default());
    assert_eq!(rig.say(b"GET /v1/status HTTP/1.1\r\nhost: "), "");
    rig.client().status().unwrap();
}

#[test]
fn a_giant_body_is_refused_and_one_that_never_ends_too() {
    let (calls, called) = unbounded();
    let rig = Rig::new(Puppet {
        calls: Some(calls),
        ..Puppet::default()
    });
    let answer = rig.ask("POST", "/v1/capture", &" ".repeat(100_000));
    assert_refused(&answer, "413");
    let mut chunked = rig.connect();
    chunked
        .write_all(b"POST /v1/capture HTTP/1.1\r\nhost: box\r\ntransfer-encoding: chunked\r\n\r\n")
        .unwrap();
    let chunk = format!("1000\r\n{}\r\n", " ".repeat(4096));
    while chunked.write_all(chunk.as_bytes()).is_ok() {}
    let answer =
        rig.say(b"POST /v1/capture HTTP/1.1\r\nhost: box\r\ncontent-length: 40\r\n\r\n{\"frames\"");
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(called.is_empty());
}

#[test]
fn silent_connections_do_not_block_others() {
    let rig = Rig::new(Puppet::default());
    let silent: Vec<_> = (0..20).map(|_| rig.connect()).collect();
    rig.client().status().unwrap();
    drop(silent);
}

#[test]
fn sixteen_requests_are_served_at_a_time() {
    let (calls, called) = unbounded();
    let (say, reports) = unbounded();
    let rig = Rig::new(Puppet {
        calls: Some(calls),
        reports: Some(reports),
        ..Puppet::default()
    });
    let question = b"GET /v1/status HTTP/1.1\r\nhost: box\r\nconnection: close\r\n\r\n";
    let mut clients: Vec<_> = (0..24)
        .map(|_| {
            let mut stream = rig.connect();
            stream.write_all(question).unwrap();
            stream
        })
        .collect();
    for _ in 0..16 {
        called.recv_timeout(LONG).unwrap();
    }
    // A seventeenth would arrive as quickly as the others did.
    assert!(called.recv_timeout(Duration::from_millis(300)).is_err());
    for _ in 0..24 {
        say.send(()).unwrap();
    }
    for stream in &mut clients {
        assert!(rest(stream).starts_with("HTTP/1.1 200"));
    }
}

const CAPTURE: &[u8] = b"POST /v1/capture HTTP/1.1\r\nhost: box\r\ncontent-length: 2\r\n\r\n{}";

fn assert_begins(stream: &mut impl Read) {
    let mut begun = [0; 12];
    stream.read_exact(&mut begun).unwrap();
    assert_eq!(&begun, b"HTTP/1.1 200");
}

/// Sends until the receiver is dropped, whether or not it takes anything.
fn until_dropped(part: &Sender<Vec<u8>>, bytes: usize) {
    let begun = Instant::now();
    loop {
        match part.try_send(vec![0; bytes]) {
            Err(TrySendError::Disconnected(_)) => return,
            Ok(()) | Err(TrySendError::Full(_)) => {}
        }
        assert!(begun.elapsed() < LONG, "the capture was not dropped");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_capture_ends_when_its_client_disconnects() {
    let (rig, part) = Rig::capturing(1);
    let mut stream = rig.connect();
    stream.write_all(CAPTURE).unwrap();
    part.send(vec![1; 1000]).unwrap();
    assert_begins(&mut stream);
    drop(stream);
    until_dropped(&part, 1000);
    rig.client().status().unwrap();
}

#[test]
fn a_client_that_does_not_read_its_capture_blocks_no_other_and_is_cut_off() {
    let (rig, part) = Rig::capturing(4);
    let mut dead = rig.connect();
    dead.write_all(CAPTURE).unwrap();
    let filling = thread::spawn(move || until_dropped(&part, 64 << 10));
    for _ in 0..10 {
        rig.client().status().unwrap();
    }
    filling.join().unwrap();
    drop(dead);
}

#[test]
fn a_server_stops_during_a_capture() {
    let (mut rig, part) = Rig::capturing(4);
    let mut reading = rig.connect();
    reading.write_all(CAPTURE).unwrap();
    part.send(vec![1; 10]).unwrap();
    assert_begins(&mut reading);
    rig.server = None;
    assert!(!rig.socket.exists());
    until_dropped(&part, 10);
    rest(&mut reading);
}

/// A connection to the metrics port.
fn at_metrics(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// Connections are held open silently, after half a request, or after an answer. The next request
/// is answered all the same, without waiting for the timeout of a request's head.
#[test]
fn held_connections_do_not_block_the_metrics() {
    let address = free_address();
    let rig = Rig::with_metrics(Puppet::default(), Some(address));
    let whole = &b"GET /metrics HTTP/1.1\r\nhost: box\r\n\r\n"[..];
    for held in [&b""[..], b"GET /met", whole] {
        let mut holding = Vec::new();
        for _ in 0..200 {
            let mut stream = at_metrics(address);
            stream.write_all(held).unwrap();
            holding.push(stream);
        }
        let mut client = at_metrics(address);
        client.write_all(whole).unwrap();
        assert_begins(&mut client);
        // The first one was closed for it, before its five seconds were over.
        let mut first = Vec::new();
        let _ = holding[0].read_to_end(&mut first);
        assert_eq!(first.starts_with(b"HTTP/1.1 200"), held == whole);
        let is_late = first.starts_with(b"HTTP/1.1 4");
        assert!(!is_late, "its time did not run out");
    }
    drop(rig);
}

/// A request in progress is not aborted for silent connections.
#[test]
fn metrics_in_progress_are_not_interrupted() {
    let address = free_address();
    let (calls, called) = unbounded();
    let (say, reports) = unbounded();
    let puppet = Puppet {
        calls: Some(calls),
        reports: Some(reports),
        ..Puppet::default()
    };
    let rig = Rig::with_metrics(puppet, Some(address));
    let mut client = at_metrics(address);
    client
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: box\r\nconnection: close\r\n\r\n")
        .unwrap();
    called.recv_timeout(LONG).unwrap();
    let silent: Vec<_> = (0..100).map(|_| at_metrics(address)).collect();
    // Enough of them were accepted that the oldest was closed.
    let mut first = &silent[0];
    assert!(matches!(first.read(&mut [0]), Ok(0) | Err(_)));
    say.send(()).unwrap();
    assert!(rest(&mut client).starts_with("HTTP/1.1 200"));
    drop(rig);
}
