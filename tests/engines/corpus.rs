//! Frames about which the engines once disagreed.

use crate::rig::in_namespace;
use exitmark_lab::differential::{CounterExample, Engines};

#[test]
fn engines_agree_on_former_counterexamples() {
    in_namespace(|| {
        let mut engines = Engines::new().unwrap();
        let rows = include_str!("counterexamples.txt").lines();
        let rows: Vec<_> = rows.filter(|row| !row.starts_with('#')).collect();
        assert!(!rows.is_empty());
        for row in rows {
            let example: CounterExample = row.parse().unwrap();
            assert_eq!(example.to_string(), row);
            assert_eq!(example.replay(&mut engines).unwrap(), None, "{row}");
        }
    });
}
