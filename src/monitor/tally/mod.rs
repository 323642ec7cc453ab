//! Counts packets into a [`Ledger`], in bounded memory.
//!
//! A batch goes through in stages: all packets are parsed, then looked up, then added up, so that
//! the cache misses of different packets overlap. Between the stages, addresses are in one array
//! for each IP version and nowhere else; it is wiped before [`Counter::count`] returns.
//! [`Counter::rinse`] clears what registers and the stack still hold of the last batch.
//!
//! A connection opens a cell with its first SYN; packets without an open cell are unattributed. So
//! packets that can be provoked from outside (refusals, answers) cannot fill the table. The number
//! of cells is bounded. When all are used, a connection without a cell is counted in every single
//! dimension ([`Spilled`](super::ledger::Spilled)), and so is every later packet with the port,
//! place and IP version of such connections: flows stay exact in every dimension, and bytes and
//! packets are never too low.

mod cells;
mod hash;
mod lane;
mod spilled;

use super::cell::{Cell, Counts, Place};
pub use super::cell::{DEFAULT_CELLS, MAX_CELLS};
use super::filter::{Arrived, CountedPacket, Filter, Refusals};
use super::ledger::Ledger;
use super::places::Places;
use super::prefetch::prefetch;
use cells::{Cells, PackedKey};
use exitmark_policy::packet::{Ecn, Version};
use lane::{Lane, STAGED};
use spilled::Spill;
use std::collections::HashMap;
use std::sync::Arc;
use zeroize::DefaultIsZeroes;

/// Offsets of a packet's first cache line, and of the one with the TCP flags of IPv6.
const TOUCHED: [usize; 2] = [14, 67];

/// Filter, look-up and count.
pub struct Counter {
    filter: Filter,
    tally: Tally,
    refusals: Refusals,
    /// Packets whose TCP flags were truncated.
    flagless: u64,
    v4: Box<Lane<u32>>,
    v6: Box<Lane<u128>>,
    made_up: Vec<Vec<u8>>,
}

/// The counts of a period or of a batch.
pub struct Tally {
    places: Arc<Places>,
    cells: Cells,
    spill: Spill,
    /// Counts of packets without an open cell, by IP version.
    unattributed: [Counts; 2],
    totals: [Counts; 2],
    /// Places of a restored ledger that the databases do not have; their numbers follow the
    /// databases'.
    foreign: Vec<Place>,
    lost: u64,
    watched_seconds: u64,
}

/// How full the table of cells is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// Used cells, open or not.
    pub used: usize,
    /// Available cells, used ones included.
    pub capacity: usize,
    /// Packets that were spilled.
    pub spilled: u64,
}

impl Counter {
    /// An empty counter with this many cells, clamped to 1 to [`MAX_CELLS`].
    pub fn new(filter: Filter, places: Arc<Places>, cells: usize) -> Self {
        Self::of(filter, Tally::new(places, cells))
    }

    /// A counter that adds to a tally, such as a restored one.
    pub fn of(filter: Filter, tally: Tally) -> Self {
        let made_up = made_up(&filter);
        Self {
            tally,
            refusals: Refusals::default(),
            flagless: 0,
            v4: Box::default(),
            v6: Box::default(),
            filter,
            made_up,
        }
    }

