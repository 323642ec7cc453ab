//! Replaces an address of a packet by one in another prefix, with the checksums that cover it: as
//! Basic NAT does (RFC 3022, sections 2.1 and 4.3), without any state.

use super::checksum::{add_to_sum, replace_word};
use super::headers::{Address, FRAGMENT, Packet, Version, protocol};
use super::{be16, ipv4, ipv6, parse::transport};

/// The end of a TCP header's checksum field, in bytes (RFC 9293, section 3.1).
const TCP_SUM_END: usize = 18;
/// The length of an ICMP error's header, in front of the quoted packet (RFC 792; RFC 4443).
const ICMP_BYTES: usize = 8;
const ICMP_SUM: usize = 2;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// The two addresses of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The source address.
    Source,
    /// The destination address.
    Destination,
}

/// A change from one prefix to another of the same length. The rest of an address stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixChange<A> {
    /// The bits in which the prefixes differ.
    flipped: A,
    /// What the change adds to the sum that a checksum is made of, 0 to 65,534. It is the same for
    /// all addresses of the prefix: modulo 65,535, the sum of an address' words is the address.
    delta: u16,
}

impl<A: Address> PrefixChange<A> {
    /// The change from one address to another, which differ in their prefixes only.
    pub fn between(from: A, to: A) -> Self {
        Self {
            flipped: from.xor(to),
            delta: difference(to.sum(), from.sum()),
        }
    }

    /// The change back.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            flipped: self.flipped,
            delta: difference(0, self.delta),
        }
    }

    /// An address with the other prefix.
    #[inline]
    #[must_use]
    pub fn of(self, address: A) -> A {
        self.flipped.xor(address)
    }

    /// The bits in which the prefixes differ, and what the change adds to a sum.
    pub(crate) const fn parts(self) -> (A, u16) {
        (self.flipped, self.delta)
    }
}

/// `minuend - subtrahend` modulo 65,535.
const fn difference(minuend: u16, subtrahend: u16) -> u16 {
    match minuend.checked_sub(subtrahend) {
        Some(difference) => difference,
        None => minuend + (u16::MAX - subtrahend),
    }
}

/// The bytes of a frame that a change of address changes. All of them are in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readdressing<A> {
    change: PrefixChange<A>,
    /// The offset of the address.
    address: usize,
    /// The offset of IPv4's header checksum.
    header_sum: Option<usize>,
    /// The offset of TCP's checksum; a later fragment has none.
    tcp_sum: Option<usize>,
    /// The packet that an ICMP error quotes.
    quote: Option<Quote>,
}

/// The packet that an ICMP error quotes, and the checksum of the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Quote {
    icmp_sum: usize,
    source: usize,
    header_sum: Option<usize>,
    /// `None` if the quote ends before it.
    tcp_sum: Option<usize>,
}

impl<A: Address> Readdressing<A> {
    /// That of a TCP segment, or of a fragment of one. `packet` is what [`super::parse`] returned for
    /// the frame; `None` if the segment or first fragment ends before the checksum.
    pub fn of_segment(
        frame: &[u8],
        packet: &Packet<A>,
        end: End,
        change: PrefixChange<A>,
    ) -> Option<Self> {
        let is_later = packet.fragment.is_some_and(|fragment| !fragment.first);
        let tcp_sum = match is_later {
            true => None,
            false => Some(sum_field(
                frame,
                transport(frame, packet)?,
                frame_end(frame, packet)?,
            )?),
        };
        Some(Self {
            change,
            address: packet.l3 + offset::<A>(end),
            header_sum: header_sum::<A>(packet.l3),
            tcp_sum,
            quote: None,
        })
    }

