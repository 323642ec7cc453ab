//! Decides what happens to the socket of an outgoing TCP connection, for engine `connect` on the
//! Tor host itself.
//!
//! The socket is known to be tor's and has no packet yet, so only the destination counts: there are
//! no answers, no listeners and no other protocols. This is the reference for the programs in
//! bpf/connect.bpf.c.

use super::rules::Marking;
use super::{Class, Egress, Rule, Snapshot};
use crate::packet::{Dscp, Version};
use std::net::{IpAddr, SocketAddr};

const DNS: u16 = 53;
const DNS_OVER_TLS: u16 = 853;

/// The verdict on an outgoing connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionVerdict {
    /// The rule that the destination matched.
    pub rule: Rule,
    /// The DSCP for the socket; `None` if it does not change.
    pub mark: Option<Dscp>,
    /// Whether the socket is steered, as [`SocketRules`](crate::SocketRules) says.
    pub is_steered: bool,
}

impl ConnectionVerdict {
    /// The class of [`ConnectionVerdict::rule`].
    pub const fn class(&self) -> Class {
        self.rule.class()
    }

    /// A description of [`ConnectionVerdict::rule`], for explanations.
    pub const fn describe(&self) -> &'static str {
        match self.rule {
            // Its source address does not matter here.
            Rule::ExitProtocol => "to no relay",
            rule => rule.describe(),
        }
    }
}

/// The verdict on a TCP connection of tor to `destination`, by the policy of the first group. An IPv4-mapped IPv6 address (RFC 4291,
/// section 2.5.5.2) is judged as the IPv4 address.
///
/// # Examples
/// ```
/// use exitmark_policy::{Class, Rule, Snapshot, judge_connection};
/// # use exitmark_policy::packet::Dscp;
/// # use exitmark_policy::{Actions, AtUplink, ClassifyBy, EndpointSet, Group, Intent, Mode};
/// # use exitmark_policy::{PrefixSet, Rules, Steer};
/// # use std::sync::Arc;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let actions = Actions::new(Intent {
/// #     mode: Mode::Enforce,
/// #     mark: Dscp::AF11,
/// #     at_uplink: AtUplink::Keep,
/// #     steer: Steer::Off,
/// # });
/// # let tor = Group {
/// #     exempt: PrefixSet::new(["127.0.0.0/8".parse()?]),
/// #     ..Group::new("tor", actions)
/// # };
/// # let rules = Rules::new(ClassifyBy::RelaySet, vec![tor], Default::default());
/// let relays = EndpointSet::new(["198.51.100.7:9001".parse()?])?;
/// let snapshot = Snapshot::new(1, Arc::new(rules), relays);
/// let web = judge_connection("198.51.100.7:443".parse()?, &snapshot);
/// assert_eq!((web.class(), web.mark), (Class::Exit, Some(Dscp::AF11)));
/// let relay = judge_connection("[::ffff:198.51.100.7]:9001".parse()?, &snapshot);
/// assert_eq!((relay.rule, relay.mark), (Rule::ToListedRelay, None));
/// # Ok(())
/// # }
/// ```
pub fn judge_connection(destination: SocketAddr, snapshot: &Snapshot) -> ConnectionVerdict {
    let (address, port) = (destination.ip().to_canonical(), destination.port());
    let Some(tor) = snapshot.rules.groups().first() else {
        return ConnectionVerdict {
            rule: Rule::ForeignSource,
            mark: None,
            is_steered: false,
        };
    };
    let rule = if tor.exempt.contains(address) {
        Rule::ToExemptPrefix
    } else if matches!(port, DNS | DNS_OVER_TLS) && tor.resolvers.contains(address) {
        Rule::ToResolver
    } else if snapshot.relays.contains(address, port) {
        Rule::ToListedRelay
    } else {
        Rule::ExitProtocol
    };
    let action = tor.actions.of(rule);
    let version = match address {
        IpAddr::V4(_) => Version::V4,
        IpAddr::V6(_) => Version::V6,
    };
    ConnectionVerdict {
        rule,
        mark: (action.marking == Marking::Set).then(|| tor.actions.mark()),
        is_steered: action.egress == Egress::Incoming && tor.actions.intent().steer.routes(version),
    }
}
