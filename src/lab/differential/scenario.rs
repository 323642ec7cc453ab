//! The configuration of both engines: an operator's rules, a relay set, the links.
//!
//! Scenarios are random and have a one-line text form, so that a counter-example is self-contained.

use super::group::GroupScenario;
use crate::{LabError, Random};
use exitmark_datapath::{IncomingLink, Links, PerRole, Role, TakeoverLimits};
use exitmark_policy::packet::{Dscp, MacAddr};
use exitmark_policy::{
    ClassifyBy, Endpoint, EndpointSet, MAX_ENDPOINTS, MAX_GROUPS, Mode, Rules, Snapshot,
    SocketRules, Tap,
};
use ipnet::IpNet;
use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Everything but the frame that a verdict depends on.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Whether to change frames or only to count them.
    pub mode: Mode,
    /// The frames that are copied for a tap.
    pub tap: Tap,
    /// The hosts' mark on exit traffic; `None` if frames are classified by the relay set.
    pub host_mark: Option<Dscp>,
    /// The groups of hosts, at least one.
    pub groups: Vec<GroupScenario>,
    /// The endpoints of the relay set.
    pub relays: Vec<Endpoint>,
    /// The egress link for relay traffic, with the MAC address of next hop 0.
    pub incoming: Option<IncomingLink>,
    /// The MAC addresses of the next hops from number 1 on; `None` if unknown.
    pub next_hops: Vec<Option<MacAddr>>,
    /// Whether relay frames that cannot be steered are dropped.
    pub drops_unsteered: bool,
    /// Whether frames from `uplink` with a host's source address are counted.
    pub seeks_host: bool,
    /// The longest frame in bytes that every port accepts.
    pub longest: u32,
    /// The ports whose frames all go to user space, where no process runs.
    pub hand_over: PerRole<bool>,
}

/// A port common for relays, listeners or resolvers, or any port but 0.
pub(super) fn some_port(random: &mut Random) -> u16 {
    let usual = random.one_of([443, 9001, 9030, 22, 53, 853, 65_535, 1]);
    if random.percent(60) {
        usual
    } else {
        random.half().max(1)
    }
}

/// Addresses close to one another and to the limits of a word.
pub(super) fn some_v4(random: &mut Random) -> u32 {
    let bases: [u32; 6] = [
        0x0a00_0000,
        0xc000_0200,
        0xc633_6400,
        0,
        0xffff_ff00,
        0x7fff_ff80,
    ];
    if random.percent(20) {
        return random.wide();
    }
    random.one_of(bases).wrapping_add(random.byte().into())
}

pub(super) fn some_v6(random: &mut Random) -> u128 {
    let bases: [u128; 6] = [
        0x2001_0db8 << 96,
        // The lower half is about to overflow into the upper one.
        (0x2001_0db8 << 96) + 0xffff_ffff_ffff_ff80,
        0,
        u128::MAX - 0xff,
        (1 << 127) - 0x80,
        0xfe80 << 112 | 1 << 63,
    ];
    if random.percent(10) {
        return random.double();
    }
    // Some differ in the upper half only.
    let is_upper = random.percent(20);
    let upper = if is_upper { random.below(4) } else { 0 };
    let upper = (upper as u128) << 64;
    (random.one_of(bases) ^ upper).wrapping_add(random.byte().into())
}

pub(super) fn some_address(random: &mut Random) -> IpAddr {
    if random.percent(60) {
        Ipv4Addr::from(some_v4(random)).into()
    } else {
        Ipv6Addr::from(some_v6(random)).into()
    }
}

fn some_prefix(random: &mut Random) -> IpNet {
    let address = some_address(random);
    let width = if address.is_ipv4() { 32 } else { 128 };
    let host_bits = match random.below(100) {
        0..60 => 0,
        60..90 => random.below(10),
        90..97 => random.below(width / 2 + 2),
        _ => random.below(width + 1),
    };
    let length = u8::try_from(width - host_bits).unwrap_or(u8::MAX);
    IpNet::new(address, length).map_or_else(|_| address.into(), |net| net.trunc())
}

