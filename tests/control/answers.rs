//! The server's answers to valid requests.

use super::*;
use exitmark_box::control::ControlError;
use std::net::TcpStream;
use std::thread;

#[test]
fn status_is_the_whole_report_and_exact() {
    let rig = Rig::new(Puppet::default());
    let report = rig.client().status().unwrap();
    assert_eq!(report.version, "1.2.3");
    assert_eq!(report.generation, u64::MAX);
    let answer = rig.ask("GET", "/v1/status", "");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let kind = "content-type: application/json";
    assert!(answer.contains(kind), "{answer}");
    assert!(answer.contains(&format!("\"generation\":{}", u64::MAX)));
}

#[test]
fn metrics_have_the_openmetrics_content_type() {
    let rig = Rig::new(Puppet::default());
    let answer = rig.ask("GET", "/metrics", "");
    let kind = "content-type: application/openmetrics-text; version=1.0.0";
    assert!(answer.contains(kind), "{answer}");
    assert!(answer.ends_with("# EOF\n"), "{answer}");
    assert!(rig.client().metrics().unwrap().ends_with("# EOF\n"));
}

#[test]
fn several_requests_share_one_connection() {
    let rig = Rig::new(Puppet::default());
    let question = "GET /v1/status HTTP/1.1\r\nhost: box\r\n\r\n";
    let last = "GET /v1/status HTTP/1.1\r\nhost: box\r\nconnection: close\r\n\r\n";
    let answers = rig.say(format!("{question}{question}{last}").as_bytes());
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 3, "{answers}");
}

#[test]
fn unknown_routes_are_answered_with_the_known_ones() {
    let rig = Rig::new(Puppet::default());
    for (method, path, status) in [
        ("GET", "/", "404"),
        ("GET", "/v1/reload", "405"),
        ("GET", "/v1/capture", "405"),
        ("POST", "/v1/status", "405"),
        ("DELETE", "/metrics", "405"),
    ] {
        let answer = rig.ask(method, path, "");
        let begin = format!("HTTP/1.1 {status}");
        assert!(answer.starts_with(&begin), "{answer}");
        for route in ["GET /v1/status", "POST /v1/reload", "POST /v1/capture"] {
            assert!(answer.contains(route), "{answer}");
        }
        assert_eq!(answer.contains("allow: "), status == "405", "{answer}");
    }
}

#[test]
fn a_reload_reports_what_changed_or_why_nothing_did() {
    let rig = Rig::new(Puppet::default());
    match rig.client().reload() {
        Err(ControlError::Refused(reason)) => assert_eq!(reason, "mark.dscp: 77 is no DSCP"),
        other => panic!("{other:?}"),
    }
    let answer = rig.ask("POST", "/v1/reload", "");
    assert!(answer.starts_with("HTTP/1.1 409"));

    let (say, reloads) = bounded(1);
    let reloaded = Reloaded {
        generation: 7,
        changed: vec!["mark.dscp".to_owned()],
    };
    say.send(Ok(reloaded.clone())).unwrap();
    let rig = Rig::reloading(reloads);
    assert_eq!(rig.client().reload().unwrap(), reloaded);
}

#[test]
fn the_box_answers_while_it_reloads_and_reloads_once_at_a_time() {
    let (calls, called) = unbounded();
    let (say, reloads) = bounded(1);
    let rig = Rig::new(Puppet {
        calls: Some(calls),
        reloads: Some(reloads),
        ..Puppet::default()
    });
    let client = rig.client();
    let reload = thread::spawn(move || client.reload());
    assert_eq!(called.recv_timeout(LONG).unwrap(), "reload");
    rig.client().status().unwrap();
    match rig.client().reload() {
        Err(ControlError::Refused(reason)) => assert!(reason.contains("under way"), "{reason}"),
        other => panic!("{other:?}"),
    }
    say.send(Ok(Reloaded::default())).unwrap();
    reload.join().unwrap().unwrap();
}

#[test]
fn a_capture_is_transferred_completely() {
    let (rig, part) = Rig::capturing(256);
    let parts = thread::spawn(move || {
        for number in 0..=255 {
            part.send(vec![number; 4000]).unwrap();
        }
    });
    let mut out = Vec::new();
    let written = rig.client().capture(&CaptureRequest::default(), &mut out);
    parts.join().unwrap();
    assert_eq!(written.unwrap(), 256 * 4000);
    let expected: Vec<u8> = (0..=255).flat_map(|number| [number; 4000]).collect();
    assert!(out == expected);
}

#[test]
fn a_capture_is_refused_with_the_reason() {
    let rig = Rig::new(Puppet::default());
    let mut out = Vec::new();
    match rig.client().capture(&CaptureRequest::default(), &mut out) {
        Err(ControlError::Refused(reason)) => assert_eq!(reason, "the box is stopping"),
        other => panic!("{other:?}"),
    }
    for (request, word) in [
        ("", "JSON"),
        ("{\"frame\":1}", "unknown field"),
        ("{\"frames\":0}", "frames is 0; give 1 to 1000000"),
        ("{\"frames\":1000001}", "give 1 to 1000000"),
        ("{\"seconds\":3601}", "give 1 to 3600"),
        ("{\"one_in\":3}", "a power of two"),
        ("{\"one_in\":0}", "a power of two"),
        ("{\"one_in\":131072}", "a power of two"),
    ] {
        let answer = rig.ask("POST", "/v1/capture", request);
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(answer.contains(word), "{answer}");
    }
    let too_many = CaptureRequest {
        frames: 0,
        ..CaptureRequest::default()
    };
    assert!(matches!(
        rig.client().capture(&too_many, &mut out),
        Err(ControlError::Request(_))
    ));
    assert!(out.is_empty());
}

#[test]
fn the_loopback_port_has_metrics_and_nothing_else() {
    let address = free_address();
    let rig = Rig::with_metrics(Puppet::default(), Some(address));
    for (line, status) in [
        ("GET /metrics", "200"),
        ("POST /metrics", "405"),
        ("GET /v1/status", "404"),
        ("POST /v1/reload", "404"),
        ("POST /v1/capture", "404"),
    ] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let question = format!("{line} HTTP/1.1\r\nhost: box\r\nconnection: close\r\n\r\n");
        stream.write_all(question.as_bytes()).unwrap();
        let answer = rest(&mut stream);
        let begin = format!("HTTP/1.1 {status}");
        assert!(answer.starts_with(&begin), "{line}: {answer}");
        assert!(!answer.contains("/v1/"), "{answer}");
    }
    drop(rig);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn at_start_runs_on_the_control_thread() {
    let directory = TempDir::new().unwrap();
    let settings = ControlSettings {
        socket: directory.path().join("control.sock"),
        group: None,
        metrics: None,
    };
    let (sender, receiver) = bounded(1);
    let listeners = Listeners::open(&settings).unwrap();
    let server = listeners.serve(Arc::new(Puppet::default()), move || {
        sender
            .send(thread::current().name().map(str::to_owned))
            .unwrap();
    });
    let name = receiver.recv_timeout(LONG).unwrap();
    assert_eq!(name.as_deref(), Some("exitmark-control"));
    Client::new(&settings.socket).status().unwrap();
    drop(server);
}