    /// Counts packets, any number of them; batches of 64 or more are the most efficient.
    pub fn count(&mut self, batch: &[Arrived<'_>]) {
        for part in batch.chunks(STAGED) {
            self.read(part);
            self.look_up();
            let v4 = self.tally.cells.locate(&self.v4, Version::V4);
            let v6 = self.tally.cells.locate(&self.v6, Version::V6);
            self.tally.add(&self.v4, v4, Version::V4);
            self.tally.add(&self.v6, v6, Version::V6);
            self.v4.wipe();
            self.v6.wipe();
        }
    }

    /// Whether a packet would count.
    pub fn counts(&self, packet: &Arrived<'_>) -> bool {
        self.unwrapped(packet).is_some()
    }

    /// The packet that would count: this one, or the one that it carries.
    pub fn unwrapped<'p>(&self, packet: &Arrived<'p>) -> Option<Arrived<'p>> {
        self.filter.unwrapped(packet)
    }

    /// Sends made-up packets through the stages, so that registers and the stack hold nothing of
    /// the last batch. They are not counted.
    pub fn rinse(&mut self) {
        let (refusals, flagless) = (self.refusals, self.flagless);
        let made_up = std::mem::take(&mut self.made_up);
        for frame in &made_up {
            let arrived = Arrived { bytes: frame };
            self.read(&[arrived; STAGED]);
            self.look_up();
            self.v4.wipe();
            self.v6.wipe();
        }
        self.made_up = made_up;
        (self.refusals, self.flagless) = (refusals, flagless);
    }

    /// Stage 1: parse and filter.
    #[inline(never)]
    fn read(&mut self, part: &[Arrived<'_>]) {
        fetch(part);
        for arrived in part {
            match self.filter.judge(arrived) {
                Ok(CountedPacket::V4(fields)) => {
                    self.flagless += u64::from(fields.flow.is_none());
                    self.v4.put(fields);
                }
                Ok(CountedPacket::V6(fields)) => {
                    self.flagless += u64::from(fields.flow.is_none());
                    self.v6.put(fields);
                }
                Err(refusal) => self.refusals.add(refusal),
            }
        }
    }

    /// Stage 2: look up destinations.
    #[inline(never)]
    fn look_up(&mut self) {
        self.v4.look_up(&self.tally.places.v4);
        self.v6.look_up(&self.tally.places.v6);
    }

    /// What was counted since the tally was exchanged.
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// What was counted, mutable.
    pub const fn tally_mut(&mut self) -> &mut Tally {
        &mut self.tally
    }

    /// Continues with another tally of the same places; returns the current one.
    pub fn exchange(&mut self, tally: Tally) -> Tally {
        std::mem::replace(&mut self.tally, tally)
    }

    /// Packets that did not count, since the start.
    pub const fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Packets that counted but were truncated before the TCP flags, since the start. If there are
    /// any, flows are too few, and the capture needs a larger snapshot length.
    pub const fn flagless(&self) -> u64 {
        self.flagless
    }
}

impl Tally {
    /// An empty tally with this many cells, clamped to 1 to [`MAX_CELLS`].
    pub fn new(places: Arc<Places>, cells: usize) -> Self {
        Self::with(places, cells, 0)
    }

    /// A tally that another one will absorb. Only the other one knows which cells are open, so here
    /// up to half of the cells may have no connection.
    pub fn of_a_turn(places: Arc<Places>, cells: usize) -> Self {
        Self::with(places, cells, cells.clamp(1, MAX_CELLS) / 2)
    }

    fn with(places: Arc<Places>, cells: usize, unopened: usize) -> Self {
        Self {
            cells: Cells::new(cells.clamp(1, MAX_CELLS), unopened),
            spill: Spill::default(),
            unattributed: [Counts::default(); 2],
            totals: [Counts::default(); 2],
            foreign: Vec::new(),
            lost: 0,
            watched_seconds: 0,
            places,
        }
    }

    /// Adds the packet counts of another tally of the same places, and empties it.
    pub fn absorb(&mut self, counted: &mut Self) {
        for (key, counts) in counted.cells.iter() {
            let slot = self.cells.slot(key);
            if !self.cells.add(key, slot, counts) {
                self.add_without_cell(key, counts);
            }
        }
        self.spill.absorb(&counted.spill, self.places.all().len());
        for (sum, more) in [
            (&mut self.totals, counted.totals),
            (&mut self.unattributed, counted.unattributed),
        ] {
            sum.iter_mut()
                .zip(more)
                .for_each(|(sum, more)| *sum += more);
        }
        counted.clear();
    }

    fn clear(&mut self) {
        self.cells.clear();
        self.spill = Spill::default();
        self.unattributed = Default::default();
        self.totals = Default::default();
        self.foreign.clear();
        (self.lost, self.watched_seconds) = (0, 0);
    }

    /// The counts since the start or the last [`Tally::take`].
    pub fn ledger(&self) -> Ledger {
        let place = |number| self.place(number);
        // Allocated at its final size: growing leaves freed memory behind.
        let mut cells = Vec::with_capacity(self.cells.used);
        cells.extend(
            self.cells
                .iter()
                .map(|(key, counts)| (key.cell(place), counts)),
        );
        cells.sort_unstable_by_key(|(cell, _)| *cell);
        Ledger {
            cells,
            spilled: self.spill.resolved(place),
            unattributed: without_zeroes(by_version(self.unattributed)).collect(),
            lost: self.lost,
            watched_seconds: self.watched_seconds,
        }
    }

    /// Like [`Tally::ledger`], and resets the tally.
    pub fn take(&mut self) -> Ledger {
        let ledger = self.ledger();
        self.clear();
        ledger
    }

