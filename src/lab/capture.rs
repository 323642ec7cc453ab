//! Independent captures: runs `tcpdump` on an interface and parses its output.

use super::{Child, LabError, Netns, contained, join, timeout};
use nix::sys::signal::Signal;
use pcap_file::pcap::PcapReader;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// The captured length of each frame in bytes.
const SNAPLEN: &str = "9216";
/// tcpdump's kernel buffer in KiB: about 30,000 full frames.
const BUFFER_KIB: &str = "65536";

/// A frame of a capture, whole up to 9,216 bytes.
#[derive(Clone, Debug)]
pub struct CapturedFrame {
    /// The capture time since the Unix epoch.
    pub time: Duration,
    /// The frame from its Ethernet header on, at most 9,216 bytes.
    pub bytes: Vec<u8>,
}

/// A running capture of one interface in one namespace.
pub struct Capture {
    child: Child,
    arriving: mpsc::Receiver<CapturedFrame>,
    frames: Vec<CapturedFrame>,
    stderr_text: thread::JoinHandle<String>,
}

impl Capture {
    /// Starts a capture of received (`in`), sent (`out`) or all frames (`inout`); returns when
    /// tcpdump is listening. `filter` is a pcap filter expression, empty for all frames.
    ///
    /// # Errors
    /// Fails if `tcpdump` or the interface is missing, or if the filter is invalid.
    pub fn start(
        netns: &Netns,
        interface: &str,
        direction: &str,
        filter: &str,
    ) -> Result<Self, LabError> {
        let mut command = contained("tcpdump");
        command
            .args(["-i", interface, "-Q", direction])
            .args(["-s", SNAPLEN, "-B", BUFFER_KIB, "-n", "-p"])
            .args(["-U", "--immediate-mode", "-w", "-"])
            .args(filter.split_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = netns.start(command)?;
        let lost = || LabError("tcpdump has no pipe".to_owned());
        let stdout = child.process().stdout.take().ok_or_else(lost)?;
        let stderr = child.process().stderr.take().ok_or_else(lost)?;
        let (listening, ready) = mpsc::channel();
        let stderr_text = thread::spawn(move || {
            let mut stderr = BufReader::new(stderr);
            let mut stderr_text = String::new();
            while stderr
                .read_line(&mut stderr_text)
                .is_ok_and(|bytes| bytes > 0)
            {
                if stderr_text.contains("listening on") {
                    let _ = listening.send(());
                }
            }
            stderr_text
        });
        let (sender, arriving) = mpsc::channel();
        thread::spawn(move || read_frames(stdout, &sender));
        if ready.recv_timeout(timeout()).is_err() {
            drop(child);
            let stderr_text = stderr_text.join().unwrap_or_default();
            return Err(LabError(format!(
                "tcpdump does not listen: {}",
                stderr_text.trim()
            )));
        }
        Ok(Self {
            child,
            arriving,
            frames: Vec::new(),
            stderr_text,
        })
    }

    /// Waits until `enough` accepts the frames captured so far; returns false after `limit`.
    pub fn wait_until(
        &mut self,
        limit: Duration,
        enough: impl Fn(&[CapturedFrame]) -> bool,
    ) -> bool {
        let deadline = Instant::now() + limit;
        while !enough(&self.frames) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.arriving.recv_timeout(left) {
                // Frames that wait are taken together: a condition reads all of them.
                Ok(frame) => {
                    self.frames.push(frame);
                    self.frames.extend(self.arriving.try_iter());
                }
                Err(_) => return false,
            }
        }
        true
    }

    /// Waits until a frame with these bytes was captured; returns false after [`timeout`].
    pub fn sees(&mut self, bytes: &[u8]) -> bool {
        let is_it = |frame: &CapturedFrame| frame.bytes == bytes;
        self.wait_until(timeout(), |sender| sender.iter().any(is_it))
    }

    /// Waits until this number of frames was captured; returns false after [`timeout`].
    pub fn counts(&mut self, number: usize) -> bool {
        self.wait_until(timeout(), |sender| sender.len() >= number)
    }

    /// The frames captured so far.
    pub fn so_far(&mut self) -> &[CapturedFrame] {
        self.frames.extend(self.arriving.try_iter());
        &self.frames
    }

    /// Ends the capture and returns its frames in order. The most recent frames may be missing:
    /// call [`wait_until`](Self::wait_until) first.
    ///
    /// # Errors
    /// Fails if tcpdump dropped frames or died: the capture is then incomplete.
    pub fn finish(mut self) -> Result<Vec<CapturedFrame>, LabError> {
        self.child.signal(Signal::SIGINT)?;
        self.child.wait(timeout())?;
        self.frames.extend(self.arriving.iter());
        let stderr_text = join(self.stderr_text, "a capture thread")?;
        match stderr_text
            .lines()
            .any(|line| line.ends_with("dropped by kernel") && line.starts_with("0 "))
        {
            true => Ok(self.frames),
            false => Err(LabError(format!(
                "tcpdump lost frames or died: {}",
                stderr_text.trim()
            ))),
        }
    }
}

fn read_frames(pipe: impl Read, sender: &mpsc::Sender<CapturedFrame>) {
    let Ok(mut reader) = PcapReader::new(BufReader::new(pipe)) else {
        return;
    };
    while let Some(Ok(packet)) = reader.next_packet() {
        let frame = CapturedFrame {
            time: packet.timestamp,
            bytes: packet.data.into_owned(),
        };
        if sender.send(frame).is_err() {
            return;
        }
    }
}
