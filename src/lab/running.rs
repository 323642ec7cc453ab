//! A running program of the box or the monitor: its lines, its log, its end.

use super::{Child, LabError, Netns, contained, timeout, wait_until};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

/// A running `exitmark run`.
pub struct RunningBox {
    child: Child,
    lines: mpsc::Receiver<String>,
    log: Arc<Mutex<String>>,
    printed: Arc<Mutex<String>>,
    log_reader: Option<thread::JoinHandle<()>>,
    /// The line that begins with `ready`.
    pub ready: String,
}

/// The exit status and the final output of a box.
pub struct FinalState {
    /// The exit status of the process.
    pub status: ExitStatus,
    /// The final counters by name.
    pub counters: BTreeMap<String, u64>,
    /// All of its standard error.
    pub log: String,
}

impl RunningBox {
    /// Starts a box in a namespace and returns when it is ready.
    ///
    /// # Errors
    /// Fails if the box does not become ready; the error contains its log.
    pub fn start(
        netns: &Netns,
        exitmark: impl AsRef<OsStr>,
        configuration: &Path,
    ) -> Result<Self, LabError> {
        let mut command = contained(exitmark);
        command.args(["run", "--config"]).arg(configuration);
        Self::start_by(netns, command)
    }

    /// Like [`start`](Self::start), with the caller's command, for example to set its environment.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_by(netns: &Netns, mut command: Command) -> Result<Self, LabError> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = netns.start(command)?;
        let no_pipe = || LabError("exitmark has no pipe".to_owned());
        let stdout = child.process().stdout.take().ok_or_else(no_pipe)?;
        let stderr = child.process().stderr.take().ok_or_else(no_pipe)?;
        let (line_out, lines) = mpsc::channel();
        let [log, printed] = [(), ()].map(|()| Arc::new(Mutex::new(String::new())));
        let (log_in, printed_in) = (Arc::clone(&log), Arc::clone(&printed));
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                append(&printed_in, &line);
                let _ = line_out.send(line);
            }
        });
        let log_reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                append(&log_in, &line);
            }
        });
        let mut running = Self {
            child,
            lines,
            log,
            printed,
            log_reader: Some(log_reader),
            ready: String::new(),
        };
        match running.line("ready") {
            Ok(line) => {
                running.ready = line;
                Ok(running)
            }
            Err(_) => {
                drop(running.child);
                let _ = running.log_reader.take().map(thread::JoinHandle::join);
                let log = text_of(&running.log);
                Err(LabError(format!(
                    "exitmark did not get ready: {}",
                    log.trim()
                )))
            }
        }
    }

    /// Waits for the next line on standard output that begins with `beginning`.
    fn line(&self, beginning: &str) -> Result<String, LabError> {
        loop {
            let line = self.lines.recv_timeout(timeout());
            let line = line.map_err(|_| LabError(format!("no line `{beginning}…` received")))?;
            if line.starts_with(beginning) {
                return Ok(line);
            }
        }
    }

    /// Sends a signal to the box.
    ///
    /// # Errors
    /// Fails if the box has ended.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        self.child.signal(signal)
    }

    /// The process ID of the box.
    pub fn pid(&mut self) -> u32 {
        self.child.process().id()
    }

    /// Whether the box has ended, by itself or by a signal.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.process().try_wait(), Ok(Some(_)))
    }

    /// The current counters by name.
    ///
    /// # Errors
    /// Fails if the box does not answer.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>, LabError> {
        self.signal(Signal::SIGUSR1)?;
        self.line("counters").map(|line| numbers(&line))
    }

    /// Its standard error so far.
    pub fn log(&self) -> String {
        text_of(&self.log)
    }

    /// Waits until its standard error has all of these words: a line of it may be read later than
    /// one of standard output that was written afterwards.
    ///
    /// # Panics
    /// If it lacks one of them for too long.
    pub fn wait_log(&self, words: &[&str]) {
        let log = || self.log();
        let has_all = || words.iter().all(|words| log().contains(words));
        wait_until(&format!("a log with {words:?}"), has_all, log);
    }

    /// Its standard output so far.
    pub fn printed(&self) -> String {
        text_of(&self.printed)
    }

    /// Waits until the box has ended by itself or by a signal; returns its exit status.
    ///
    /// # Errors
    /// Fails if the box does not end in time.
    pub fn ended(&mut self) -> Result<ExitStatus, LabError> {
        self.child.wait(timeout())
    }

    /// Stops the box with SIGTERM and waits for its end.
    ///
    /// # Errors
    /// Fails if the box does not end in time.
    pub fn stop(self) -> Result<FinalState, LabError> {
        self.signal(Signal::SIGTERM)?;
        let counters = numbers(&self.line("counters")?);
        self.final_state(counters)
    }

    /// Stops the box; fails unless it ends well.
    ///
    /// # Errors
    /// As [`stop`](Self::stop), or if its exit status is not 0.
    pub fn stop_well(self) -> Result<FinalState, LabError> {
        let log = self.log();
        match self.stop() {
            Ok(last) if last.status.success() => Ok(last),
            Ok(FinalState { status, log, .. }) => Err(LabError(format!(
                "the box ended with {status}: {}",
                log.trim()
            ))),
            Err(error) => Err(LabError(format!(
                "the box: {error}; its log: {}",
                log.trim()
            ))),
        }
    }

    /// Like [`stop`](Self::stop), for a program that prints no counters at its end.
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    pub fn end(self) -> Result<FinalState, LabError> {
        self.signal(Signal::SIGTERM)?;
        self.final_state(BTreeMap::new())
    }

    fn final_state(mut self, counters: BTreeMap<String, u64>) -> Result<FinalState, LabError> {
        let status = self.child.wait(timeout())?;
        let _ = self.log_reader.take().map(thread::JoinHandle::join);
        Ok(FinalState {
            status,
            counters,
            log: self.log(),
        })
    }
}

fn text_of(text: &Mutex<String>) -> String {
    text.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn append(text: &Mutex<String>, line: &str) {
    let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
    *text += line;
    text.push('\n');
}

/// Parses the `name=number` words of a line.
fn numbers(line: &str) -> BTreeMap<String, u64> {
    line.split_whitespace()
        .filter_map(|word| word.split_once('='))
        .filter_map(|(name, number)| Some((name.to_owned(), number.parse().ok()?)))
        .collect()
}
