//! Engine connect by the packaged unit and its example configuration.

use crate::flow::{MARK, TOS};
use crate::machine::Machine;
use crate::service::Service;
use crate::{CONFIGURATION, CONNECT_EXAMPLE, configure};
use exitmark_lab::{Capture, timeout};

/// A server next to the machine, at which nothing listens.
const SERVER: &str = "203.0.113.1";

/// Runs the engine with the unit's privileges, and checks that it marks connections of tor's user
/// and no others, and that nothing stays attached.
pub(crate) fn runs(machine: &Machine, service: &Service<'_>) {
    // The programs see the connections of all tests, which have other users.
    let user = 0x3000_0000 + std::process::id();
    let users = format!("users = [{user}]");
    let source = include_str!("../../dist/exitmark-connect.example.toml");
    configure(machine, CONNECT_EXAMPLE, source, &[("users", &users)]);
    let filter = format!("dst host {SERVER} and tcp dst port 443");
    let mut eye = Capture::start(&machine.site.tornet, "eth0", "in", &filter).unwrap();
    let mut expected = Vec::new();
    let mut connects = |user: u32, tos: u8| {
        let user = user.to_string();
        let connect = format!("exec 3<>/dev/tcp/{SERVER}/443");
        let ids = ["--reuid", &user, "--regid", &user, "--clear-groups"];
        // The server refuses it, after its first packet.
        let refused = machine.command("setpriv", &[&ids[..], &["bash", "-c", &connect]].concat());
        assert!(refused.is_err());
        expected.push(tos);
        assert!(eye.wait_until(timeout(), |frames| frames.len() >= expected.len()));
    };

    let running = service.start();
    connects(user, MARK);
    connects(user + 1, 0);
    let counters = running.stop_well().unwrap().counters;
    assert_eq!((counters["exit"], counters["marked"]), (1, 1));
    assert_eq!(counters["relay_sets_accepted"], 1);
    // The programs stay attached without the process.
    connects(user, MARK);
    machine.run("exitmark", &["detach", "--config", CONFIGURATION]);
    connects(user, 0);
    let captured = eye.finish().unwrap();
    let seen: Vec<_> = captured.iter().map(|frame| frame.bytes[TOS]).collect();
    assert_eq!(seen, expected);
}