    /// Adds the counts of a ledger. Cells that do not fit are spilled.
    pub fn restore(&mut self, ledger: &Ledger) {
        let places = Arc::clone(&self.places);
        let known = places.all();
        let all = known.iter().chain(&self.foreign).copied();
        let mut numbers: HashMap<Place, u32> = all.zip(0..).collect();
        for (cell, counts) in &ledger.cells {
            let number = numbers.get(&cell.place).copied();
            // At most one new place for each cell.
            let number = number.or_else(|| {
                let number = self.adopt(cell.place, known.len())?;
                numbers.insert(cell.place, number);
                Some(number)
            });
            self.restore_cell(*cell, *counts, number);
        }
        self.spill.carry(&ledger.spilled);
        for (version, counts) in &ledger.spilled.versions {
            self.totals[index(*version)] += *counts;
        }
        for (version, counts) in &ledger.unattributed {
            self.totals[index(*version)] += *counts;
            self.unattributed[index(*version)] += *counts;
        }
        self.note_lost(ledger.lost);
        self.note_watched(ledger.watched_seconds);
    }

    /// Adds packets that were lost before they could be counted.
    pub const fn note_lost(&mut self, packets: u64) {
        self.lost = self.lost.saturating_add(packets);
    }

    /// Adds seconds during which the tap was watched.
    pub const fn note_watched(&mut self, seconds: u64) {
        self.watched_seconds = self.watched_seconds.saturating_add(seconds);
    }

    /// The sum of all counts, by IP version.
    pub const fn totals(&self) -> [(Version, Counts); 2] {
        by_version(self.totals)
    }

    /// How full the table of cells is.
    pub fn occupancy(&self) -> Occupancy {
        Occupancy {
            used: self.cells.used,
            capacity: self.cells.capacity,
            spilled: self.spill.packets(),
        }
    }

    /// Stage 3: adds up the packets of one IP version.
    #[inline(never)]
    fn add<A: DefaultIsZeroes>(
        &mut self,
        lane: &Lane<A>,
        (keys, slots): ([PackedKey; STAGED], [usize; STAGED]),
        version: Version,
    ) {
        let mut total = Counts::default();
        for (index, (key, slot)) in keys.into_iter().zip(slots).take(lane.len).enumerate() {
            let counts = lane.counts(index);
            total += counts;
            if !self.cells.add(key, slot, counts) {
                self.add_without_cell(key, counts);
            }
        }
        self.totals[index(version)] += total;
    }

    #[cold]
    fn add_without_cell(&mut self, key: PackedKey, counts: Counts) {
        if counts.flows > 0 || self.spill.has(key, || self.place(key.place())) {
            self.spill.add(key, counts, self.places.all().len());
        } else {
            self.unattributed[index(key.version())] += counts;
        }
    }

    fn place(&self, number: u32) -> Place {
        let mut all = self.places.all().iter().chain(&self.foreign);
        let place = all.nth(number as usize);
        place.copied().unwrap_or(Place::UNKNOWN)
    }

    fn adopt(&mut self, place: Place, known: usize) -> Option<u32> {
        if self.foreign.len() >= self.cells.capacity {
            return None;
        }
        let number = u32::try_from(known + self.foreign.len()).ok()?;
        self.foreign.push(place);
        Some(number)
    }

    fn restore_cell(&mut self, cell: Cell, counts: Counts, number: Option<u32>) {
        self.totals[index(cell.version)] += counts;
        if counts.flows == 0 {
            self.unattributed[index(cell.version)] += counts;
            return;
        }
        let key = number.map(|number| PackedKey::new(cell.port, cell.version, number));
        let is_in_table = key.is_some_and(|key| {
            let slot = self.cells.slot(key);
            self.cells.add(key, slot, counts)
        });
        if !is_in_table {
            self.spill.carry_cell(cell, counts);
        }
    }
}

