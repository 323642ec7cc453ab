//! Successors of the set in force, with correctly signed documents: an implausible one is refused
//! and changes nothing.

use crate::site::{Site, loader, plan};
use crate::{FLAVORS, HOUR, START, assert_names_no_address, at, elements, offer, valid_from};
use exitmark_lab::authorities::Authorities;
use exitmark_lab::consensus::ConsensusBuilder;
use exitmark_policy::Endpoint;
use exitmark_relays::{DocumentFiles, Flavor, LiveSet, Refused, Sources, Trust};
use std::time::{Duration, SystemTime};

pub(crate) fn hour(number: u32) -> SystemTime {
    at(START) + HOUR * number
}

/// The document of this hour, of a network of this many relays.
pub(crate) fn in_hour(flavor: Flavor, number: u32, relays: u32) -> ConsensusBuilder {
    ConsensusBuilder {
        relays,
        validity: valid_from(hour(number)),
        ..plan(flavor)
    }
}

/// A site whose document a confined loader reads, and the live set.
struct Stage {
    site: Site,
    live: LiveSet,
}

impl Stage {
    fn new(flavor: Flavor) -> Self {
        Self {
            site: Site::new(flavor),
            live: LiveSet::default(),
        }
    }

    /// Writes this document, loads it, and offers it to the live set.
    fn offer(&mut self, builder: &ConsensusBuilder, now: SystemTime) -> Result<(), Refused> {
        self.site.publish(builder);
        let loaded = loader().load(&self.site.sources()).unwrap();
        offer(&mut self.live, loaded, now)
    }

    /// Asserts that this document is refused and changes nothing.
    fn refusal(&mut self, builder: &ConsensusBuilder, now: SystemTime) -> Refused {
        let before = self.live.clone();
        let refused = self.offer(builder, now).unwrap_err();
        assert_eq!(self.live, before);
        assert_names_no_address(&refused);
        let path = self.site.consensus.to_str().unwrap();
        assert!(refused.to_string().starts_with(path), "{refused}");
        refused
    }
}

#[test]
fn refuses_correctly_signed_old_future_and_shrunk_documents() {
    for flavor in FLAVORS {
        let mut stage = Stage::new(flavor);
        // Without a set in force, only the clock is checked.
        let early = stage.refusal(&in_hour(flavor, 3, 100), hour(1));
        assert!(matches!(early, Refused::Future { .. }), "{early}");
        stage.offer(&in_hour(flavor, 2, 100), hour(1)).unwrap();
        stage.offer(&in_hour(flavor, 3, 100), hour(3)).unwrap();
        let older = stage.refusal(&in_hour(flavor, 2, 100), hour(3));
        assert!(matches!(older, Refused::Older { .. }), "{older}");
        let early = stage.refusal(&in_hour(flavor, 1_000, 100), hour(4));
        assert!(matches!(early, Refused::Future { .. }), "{early}");
        let shrunk = stage.refusal(&in_hour(flavor, 4, 40), hour(4));
        let Refused::Shrunk { before, now, .. } = shrunk else {
            panic!("{shrunk}");
        };
        assert!(now * 2 < before, "{now} of {before}");
        // A moderately smaller network, and the same document again.
        stage.offer(&in_hour(flavor, 4, 60), hour(4)).unwrap();
        stage.offer(&in_hour(flavor, 4, 60), hour(5)).unwrap();
        // A successor is accepted even if it is old by now.
        stage.offer(&in_hour(flavor, 5, 60), hour(5_000)).unwrap();
        assert_eq!(stage.live.decisions(), (5, 0));
    }
}

#[test]
fn departed_relays_count_until_forgotten_and_extras_always() {
    let mut stage = Stage::new(Flavor::Microdesc);
    let relay: Endpoint = "203.0.113.1:1".parse().unwrap();
    let extra: Endpoint = "203.0.113.2:2".parse().unwrap();
    let with = ConsensusBuilder {
        listed: vec![relay],
        ..in_hour(Flavor::Microdesc, 0, 50)
    };
    stage.offer(&with, hour(0)).unwrap();
    let counted = |live: &LiveSet| elements(&live.endpoints(&[extra]).unwrap());
    let all = counted(&stage.live);
    let without = in_hour(Flavor::Microdesc, 1, 50);
    stage.offer(&without, hour(1)).unwrap();
    assert_eq!(stage.live.counts().1, 1);
    assert!(stage.live.counts_as_relay(relay));
    assert_eq!(counted(&stage.live), all);
    let retain = 28 * HOUR;
    assert_eq!(stage.live.next_to_forget(retain), Some(hour(29)));
    stage.live.forget(hour(29) - Duration::from_secs(1), retain);
    assert!(stage.live.counts_as_relay(relay));
    stage.live.forget(hour(29), retain);
    assert!(!stage.live.counts_as_relay(relay));
    let left = counted(&stage.live);
    assert_eq!(all.difference(&left).copied().collect::<Vec<_>>(), [relay]);
}

#[test]
fn for_sources_drops_sets_of_other_sources_and_authorities() {
    let mut stage = Stage::new(Flavor::Ns);
    let builder = in_hour(Flavor::Ns, 10, 100);
    stage.offer(&builder, hour(10)).unwrap();
    let sources = stage.site.sources();
    stage.live.believe(&sources.trust);
    let live = &stage.live;
    let kept = |sources: &Sources, now| live.clone().for_sources(sources, now);
    assert_eq!(kept(&sources, hour(10)), Some(live.clone()));
    // A set is dropped for another document,
    let other = Sources {
        files: vec![DocumentFiles::beside("/other/cached-consensus".into())],
        ..sources.clone()
    };
    assert_eq!(kept(&other, hour(10)), None);
    // for other authorities, even if they include the previous ones,
    let strangers = Authorities::family(1, 3);
    let others = stage.site.sources_of(&strangers);
    assert_eq!(kept(&others, hour(10)), None);
    let five = Authorities::new(5);
    let more = stage.site.sources_of(&five);
    assert_eq!(kept(&more, hour(10)), None);
    // and if the clock is far behind its document.
    assert!(kept(&sources, hour(9)).is_some());
    assert_eq!(kept(&sources, hour(9) - Duration::from_secs(1)), None);
    // Without verification the set is kept; an unverified set is dropped if signatures are needed.
    let anybody = Sources {
        trust: Trust::Unverified,
        ..sources.clone()
    };
    assert!(kept(&anybody, hour(10)).is_some());
    let mut unchecked = LiveSet::default();
    let loaded = loader().load(&anybody).unwrap();
    offer(&mut unchecked, loaded, hour(10)).unwrap();
    assert_eq!(unchecked.for_sources(&sources, hour(10)), None);
}
