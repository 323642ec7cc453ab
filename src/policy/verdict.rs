//! The verdict on a frame: its rule, its class, and what is done with it.

use super::GroupNumber;
use crate::packet::{Dscp, Malformed, Version};

/// The class of an outbound frame. Every outbound frame has exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Neither IPv4 nor IPv6, such as ARP, or a runt. Forwarded unchanged.
    NonIp,
    /// The EtherType is IP's, but the headers are invalid ([`Malformed`]). Forwarded unchanged.
    Malformed,
    /// Not from one of the host's addresses.
    Foreign,
    /// To one of the host's resolvers.
    Resolver,
    /// From one of the host's listeners, or accepting a connection.
    Reply,
    /// To another relay, by the relay set or the host's mark, or TCP from a relay address. The only
    /// class that is steered.
    Relay,
    /// To a destination that the operator exempted.
    Exempt,
    /// A stream that leaves the Tor network.
    Exit,
    /// Anything else that the host sends.
    Host,
}

impl Class {
    /// Every class, in the order of the rules.
    pub const ALL: [Self; 9] = [
        Self::NonIp,
        Self::Malformed,
        Self::Foreign,
        Self::Resolver,
        Self::Reply,
        Self::Relay,
        Self::Exempt,
        Self::Exit,
        Self::Host,
    ];

    /// The class' name in counters and explanations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NonIp => "non_ip",
            Self::Malformed => "malformed",
            Self::Foreign => "foreign",
            Self::Resolver => "resolver",
            Self::Reply => "reply",
            Self::Relay => "relay",
            Self::Exempt => "exempt",
            Self::Exit => "exit",
            Self::Host => "host",
        }
    }
}

/// The rule that a frame matched. It determines the class; several rules may share a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rule {
    /// The EtherType is not IP's, or the frame is a runt.
    NotIp,
    /// [`Malformed::ShortHeader`]: the frame ends within the fixed IP header.
    ShortHeader,
    /// [`Malformed::WrongVersion`]: the version field contradicts the EtherType.
    WrongVersion,
    /// [`Malformed::BadLength`]: the lengths of an IP header contradict each other.
    BadLength,
    /// [`Malformed::BeyondFrame`]: the IP packet is longer than the frame.
    BeyondFrame,
    /// [`Malformed::ShortExtension`]: an IPv6 extension header is cut off.
    ShortExtension,
    /// [`Malformed::TooManyExtensions`]: more extension headers than the parser follows.
    TooManyExtensions,
    /// [`Malformed::ShortTransport`]: the ports of TCP or UDP are cut off.
    ShortTransport,
    /// The source is not an address of the host.
    ForeignSource,
    /// The destination is a configured resolver, port 53 or 853.
    ToResolver,
    /// The source address and port are a listener of the host.
    FromListener,
    /// TCP with SYN and ACK: accepts an inbound connection.
    Accepts,
    /// TCP with RST, and without ACK or with sequence number 0: answers a segment that belongs to
    /// no connection.
    Refuses,
    /// The source is one of the host's relay addresses.
    FromRelayAddress,
    /// The destination address and port are in the relay set.
    ToListedRelay,
    /// The destination is in an exempt prefix.
    ToExemptPrefix,
    /// An exit protocol from a clearnet address.
    ExitProtocol,
    /// An exit protocol from a clearnet address, with the mark that the host sets on exit traffic.
    HostMarked,
    /// TCP from a clearnet address without the host's mark.
    NotHostMarked,
    /// A protocol that does not count as exit.
    OtherProtocol,
    /// A later fragment whose first one was not seen.
    UnseenFragment,
    /// A frame that only user space can parse, handled by the kernel because no worker took it.
    NoUserSpace,
}

impl From<Malformed> for Rule {
    #[inline]
    fn from(reason: Malformed) -> Self {
        match reason {
            Malformed::ShortHeader => Self::ShortHeader,
            Malformed::WrongVersion => Self::WrongVersion,
            Malformed::BadLength => Self::BadLength,
            Malformed::BeyondFrame => Self::BeyondFrame,
            Malformed::ShortExtension => Self::ShortExtension,
            Malformed::TooManyExtensions => Self::TooManyExtensions,
            Malformed::ShortTransport => Self::ShortTransport,
        }
    }
}

