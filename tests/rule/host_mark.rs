//! A second implementation of `classify_by = "host-mark"`, from the fields of which a frame was
//! built: class, egress and DSCP for every pair of marks.

use exitmark_box::settings::Settings;
use exitmark_datapath::{Counter, Forwarder, IncomingLink, Links, Outcome, Role};
use exitmark_lab::frames::{FROM, Frame, TO, of_protocol};
use exitmark_nic::NextHop;
use exitmark_policy::{Class, EndpointSet, Snapshot};
use proptest::prelude::*;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The special property of a frame's source or destination.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ends {
    Ordinary,
    Foreign,
    ToResolver,
    FromListener,
    FromRelayAddress,
    RelayAddressToExempt,
    ToExempt,
    ToListed,
}

const ENDS: [(Ends, &str, &str); 16] = [
    (Ends::Ordinary, "192.0.2.10:40000", "198.51.100.7:443"),
    (
        Ends::Ordinary,
        "[2001:db8:1::10]:40000",
        "[2001:db8:51::7]:443",
    ),
    (Ends::Foreign, "192.0.2.12:40000", "198.51.100.7:443"),
    (
        Ends::Foreign,
        "[2001:db8:1::12]:40000",
        "[2001:db8:51::7]:443",
    ),
    (Ends::ToResolver, "192.0.2.10:40000", "9.9.9.9:53"),
    (
        Ends::ToResolver,
        "[2001:db8:1::10]:40000",
        "[2620:fe::fe]:853",
    ),
    (Ends::FromListener, "192.0.2.10:22", "198.51.100.7:50000"),
    (
        Ends::FromListener,
        "[2001:db8:1::10]:9001",
        "[2001:db8:51::7]:50000",
    ),
    (Ends::FromRelayAddress, "192.0.2.11:40000", "198.18.0.1:1"),
    (
        Ends::FromRelayAddress,
        "[2001:db8:1::11]:40000",
        "[2001:db8:18::1]:9001",
    ),
    (
        Ends::RelayAddressToExempt,
        "192.0.2.11:40000",
        "203.0.113.9:80",
    ),
    (
        Ends::RelayAddressToExempt,
        "[2001:db8:1::11]:40000",
        "[2001:db8:113::9]:80",
    ),
    (Ends::ToExempt, "192.0.2.10:40000", "203.0.113.9:80"),
    (
        Ends::ToExempt,
        "[2001:db8:1::10]:40000",
        "[2001:db8:113::9]:80",
    ),
    (Ends::ToListed, "192.0.2.10:40000", "198.18.0.1:9001"),
    (
        Ends::ToListed,
        "[2001:db8:1::10]:40000",
        "[2001:db8:18::1]:9001",
    ),
];

/// An operator's configuration; marks are ToS bytes.
#[derive(Clone, Copy, Debug)]
struct Choice {
    host_mark: u8,
    mark: u8,
    protocols: &'static str,
    strip: bool,
    audit: bool,
    steer: bool,
    relay_set: bool,
}

impl Choice {
    fn forwarder(self) -> Forwarder {
        let mode = if self.audit { "audit" } else { "enforce" };
        let at_uplink = if self.strip { "strip" } else { "keep" };
        let (incoming, next_hop) = match self.steer {
            true => ("incoming = \"c\"", format!("next_hop = \"{TO}\"")),
            false => ("", String::new()),
        };
        let relays = match self.relay_set {
            true => "\"198.18.0.1:9001\", \"[2001:db8:18::1]:9001\", \"[2001:db8:1::10]:9001\"",
            false => "",
        };
        let listeners = if self.relay_set { "22" } else { "22, 9001" };
        let text = format!(
            "mode = \"{mode}\"\nclassify_by = \"host-mark\"\n\
             [ports]\nhost = \"a\"\nuplink = \"b\"\n{incoming}\n[steer]\n{next_hop}\n\
             [host]\naddresses = [\"192.0.2.10\", \"2001:db8:1::10\"]\n\
             relay_addresses = [\"192.0.2.11\", \"2001:db8:1::11\"]\n\
             listeners = [{listeners}]\nresolvers = [\"9.9.9.9\", \"2620:fe::fe\"]\n\
             exempt = [\"203.0.113.0/24\", \"2001:db8:113::/48\"]\ntos = {}\n\
             [mark]\ntos = {}\nprotocols = \"{}\"\nat_uplink = \"{at_uplink}\"\n\
             [relays]\nextra = [{relays}]\n",
            self.host_mark, self.mark, self.protocols
        );
        let settings = Settings::parse(&text, Path::new("")).unwrap();
        let relays = EndpointSet::new(settings.relays.sources.extra.iter().copied()).unwrap();
        let incoming = settings.incoming().map(|incoming| IncomingLink {
            port: Role::Incoming,
            own: FROM,
            next_hop: match incoming.next_hops[0].next_hop {
                NextHop::Mac(mac) => Some(mac),
                NextHop::Address(_) => None,
            },
        });
        let snapshot = Snapshot::new(1, settings.rules, relays);
        Forwarder::new(Arc::new(snapshot), Arc::new(Links::new(incoming)))
    }

