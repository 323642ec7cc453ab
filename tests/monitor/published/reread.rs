//! The report accepts every file that the monitor publishes.

use super::{cell, counts, origin, period};
use exitmark_monitor::cell::Counts;
use exitmark_monitor::ledger::{Ledger, Spilled};
use exitmark_monitor::publish::{Epsilon, Noise, NoiseSettings, PublishSettings, publish};
use exitmark_monitor::report;
use exitmark_monitor::row::Dimension;
use exitmark_policy::packet::Version;

/// This many flows, over some ports and places.
fn ledger(flows: u64) -> Ledger {
    use Version::{V4, V6};
    let of = |part: u64| counts(flows / part, flows / part * 7000, flows / part * 9);
    Ledger {
        cells: vec![
            (cell(443, 1, "US", V4), of(1)),
            (cell(443, 1, "DE", V6), of(2)),
            (cell(80, 2, "DE", V4), of(3)),
            (cell(22, 3, "FR", V4), of(5)),
            (cell(50_001, 4, "??", V6), of(50)),
        ],
        spilled: Spilled {
            ports: vec![(443, of(4))],
            systems: vec![(9, of(4))],
            countries: vec![("NL".parse().unwrap(), of(4))],
            versions: vec![(V4, of(4))],
        },
        watched_seconds: 86_400,
        ..Ledger::default()
    }
}

/// A file with this many parts of a period.
fn file(parts: u32, flows: u64, settings: &PublishSettings) -> Vec<u8> {
    settings.check().unwrap();
    let mut noise = settings
        .noise
        .as_ref()
        .map(|noise| Noise::new(noise, settings.tables(), settings.directions).unwrap());
    let mut lines = Vec::new();
    for part in 1..=parts {
        let mut period = period();
        period.part = part;
        for row in publish(&ledger(flows), &period, &origin(), settings, noise.as_mut()) {
            serde_json::to_writer(&mut lines, &row).unwrap();
            lines.push(b'\n');
        }
    }
    lines
}

#[test]
fn the_report_reads_all_published_files() {
    const USER: Counts = counts(50, 50 << 20, 50_000);
    // Includes the largest noise that settings allow.
    let noises = [
        None,
        Some((100.0, USER)),
        Some((1.0, USER)),
        Some((0.01, USER)),
        Some((100.0, counts(99, 1 << 40, 1 << 40))),
        Some((0.001, counts(99, 50 << 20, 1))),
    ];
    let crosses = [
        vec![],
        vec![Dimension::PortCountry],
        vec![Dimension::PortSystem],
        vec![Dimension::SystemCountry],
        vec![
            Dimension::SystemCountry,
            Dimension::PortSystem,
            Dimension::PortCountry,
        ],
    ];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("period.jsonl");
    let mut seed = 0;
    for flows in [0, 5, 60, 120, 3000, 1_000_000, 1 << 36] {
        for noise in &noises {
            for cross in &crosses {
                seed += 1;
                let noise = noise.map(|(epsilon, user)| NoiseSettings {
                    epsilon: Epsilon::try_from(epsilon).unwrap(),
                    user,
                    seed: Some(seed),
                });
                let settings = PublishSettings {
                    cross: cross.clone(),
                    noise,
                    ..PublishSettings::default()
                };
                std::fs::write(&path, file(20, flows, &settings)).unwrap();
                if let Err(refusal) = report::read(std::slice::from_ref(&path)) {
                    panic!("{refusal}: {flows} flows, {settings:?}");
                }
            }
        }
    }
}
