//! A frame for which the two engines differ, as one self-contained line of text.

use super::scenario::read_role;
use super::{Engines, Scenario};
use crate::LabError;
use exitmark_datapath::Role;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::str::FromStr;

/// A sequence of frames for whose last one the engines differ.
#[derive(Clone, Debug)]
pub struct CounterExample {
    /// The rules, relay set and links.
    pub scenario: Scenario,
    /// The ingress port and the bytes of each frame, in order.
    pub frames: Vec<(Role, Vec<u8>)>,
    /// A description of the difference when it was found.
    pub difference: String,
}

impl CounterExample {
    /// Sends the frames through both engines; returns the difference, if there still is one.
    ///
    /// # Errors
    /// Fails if an engine rejects the scenario or a frame.
    pub fn replay(&self, engines: &mut Engines) -> Result<Option<String>, LabError> {
        engines.set(&self.scenario)?;
        for (ingress, frame) in &self.frames {
            let frame_differs = engines.compare(*ingress, frame)?;
            let counters_differ = engines.compare_counters()?;
            if let Some(difference) = frame_differs.or(counters_differ) {
                return Ok(Some(difference));
            }
        }
        Ok(None)
    }

    /// Removes what the difference does not depend on: the end of the last frame, then prefixes,
    /// listeners and relays.
    pub(super) fn minimise(&mut self, engines: &mut Engines) -> Result<(), LabError> {
        let mut step = 4096;
        while step > 0 {
            match self.with_last_frame_cut(step) {
                Some(shorter) if shorter.replay(engines)?.is_some() => *self = shorter,
                _ => step /= 2,
            }
        }
        if let [.., last] = &self.frames[..] {
            let mut alone = self.clone();
            alone.frames = vec![last.clone()];
            if alone.replay(engines)?.is_some() {
                *self = alone;
            }
        }
        self.halve(engines, |scenario| &mut scenario.relays)?;
        self.halve(engines, |scenario| &mut scenario.groups)?;
        for group in 0..self.scenario.groups.len() {
            self.halve(engines, |scenario| &mut scenario.groups[group].listeners)?;
            self.halve(engines, |scenario| &mut scenario.groups[group].exempt)?;
            self.halve(engines, |scenario| &mut scenario.groups[group].resolvers)?;
            self.halve(engines, |scenario| {
                &mut scenario.groups[group].relay_addresses
            })?;
            self.halve(engines, |scenario| &mut scenario.groups[group].addresses)?;
        }
        if let Some(difference) = self.replay(engines)? {
            self.difference = difference;
        }
        Ok(())
    }

    fn with_last_frame_cut(&self, bytes: usize) -> Option<Self> {
        let mut cut = self.clone();
        let (_, frame) = cut.frames.last_mut()?;
        let left = frame.len().checked_sub(bytes)?;
        frame.truncate(left);
        (left >= 14).then_some(cut)
    }

    /// Reduces a list to nothing or to one half, repeatedly, while the engines still differ.
    fn halve<T: Clone>(
        &mut self,
        engines: &mut Engines,
        list: impl Fn(&mut Scenario) -> &mut Vec<T>,
    ) -> Result<(), LabError> {
        'smaller: loop {
            let items = list(&mut self.scenario).clone();
            let (front, back) = items.split_at(items.len() / 2);
            for part in [&[], front, back] {
                if part.len() == items.len() {
                    continue;
                }
                let mut less = self.clone();
                *list(&mut less.scenario) = part.to_vec();
                if less.replay(engines)?.is_some() {
                    *self = less;
                    continue 'smaller;
                }
            }
            return Ok(());
        }
    }

    /// Appends the counter-example to a file.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn append(&self, file: &Path) -> Result<(), LabError> {
        let written = OpenOptions::new()
            .append(true)
            .create(true)
            .open(file)
            .and_then(|mut opened| writeln!(opened, "{self}"));
        written.map_err(|error| LabError(format!("cannot write {}: {error}", file.display())))
    }
}

impl fmt::Display for CounterExample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} | ", self.scenario)?;
        for (ingress, frame) in &self.frames {
            let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
            write!(f, "{ingress}:{hex} ")?;
        }
        write!(f, "| {}", self.difference)
    }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let pairs = (0..hex.len()).step_by(2).map(|at| hex.get(at..at + 2));
    let bytes = pairs.map(|pair| u8::from_str_radix(pair?, 16).ok());
    bytes.collect()
}

impl FromStr for CounterExample {
    type Err = LabError;

    fn from_str(line: &str) -> Result<Self, LabError> {
        let wrong = || LabError(format!("`{line}` is not a counter-example"));
        let mut parts = line.splitn(3, " | ");
        let mut part = || parts.next().ok_or_else(wrong);
        let (scenario, frames, difference) = (part()?, part()?, part()?);
        let frame = |text: &str| {
            let (role, hex) = text.split_once(':').ok_or_else(wrong)?;
            Ok((read_role(role)?, bytes(hex).ok_or_else(wrong)?))
        };
        Ok(Self {
            scenario: scenario.parse()?,
            frames: frames.split(' ').map(frame).collect::<Result<_, _>>()?,
            difference: difference.to_owned(),
        })
    }
}
