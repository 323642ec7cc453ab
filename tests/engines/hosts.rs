//! The table of host addresses in both engines: which addresses are active, and their removal.

use crate::rig::{Rig, in_namespace};
use exitmark_datapath::contract::{GOLDEN, HOST_SLOT_BITS};
use exitmark_datapath::{
    Buffers, Counter, DropReason, Forwarder, HostAges, IncomingLink, KnownHost, Links, Outcome,
    Role,
};
use exitmark_lab::cases::WEB4;
use exitmark_lab::differential::Scenario;
use exitmark_lab::frames::{TO, tcp};
use exitmark_policy::packet::MacAddr;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const OWN: MacAddr = MacAddr::new([2, 0, 0, 0, 3, 1]);
const NEXT_HOP: MacAddr = MacAddr::new([2, 0, 0, 0, 3, 2]);
pub(crate) const FIRST: &str = "10.0.0.1";

fn mac(number: u64) -> MacAddr {
    MacAddr::from_u64(0x0200_0000_0100 + number).unwrap()
}

/// Both engines with the same policy and tables of their own.
struct Both {
    kernel: Rig,
    rust: Forwarder,
    rust_links: Arc<Links>,
}

impl Both {
    /// Two groups: an address that has sent nothing does not get the MAC address of the only host.
    fn new() -> Self {
        let group = |addresses: &str| {
            format!(
                "mark=10 at_uplink=Keep steer=Both protocols=Tcp addresses={addresses} \
                 relay_addresses= resolvers= exempt= listeners= host_mac=none vlan= \
                 path=0,0,none,"
            )
        };
        let scenario = format!(
            "mode=Enforce host_mark=none relays= incoming=incoming,{OWN},{NEXT_HOP} next_hops= \
             drops_unsteered=false seeks_host=false longest=9014 hand_over= {} {}",
            group("10.0.0.0/8"),
            group("192.0.2.99/32"),
        );
        let scenario: Scenario = scenario.parse().unwrap();
        let incoming: Option<IncomingLink> = scenario.incoming;
        let snapshot = Arc::new(scenario.snapshot().unwrap());
        let rust_links = Arc::new(Links::new(incoming));
        Self {
            kernel: Rig::new(Buffers::Several, &snapshot, incoming),
            rust: Forwarder::new(snapshot, Arc::clone(&rust_links)),
            rust_links,
        }
    }

    fn links(&self) -> [&Links; 2] {
        [&self.kernel.links, &self.rust_links]
    }

    fn assert_same(&self, what: &str) {
        let [kernel, rust] = self.links().map(Links::learned);
        assert!(kernel == rust, "{what}: the tables differ");
    }

    /// A host sends a frame.
    fn sends(&mut self, source: &str, mac: MacAddr, what: &str) {
        let frame = tcp(&format!("{source}:40000"), WEB4).macs(TO, mac).build();
        self.kernel.run(Role::Host, &frame);
        let mut frame = frame;
        let length = frame.len();
        self.rust
            .forward(Role::Host, &mut frame, length, Duration::ZERO);
        self.assert_same(what);
    }

    /// The MAC address that a frame for a host gets; `None` if it is dropped as unknown.
    fn delivers_to(&mut self, address: &str) -> Option<MacAddr> {
        let mut frame = tcp(WEB4, &format!("{address}:40000"))
            .macs(OWN, NEXT_HOP)
            .build();
        let (ran, counted) = self.kernel.run(Role::Incoming, &frame);
        let unknown = counted.of(Counter::Dropped(DropReason::HostMacUnknown));
        let length = frame.len();
        let (outcome, _) = self
            .rust
            .forward(Role::Incoming, &mut frame, length, Duration::ZERO);
        assert_eq!(unknown == 0, ran.redirected);
        match outcome {
            Outcome::Forward(Role::Host) => {
                assert!(ran.redirected && ran.frame == frame, "{address}");
                MacAddr::destination_of(&frame)
            }
            Outcome::Drop(DropReason::HostMacUnknown) => {
                assert_eq!(unknown, 1, "{address}");
                None
            }
            other => panic!("{address}: {other:?}"),
        }
    }

