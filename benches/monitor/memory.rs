//! Packets in memory, laid out as in a socket's memory.

use crate::systems::Databases;
use crate::traffic::{Kind, SYN, Traffic, filter};
use crate::{Row, Sample, Unit};
use exitmark_monitor::filter::Arrived;
use exitmark_monitor::tally::{Counter, DEFAULT_CELLS};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Packets that a socket returns at once.
const BATCH: usize = 64;
/// Number and stride of frames: ones that stay in the cache, and ones that exceed every cache.
const CACHED: (usize, usize) = (512, 128);
const COLD: (usize, usize) = (65_536, 2048);

const KINDS: [(&str, &str, usize, bool); 6] = [
    ("v4-cached", "v4-cold", 0, false),
    ("v6-cached", "v6-cold", 100, false),
    ("mix-cached", "mix-cold", 30, false),
    ("v4-worst-cached", "v4-worst-cold", 0, true),
    ("v6-worst-cached", "v6-worst-cold", 100, true),
    ("mix-worst-cached", "mix-worst-cold", 30, true),
];

pub(crate) fn rows(databases: &Databases) -> impl Iterator<Item = Row> {
    KINDS
        .into_iter()
        .flat_map(move |(cached, cold, v6, worst)| {
            let kind = Kind {
                v6,
                worst,
                syn: SYN,
            };
            [(cached, CACHED), (cold, COLD)].map(|(name, (frames, stride))| {
                let databases = databases.clone();
                let set = RefCell::new(None);
                Row {
                    name,
                    measure: Box::new(move |length| {
                        let mut set = set.borrow_mut();
                        let set =
                            set.get_or_insert_with(|| Set::new(&databases, kind, frames, stride));
                        Ok(set.measure(length))
                    }),
                }
            })
        })
}

struct Set {
    bytes: Vec<u8>,
    /// Offset and captured length of each frame.
    frames: Vec<(usize, usize)>,
    counter: Counter,
}

impl Set {
    fn new(databases: &Databases, kind: Kind, frames: usize, stride: usize) -> Self {
        let mut traffic = Traffic::new(databases, kind);
        let mut bytes = vec![0; frames * stride];
        let place = |(frame, room): (usize, &mut [u8])| {
            let (headers, _) = traffic.next();
            room[..headers.len()].copy_from_slice(&headers);
            (frame * stride, headers.len())
        };
        let frames = bytes.chunks_mut(stride).enumerate().map(place).collect();
        Self {
            bytes,
            frames,
            counter: Counter::new(filter(), Arc::clone(&databases.places), DEFAULT_CELLS),
        }
    }

    fn measure(&mut self, length: Duration) -> Sample {
        let start = Instant::now();
        let mut packets = 0_u32;
        while start.elapsed() < length {
            for batch in self.frames.chunks(BATCH) {
                let arrived: [Arrived<'_>; BATCH] = std::array::from_fn(|index| {
                    let (at, kept) = batch[index];
                    Arrived {
                        bytes: &self.bytes[at..at + kept],
                    }
                });
                self.counter.count(&arrived);
            }
            packets += u32::try_from(self.frames.len()).unwrap();
        }
        let spent = start.elapsed();
        assert_eq!(self.counter.refusals().total(), 0, "all of them count");
        Sample {
            value: spent.as_secs_f64() * 1e9 / f64::from(packets),
            unit: Unit::NanosPerPacket,
        }
    }
}
