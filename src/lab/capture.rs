//! An independent pair of eyes: `tcpdump` on an interface, its frames read back.

use super::{Child, LabError, Netns, contained};
use nix::sys::signal::Signal;
use pcap_file::pcap::PcapReader;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How much of each frame is kept, in bytes.
const SNAPLEN: &str = "9216";
/// tcpdump's kernel buffer, in KiB: room for some 30,000 full frames.
const BUFFER_KIB: &str = "65536";
const PATIENCE: Duration = Duration::from_secs(10);

/// A frame as it was on the wire.
#[derive(Clone, Debug)]
pub struct CapturedFrame {
    /// Since the Unix epoch.
    pub time: Duration,
    /// The bytes, at most 9,216.
    pub bytes: Vec<u8>,
}

/// A running capture of one interface in one namespace.
pub struct Capture {
    child: Child,
    arriving: mpsc::Receiver<CapturedFrame>,
    frames: Vec<CapturedFrame>,
    words: thread::JoinHandle<String>,
}

impl Capture {
    /// Starts capturing what arrives at (`in`), leaves (`out`) or both (`inout`); returns when
    /// the capture is listening. `filter` is a pcap filter expression, empty for all.
    ///
    /// # Errors
    /// No `tcpdump`, no such interface, a filter that it refuses.
    pub fn start(
        netns: &Netns,
        interface: &str,
        direction: &str,
        filter: &str,
    ) -> Result<Self, LabError> {
        let mut command = contained("tcpdump");
        command
            .args([
                "-i", interface, "-Q", direction, "-s", SNAPLEN, "-B", BUFFER_KIB,
            ])
            .args(["-n", "-p", "-U", "--immediate-mode", "-w", "-"])
            .args(filter.split_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = netns.start(command)?;
        let lost = || LabError("tcpdump has no pipe".to_owned());
        let stdout = child.process().stdout.take().ok_or_else(lost)?;
        let stderr = child.process().stderr.take().ok_or_else(lost)?;
        let (listening, ready) = mpsc::channel();
        let words = thread::spawn(move || {
            let mut stderr = BufReader::new(stderr);
            let mut words = String::new();
            while stderr.read_line(&mut words).is_ok_and(|bytes| bytes > 0) {
                if words.contains("listening on") {
                    let _ = listening.send(());
                }
            }
            words
        });
        let (seen, arriving) = mpsc::channel();
        thread::spawn(move || read_frames(stdout, &seen));
        if ready.recv_timeout(PATIENCE).is_err() {
            drop(child);
            let words = words.join().unwrap_or_default();
            return Err(LabError(format!(
                "tcpdump does not listen: {}",
                words.trim()
            )));
        }
        Ok(Self {
            child,
            arriving,
            frames: Vec::new(),
            words,
        })
    }

    /// Waits until `enough` says so of all frames so far, at most `limit`; says whether it did.
    pub fn wait_until(
        &mut self,
        limit: Duration,
        enough: impl Fn(&[CapturedFrame]) -> bool,
    ) -> bool {
        let deadline = Instant::now() + limit;
        while !enough(&self.frames) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.arriving.recv_timeout(left) {
                Ok(frame) => self.frames.push(frame),
                Err(_) => return false,
            }
        }
        true
    }

    /// Ends the capture and returns its frames, in order. Frames that crossed an instant ago may
    /// be missing: wait for them first.
    ///
    /// # Errors
    /// The capture itself lost frames: what it holds proves nothing then.
    pub fn finish(mut self) -> Result<Vec<CapturedFrame>, LabError> {
        self.child.signal(Signal::SIGINT)?;
        self.child.wait(PATIENCE)?;
        let ended = || LabError("a capture thread panicked".to_owned());
        self.frames.extend(self.arriving.iter());
        let words = self.words.join().map_err(|_| ended())?;
        match words
            .lines()
            .find(|line| line.ends_with("dropped by kernel"))
        {
            Some(line) if line.starts_with("0 ") => Ok(self.frames),
            _ => Err(LabError(format!(
                "tcpdump lost frames or died: {}",
                words.trim()
            ))),
        }
    }
}

fn read_frames(pipe: impl Read, seen: &mpsc::Sender<CapturedFrame>) {
    let Ok(mut reader) = PcapReader::new(BufReader::new(pipe)) else {
        return;
    };
    while let Some(Ok(packet)) = reader.next_packet() {
        let frame = CapturedFrame {
            time: packet.timestamp,
            bytes: packet.data.into_owned(),
        };
        if seen.send(frame).is_err() {
            return;
        }
    }
}