    /// The addresses of both tables, with how often each has changed and whether it is active.
    fn activity(&self, second: u64) -> Vec<(String, u16, bool)> {
        let of = self.links().map(|links| {
            let mut all = links.take_activity(Duration::from_secs(second));
            all.sort_unstable_by_key(|one| one.host.address);
            let all = all.into_iter().map(|one| {
                let address = one.host.address.to_string();
                (address, one.host.changes, one.is_active)
            });
            all.collect::<Vec<_>>()
        });
        let [kernel, rust] = of;
        assert_eq!(kernel, rust);
        self.assert_same("after the look");
        rust
    }

    fn forget(&self, address: &str, second: u64) {
        let address: IpAddr = address.parse().unwrap();
        for links in self.links() {
            links.forget_host(address, Duration::from_secs(second));
        }
    }
}

/// Other addresses whose first entry is that of [`FIRST`].
pub(crate) fn colliding() -> impl Iterator<Item = String> {
    let slot =
        |address: u32| (u64::from(address) | 1 << 32).wrapping_mul(GOLDEN) >> (64 - HOST_SLOT_BITS);
    let first: Ipv4Addr = FIRST.parse().unwrap();
    let first = u32::from(first);
    let others = (first + 1..).filter(move |address| slot(*address) == slot(first));
    others.map(|address| Ipv4Addr::from(address).to_string())
}

#[test]
fn both_engines_agree_on_which_addresses_are_active() {
    in_namespace(|| {
        let mut both = Both::new();
        let second = colliding().next().unwrap();
        assert!(both.activity(1).is_empty());
        both.sends(FIRST, mac(1), "a new address");
        both.sends(&second, mac(1), "a new address with another first entry");
        let one = |changes, is_active| (FIRST.to_owned(), changes, is_active);
        let other = |changes, is_active| (second.clone(), changes, is_active);
        assert_eq!(both.activity(2), [one(0, true), other(0, true)]);
        assert_eq!(both.activity(3), [one(0, false), other(0, false)]);
        both.sends(FIRST, mac(1), "a known address");
        both.sends("192.0.2.12", mac(1), "a foreign address");
        assert_eq!(both.activity(4), [one(0, true), other(0, false)]);
        both.sends(&second, mac(1), "a known address in its second entry");
        assert_eq!(both.activity(5), [one(0, false), other(0, true)]);
        for number in [2, 2, 3] {
            both.sends(FIRST, mac(number), "a changed MAC address");
        }
        assert_eq!(both.activity(6), [one(2, true), other(0, false)]);
        // An inbound frame is delivered without the mark too, and does not set it.
        assert_eq!(both.delivers_to(FIRST), Some(mac(3)));
        both.sends(FIRST, mac(3), "a known address");
        assert_eq!(both.delivers_to(FIRST), Some(mac(3)));
        assert_eq!(both.delivers_to(&second), Some(mac(1)));
        assert_eq!(both.activity(7), [one(2, true), other(0, false)]);
    });
}

#[test]
fn the_number_of_changes_wraps_around_below_the_activity() {
    in_namespace(|| {
        let mut both = Both::new();
        both.sends(FIRST, mac(1), "a new address");
        // In the program's cells only.
        let cells = both.kernel.kernel.links().unwrap();
        let word = 1 << 63 | mac(1).to_u64();
        let cell = cells.iter().find(|it| it.load(Ordering::Relaxed) == word);
        let most = 0x7fff << 48 | mac(1).to_u64();
        cell.unwrap().store(most, Ordering::Relaxed);
        let kernel = |both: &Both, second| {
            let all = (both.kernel.links).take_activity(Duration::from_secs(second));
            (all[0].host.changes, all[0].is_active)
        };
        assert_eq!(kernel(&both, 1), (0x7fff, false));
        let frame = tcp(&format!("{FIRST}:40000"), WEB4).macs(TO, mac(2));
        both.kernel.run(Role::Host, &frame.build());
        assert_eq!(kernel(&both, 2), (0, true));
    });
}

