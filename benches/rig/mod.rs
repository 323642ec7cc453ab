//! Frames of every kind, and a forwarder for them: `decision` and `worker` measure its time,
//! `instructions` its instructions.

use exitmark_box::settings::Settings;
use exitmark_datapath::memory::HeapMemory;
use exitmark_datapath::{Forwarder, Frame, IncomingLink, Links, Outbox, Role};
use exitmark_lab::consensus::{ConsensusBuilder, hours_from};
use exitmark_lab::frames::{tcp, udp};
use exitmark_lab::site::{INCOMING_MAC, TORNET_MAC};
use exitmark_policy::{EndpointSet, Snapshot};
use exitmark_relays::Flavor;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

pub(crate) const RING: u32 = 2_048;

const BATCH: usize = 64;
const CHUNK_BYTES: u16 = 2048;

pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// Builds the frame of the flow with this number.
    pub(crate) make: fn(u32) -> Vec<u8>,
    /// Whether such a frame has the right mark from its second pass on. For the others two rule
    /// sets with different marks alternate, so that every pass rewrites it.
    pub(crate) settled: bool,
}

/// Every kind, the most common first.
pub(crate) const KINDS: [Kind; 12] = [
    changing("exit4", |n| tcp(&host4(n), &web4(n)).build()),
    changing("exit6", |n| {
        let web = format!("[2001:db8:51::{n:x}]:443");
        tcp(&format!("[2001:db8:1::10]:{}", ephemeral(n)), &web).build()
    }),
    changing("relay4", |n| tcp(&host4(n), &relay4(n)).build()),
    changing("relay6", |n| {
        let host = format!("[2001:db8:1::10]:{}", ephemeral(n));
        tcp(&host, &relay6(n)).build()
    }),
    // The four above and UDP, in an order that branch predictors cannot learn.
    changing("mixed", |n| {
        let kind = n.wrapping_mul(0x9e37_79b9) >> 29;
        (KINDS[[0, 0, 0, 1, 2, 2, 3, 6][kind as usize]].make)(n)
    }),
    changing("exit4-qinq", |n| {
        let frame = tcp(&host4(n), &web4(n));
        frame.tag(0x88a8, 7).tag(0x8100, 9).build()
    }),
    changing("host-udp", |n| udp(&host4(n), &web4(n)).build()),
    Kind {
        name: "exit4-marked",
        make: |n| tcp(&host4(n), &web4(n)).build(),
        settled: true,
    },
    // Alternates the first and a later fragment of one packet.
    changing("fragment4", |n| {
        let (packet, later) = (n / 2, n % 2 == 1);
        let offset = if later { 5 } else { 0 };
        let frame = tcp(&host4(packet), &web4(packet));
        frame.fragment(packet, offset, !later).build()
    }),
    changing("listener4", |n| tcp("192.0.2.10:9001", &web4(n)).build()),
    changing("foreign4", |n| tcp("203.0.113.5:40000", &web4(n)).build()),
    changing("arp", |_| {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 1, 1, 0x08, 0x06]);
        frame.resize(60, 0);
        frame
    }),
];

const fn changing(name: &'static str, make: fn(u32) -> Vec<u8>) -> Kind {
    Kind {
        name,
        make,
        settled: false,
    }
}

const fn ephemeral(number: u32) -> u32 {
    10_000 + number % 50_000
}

fn host4(number: u32) -> String {
    format!("192.0.2.10:{}", ephemeral(number))
}

fn web4(number: u32) -> String {
    let [_, _, high, low] = number.to_be_bytes();
    format!("198.51.{high}.{low}:443")
}

/// The number of relays: many, because a relay's position in the table depends on the random key.
const RELAYS: u32 = 1024;

fn relay4(number: u32) -> String {
    let [_, _, high, low] = (number % RELAYS).to_be_bytes();
    format!("198.19.{high}.{low}:9001")
}

fn relay6(number: u32) -> String {
    format!("[2001:db8:19::{:x}]:9001", number % RELAYS)
}