/// A number of elements: 0, 1, a few or many, at most `most`.
pub(super) fn some_number(random: &mut Random, most: usize) -> usize {
    let number = match random.below(100) {
        0..15 => 0,
        15..45 => 1,
        45..80 => 2 + random.below(7),
        80..94 => 9 + random.below(56),
        _ => random.below(most + 1),
    };
    number.min(most)
}

pub(super) fn some_prefixes(random: &mut Random, most: usize) -> Vec<IpNet> {
    let number = some_number(random, most);
    if number <= 64 {
        return (0..number).map(|_| some_prefix(random)).collect();
    }
    // Far apart, so that few are merged, and mostly of one family: the search takes many steps.
    let mostly = if random.percent(50) { 97 } else { 3 };
    (0..number)
        .map(|_| match random.percent(mostly) {
            true => single(Ipv4Addr::from_bits(random.wide())),
            false => single(Ipv6Addr::from_bits(random.double())),
        })
        .collect()
}

/// AF11, or any mark but 0, which the settings reject.
pub(super) fn some_mark(random: &mut Random) -> Dscp {
    match random.percent(50) {
        true => Dscp::AF11,
        false => Dscp::of(random.byte().max(4)),
    }
}

pub(super) fn some_mac(random: &mut Random, last: u8) -> MacAddr {
    MacAddr::new([2, 0, random.byte(), 0, 3, last])
}

impl Scenario {
    /// A random scenario.
    pub fn some(random: &mut Random) -> Self {
        let groups = match random.below(10) {
            0..5 => 1,
            5..9 => 2 + random.below(6),
            _ => MAX_GROUPS,
        };
        let vlans = random.percent(40);
        let next_hops = random.below(5);
        let some = |_| GroupScenario::some(random, groups, vlans, next_hops);
        let mut groups: Vec<_> = (0..groups).map(some).collect();
        // The kernel's program has a short way for the frames of an only group without extras.
        let is_plain = random.percent(25);
        if is_plain {
            groups.truncate(1);
            groups[0].simplify(random);
        }
        let hosts: Vec<_> = groups.iter().flat_map(GroupScenario::hosts).collect();
        let relays = match random.below(100) {
            0..8 => 0,
            8..48 => 1 + random.below(8),
            48..75 => 100 + random.below(2000),
            75..96 => 8000 + random.below(12_000),
            _ => MAX_ENDPOINTS,
        };
        let relays = (0..relays)
            .map(|_| {
                let address = some_address(random);
                let address = match random.percent(2) {
                    true => random.pick(&hosts).map_or(address, |net| net.addr()),
                    false => address,
                };
                Endpoint::new(address, some_port(random))
            })
            .collect();
        Self {
            mode: match random.percent(10) {
                true => Mode::Audit,
                false => Mode::Enforce,
            },
            tap: match is_plain {
                true => Tap::Off,
                false => random.one_of([Tap::Both, Tap::Both, Tap::Out, Tap::Off]),
            },
            host_mark: (!is_plain && random.percent(30)).then(|| some_mark(random)),
            groups,
            relays,
            incoming: random.percent(80).then(|| IncomingLink {
                port: match random.percent(20) {
                    true => Role::Uplink,
                    false => Role::Incoming,
                },
                own: some_mac(random, 1),
                next_hop: random.percent(85).then(|| some_mac(random, 2)),
            }),
            next_hops: (0..next_hops)
                .map(|number| {
                    let last = u8::try_from(10 + number).unwrap_or(u8::MAX);
                    random.percent(85).then(|| some_mac(random, last))
                })
                .collect(),
            drops_unsteered: random.percent(30),
            seeks_host: random.percent(30),
            longest: random.one_of([1514, 9014, 9014, 16_000]),
            hand_over: PerRole::from_fn(|_| random.percent(20)),
        }
    }

