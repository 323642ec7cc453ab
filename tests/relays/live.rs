//! What may follow what is in force: signed documents, loaded by a confined process, offered to a
//! live set. Its arithmetic has tests of its own, beside it.

use crate::site::{Site, authorities, checked, loader, plan};
use crate::{FLAVORS, at, listed};
use exitmark::lab::consensus::Order;
use exitmark::lab::publish;
use exitmark::policy::Endpoint;
use exitmark::relays::{Age, Flavor, LiveSet, Loaded, Refused, Trust, Validity, load};
use std::time::{Duration, SystemTime};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// When the first document of these tests begins to hold.
pub(crate) const START: u64 = 1_700_000_000;

pub(crate) fn hour(number: u32) -> SystemTime {
    at(START) + HOUR * number
}

/// A document of that hour that lists so many relays.
pub(crate) fn edition(number: u32, relays: u32) -> Order {
    Order {
        validity: Validity {
            valid_after: hour(number),
            fresh_until: hour(number + 1),
            valid_until: hour(number + 3),
        },
        relays,
        ..plan(Flavor::Microdesc)
    }
}

/// Puts this document in the place of the one before, and loads it.
pub(crate) fn next(site: &Site, order: &Order) -> Loaded {
    publish(site.directory.path(), "cached-consensus", order, &authorities()).unwrap();
    loader().load(&site.sources()).unwrap()
}

fn has(live: &LiveSet, endpoint: Endpoint) -> bool {
    let set = live.endpoints(&[]).unwrap();
    set.contains(endpoint.address, endpoint.port)
}

#[test]
fn an_authentic_document_can_still_be_the_wrong_one() {
    let site = Site::of(&edition(5, 40));
    let mut live = LiveSet::default();
    live.offer(site.load().unwrap(), hour(5)).unwrap();
    let before = live.clone();
    let mut refused = |order, now| live.offer(next(&site, &order), now).unwrap_err();
    let second = Duration::from_secs(1);

    let error = refused(edition(4, 40), hour(5));
    assert!(matches!(error, Refused::Older { .. }), "{error}");
    let error = refused(edition(7, 40), hour(6) - second);
    assert!(matches!(error, Refused::Future { .. }), "{error}");
    let error = refused(edition(6, 15), hour(6));
    assert!(matches!(error, Refused::Shrunk { .. }), "{error}");
    for words in [
        error.to_string(),
        refused(edition(4, 40), hour(5)).to_string(),
    ] {
        assert!(words.contains("relays.state"), "says the way out: {words}");
    }
    assert_eq!(live, before, "what was in force stays");

    // An hour ahead of a clock that is slow, or the same again, is fine.
    live.offer(next(&site, &edition(5, 40)), hour(4)).unwrap();
    live.offer(next(&site, &edition(6, 40)), hour(5)).unwrap();
    assert_eq!(live.decisions(), (3, 0));
}

#[test]
fn who_leaves_is_known_for_a_while_by_its_exact_endpoint() {
    let site = Site::of(&edition(0, 40));
    let mut live = LiveSet::default();
    live.offer(site.load().unwrap(), hour(0)).unwrap();
    let first = listed(&site.load().unwrap());
    let shorter = next(&site, &edition(1, 30));
    let second = listed(&shorter);
    live.offer(shorter, hour(1)).unwrap();
    let gone: Vec<_> = first.difference(&second).copied().collect();
    assert_eq!(live.counts(), (second.len(), gone.len()));
    assert!(gone.len() >= 10);
    assert!(gone.iter().all(|&endpoint| has(&live, endpoint)));
    live.forget(hour(28), HOUR * 28);
    assert!(has(&live, gone[0]));
    live.forget(hour(29), HOUR * 28);
    assert!(!gone.iter().any(|&endpoint| has(&live, endpoint)));
    assert!(second.iter().all(|&endpoint| has(&live, endpoint)));
}

#[test]
fn each_document_follows_its_own_past() {
    let [one, other] = FLAVORS.map(|flavor| {
        Site::of(&Order {
            flavor,
            ..edition(5, 40)
        })
    });
    let sources = checked([&one.consensus, &other.consensus]);
    let mut live = LiveSet::default();
    live.offer(load(&sources).unwrap(), hour(5)).unwrap();
    // The second one alone has gone back.
    next(&one, &edition(6, 40));
    next(&other, &edition(4, 40));
    match live.offer(load(&sources).unwrap(), hour(6)) {
        Err(Refused::Older { path, .. }) => assert_eq!(path, other.consensus),
        outcome => panic!("{outcome:?}"),
    }
    assert_eq!(live.age(hour(5)), Some(Age::Fresh));
}

#[test]
fn what_was_believed_by_other_rules_is_not_taken_over() {
    let site = Site::of(&edition(0, 40));
    let mut live = LiveSet::default();
    live.offer(site.load().unwrap(), hour(0)).unwrap();
    let same = live.clone().for_sources(&site.sources(), hour(0));
    assert_eq!(same, Some(live.clone()));
    // Another file, a network with another majority, a time before it.
    let other = checked(["/elsewhere/cached-consensus"]);
    assert_eq!(live.clone().for_sources(&other, hour(0)), None);
    let mut tor = site.sources();
    tor.trust = Trust::MostOf(exitmark::relays::Authorities::tor_network());
    assert_eq!(live.clone().for_sources(&tor, hour(0)), None);
    let early = hour(0) - HOUR - Duration::from_secs(1);
    assert_eq!(live.clone().for_sources(&site.sources(), early), None);

    // What nobody checked is no past for those who check.
    let mut unchecked = LiveSet::default();
    let anybody = crate::site::unchecked([&site.consensus]);
    unchecked.offer(load(&anybody).unwrap(), hour(0)).unwrap();
    assert_eq!(unchecked.clone().for_sources(&site.sources(), hour(0)), None);
    assert!(unchecked.for_sources(&anybody, hour(0)).is_some());
}
