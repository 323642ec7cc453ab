//! What one frame costs between the rings: headers, look-up in a full relay set, rewrite,
//! checksum. ns per frame, by kind of frame, over as many frames as a ring holds and over so
//! many that none is in the cache.
//!
//! Every pass writes: two rule sets with different marks take turns, so that no frame ever
//! bears the right one already.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark whose inputs are wrong has nothing to say"
)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use exitmark::datapath::memory::HeapMemory;
use exitmark::datapath::{Forwarder, Frame, IncomingLink, Links, Outbox, Role};
use exitmark::lab::authorities::Authorities;
use exitmark::lab::consensus::Order;
use exitmark::lab::frames::{self, tcp, udp};
use exitmark::lab::site::{INCOMING_MAC, TORNET_MAC, relay_endpoints};
use exitmark::policy::Snapshot;
use exitmark::relays::{Certificates, Flavor, UncheckedDocument, Validity};
use exitmark::settings::Settings;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

const BATCH: usize = 64;
const CHUNK_BYTES: u16 = 2048;
/// As many frames as a ring holds, and more than any cache holds headers of.
const SETS: [(&str, u32); 2] = [("ring", 2_048), ("cold", 65_536)];

/// A full-size consensus in which the laboratory's relay is listed.
fn order() -> Order {
    let now = SystemTime::now();
    let hours = |hours: u64| now + Duration::from_secs(hours * 3600);
    let validity = Validity {
        valid_after: now,
        fresh_until: hours(1),
        valid_until: hours(3),
    };
    let mut order = Order::full_size(Flavor::Microdesc, validity);
    order.listed = relay_endpoints().into();
    order
}

/// Two snapshots that differ in the mark.
fn snapshots() -> [Arc<Snapshot>; 2] {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("consensus"), order().write()).unwrap();
    ["af11", "ef"].map(|mark| {
        let text = format!(
            "[ports]\nhost = \"host0\"\nuplink = \"uplink0\"\nincoming = \"incoming0\"\n\
             [host]\naddresses = [\"192.0.2.10\", \"2001:db8:1::10\"]\nlisteners = [22, 9001]\n\
             resolvers = [\"9.9.9.9\"]\n\
             [steer]\nnext_hop = \"{TORNET_MAC}\"\n[relays]\nconsensus = [\"consensus\"]\nverify = false\n\
             [mark]\ndscp = \"{mark}\""
        );
        let settings = Settings::parse(&text, directory.path()).unwrap();
        let loaded = exitmark::relays::load(&settings.relays.sources).unwrap();
        let relays = loaded.with(&[]).unwrap();
        Arc::new(Snapshot::new(1, settings.rules, relays))
    })
}

/// A kind's name, and what makes the frame of its flow of this number.
type Kind = (&'static str, fn(u32) -> frames::Frame);

fn kinds() -> [Kind; 6] {
    fn port(number: u32) -> u32 {
        1024 + number % 60_000
    }
    fn web(number: u32) -> String {
        let [_, _, high, low] = number.to_be_bytes();
        format!("198.51.{high}.{low}:443")
    }
    [
        ("exit4", |n| {
            tcp(&format!("192.0.2.10:{}", 10_000 + n % 50_000), &web(n))
        }),
        ("exit6", |n| {
            tcp(
                &format!("[2001:db8:1::10]:{}", 10_000 + n % 50_000),
                &format!("[2001:db8:51::{n:x}]:443"),
            )
        }),
        ("relay4", |n| {
            tcp(
                &format!("192.0.2.10:{}", 10_000 + n % 50_000),
                "198.18.0.1:9001",
            )
        }),
        ("relay6", |n| {
            tcp(
                &format!("[2001:db8:1::10]:{}", 10_000 + n % 50_000),
                "[2001:db8:18::1]:9001",
            )
        }),
        ("exit4-qinq", |n| {
            tcp(&format!("192.0.2.10:{}", 10_000 + n % 50_000), &web(n))
                .tag(0x88a8, 7)
                .tag(0x8100, 9)
        }),
        ("host-udp", |n| {
            udp(&format!("192.0.2.10:{}", port(n)), &web(n))
        }),
    ]
}

struct Bench {
    forwarder: Forwarder,
    snapshots: [Arc<Snapshot>; 2],
    memory: HeapMemory,
    waiting: VecDeque<Frame>,
    arrived: Vec<Frame>,
    outbox: Outbox,
}

impl Bench {
    fn new(snapshots: &[Arc<Snapshot>; 2], frames: u32, make: fn(u32) -> frames::Frame) -> Self {
        let links = Links::new(
            None,
            Some(IncomingLink {
                port: Role::Incoming,
                own: INCOMING_MAC.parse().unwrap(),
                next_hop: Some(TORNET_MAC.parse().unwrap()),
            }),
        );
        let (mut memory, mut pool) = HeapMemory::new(frames, CHUNK_BYTES);
        let waiting = (0..frames)
            .flat_map(|number| memory.load(&make(number).build(), &mut pool))
            .collect();
        Self {
            forwarder: Forwarder::new(Arc::clone(&snapshots[0]), Arc::new(links)),
            snapshots: snapshots.clone(),
            memory,
            waiting,
            arrived: Vec::with_capacity(BATCH),
            outbox: Outbox::default(),
        }
    }

    /// Forwards every frame once, a batch at a time, and puts it back. Returns how long the
    /// forwarding took.
    fn pass(&mut self) -> Duration {
        self.snapshots.swap(0, 1);
        self.forwarder.follow(Arc::clone(&self.snapshots[0]));
        let mut spent = Duration::ZERO;
        for _ in 0..self.waiting.len() / BATCH {
            self.arrived.extend(self.waiting.drain(..BATCH));
            let started = Instant::now();
            self.forwarder.process_batch(
                Role::Host,
                &mut self.arrived,
                &mut self.memory,
                &mut self.outbox,
                Duration::ZERO,
            );
            spent += started.elapsed();
            for (_, leaving) in self.outbox.leaving.iter_mut() {
                self.waiting.extend(leaving.drain(..));
            }
        }
        spent
    }
}

fn decision(criterion: &mut Criterion) {
    let snapshots = snapshots();
    for (set, frames) in SETS {
        let mut group = criterion.benchmark_group(format!("decision/{set}"));
        group.throughput(Throughput::Elements(1));
        for (kind, make) in kinds() {
            let mut bench = Bench::new(&snapshots, frames, make);
            group.bench_function(kind, |bencher| {
                // One iteration is one frame; whole passes are measured and scaled.
                bencher.iter_custom(|iterations| {
                    let passes = iterations.div_ceil(u64::from(frames));
                    let spent: Duration = (0..passes).map(|_| bench.pass()).sum();
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
    let (order, authorities) = (order(), Authorities::new(9));
    let text = order.sign(&authorities);
    let certificates = authorities.certificates_for(order.validity);
    let trusted = exitmark::relays::Authorities::new(
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
