//! Any bytes as a frame through both engines, as in tests/engines, but guided by libFuzzer's
//! coverage of the Rust engine. Requires root.
#![no_main]

use exitmark_datapath::Role;
use exitmark_lab::differential::{CounterExample, Engines, Scenario};
use libfuzzer_sys::fuzz_target;
use std::cell::OnceCell;
use std::path::Path;

const COUNTER_EXAMPLES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/engines/counterexamples.txt"
);

thread_local! {
    static ENGINES: OnceCell<std::cell::RefCell<(Engines, Scenario)>> = const { OnceCell::new() };
}

fn load() -> std::cell::RefCell<(Engines, Scenario)> {
    let scenario: Scenario = Scenario::EVERY_RULE.parse().expect("the scenario is valid");
    let mut engines = Engines::new().expect("loading the engines requires root");
    engines
        .set(&scenario)
        .expect("the kernel accepts the scenario");
    std::cell::RefCell::new((engines, scenario))
}

fuzz_target!(|input: &[u8]| {
    let [choice, frame @ ..] = input else {
        return;
    };
    if frame.len() < 14 {
        return;
    }
    let ingress = Role::ALL[usize::from(*choice) % 3];
    ENGINES.with(|cell| {
        let (engines, scenario) = &mut *cell.get_or_init(load).borrow_mut();
        let bytes = engines.compare(ingress, frame).expect("the kernel runs it");
        let counters = engines
            .compare_counters()
            .expect("the counters can be read");
        if let Some(difference) = bytes.or(counters) {
            let found = CounterExample {
                scenario: scenario.clone(),
                frames: vec![(ingress, frame.to_vec())],
                difference,
            };
            found
                .append(Path::new(COUNTER_EXAMPLES))
                .expect("the file can be written");
            panic!("{found}");
        }
    });
});
