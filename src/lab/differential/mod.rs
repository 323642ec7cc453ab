//! Differential fuzzing of the two implementations of the rule, in Rust and in BPF: every frame
//! must get the same verdict, the same bytes and the same counters from both.
//!
//! Scenarios and frames are derived from a seed. Frames are compared one by one, counters once per
//! batch; a batch whose counters differ is replayed frame by frame.

mod copies;
mod counterexample;
mod engines;
mod generator;
mod group;
mod scenario;

pub use counterexample::CounterExample;
pub use engines::{Engines, SlowPath, slow_path};
pub use generator::Generator;
pub use group::GroupScenario;
pub use scenario::Scenario;

use super::{LabError, Netns, Random, join};
use exitmark_datapath::{Role, Tally};
use exitmark_policy::Snapshot;
use std::path::Path;

/// Frames between two comparisons of the counters.
const BATCH: usize = 4096;
const FRAMES_PER_SCENARIO: u64 = 64 * 1024;
/// Fewer with a plant, which shows in few scenarios, and there within few frames.
const FRAMES_PER_PLANTED_SCENARIO: u64 = 8 * 1024;
/// The number of differences after which a session ends.
const ENOUGH: usize = 10;

/// The extent of a run: frames, threads, and their seed.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The seed of all scenarios and frames.
    pub seed: u64,
    /// The number of frames of all threads together.
    pub frames: u64,
    /// The number of threads; each has engines of its own.
    pub threads: u64,
}

/// The results of a run.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The number of frames sent through both engines.
    pub frames: u64,
    /// The kernel's counters for these frames.
    pub tally: Tally,
    /// The frames for which the engines differ.
    pub differences: Vec<CounterExample>,
}

/// A deliberate difference: maps a scenario to the Rust engine's snapshot and the kernel's image.
pub type Plant<'a> = &'a dyn Fn(&Scenario) -> Result<(Snapshot, Vec<u8>), LabError>;

/// Runs the plan, each thread in a network namespace of its own.
///
/// # Errors
/// Fails without privilege, or if the kernel rejects the program.
pub fn run(plan: Plan) -> Result<Outcome, LabError> {
    let mut all = Outcome::default();
    let share = plan.frames.div_ceil(plan.threads.max(1));
    let mut running = Vec::new();
    for thread in 0..plan.threads.max(1) {
        let namespace = Netns::new("engines")?;
        let seed = Random::new(plan.seed ^ thread << 56).word();
        let work = move || Session::new(seed).and_then(|session| session.run(share, None));
        running.push((namespace.spawn("engines", work)?, namespace));
    }
    for (thread, _namespace) in running {
        let found = join(thread, "a thread with engines")??;
        all.frames += found.frames;
        all.tally.add(&found.tally);
        all.differences.extend(found.differences);
    }
    Ok(all)
}

/// Appends the counter-examples to a file that a test replays.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn store(outcome: &Outcome, file: &Path) -> Result<(), LabError> {
    let mut found = outcome.differences.iter();
    found.try_for_each(|difference| difference.append(file))
}

/// One thread's engines and random numbers.
pub struct Session {
    engines: Engines,
    random: Random,
}

impl Session {
    /// Loads the engines in the calling thread's namespace.
    ///
    /// # Errors
    /// As [`Engines::new`].
    pub fn new(seed: u64) -> Result<Self, LabError> {
        Ok(Self {
            engines: Engines::new()?,
            random: Random::new(seed),
        })
    }

    /// Runs at least this many frames, or until 10 differences are found. With a plant it stops at
    /// the first difference, which is not minimised.
    ///
    /// # Errors
    /// Fails if the kernel rejects a scenario or a frame.
    pub fn run(mut self, frames: u64, plant: Option<Plant<'_>>) -> Result<Outcome, LabError> {
        let mut outcome = Outcome::default();
        let (enough, of_scenario) = match plant {
            Some(_) => (1, FRAMES_PER_PLANTED_SCENARIO),
            None => (ENOUGH, FRAMES_PER_SCENARIO),
        };
        while outcome.frames < frames && outcome.differences.len() < enough {
            let scenario = Scenario::some(&mut self.random);
            let left = frames - outcome.frames;
            let number = left.min(of_scenario);
            self.try_scenario(&scenario, number, plant, &mut outcome)?;
        }
        outcome.tally = self.engines.tally()?;
        Ok(outcome)
    }

    fn set(&mut self, scenario: &Scenario, plant: Option<Plant<'_>>) -> Result<(), LabError> {
        match plant {
            None => self.engines.set(scenario),
            Some(plant) => {
                let (snapshot, image) = plant(scenario)?;
                self.engines.set_apart(scenario, snapshot, &image)
            }
        }
    }

    fn try_scenario(
        &mut self,
        scenario: &Scenario,
        frames: u64,
        plant: Option<Plant<'_>>,
        outcome: &mut Outcome,
    ) -> Result<(), LabError> {
        self.set(scenario, plant)?;
        let mut generator = Generator::new(scenario);
        let mut batch = vec![(Role::Host, Vec::new()); BATCH];
        // The frames that taught the MAC addresses of hosts.
        let mut teachers = Vec::new();
        let mut tried = 0;
        while tried < frames {
            let mut difference = None;
            let earlier = teachers.len();
            let mut count = 0;
            for (ingress, frame) in &mut batch {
                *ingress = generator.next(&mut self.random, frame);
                count += 1;
                let known = self.engines.lesson(frame);
                difference = self.engines.compare(*ingress, frame)?;
                if difference.is_some() {
                    break;
                }
                if self.engines.lesson(frame) != known {
                    teachers.push((*ingress, frame.clone()));
                }
            }
            tried += count as u64;
            outcome.frames += count as u64;
            if difference.is_none() {
                difference = self.engines.compare_counters()?;
            }
            let Some(difference) = difference else {
                continue;
            };
            let mut found = CounterExample {
                scenario: scenario.clone(),
                frames: teachers[..earlier].to_vec(),
                difference,
            };
            found.frames.extend(batch.drain(..count));
            if plant.is_none() {
                self.reduce(&mut found)?;
            }
            outcome.differences.push(found);
            return Ok(());
        }
        Ok(())
    }

    /// Reduces a batch to the frame that causes the difference and the frames that taught the hosts'
    /// MAC addresses, and minimises the result.
    fn reduce(&mut self, found: &mut CounterExample) -> Result<(), LabError> {
        self.engines.set(&found.scenario)?;
        let mut teachers = Vec::new();
        for step in &found.frames {
            let known = self.engines.lesson(&step.1);
            let frame_differs = self.engines.compare(step.0, &step.1)?;
            let counters_differ = self.engines.compare_counters()?;
            if let Some(difference) = frame_differs.or(counters_differ) {
                found.difference = difference;
                let culprit = step.clone();
                found.frames = teachers.into_iter().chain([culprit]).collect();
                return found.minimise(&mut self.engines);
            }
            if self.engines.lesson(&step.1) != known {
                teachers.push(step.clone());
            }
        }
        // Not reproducible: keep the whole batch.
        Ok(())
    }
}
