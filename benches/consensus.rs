//! The time to parse a full-size consensus document, and to verify its signatures.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark whose inputs are wrong has nothing to say"
)]

#[allow(dead_code, reason = "no frame is forwarded here")]
mod rig;

use criterion::{Criterion, criterion_group, criterion_main};
use exitmark_lab::authorities::Authorities;
use exitmark_relays::{Certificates, UncheckedDocument};
use rig::builder;

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

criterion_group!(benches, consensus);
criterion_main!(benches);