impl Rule {
    /// Every rule, indexed by its number.
    pub const ALL: [Self; 22] = [
        Self::NotIp,
        Self::ShortHeader,
        Self::WrongVersion,
        Self::BadLength,
        Self::BeyondFrame,
        Self::ShortExtension,
        Self::TooManyExtensions,
        Self::ShortTransport,
        Self::ForeignSource,
        Self::ToResolver,
        Self::FromListener,
        Self::Accepts,
        Self::Refuses,
        Self::FromRelayAddress,
        Self::ToListedRelay,
        Self::ToExemptPrefix,
        Self::ExitProtocol,
        Self::HostMarked,
        Self::NotHostMarked,
        Self::OtherProtocol,
        Self::UnseenFragment,
        Self::NoUserSpace,
    ];

    /// The class of the frames that match this rule.
    pub const fn class(self) -> Class {
        match self {
            Self::NotIp => Class::NonIp,
            Self::ShortHeader
            | Self::WrongVersion
            | Self::BadLength
            | Self::BeyondFrame
            | Self::ShortExtension
            | Self::TooManyExtensions
            | Self::ShortTransport => Class::Malformed,
            Self::ForeignSource => Class::Foreign,
            Self::ToResolver => Class::Resolver,
            Self::FromListener | Self::Accepts => Class::Reply,
            Self::FromRelayAddress | Self::ToListedRelay | Self::NotHostMarked => Class::Relay,
            Self::ToExemptPrefix => Class::Exempt,
            Self::ExitProtocol | Self::HostMarked => Class::Exit,
            Self::Refuses | Self::OtherProtocol | Self::UnseenFragment | Self::NoUserSpace => {
                Class::Host
            }
        }
    }

    /// A description of the rule, for explanations.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::NotIp => "not an IP packet",
            Self::ShortHeader => "an IP packet that ends within its header",
            Self::WrongVersion => "an IP packet of another version than its ethertype says",
            Self::BadLength => "an IP packet whose lengths contradict each other",
            Self::BeyondFrame => "an IP packet that goes beyond its frame",
            Self::ShortExtension => "an IP packet with an extension header cut off",
            Self::TooManyExtensions => "an IP packet with too many extension headers",
            Self::ShortTransport => "an IP packet with its ports cut off",
            Self::ForeignSource => "the source is not an address of the host",
            Self::ToResolver => "to a configured resolver",
            Self::FromListener => "from a port where the host itself listens",
            Self::Accepts => "accepts a connection that came in (SYN and ACK)",
            Self::Refuses => "answers a segment of no connection (RST)",
            Self::FromRelayAddress => "from an address that carries Tor traffic only",
            Self::ToListedRelay => "to a listed relay's address and port",
            Self::ToExemptPrefix => "to an exempt prefix",
            Self::ExitProtocol => "from a clearnet address to no relay",
            Self::HostMarked => "with the mark that the host sets on exit traffic",
            Self::NotHostMarked => "from a clearnet address without the host's own mark",
            Self::OtherProtocol => "a protocol that is not marked",
            Self::UnseenFragment => "a later fragment whose first one was not seen",
            Self::NoUserSpace => "a frame for user space, where no worker took it",
        }
    }
}

/// The port by which an outbound frame leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// The port at the other end of the wire, towards the clearnet.
    Uplink,
    /// The network that carries Tor traffic.
    Incoming,
    /// Relay traffic that no next hop routes: its IP version has none, or it has other VLAN tags
    /// than its group. It leaves by the uplink or is dropped, by configuration.
    Unrouted,
}

/// A change of an IP header's DSCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remark {
    /// Offset of the IP header in the frame, in bytes.
    pub l3: usize,
    /// The IP version of the header.
    pub version: Version,
    /// The DSCP to write: the mark, or [`Dscp::DEFAULT`] to clear a mark.
    pub dscp: Dscp,
}

/// The verdict on one outbound frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The rule that the frame matched.
    pub rule: Rule,
    /// The group of its source address.
    pub group: GroupNumber,
    /// The port by which the frame leaves.
    pub egress: Egress,
    /// The change of its IP header; `None` if the DSCP is right already.
    pub remark: Option<Remark>,
    /// Whether the relay set and the source address disagree about this flow.
    pub disagreement: bool,
}

impl Verdict {
    /// The class of [`Verdict::rule`].
    pub const fn class(&self) -> Class {
        self.rule.class()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn class_names_and_rule_descriptions_are_unique() {
        let names = BTreeSet::from(Class::ALL.map(Class::name));
        assert_eq!(names.len(), Class::ALL.len());
        let described = BTreeSet::from(Rule::ALL.map(Rule::describe));
        assert_eq!(described.len(), Rule::ALL.len());
    }
}