    /// The rules and the relay set in the form that the engines use.
    ///
    /// # Errors
    /// Fails if the relay set cannot be built.
    pub fn snapshot(&self) -> Result<Snapshot, LabError> {
        let by = self.host_mark;
        let by = by.map_or(ClassifyBy::RelaySet, ClassifyBy::HostMark);
        let groups = self.groups.iter().map(|group| group.group(self.mode));
        let rules = Rules::new(by, groups.collect(), SocketRules::default()).tapping(self.tap);
        let relays = EndpointSet::new(self.relays.iter().copied())
            .map_err(|error| LabError(error.to_string()))?;
        Ok(Snapshot::new(1, Arc::new(rules), relays))
    }

    pub(super) fn configure(&self, links: &Links) {
        let limits = TakeoverLimits {
            heartbeat_timeout: Duration::from_secs(1),
            soft_watermark: 64,
            hard_watermark: 128,
        };
        links.hand_over(self.hand_over, limits);
        links.drop_unsteered(self.drops_unsteered);
        links.seek_host(self.seeks_host);
        links.allow_redirects(PerRole::from_fn(|_| true), self.longest);
        self.steer(links);
    }

    /// Sets the MAC addresses of the next hops.
    pub(super) fn steer(&self, links: &Links) {
        for (number, mac) in (1..).zip(&self.next_hops) {
            links.steer_to(number, *mac);
        }
    }
}

pub(super) fn single(address: impl Into<IpAddr>) -> IpNet {
    IpNet::from(address.into())
}

pub(super) fn list<T: Display>(items: &[T]) -> String {
    let texts: Vec<_> = items.iter().map(T::to_string).collect();
    texts.join(",")
}

pub(super) fn optional(item: Option<impl Display>) -> String {
    item.map_or_else(|| "none".to_owned(), |item| item.to_string())
}

impl Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handed = self.hand_over.iter().filter(|(_, all)| **all);
        let handed: Vec<_> = handed.map(|(role, _)| role).collect();
        let link =
            |link: IncomingLink| format!("{},{},{}", link.port, link.own, optional(link.next_hop));
        let incoming = self.incoming.map(link);
        write!(
            f,
            "mode={:?} tap={:?} host_mark={} relays={} incoming={} next_hops={} \
             drops_unsteered={} seeks_host={} longest={} hand_over={}",
            self.mode,
            self.tap,
            optional(self.host_mark.map(Dscp::bits)),
            list(&self.relays),
            optional(incoming),
            list(
                &self
                    .next_hops
                    .iter()
                    .map(|mac| optional(*mac))
                    .collect::<Vec<_>>()
            ),
            self.drops_unsteered,
            self.seeks_host,
            self.longest,
            list(&handed),
        )?;
        self.groups
            .iter()
            .try_for_each(|group| write!(f, " {group}"))
    }
}

pub(super) fn wrong(text: &str) -> LabError {
    LabError(format!("`{text}` is not part of a scenario"))
}

pub(super) fn read<T: FromStr>(text: &str) -> Result<T, LabError> {
    text.parse().map_err(|_| wrong(text))
}

pub(super) fn read_list<T>(
    text: &str,
    read: impl Fn(&str) -> Result<T, LabError>,
) -> Result<Vec<T>, LabError> {
    let items = text.split(',').filter(|item| !item.is_empty());
    items.map(read).collect()
}

pub(super) fn read_optional<T>(
    text: &str,
    read: impl Fn(&str) -> Result<T, LabError>,
) -> Result<Option<T>, LabError> {
    (text != "none").then(|| read(text)).transpose()
}

fn read_link(text: &str) -> Result<IncomingLink, LabError> {
    let [port, own, next_hop] = text.split(',').collect::<Vec<_>>()[..] else {
        return Err(wrong(text));
    };
    Ok(IncomingLink {
        port: read_role(port)?,
        own: read(own)?,
        next_hop: read_optional(next_hop, read)?,
    })
}