    /// That of an ICMP error which quotes a TCP segment, with the destination of the error as the
    /// source of the segment: both addresses change. `None` for any other packet, or if
    /// `is_from_there` denies that the segment was sent to that address and port.
    pub fn of_error(
        frame: &[u8],
        packet: &Packet<A>,
        change: PrefixChange<A>,
        is_to: impl FnOnce(A, u16) -> bool,
    ) -> Option<Self> {
        let is_error = match (A::VERSION, packet.protocol) {
            // Destination unreachable, time exceeded, parameter problem.
            (Version::V4, ICMP) => |kind: u8| matches!(kind, 3 | 11 | 12),
            // The same, and packet too big.
            (Version::V6, ICMPV6) => |kind: u8| matches!(kind, 1..=4),
            _ => return None,
        };
        if packet.fragment.is_some() {
            return None;
        }
        let end = frame_end(frame, packet)?;
        let icmp = transport(frame, packet)?;
        let readable = frame.get(..end)?;
        if !is_error(*readable.get(icmp)?) {
            return None;
        }
        let l3 = icmp + ICMP_BYTES;
        let header = readable.get(l3..)?;
        let l4 = l3
            + match A::VERSION {
                Version::V4 => {
                    let fragment = be16(header, ipv4::FLAGS_AND_OFFSET)? & ipv4::FRAGMENT_OFFSET;
                    let bytes = usize::from(*header.first()? & 0x0f) * 4;
                    let is_tcp = *header.get(ipv4::PROTOCOL)? == protocol::TCP;
                    let is_read = header[0] >> 4 == 4 && bytes >= ipv4::MIN_BYTES;
                    (is_read && is_tcp && fragment == 0).then_some(bytes)?
                }
                Version::V6 => {
                    let is_tcp = *header.get(ipv6::NEXT_HEADER)? == protocol::TCP;
                    (header[0] >> 4 == 6 && is_tcp).then_some(ipv6::HEADER_BYTES)?
                }
            };
        let source = A::read(header, offset::<A>(End::Source))?;
        let destination = A::read(header, offset::<A>(End::Destination))?;
        let port = be16(readable, l4 + 2)?;
        if source != packet.destination || !is_to(destination, port) {
            return None;
        }
        Some(Self {
            change,
            address: packet.l3 + offset::<A>(End::Destination),
            header_sum: header_sum::<A>(packet.l3),
            tcp_sum: None,
            quote: Some(Quote {
                icmp_sum: icmp + ICMP_SUM,
                source: l3 + offset::<A>(End::Source),
                header_sum: header_sum::<A>(l3),
                tcp_sum: sum_field(frame, l4, end),
            }),
        })
    }

    /// Changes the frame that it was made for.
    pub fn apply(&self, frame: &mut [u8]) {
        let PrefixChange { flipped, delta } = self.change;
        flipped.xor_into(frame, self.address);
        for sum in [self.header_sum, self.tcp_sum].into_iter().flatten() {
            update(frame, sum, |sum| add_to_sum(sum, delta));
        }
        let Some(quote) = self.quote else {
            return;
        };
        flipped.xor_into(frame, quote.source);
        // The checksum covers the quoted source, and over IPv6 the destination (RFC 4443, section
        // 2.3).
        let covered = match A::VERSION {
            Version::V4 => 1,
            Version::V6 => 2,
        };
        for _ in 0..covered {
            update(frame, quote.icmp_sum, |sum| add_to_sum(sum, delta));
        }
        for at in [quote.header_sum, quote.tcp_sum].into_iter().flatten() {
            let Some(old) = be16(frame, at) else { continue };
            let new = add_to_sum(old, delta);
            update(frame, at, |_| new);
            update(frame, quote.icmp_sum, |sum| replace_word(sum, old, new));
        }
    }
}

/// Whether a packet has no IPv6 extension header but a fragment header in front of TCP.
pub(crate) fn is_plain<A: Address>(frame: &[u8], packet: &Packet<A>) -> bool {
    let next = |at: usize| frame.get(packet.l3 + at).copied();
    match (A::VERSION, next(ipv6::NEXT_HEADER)) {
        (Version::V6, Some(FRAGMENT)) => next(ipv6::HEADER_BYTES) == Some(protocol::TCP),
        (Version::V6, Some(kind)) => kind == packet.protocol,
        (Version::V6, None) => false,
        (Version::V4, _) => true,
    }
}

/// The offset of an address in an IP header.
const fn offset<A: Address>(end: End) -> usize {
    match (A::VERSION, end) {
        (Version::V4, End::Source) => ipv4::SOURCE,
        (Version::V4, End::Destination) => ipv4::DESTINATION,
        (Version::V6, End::Source) => ipv6::SOURCE,
        (Version::V6, End::Destination) => ipv6::DESTINATION,
    }
}

/// The offset of the checksum of an IP header, which only IPv4 has.
const fn header_sum<A: Address>(l3: usize) -> Option<usize> {
    match A::VERSION {
        Version::V4 => Some(l3 + ipv4::CHECKSUM),
        Version::V6 => None,
    }
}

/// The end of a packet's readable part in its frame.
fn frame_end<A: Address>(frame: &[u8], packet: &Packet<A>) -> Option<usize> {
    let end = packet.l3
        + match A::VERSION {
            Version::V4 => usize::from(be16(frame, packet.l3 + ipv4::TOTAL_LENGTH)?),
            Version::V6 => {
                ipv6::HEADER_BYTES + usize::from(be16(frame, packet.l3 + ipv6::PAYLOAD_LENGTH)?)
            }
        };
    Some(end.min(frame.len()))
}

/// The offset of the checksum of a TCP header, if it ends before `end`.
fn sum_field(frame: &[u8], l4: usize, end: usize) -> Option<usize> {
    (l4 + TCP_SUM_END <= end.min(frame.len())).then_some(l4 + TCP_SUM_END - 2)
}