/// A full-size consensus that lists the relays above.
pub(crate) fn builder() -> ConsensusBuilder {
    let validity = hours_from(SystemTime::now(), [0, 1, 3]);
    let mut builder = ConsensusBuilder::full_size(Flavor::Microdesc, validity);
    builder.listed = (0..RELAYS)
        .flat_map(|number| [relay4(number), relay6(number)])
        .map(|relay| relay.parse().unwrap())
        .collect();
    builder
}

/// Two snapshots that differ in the mark.
pub(crate) fn snapshots() -> [Arc<Snapshot>; 2] {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("consensus"), builder().write()).unwrap();
    ["af11", "ef"].map(|mark| {
        let text = format!(
            "[ports]\nhost = \"host0\"\nuplink = \"uplink0\"\nincoming = \"incoming0\"\n\
             [host]\naddresses = [\"192.0.2.10\", \"2001:db8:1::10\"]\nlisteners = [22, 9001]\n\
             resolvers = [\"9.9.9.9\"]\n\
             [steer]\nnext_hop = \"{TORNET_MAC}\"\n[relays]\nconsensus = [\"consensus\"]\nverify = false\n\
             [mark]\ndscp = \"{mark}\""
        );
        let settings = Settings::parse(&text, directory.path()).unwrap();
        let loaded = exitmark_relays::load(&settings.relays.sources).unwrap();
        let relays = loaded.with(&[]).unwrap();
        Arc::new(Snapshot::new(1, settings.rules, relays))
    })
}

/// The same snapshot with other random keys in its tables.
#[allow(dead_code, reason = "time is not taken for more than one key")]
pub(crate) fn with_other_keys(snapshot: &Arc<Snapshot>) -> Arc<Snapshot> {
    let relays = EndpointSet::new(snapshot.relays.iter()).unwrap();
    Arc::new(Snapshot::new(1, Arc::clone(&snapshot.rules), relays))
}

/// A forwarder, and the frames of one kind that pass through it again and again.
pub(crate) struct Rig {
    forwarder: Forwarder,
    snapshots: [Arc<Snapshot>; 2],
    memory: HeapMemory,
    waiting: VecDeque<Frame>,
    arrived: Vec<Frame>,
    outbox: Outbox,
}

impl Rig {
    pub(crate) fn new(snapshots: &[Arc<Snapshot>; 2], frames: u32, kind: &Kind) -> Self {
        let links = Links::new(Some(IncomingLink {
            port: Role::Incoming,
            own: INCOMING_MAC.parse().unwrap(),
            next_hop: Some(TORNET_MAC.parse().unwrap()),
        }));
        let (mut memory, mut pool) = HeapMemory::new(frames, CHUNK_BYTES);
        let waiting = (0..frames)
            .flat_map(|number| memory.load(&(kind.make)(number), &mut pool))
            .collect();
        let mut snapshots = snapshots.clone();
        if kind.settled {
            snapshots[1] = Arc::clone(&snapshots[0]);
        }
        Self {
            forwarder: Forwarder::new(Arc::clone(&snapshots[0]), Arc::new(links)),
            snapshots,
            memory,
            waiting,
            arrived: Vec::with_capacity(BATCH),
            outbox: Outbox::default(),
        }
    }

    /// Forwards every frame once, in batches, and returns it to its port. Returns the time of the
    /// forwarding.
    pub(crate) fn pass(&mut self) -> Duration {
        self.snapshots.swap(0, 1);
        self.forwarder.follow(Arc::clone(&self.snapshots[0]));
        self.move_all(Role::Host)
    }

    /// The same loop without decisions: every frame is forwarded as one that arrives by `uplink`,
    /// so that its headers are not read.
    #[allow(dead_code, reason = "instructions are counted of decisions only")]
    pub(crate) fn pass_undecided(&mut self) -> Duration {
        self.move_all(Role::Uplink)
    }

    fn move_all(&mut self, ingress: Role) -> Duration {
        let mut spent = Duration::ZERO;
        for _ in 0..self.waiting.len() / BATCH {
            self.arrived.extend(self.waiting.drain(..BATCH));
            let started = Instant::now();
            self.forwarder.process_batch(
                ingress,
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