/// The variant whose `Debug` form is `text`.
pub(super) fn read_variant<T: Copy + fmt::Debug>(
    text: &str,
    variants: &[T],
) -> Result<T, LabError> {
    let is_it = |variant: &&T| format!("{variant:?}") == text;
    variants.iter().find(is_it).copied().ok_or(wrong(text))
}

pub(super) fn read_role(text: &str) -> Result<Role, LabError> {
    let mut roles = Role::ALL.into_iter();
    roles.find(|role| role.name() == text).ok_or(wrong(text))
}

pub(super) fn read_mark(text: &str) -> Result<Dscp, LabError> {
    Dscp::new(read(text)?).map_err(|error| LabError(error.to_string()))
}

impl Scenario {
    /// Every kind of rule, around the endpoints of the table of cases, as text.
    pub const EVERY_RULE: &str = "mode=Enforce tap=Both host_mark=none \
        relays=198.18.0.1:9001,[2001:db8:18::1]:9001,192.0.2.10:9030 \
        incoming=incoming,02:00:00:00:03:01,02:00:00:00:03:02 next_hops= drops_unsteered=false \
        seeks_host=false longest=9014 hand_over= mark=10 at_uplink=Keep steer=Both \
        protocols=TcpUdp addresses=192.0.2.10/32,192.0.2.64/28,2001:db8:1::10/128 \
        relay_addresses=192.0.2.11/32,2001:db8:1::11/128 resolvers=9.9.9.9/32,2620:fe::fe/128 \
        exempt=203.0.113.0/24,2001:db8:113::/48 listeners=22,192.0.2.10:9001 host_mac=none \
        vlan= path=0,0,none,";
}

impl FromStr for Scenario {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        let mut fields = Fields::of(text);
        let mode = read_variant(fields.next("mode")?, &[Mode::Enforce, Mode::Audit])?;
        let tap = fields.optional("tap");
        let mut next = |key: &str| fields.next(key);
        let mut scenario = Self {
            mode,
            tap: tap.map_or(Ok(Tap::Both), |tap| {
                read_variant(tap, &[Tap::Off, Tap::Out, Tap::Both])
            })?,
            host_mark: read_optional(next("host_mark")?, read_mark)?,
            groups: Vec::new(),
            relays: read_list(next("relays")?, read)?,
            incoming: read_optional(next("incoming")?, read_link)?,
            next_hops: read_list(next("next_hops")?, |text| read_optional(text, read))?,
            drops_unsteered: read(next("drops_unsteered")?)?,
            seeks_host: read(next("seeks_host")?)?,
            longest: read(next("longest")?)?,
            hand_over: {
                let handed = read_list(next("hand_over")?, read_role)?;
                PerRole::from_fn(|role| handed.contains(&role))
            },
        };
        while !fields.are_read() {
            scenario.groups.push(GroupScenario::read(&mut fields)?);
        }
        Ok(scenario)
    }
}

/// The fields of a scenario's text, read in order.
pub(super) struct Fields<'t>(std::iter::Peekable<std::str::Split<'t, char>>);

impl<'t> Fields<'t> {
    fn of(text: &'t str) -> Self {
        Self(text.split(' ').peekable())
    }

    pub(super) fn next(&mut self, key: &str) -> Result<&'t str, LabError> {
        let field = self.0.next().and_then(|field| field.split_once('='));
        match field {
            Some((found, value)) if found == key => Ok(value),
            _ => Err(LabError(format!(
                "the scenario has no {key} at this position"
            ))),
        }
    }

    /// The value of the next field, if it has this key.
    pub(super) fn optional(&mut self, key: &str) -> Option<&'t str> {
        let (_, value) = self
            .0
            .peek()?
            .split_once('=')
            .filter(|(found, _)| *found == key)?;
        self.0.next();
        Some(value)
    }

    fn are_read(&mut self) -> bool {
        self.0.peek().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scenario_of_every_rule_is_read_and_written_alike() {
        let scenario: Scenario = Scenario::EVERY_RULE.parse().unwrap();
        assert_eq!(scenario.to_string(), Scenario::EVERY_RULE);
    }
}