/// Changes a checksum, if it is in the frame.
fn update(frame: &mut [u8], at: usize, change: impl FnOnce(u16) -> u16) {
    if let Some(pair) = frame.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *pair = change(u16::from_be_bytes(*pair)).to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Headers, internet_checksum, parse};
    use super::*;
    use proptest::prelude::*;

    /// The sum of a TCP segment with its pseudo-header (RFC 9293, section 3.1); 0 if it is right.
    fn sum_of(addresses: &[u8], segment: &[u8]) -> u16 {
        let length = u16::try_from(segment.len()).unwrap().to_be_bytes();
        let pseudo = [addresses, &[0, protocol::TCP], &length].concat();
        internet_checksum(&[&pseudo, segment].concat())
    }

    /// A frame with a segment of this payload, with right checksums.
    fn frame(v6: bool, source: &[u8], destination: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut segment = [&[0x9c, 0x41, 0x23, 0x29][..], &[7; 8], &[0x50, 0x10]].concat();
        segment.extend([0x10, 0, 0, 0, 0, 0]);
        segment.extend(payload);
        let sum = sum_of(&[source, destination].concat(), &segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        let [high, low] = u16::try_from(segment.len()).unwrap().to_be_bytes();
        let mut frame = vec![2; 12];
        if v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, high, low, protocol::TCP, 64]);
            frame.extend([source, destination].concat());
        } else {
            let total = u16::try_from(segment.len() + 20).unwrap().to_be_bytes();
            let start = [
                0x08, 0, 0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, 6, 0, 0,
            ];
            frame.extend(start);
            frame.extend([source, destination].concat());
            let sum = internet_checksum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        frame.extend(segment);
        frame
    }

    /// Changes an address of a frame.
    fn readdress(frame: &[u8], end: End, from: u128, to: u128) -> Vec<u8> {
        let mut changed = frame.to_vec();
        match parse(frame, frame.len()) {
            Headers::V4(packet) => {
                let [from, to] = [from, to].map(|address| u32::try_from(address).unwrap());
                let change = PrefixChange::between(from, to);
                let change = Readdressing::of_segment(frame, &packet, end, change);
                change.unwrap().apply(&mut changed);
            }
            Headers::V6(packet) => {
                let change = PrefixChange::between(from, to);
                let change = Readdressing::of_segment(frame, &packet, end, change);
                change.unwrap().apply(&mut changed);
            }
            other => panic!("{other:?}"),
        }
        changed
    }

    proptest! {
        /// The same as a packet that was made with the other address, for any addresses and data,
        /// and back again.
        #[test]
        fn is_as_if_sent_from_there(
            addresses in proptest::array::uniform3(any::<u128>()),
            payload in proptest::collection::vec(any::<u8>(), 0..40),
            v6 in any::<bool>(),
        ) {
            let [a, b, c] = addresses.map(|address| if v6 { address } else { address >> 96 });
            let bytes = |address: u128| address.to_be_bytes()[if v6 { 0 } else { 12 }..].to_vec();
            for end in [End::Source, End::Destination] {
                let made = |address: u128| match end {
                    End::Source => frame(v6, &bytes(address), &bytes(c), &payload),
                    End::Destination => frame(v6, &bytes(c), &bytes(address), &payload),
                };
                prop_assert_eq!(readdress(&made(a), end, a, b), made(b));
                prop_assert_eq!(readdress(&made(b), end, b, a), made(a));
            }
        }
    }

    /// The rest of an address behind its prefix stays.
    #[test]
    fn a_prefix_becomes_another_one() {
        let change = PrefixChange::between(0xc000_0210_u32, 0xcb00_7120);
        assert_eq!(change.of(0xc000_0217), 0xcb00_7127);
        assert_eq!(change.reversed().of(0xcb00_7127), 0xc000_0217);
        assert_eq!(
            change.reversed(),
            PrefixChange::between(0xcb00_7120, 0xc000_0210)
        );
    }

    #[test]
    fn a_segment_without_a_checksum_cannot_be_changed() {
        let whole = frame(false, &[192, 0, 2, 10], &[198, 18, 0, 1], &[]);
        for bytes in [14, 17, 18] {
            let mut cut = whole[..34 + bytes].to_vec();
            cut[17] = 20 + u8::try_from(bytes).unwrap();
            let Headers::V4(packet) = parse(&cut, cut.len()) else {
                panic!("{bytes} bytes are not read");
            };
            let change = PrefixChange::between(packet.source, 0xcb00_710a);
            let changed = Readdressing::of_segment(&cut, &packet, End::Source, change);
            assert_eq!(changed.is_some(), bytes == 18, "{bytes}");
        }
    }
}