/// Prefetches what will be read of packets: this core has not read them before.
#[inline]
fn fetch(part: &[Arrived<'_>]) {
    for arrived in part {
        let touched = TOUCHED.map(|at| arrived.bytes.get(at));
        touched.into_iter().flatten().for_each(prefetch);
    }
}

const fn by_version(counts: [Counts; 2]) -> [(Version, Counts); 2] {
    let [v4, v6] = counts;
    [(Version::V4, v4), (Version::V6, v6)]
}

/// The pairs that have any counts.
fn without_zeroes<K>(
    pairs: impl IntoIterator<Item = (K, Counts)>,
) -> impl Iterator<Item = (K, Counts)> {
    let pairs = pairs.into_iter();
    pairs.filter(|(_, counts)| *counts != Counts::default())
}

const fn index(version: Version) -> usize {
    match version {
        Version::V4 => 0,
        Version::V6 => 1,
    }
}

/// Packets that take each code path, with zeroed remote addresses: to them, and from them.
fn made_up(filter: &Filter) -> Vec<Vec<u8>> {
    let up = made_up_from(filter);
    let down = up.clone().map(|mut frame| {
        let (source, bytes) = match frame[12] {
            0x08 => (26, 4),
            _ => (22, 16),
        };
        frame[source..source + 2 * bytes].rotate_left(bytes);
        frame
    });
    [up, down].concat()
}

fn made_up_from(filter: &Filter) -> [Vec<u8>; 4] {
    let tos = filter.dscp.with_ecn(Ecn::of(0));
    let v4 = filter.clearnet.v4_ranges().first();
    let v6 = filter.clearnet.v6_ranges().first();
    let source_v4 = v4.map_or(0, |&(first, _)| first).to_be_bytes();
    let source_v6 = v6.map_or(0, |&(first, _)| first).to_be_bytes();
    let v4 = |words: u8| {
        let header = usize::from(words) * 4;
        let mut frame = vec![0; 14 + header + 20];
        frame[12] = 0x08;
        frame[14..16].copy_from_slice(&[0x40 | words, tos]);
        frame[17] = words * 4 + 20;
        frame[23] = 6;
        frame[26..30].copy_from_slice(&source_v4);
        frame
    };
    let v6 = |extended: bool| {
        let mut frame = vec![0; 14 + 40 + 28];
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame[14..16].copy_from_slice(&[0x60 | tos >> 4, tos << 4]);
        frame[19] = 28;
        frame[20] = if extended { 60 } else { 6 };
        frame[22..38].copy_from_slice(&source_v6);
        // The next header of the extension header, or a part of the source port.
        frame[54] = 6;
        frame
    };
    [v4(5), v6(false), v4(6), v6(true)]
}

#[cfg(test)]
mod tests {
    use super::super::cell::{Direction, Directions};
    use super::super::filter::PacketFields;
    use super::*;
    use exitmark_policy::PrefixSet;
    use exitmark_policy::packet::Dscp;

    #[test]
    fn made_up_packets_pass_the_filter() {
        let clearnet = ["2001:db8::10/127", "192.0.2.10/32"].map(|text| text.parse().unwrap());
        let clearnet = PrefixSet::new(clearnet);
        // TCP without SYN, destination 0: plain, then with an option or extension header.
        fn part<A: Default>(direction: Direction, port: u16, bytes: u32) -> PacketFields<A> {
            PacketFields {
                direction,
                remote: A::default(),
                port,
                bytes,
                flow: Some(false),
            }
        }
        for dscp in [Dscp::AF11, Dscp::of(0xff)] {
            let filter = Filter {
                directions: Directions::Both,
                ..Filter::outbound(dscp, clearnet.clone())
            };
            let made_up = made_up(&filter);
            let fields = made_up.iter().map(|bytes| filter.judge(&Arrived { bytes }));
            // The source port counts down, of which the byte of the next header is a part.
            let expected = [(Direction::Up, 0), (Direction::Down, 0x0600)].map(|(way, port)| {
                [
                    CountedPacket::V4(part(way, 0, 40)),
                    CountedPacket::V6(part(way, port, 40 + 28)),
                    CountedPacket::V4(part(way, 0, 44)),
                    CountedPacket::V6(part(way, 0, 40 + 28)),
                ]
            });
            assert!(fields.eq(expected.concat().into_iter().map(Ok)));
        }
    }

    #[test]
    fn one_made_up_packet_of_each_ip_version_takes_the_slow_path() {
        let filter = Filter::outbound(Dscp::AF11, PrefixSet::default());
        let [fast_path_v4, fast_path_v6, options, extension] = made_up_from(&filter);
        // The header length, and the next header.
        assert_eq!([fast_path_v4[14], options[14]], [0x45, 0x46]);
        assert_eq!([fast_path_v6[20], extension[20]], [6, 60]);
        assert_eq!([fast_path_v4.len(), options.len()], [54, 58]);
        assert_eq!([fast_path_v6.len(), extension.len()], [82, 82]);
    }
}
