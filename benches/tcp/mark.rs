//! Checks that a forwarder does its job on the measured connections.

use crate::connection::Connection;
use exitmark_lab::site::{SERVER_V4, Site};
use exitmark_lab::{Capture, CapturedFrame, LabError};
use std::io::{Read, Write};
use std::time::Duration;

/// The mark: AF11.
pub(crate) const DSCP: u8 = 10;
/// The offset of the ToS byte in an untagged IPv4 frame.
const TOS_OFFSET: usize = 15;
const TIMEOUT: Duration = Duration::from_secs(5);
/// The least number of frames of one exchange: SYN, ACK, request.
const FRAMES: usize = 3;

/// Sends data from the host to the web server, and fails unless all frames that arrive there are
/// marked, or none.
pub(crate) fn check(site: &Site, marked: bool) -> Result<(), LabError> {
    let filter = format!("tcp and dst host {SERVER_V4}");
    let mut capture = Capture::start(&site.clearnet, "eth0", "in", &filter)?;
    exchange(site)?;
    capture.wait_until(TIMEOUT, |frames| frames.len() >= FRAMES);
    let frames = capture.finish()?;
    let expected = if marked { DSCP } else { 0 };
    let dscp = |frame: &CapturedFrame| frame.bytes.get(TOS_OFFSET).map(|tos| tos >> 2);
    let right = frames.iter().filter(|frame| dscp(frame) == Some(expected));
    let right = right.count();
    if right == frames.len() && right >= FRAMES {
        Ok(())
    } else {
        Err(LabError(format!(
            "it did not do its job: of {} frames of a connection, {right} have DSCP {expected}",
            frames.len()
        )))
    }
}

fn exchange(site: &Site) -> Result<(), LabError> {
    let mut connection = Connection::open(site)?;
    let mut request = [0; 1];
    connection
        .host
        .write_all(&request)
        .and_then(|()| connection.server.read_exact(&mut request))
        .map_err(|error| LabError(format!("the host cannot send to the web server: {error}")))
}