    /// The class, by the table in docs/classes.md.
    fn class(self, ends: Ends, protocol: u8, tos: u8) -> Class {
        let tcp = protocol == 6;
        let has_ports = tcp || protocol == 17;
        let counts = tcp || self.protocols == "all" || has_ports && self.protocols == "tcp+udp";
        let of_relay_address = [Ends::FromRelayAddress, Ends::RelayAddressToExempt].contains(&ends);
        match ends {
            Ends::Foreign => Class::Foreign,
            Ends::ToResolver if has_ports => Class::Resolver,
            Ends::FromListener if tcp => Class::Reply,
            _ if of_relay_address && tcp => Class::Relay,
            Ends::ToExempt | Ends::RelayAddressToExempt => Class::Exempt,
            _ if of_relay_address => Class::Host,
            _ if counts && tos & 0xfc == self.host_mark => Class::Exit,
            _ if tcp => Class::Relay,
            _ => Class::Host,
        }
    }

    /// The ToS byte of the frame on departure.
    fn leaves(self, class: Class, tos: u8) -> u8 {
        let (dscp, ecn) = (tos & 0xfc, tos & 0b11);
        if self.audit {
            tos
        } else if class == Class::Exit && !self.strip {
            self.mark | ecn
        } else if dscp == self.mark || dscp == self.host_mark {
            ecn
        } else {
            tos
        }
    }
}

/// One of a few marks, so that they often are the same.
fn some_mark() -> impl Strategy<Value = u8> {
    prop_oneof![Just(0x28_u8), Just(0x20), Just(0xfc), Just(0x04)]
}

prop_compose! {
    fn some_choice()(
        host_mark in some_mark(),
        mark in some_mark(),
        protocols in prop_oneof![Just("tcp"), Just("tcp+udp"), Just("all")],
        [strip, steer, relay_set] in any::<[bool; 3]>(),
        audit in prop::bool::weighted(0.1),
    ) -> Choice {
        Choice { host_mark, mark, protocols, strip, audit, steer, relay_set }
    }
}

/// Source and destination, protocol, ToS, and the frame without its ToS.
fn some_frame() -> impl Strategy<Value = (Ends, u8, u8, Frame)> {
    (
        proptest::sample::select(&ENDS[..]),
        prop_oneof![4 => Just(6_u8), 2 => Just(17), 1 => Just(1), 1 => Just(58), 1 => Just(132)],
        prop_oneof![
            3 => (some_mark(), 0..4_u8).prop_map(|(mark, ecn)| mark | ecn),
            1 => any::<u8>(),
            1 => 0..4_u8,
        ],
        (0..3_usize, 0..9_usize, 0..11_usize),
    )
        .prop_map(|((ends, from, to), protocol, tos, sizes)| {
            let (tags, extensions, options) = sizes;
            let frame = of_protocol(protocol, from, to)
                .extensions(&vec![60; extensions])
                .options(options * 4);
            let frame = (0..tags).fold(frame, |frame, _| frame.tag(0x8100, 7));
            (ends, protocol, tos, frame)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn class_egress_and_dscp_follow_from_what_was_built(
        choice in some_choice(),
        (ends, protocol, tos, frame) in some_frame(),
    ) {
        let mut forwarder = choice.forwarder();
        let class = choice.class(ends, protocol, tos);
        let before = frame.clone().tos(tos).build();
        let mut after = before.clone();
        let bytes = after.len();
        let (outcome, verdict) = forwarder.forward(Role::Host, &mut after, bytes, Duration::ZERO);
        let verdict = verdict.unwrap();
        prop_assert_eq!(verdict.class(), class);
        prop_assert!(!verdict.disagreement);
        let left = choice.leaves(class, tos);
        let may_steer = class == Class::Relay && choice.steer && !choice.audit;
        // The next hop is resolved in the untagged network only.
        let is_tagged = before[12..14] == [0x81, 0x00];
        let steered = may_steer && !is_tagged;
        let expected = match steered {
            true => frame.macs(TO, FROM).tos(left).build(),
            false => frame.tos(left).build(),
        };
        prop_assert_eq!(after, expected);
        let egress = if steered { Role::Incoming } else { Role::Uplink };
        prop_assert_eq!(outcome, Outcome::Forward(egress));
        let tally = forwarder.tally();
        let unrouted = u64::from(may_steer && is_tagged);
        prop_assert_eq!(tally.of(Counter::UnroutedVlan), unrouted);
        prop_assert_eq!(tally.of(Counter::Unsteered), unrouted);
        let sets = class == Class::Exit && !choice.strip;
        prop_assert_eq!(tally.of(Counter::Marked), u64::from(left != tos && sets));
        prop_assert_eq!(tally.of(Counter::Cleared), u64::from(left != tos && !sets));
    }
}
