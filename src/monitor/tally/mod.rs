//! The count: from packets to a [`Ledger`], in bounded memory.
//!
//! Packets come in batches, and a batch goes through in stages: what counts is read out of all of
//! them, then all are looked up, then all are added up, so that one packet's cache misses overlap
//! with the next one's. Between the stages addresses lie in one array for each IP version, and
//! nowhere else; it is wiped before [`Counter::count`] returns. What the processor's registers and
//! the stack still hold of the last batch is gone after [`Counter::rinse`].
//!
//! There is a bounded number of cells. When they are used up, what has none is counted in every
//! dimension alone ([`Spilled`](super::ledger::Spilled)): the sums of a dimension stay exact.

mod cells;
mod hash;
mod lane;
mod spilled;

use super::cell::{Cell, Counts, Place};
use super::filter::{Arrived, Filter, Refusal, Refusals, Seen};
use super::ledger::Ledger;
use super::places::Places;
use crate::packet::{Ecn, Version};
use cells::{Cells, Key};
use lane::{Lane, STAGED};
use spilled::Spill;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use zeroize::DefaultIsZeroes;

/// How many cells there are unless somebody says so.
pub const DEFAULT_CELLS: usize = 262_144;
/// As many cells as there can be at most: they take a gigabyte.
pub const MAX_CELLS: usize = 1 << 24;

/// The filter, the places, and the count.
pub struct Counter {
    filter: Filter,
    places: Arc<Places>,
    tally: Tally,
    refusals: Refusals,
    /// Packets of which the flags were cut off.
    flagless: u64,
    v4: Box<Lane<u32>>,
    v6: Box<Lane<u128>>,
    made_up: [Vec<u8>; 4],
}

/// What was added up.
struct Tally {
    cells: Cells,
    spill: Spill,
    totals: [Counts; 2],
    /// Places that the databases do not have and a ledger had, numbered from behind theirs.
    foreign: Vec<Place>,
    lost: u64,
    watched_seconds: u64,
}

/// How full the table of cells is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// Cells that are used.
    pub used: usize,
    /// Cells that there are.
    pub capacity: usize,
    /// Packets that found no cell any more.
    pub spilled: u64,
}

impl Counter {
    /// Nothing counted yet; with so many cells, from 1 to [`MAX_CELLS`].
    pub fn new(filter: Filter, places: Arc<Places>, cells: usize) -> Self {
        let made_up = made_up(&filter);
        Self {
            tally: Tally {
                cells: Cells::new(cells.clamp(1, MAX_CELLS)),
                spill: Spill::default(),
                totals: [Counts::default(); 2],
                foreign: Vec::new(),
                lost: 0,
                watched_seconds: 0,
            },
            refusals: Refusals::default(),
            flagless: 0,
            v4: Box::default(),
            v6: Box::default(),
            filter,
            places,
            made_up,
        }
    }

