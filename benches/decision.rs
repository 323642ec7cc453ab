//! The cost of one frame between the rings: headers, look-up in a full relay set, rewrite,
//! checksum. ns per frame, by kind of frame, over as many frames as a ring holds and over more than
//! the cache holds.
//!
//! Time is as noisy as the machine; `instructions` counts instructions instead.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark whose inputs are wrong has nothing to say"
)]

mod rig;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use exitmark_lab::authorities::Authorities;
use exitmark_relays::{Certificates, UncheckedDocument};
use rig::{KINDS, RING, Rig, builder, snapshots};
use std::time::Duration;

/// As many frames as a ring holds, and more than the headers in any cache.
const SETS: [(&str, u32); 2] = [("ring", RING), ("cold", 65_536)];

fn decision(criterion: &mut Criterion) {
    let snapshots = snapshots();
    for (set, frames) in SETS {
        let mut group = criterion.benchmark_group(format!("decision/{set}"));
        group.throughput(Throughput::Elements(1));
        for kind in &KINDS {
            let mut rig = Rig::new(&snapshots, frames, kind);
            group.bench_function(kind.name, |bencher| {
                // An iteration is a frame; whole passes are measured and scaled.
                bencher.iter_custom(|iterations| {
                    let passes = iterations.div_ceil(u64::from(frames));
                    let spent: Duration = (0..passes).map(|_| rig.pass()).sum();
                    let frames_done = passes * u64::from(frames);
                    scale(spent, iterations, frames_done)
                });
            });
        }
        group.finish();
    }
}

fn scale(spent: Duration, part: u64, whole: u64) -> Duration {
    let nanos = spent.as_nanos() * u128::from(part) / u128::from(whole.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

fn consensus(criterion: &mut Criterion) {
    let (builder, authorities) = (builder(), Authorities::new(9));
    let text = builder.sign(&authorities);
    let certificates = authorities.certificates_for(builder.validity);
    let trusted = exitmark_relays::Authorities::new(
        authorities
            .identities()
            .iter()
            .map(|one| one.parse().unwrap()),
    );
    let mut group = criterion.benchmark_group("consensus");
    group.sample_size(10);
    group.bench_function("parse a full-size document", |bencher| {
        bencher.iter(|| UncheckedDocument::parse(text.as_bytes()).unwrap());
    });
    group.bench_function("parse it and check nine signatures", |bencher| {
        bencher.iter(|| {
            let certificates = Certificates::parse(certificates.as_bytes()).unwrap();
            let document = UncheckedDocument::parse(text.as_bytes()).unwrap();
            document.verify(&certificates, &trusted).unwrap()
        });
    });
    group.finish();
}

criterion_group!(benches, decision, consensus);
criterion_main!(benches);
