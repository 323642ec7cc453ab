//! Detects that the host runs a recursive resolver: it queries many servers, and its TCP queries
//! look like exit traffic.
//!
//! Stores one bit per server in a 64-bit map, by a hash with a random key that never leaves this
//! process.

use exitmark_datapath::{Role, Sample};
use exitmark_policy::Rule;
use exitmark_policy::packet::{self, Headers, protocol};
use std::hash::{BuildHasher, Hash, RandomState};

const DNS: u16 = 53;
/// The least number of sampled queries to servers that are not configured, and of bits that these
/// servers must set: forwarders are few.
const QUERIES: u64 = 32;
const SERVERS: u32 = 8;

#[derive(Debug, Default)]
pub(super) struct Queries {
    key: RandomState,
    /// Queries to the servers of host.resolvers.
    named: u64,
    others: u64,
    /// One bit per hash of the other servers.
    places: u64,
}

impl Queries {
    /// Counts a sample, if it is a query.
    pub(super) fn add(&mut self, sample: &Sample) {
        if sample.ingress != Role::Host || sample.rule == Some(Rule::ForeignSource) {
            return;
        }
        match packet::parse(&sample.before, sample.frame_bytes) {
            Headers::V4(packet) => self.query(sample.rule, &packet),
            Headers::V6(packet) => self.query(sample.rule, &packet),
            Headers::NotIp | Headers::Malformed(_) => {}
        }
    }

    fn query<A: Hash>(&mut self, rule: Option<Rule>, packet: &packet::Packet<A>) {
        if packet.protocol != protocol::UDP || packet.ports.destination != DNS {
            return;
        }
        if rule == Some(Rule::ToResolver) {
            self.named += 1;
        } else {
            self.others += 1;
            self.places |= 1 << (self.key.hash_one(&packet.destination) % 64);
        }
    }

    /// Whether most queries go to many servers that are not configured as resolvers.
    pub(super) const fn are_recursive(&self) -> bool {
        self.others >= QUERIES && self.others > self.named && self.places.count_ones() >= SERVERS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use exitmark_datapath::{DecidedBy, Excerpt, Outcome};
    use std::time::Duration;

    const UDP: u8 = 17;
    const TCP: u8 = 6;

    /// A frame from the host to this port of this server, with 20 bytes after the IPv4 header.
    fn frame(protocol: u8, server: usize, port: u16) -> Vec<u8> {
        let [_, last] = u16::try_from(server).unwrap().to_be_bytes();
        let mut frame = vec![2; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend([192, 0, 2, 10, 198, 51, 100, last, 0x9c, 0x40]);
        frame.extend(port.to_be_bytes());
        frame.resize(14 + 40, 0);
        frame
    }

    fn sample(frame: &[u8], rule: Rule) -> Sample {
        Sample {
            by: DecidedBy::Worker,
            arrived: Duration::ZERO,
            latency: None,
            ingress: Role::Host,
            outcome: Outcome::Forward(Role::Uplink),
            rule: Some(rule),
            generation: 1,
            frame_bytes: frame.len(),
            before: Excerpt::of(frame),
            after: Excerpt::of(frame),
        }
    }

    fn ask(queries: &mut Queries, number: usize, servers: usize, rule: Rule) {
        for at in 0..number {
            queries.add(&sample(&frame(UDP, at % servers, DNS), rule));
        }
    }

    #[test]
    fn many_servers_are_a_recursive_resolver() {
        let mut queries = Queries::default();
        ask(&mut queries, 200, 200, Rule::OtherProtocol);
        assert!(queries.are_recursive());
        // A majority of the queries goes to configured resolvers.
        ask(&mut queries, 201, 2, Rule::ToResolver);
        assert!(!queries.are_recursive());
    }

    #[test]
    fn few_servers_or_few_queries_or_other_traffic_are_not() {
        let mut queries = Queries::default();
        ask(&mut queries, 10_000, 4, Rule::OtherProtocol);
        assert!(!queries.are_recursive(), "forwarders that are not named");
        let mut queries = Queries::default();
        ask(&mut queries, 31, 31, Rule::OtherProtocol);
        assert!(!queries.are_recursive(), "too few to tell");
        let mut queries = Queries::default();
        ask(&mut queries, 200, 200, Rule::ForeignSource);
        ask(&mut queries, 200, 200, Rule::ToResolver);
        for at in 0..200 {
            queries.add(&sample(&frame(TCP, at, DNS), Rule::ExitProtocol));
            queries.add(&sample(&frame(UDP, at, 443), Rule::OtherProtocol));
        }
        assert!(!queries.are_recursive());
    }
}
