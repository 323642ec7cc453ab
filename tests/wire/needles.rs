//! Planted remote addresses, and the search for them in any bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The kind of a remote station.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Exit,
    Relay,
    Exempt,
    Resolver,
    Client,
    Stranger,
}

impl Who {
    pub(crate) const ALL: [Self; 6] = [
        Self::Exit,
        Self::Relay,
        Self::Exempt,
        Self::Resolver,
        Self::Client,
        Self::Stranger,
    ];

    /// Addresses that are neither in the site nor in the synthetic consensus.
    pub(crate) fn addresses(self) -> [IpAddr; 2] {
        let last = match self {
            Self::Exit => 0xd5,
            Self::Relay => 0xb1,
            // In the exempt prefixes, but neither their first address nor their last.
            Self::Exempt => 0xa6,
            Self::Resolver => 0x99,
            Self::Client => 0xe7,
            Self::Stranger => 0xcb,
        };
        let end = 0x3300 | u16::from(last);
        [
            IpAddr::from([198, 51, 100, last]),
            IpAddr::from([0x2001, 0xdb8, 0x51, 0xa0b0, 0xc0d0, 0xe0f0, 0x1122, end]),
        ]
    }
}

fn joined(bytes: &[u8], between: &str, spell: impl Fn(u8) -> String) -> String {
    let spelt: Vec<_> = bytes.iter().map(|byte| spell(*byte)).collect();
    spelt.join(between)
}

/// The spellings of an address in lower case. The second half of an IPv6 address is searched for
/// too, as a number and as bytes: it is unique here.
fn spellings(address: IpAddr) -> BTreeSet<String> {
    let mut spelt = BTreeSet::from([address.to_string()]);
    let halves = match address {
        IpAddr::V4(v4) => vec![v4.octets().to_vec()],
        IpAddr::V6(v6) => {
            let groups = v6.segments();
            spelt.insert(groups.map(|group| format!("{group:x}")).join(":"));
            spelt.insert(groups.map(|group| format!("{group:04x}")).join(":"));
            let number = u128::from(v6);
            spelt.extend([number, number.swap_bytes()].map(|number| number.to_string()));
            vec![v6.octets().to_vec(), v6.octets()[8..].to_vec()]
        }
    };
    for half in halves {
        let mut turned = half.clone();
        turned.reverse();
        for bytes in [half, turned] {
            for between in ["", " ", ":", "-", ", "] {
                spelt.insert(joined(&bytes, between, |byte| format!("{byte:02x}")));
            }
            for between in [" ", ", ", ",", ".", ",\n"] {
                spelt.insert(joined(&bytes, between, |byte| byte.to_string()));
            }
            spelt.insert(joined(&bytes, ", ", |byte| format!("0x{byte:02x}")));
            spelt.insert(joined(&bytes, "", |byte| format!("\\x{byte:02x}")));
            let append = |sum: u128, &byte: &u8| sum << 8 | u128::from(byte);
            let number = bytes.iter().fold(0, append);
            spelt.insert(number.to_string());
        }
    }
    spelt
}

/// The bytes of an address in network and in little-endian order; of an IPv6 address those of its
/// second half, which the whole address contains.
fn raw(address: IpAddr) -> [Vec<u8>; 2] {
    let bytes = match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets()[8..].to_vec(),
    };
    let turned = bytes.iter().rev().copied().collect();
    [bytes, turned]
}

/// Needles by their first byte.
struct Needles(BTreeMap<u8, Vec<(Who, Vec<u8>)>>);

impl Needles {
    fn new(needles: impl Iterator<Item = (Who, Vec<u8>)>) -> Self {
        let mut by_first = BTreeMap::<u8, Vec<_>>::new();
        for (who, needle) in needles {
            by_first.entry(needle[0]).or_default().push((who, needle));
        }
        Self(by_first)
    }

    fn found_in(&self, bytes: &[u8], found: &mut BTreeSet<Who>) {
        let of = |byte| self.0.get(&byte).map_or(&[][..], Vec::as_slice);
        let by_first: Vec<_> = (0..=u8::MAX).map(of).collect();
        for (at, byte) in bytes.iter().enumerate() {
            for (who, needle) in by_first[usize::from(*byte)] {
                if bytes[at..].starts_with(needle) {
                    found.insert(*who);
                }
            }
        }
    }
}

/// Searches for every planted address.
pub(crate) struct Search {
    texts: Needles,
    raws: Needles,
}

impl Search {
    pub(crate) fn new() -> Self {
        let of = |who: Who| who.addresses().map(|one| (who, one));
        let all = || Who::ALL.into_iter().flat_map(of);
        let texts = all().flat_map(|(who, address)| {
            let texts = spellings(address).into_iter();
            texts.map(move |text| (who, text.into_bytes()))
        });
        let raws = all().flat_map(|(who, address)| raw(address).map(|bytes| (who, bytes)));
        Self {
            texts: Needles::new(texts),
            raws: Needles::new(raws),
        }
    }

    fn found(&self, bytes: &[u8]) -> BTreeSet<Who> {
        let mut found = BTreeSet::new();
        self.texts.found_in(&bytes.to_ascii_lowercase(), &mut found);
        self.raws.found_in(bytes, &mut found);
        found
    }

    #[track_caller]
    pub(crate) fn finds(&self, place: &str, bytes: &[u8], expected: &[Who]) {
        assert!(!bytes.is_empty(), "{place} is empty");
        println!("{place}: {} bytes", bytes.len());
        let found = self.found(bytes);
        assert_eq!(found, expected.iter().copied().collect(), "{place}");
    }
}

#[test]
fn the_search_finds_an_address_in_every_spelling() {
    let search = Search::new();
    let around = |middle: &[u8]| [b"a line: ", middle, b" and on"].concat();
    for who in Who::ALL {
        for address in who.addresses() {
            let texts = spellings(address).into_iter();
            let mut needles: Vec<_> = texts.map(String::into_bytes).collect();
            assert!(needles.len() > 10);
            needles.extend(raw(address));
            for needle in needles {
                assert_eq!(search.found(&around(&needle)), BTreeSet::from([who]));
                let loud = needle.to_ascii_uppercase();
                if loud.is_ascii() {
                    assert_eq!(search.found(&around(&loud)), BTreeSet::from([who]));
                }
                // A truncated IPv6 address may still contain its second half.
                if address.is_ipv4() {
                    let cut = &needle[..needle.len() - 1];
                    assert_eq!(search.found(cut), BTreeSet::new());
                }
            }
        }
    }
    let (exit, client) = (Who::Exit.addresses(), raw(Who::Client.addresses()[1]));
    let found = search.found(format!("{exit:?} {client:?}").as_bytes());
    assert_eq!(found, BTreeSet::from([Who::Exit, Who::Client]));
    let found = search.found(b"198.51.100.7 and 2001:db8:51::7");
    assert_eq!(found, BTreeSet::new());
}