    /// Counts packets, however many; 64 and more at once cost the least for each.
    pub fn count(&mut self, batch: &[Arrived<'_>]) {
        for part in batch.chunks(STAGED) {
            self.read(part);
            self.look_up();
            let places = self.places.all().len();
            self.tally.add(&self.v4, Version::V4, places);
            self.tally.add(&self.v6, Version::V6, places);
            self.v4.wipe();
            self.v6.wipe();
        }
    }

    /// Leads made-up packets the way of the last batch, so that nothing of that is left in a
    /// register or on the stack. They do not count.
    pub fn rinse(&mut self) {
        let (refusals, flagless) = (self.refusals, self.flagless);
        let made_up = std::mem::take(&mut self.made_up);
        for frame in &made_up {
            let arrived = Arrived {
                bytes: frame,
                whole: frame.len(),
            };
            self.read(&[arrived; STAGED]);
            self.look_up();
            self.v4.wipe();
            self.v6.wipe();
        }
        self.made_up = made_up;
        (self.refusals, self.flagless) = (refusals, flagless);
    }

    /// The first stage: what counts.
    #[inline(never)]
    fn read(&mut self, part: &[Arrived<'_>]) {
        for arrived in part {
            match self.filter.judge(arrived) {
                Ok(Seen::V4(seen)) => {
                    self.flagless += u64::from(seen.flow.is_none());
                    self.v4.put(seen);
                }
                Ok(Seen::V6(seen)) => {
                    self.flagless += u64::from(seen.flow.is_none());
                    self.v6.put(seen);
                }
                Err(refusal) => self.refuse(refusal),
            }
        }
    }

    #[inline]
    fn refuse(&mut self, refusal: Refusal) {
        self.refusals.add(refusal);
    }

    /// The second stage: where it goes to.
    #[inline(never)]
    fn look_up(&mut self) {
        self.v4.look_up(self.places.v4());
        self.v6.look_up(self.places.v6());
    }

    /// What was counted since the start or the last [`Counter::take`].
    pub fn ledger(&self) -> Ledger {
        let place = |number| self.tally.place(&self.places, number);
        let mut cells: Vec<_> = self
            .tally
            .cells
            .iter()
            .map(|(key, counts)| (key.cell(place), counts))
            .collect();
        cells.sort_unstable_by_key(|(cell, _)| *cell);
        Ledger {
            cells,
            spilled: self.tally.spill.told(place),
            lost: self.tally.lost,
            watched_seconds: self.tally.watched_seconds,
        }
    }

    /// As [`Counter::ledger`]; nothing is counted any more then. What was refused is: it belongs
    /// to no period.
    pub fn take(&mut self) -> Ledger {
        let ledger = self.ledger();
        let tally = &mut self.tally;
        tally.cells.clear();
        tally.spill = Spill::default();
        tally.totals = Default::default();
        tally.foreign.clear();
        (tally.lost, tally.watched_seconds) = (0, 0);
        ledger
    }

    /// Adds what was counted before. Where there are fewer cells than it has, the rest is spilled.
    pub fn restore(&mut self, ledger: &Ledger) {
        let known = self.places.all();
        let number_of =
            |(place, number): (&Place, usize)| Some((*place, u32::try_from(number).ok()?));
        let foreign = known.len()..;
        let all = known.iter().zip(0..);
        let all = all.chain(self.tally.foreign.iter().zip(foreign));
        let mut numbers: HashMap<Place, u32> = all.filter_map(number_of).collect();
        for (cell, counts) in &ledger.cells {
            let number = numbers.get(&cell.place).copied();
            // There are no more of them than cells.
            let number = number.or_else(|| {
                let number = self.tally.adopt(cell.place, known.len())?;
                numbers.insert(cell.place, number);
                Some(number)
            });
            self.tally.restore(*cell, *counts, number);
        }
        self.tally.spill.carry(&ledger.spilled);
        for (version, counts) in &ledger.spilled.versions {
            self.tally.totals[index(*version)] += *counts;
        }
        self.note_lost(ledger.lost);
        self.note_watched(ledger.watched_seconds);
    }

    /// Packets were lost before they came here.
    pub const fn note_lost(&mut self, packets: u64) {
        self.tally.lost = self.tally.lost.saturating_add(packets);
    }

    /// The tap was watched for so long.
    pub const fn note_watched(&mut self, seconds: u64) {
        self.tally.watched_seconds = self.tally.watched_seconds.saturating_add(seconds);
    }

    /// All that was counted, by IP version.
    pub const fn totals(&self) -> [(Version, Counts); 2] {
        let [v4, v6] = self.tally.totals;
        [(Version::V4, v4), (Version::V6, v6)]
    }

    /// How full the table is.
    pub fn occupancy(&self) -> Occupancy {
        Occupancy {
            used: self.tally.cells.used(),
            capacity: self.tally.cells.capacity(),
            spilled: self.tally.spill.packets(),
        }
    }

    /// What did not count, since the start.
    pub const fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Packets that counted, but were cut off before TCP's flags, since the start: if there are
    /// any, flows are too few, and whoever captured them has to keep more of each packet.
    pub const fn flagless(&self) -> u64 {
        self.flagless
    }

    /// The databases.
    pub fn places(&self) -> &Places {
        &self.places
    }
}

impl Tally {
    /// The third stage: adds up what was found, of one IP version.
    #[inline(never)]
    fn add<A: DefaultIsZeroes>(&mut self, lane: &Lane<A>, version: Version, places: usize) {
        let (keys, slots) = self.cells.locate(lane, version);
        let mut total = Counts::default();
        for (index, (key, slot)) in keys.into_iter().zip(slots).take(lane.len()).enumerate() {
            let counts = lane.counts(index);
            total += counts;
            if !self.cells.add(key, slot, counts) {
                self.spill.add(key, counts, places);
            }
        }
        self.totals[index(version)] += total;
    }

    fn place(&self, places: &Places, number: u32) -> Place {
        let number = number as usize;
        let foreign = number.checked_sub(places.all().len());
        let place = match foreign {
            None => places.all().get(number),
            Some(index) => self.foreign.get(index),
        };
        place.copied().unwrap_or(Place::UNKNOWN)
    }

    fn adopt(&mut self, place: Place, known: usize) -> Option<u32> {
        if self.foreign.len() >= self.cells.capacity() {
            return None;
        }
        let number = u32::try_from(known + self.foreign.len()).ok()?;
        self.foreign.push(place);
        Some(number)
    }

    fn restore(&mut self, cell: Cell, counts: Counts, number: Option<u32>) {
        self.totals[index(cell.version)] += counts;
        let key = number.map(|number| Key::new(cell.port, cell.version, number));
        let is_in_table = key.is_some_and(|key| {
            let slot = self.cells.slot(key);
            self.cells.add(key, slot, counts)
        });
        if !is_in_table {
            self.spill.carry_cell(cell, counts);
        }
    }
}

const fn index(version: Version) -> usize {
    match version {
        Version::V4 => 0,
        Version::V6 => 1,
    }
}

/// Packets of every shape that has a way of its own, to nowhere.
fn made_up(filter: &Filter) -> [Vec<u8>; 4] {
    let tos = filter.dscp.with_ecn(Ecn::of(0));
    let from = |is_v4: bool| filter.clearnet.iter().find(|one| one.is_ipv4() == is_v4);
    let source_v4 = match from(true) {
        Some(IpAddr::V4(address)) => address.octets(),
        _ => [0; 4],
    };
    let source_v6 = match from(false) {
        Some(IpAddr::V6(address)) => address.octets(),
        _ => [0; 16],
    };
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
        // The next header of the extension, or a part of the source port.
        frame[54] = 6;
        frame
    };
    [v4(5), v6(false), v4(6), v6(true)]
}
