//! tor's own counts of initiated connections, from its MetricsPort.
//!
//! These can equal flows on the wire: tor counts a connection in the same step of its event loop in
//! which it calls connect(), with or without an answer, and serves metrics in another step. A
//! stream to a name is counted once the name is resolved; a stream that the exit refuses is not
//! counted. DNS uses UDP sockets, which are not counted here. Only directory requests through a
//! circuit (BEGIN_DIR) would count without a socket; the clients of this network use other relays
//! for those, and the test checks that there were none.

use crate::network::{Tor, wait};
use exitmark_lab::Netns;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

const PORT: u16 = 9035;
const LIMIT: Duration = Duration::from_secs(5);

/// The lines of a torrc that enable the metrics.
pub(crate) fn torrc() -> String {
    format!("MetricsPort 127.0.0.1:{PORT}\nMetricsPortPolicy accept 127.0.0.1\n")
}

/// Connections that a tor has initiated since it started, of both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dials {
    pub(crate) exit: u64,
    pub(crate) or: u64,
    pub(crate) directory: u64,
}

impl Dials {
    pub(crate) fn read(host: &Netns, tor: &Tor) -> Self {
        let mut text = None;
        wait("tor serves its metrics", &[tor], || {
            text = host.run(metrics).ok();
            text.is_some()
        });
        let text = text.unwrap();
        let sum = |labels: &[&str]| -> u64 {
            let has_labels = |line: &&str| labels.iter().all(|label| line.contains(label));
            let lines = text.lines().filter(|line| line.starts_with("tor_relay_"));
            let numbers = lines.filter(has_labels).map(|line| line.rsplit(' ').next());
            numbers
                .map(|number| number.unwrap().parse::<u64>().unwrap())
                .sum()
        };
        let initiated = |kind: &str| {
            let kind = format!("{{type=\"{kind}\"");
            sum(&[
                "tor_relay_connections_total",
                &kind,
                "direction=\"initiated\"",
                "state=\"created\"",
            ])
        };
        let tunnelled = sum(&["tor_relay_streams_total", "\"BEGIN_DIR\""]);
        assert_eq!(tunnelled, 0, "{}: directory requests by circuits", tor.name);
        Self {
            exit: initiated("Exit"),
            or: initiated("OR"),
            directory: initiated("Directory"),
        }
    }
}

/// Fetches the metrics. tor keeps the connection open, so the header determines the answer's
/// length.
fn metrics() -> Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut answer = BufReader::new(stream);
    let mut length = None;
    loop {
        let mut line = String::new();
        answer.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some(("Content-Length", number)) => length = number.parse().ok(),
            None if line.trim_end().is_empty() => break,
            _ => {}
        }
    }
    let mut text = vec![0; length.ok_or(ErrorKind::InvalidData)?];
    answer.read_exact(&mut text)?;
    String::from_utf8(text).map_err(Error::other)
}
