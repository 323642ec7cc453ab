//! The status of a live set as text and JSON: counts, but no endpoint.

use crate::site::Site;
use crate::{START, at, names_an_address, offer};
use exitmark_policy::Endpoint;
use exitmark_relays::{Flavor, LiveSet, Status};
use std::time::Duration;

#[test]
fn shows_a_live_set_in_counts() {
    let loaded = Site::new(Flavor::Microdesc).load().unwrap();
    let relay = loaded.listed[0];
    let count = loaded.listed.len();
    let mut live = LiveSet::default();
    offer(&mut live, loaded, at(START + 60)).unwrap();
    live.refuse("line 3: is bad".to_owned(), at(START + 120));
    // One of the extras is a listed relay.
    let extra: [Endpoint; 2] = [relay, "203.0.113.7:22".parse().unwrap()];
    let status = Status::new(&live, &extra, at(START) + Duration::from_secs(300));
    assert_eq!(status.count(), count + 1);
    assert!(status.contains(relay) && status.contains(extra[1]));
    let other: Endpoint = "203.0.113.7:23".parse().unwrap();
    assert!(!status.contains(other));

    let text = status.to_string();
    for part in [
        "In force since 2023-11-14 22:14:20 UTC, 4m ago.",
        "3 good, 2 needed",
        "sets accepted            1",
        "sets refused             1",
        "extra                    2",
        "Last refusal 2023-11-14 22:15:20 UTC, 3m ago: line 3: is bad",
        &format!("The relay set in force has {} endpoints.", count + 1),
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!names_an_address(&text), "{text}");

    let json = status.json(None);
    assert_eq!(json["listed"], count);
    assert_eq!(json["distinct"], count + 1);
    assert_eq!(json["age"], "fresh");
    assert_eq!(json["accepted_at"], "2023-11-14 22:14:20");
    assert_eq!(json["last_refusal"]["reason"], "line 3: is bad");
    assert_eq!(json["contains"], serde_json::Value::Null);
    assert_eq!(json["sources"][0]["signatures_good"], 3);
    assert!(!names_an_address(&json.to_string()));
    assert_eq!(status.json(Some(other))["contains"], false);
    assert_eq!(status.json(Some(relay))["contains"], true);
}

#[test]
fn an_empty_set_is_shown_too() {
    let live = LiveSet::default();
    let status = Status::new(&live, &[], at(START));
    assert_eq!(status.count(), 0);
    let text = status.to_string();
    assert!(text.contains("No relay set was refused."), "{text}");
    assert!(!text.contains("In force"), "{text}");
    let json = status.json(None);
    assert_eq!(json["age"], serde_json::Value::Null);
    assert_eq!(json["accepted_at"], serde_json::Value::Null);
}