#[test]
fn a_removed_address_is_unknown_until_its_next_frame() {
    in_namespace(|| {
        let mut both = Both::new();
        let others: Vec<_> = colliding().take(3).collect();
        both.sends(FIRST, mac(1), "the first");
        both.sends(&others[0], mac(2), "the second");
        both.sends(&others[1], mac(3), "the third");
        both.forget(FIRST, 10);
        assert_eq!(both.delivers_to(FIRST), None);
        assert_eq!(both.delivers_to(&others[1]), Some(mac(3)));
        let addresses = |both: &Both, second| -> Vec<_> {
            let all = both.activity(second).into_iter();
            all.map(|(address, changes, _)| (address, changes))
                .collect()
        };
        let other = |number: usize, changes| (others[number].clone(), changes);
        assert_eq!(addresses(&both, 10), [other(0, 0), other(1, 0)]);
        // Its entry is free, and the addresses behind it keep theirs.
        assert_eq!(addresses(&both, 20), [other(0, 0), other(1, 0)]);
        both.sends(&others[1], mac(4), "the third behind a free entry");
        assert_eq!(addresses(&both, 21), [other(0, 0), other(1, 1)]);
        assert_eq!(both.delivers_to(&others[1]), Some(mac(4)));
        // Another address gets the entry.
        both.sends(&others[2], mac(5), "the fourth in the entry of the first");
        assert_eq!(both.delivers_to(&others[2]), Some(mac(5)));
        both.sends(FIRST, mac(1), "the first again");
        assert_eq!(both.delivers_to(FIRST), Some(mac(1)));
        assert_eq!(both.delivers_to(&others[0]), Some(mac(2)));
        assert_eq!(both.activity(22).len(), 4);
    });
}

#[test]
fn of_two_entries_of_an_address_the_first_counts_in_the_program() {
    in_namespace(|| {
        let mut both = Both::new();
        let second = colliding().next().unwrap();
        both.sends(FIRST, mac(1), "the first");
        both.sends(&second, mac(2), "the second");
        // As if another CPU had not found its entry, since that of the first was free.
        let cells = both.kernel.kernel.links().unwrap();
        let address: Ipv4Addr = second.parse().unwrap();
        let key = u64::from(u32::from(address)) | 1 << 32;
        let get = |at: usize| cells[at].load(Ordering::Relaxed);
        let at = (0..cells.len()).find(|at| get(*at) == key).unwrap();
        for number in 0..4 {
            cells[at - 4 + number].store(get(at + number), Ordering::Relaxed);
        }
        cells[at - 3].store(mac(5).to_u64(), Ordering::Relaxed);
        let inbound = tcp(WEB4, &format!("{second}:40000")).macs(OWN, NEXT_HOP);
        let delivered = |rig: &mut Rig| {
            let (ran, _) = rig.run(Role::Incoming, &inbound.build());
            MacAddr::destination_of(&ran.frame)
        };
        assert_eq!(delivered(&mut both.kernel), Some(mac(5)));
        let frame = tcp(&format!("{second}:40000"), WEB4).macs(TO, mac(6));
        both.kernel.run(Role::Host, &frame.build());
        assert_eq!(delivered(&mut both.kernel), Some(mac(6)));
        let macs = |second| {
            let all = (both.kernel.links).take_activity(Duration::from_secs(second));
            all.iter().map(|one| one.host.mac).collect::<Vec<_>>()
        };
        assert_eq!(macs(1), [mac(6)]);
        // The other entry is removed.
        macs(9);
        assert_eq!(get(at), 0);
    });
}

#[test]
fn a_table_that_fills_loses_the_addresses_that_send_nothing() {
    let links = Links::new(None);
    let known = |number: u32| KnownHost {
        address: Ipv4Addr::from(0x0a00_0000 + number).into(),
        mac: mac(1),
        changes: 0,
    };
    let mut ages = HostAges::default();
    let mut look = |minute: u64| {
        let now = Duration::from_secs(60 * minute);
        let activity = links.take_activity(now);
        (activity.len(), links.age_hosts(&mut ages, &activity, now))
    };
    links.remember_hosts((0..6000).map(known));
    assert_eq!(links.hosts_full(), 0);
    let activity = links.take_activity(Duration::ZERO);
    assert!(activity.iter().all(|one| !one.is_active));
    for minute in 1..30 {
        assert_eq!(look(minute), (6000, 0), "{minute}");
    }
    // From three quarters of the table on, those that have sent nothing for ten minutes go.
    links.remember_hosts((6000..6500).map(known));
    assert_eq!(links.hosts_full(), 0);
    assert_eq!(look(30), (6500, 6000));
    assert_eq!(look(31), (500, 0));
    // Their entries are free for others.
    links.remember_hosts((10_000..15_000).map(known));
    assert_eq!((links.hosts_full(), look(32)), (0, (5500, 0)));
}
