//! A flow of frames from the host to a web server, one per millisecond, each with its own port.

use exitmark_lab::site::{HOST_V4, SERVER_V4, Site};
use exitmark_lab::{Capture, RawPort, frames};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const PACE: Duration = Duration::from_millis(1);
const TIMEOUT: Duration = Duration::from_secs(20);
const FIRST_PORT: u16 = 1024;
/// The offsets of the ToS byte and the source port in such a frame.
pub(crate) const TOS: usize = 15;
const PORT: usize = 34;
/// AF11, the mark of the example configuration.
pub(crate) const MARK: u8 = 0x28;

pub(crate) struct Flow {
    eye: Capture,
    ends: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    sender: thread::JoinHandle<usize>,
}

impl Flow {
    pub(crate) fn start(site: &Site) -> Self {
        let filter = format!("dst host {SERVER_V4} and tcp dst port 443");
        let eye = Capture::start(&site.clearnet, "eth0", "in", &filter).unwrap();
        let port = RawPort::open(&site.host, "eth0").unwrap();
        let (ends, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (ending, counting) = (Arc::clone(&ends), Arc::clone(&sent));
        let sender = thread::spawn(move || {
            let mut number = 0;
            for source in FIRST_PORT..=u16::MAX {
                if ending.load(Ordering::Relaxed) {
                    break;
                }
                let (from, to) = (format!("{HOST_V4}:{source}"), format!("{SERVER_V4}:443"));
                port.send(&frames::tcp(&from, &to).build()).unwrap();
                number += 1;
                counting.store(number, Ordering::Relaxed);
                thread::sleep(PACE);
            }
            number
        });
        Self {
            eye,
            ends,
            sent,
            sender,
        }
    }

    /// Waits until more frames have been sent.
    pub(crate) fn goes_on(&self) {
        let deadline = Instant::now() + TIMEOUT;
        let enough = self.sent.load(Ordering::Relaxed) + 100;
        while self.sent.load(Ordering::Relaxed) < enough {
            assert!(Instant::now() < deadline, "the flow has run out of ports");
            thread::sleep(PACE);
        }
    }

    /// Ends the flow, and checks that every frame has arrived once, with the mark.
    pub(crate) fn assert_all_marked(mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let sent = self.sender.join().unwrap();
        self.eye
            .wait_until(TIMEOUT, |captured| captured.len() >= sent);
        let captured = self.eye.finish().unwrap();
        let marked: Vec<_> = captured
            .iter()
            .filter(|frame| frame.bytes[TOS] == MARK)
            .map(|frame| [frame.bytes[PORT], frame.bytes[PORT + 1]])
            .collect();
        let ports: BTreeSet<_> = marked.iter().collect();
        println!("{sent} frames sent, {} arrived marked", marked.len());
        assert_eq!(captured.len(), sent, "frames that arrived");
        assert_eq!(marked.len(), sent, "frames that arrived marked");
        assert_eq!(ports.len(), sent, "different frames that arrived marked");
    }
}
