//! Recognises answers to exit traffic: inbound packets whose mirror images, with addresses and ports
//! swapped, would be exit traffic.
//!
//! The rules are those of [`judge`](super::judge), with two differences. Control bits show which end
//! opens a connection: an inbound SYN without ACK opens one to the host, so it answers nothing, and a
//! SYN with ACK accepts one of the host. So the rules that recognise answers of the host by its
//! control bits do not apply to the mirror image. And the host's mark is not in answers: without the
//! relay set no packet is recognised.

use super::judge::judge_packet;
use super::{Class, ClassifyBy, Family, FragmentTable, GroupNumber, Snapshot};
use crate::packet::{Headers, Packet, Ports, Tcp};
use std::time::Duration;

/// The first fragments of inbound packets, for [`judge_answer`]. Apart from those of the hosts: a
/// mirror image has the same addresses as a packet of the host.
#[derive(Default)]
pub struct Answers(FragmentTable);

/// The group of the host for which an inbound frame with these headers answers exit traffic; `None`
/// for any other frame. `now` counts from any fixed moment.
#[inline(never)]
pub fn judge_answer(
    headers: &Headers,
    snapshot: &Snapshot,
    answers: &mut Answers,
    now: Duration,
) -> Option<GroupNumber> {
    match headers {
        Headers::V4(packet) => answered(packet, snapshot, answers, now),
        Headers::V6(packet) => answered(packet, snapshot, answers, now),
        Headers::NotIp | Headers::Malformed(_) => None,
    }
}

fn answered<F: Family>(
    packet: &Packet<F>,
    snapshot: &Snapshot,
    answers: &mut Answers,
    now: Duration,
) -> Option<GroupNumber> {
    let opens = packet.tcp.control & (Tcp::SYN | Tcp::RST | Tcp::ACK) == Tcp::SYN;
    if opens || snapshot.rules.classify_by != ClassifyBy::RelaySet {
        return None;
    }
    let verdict = judge_packet(&mirrored(packet), snapshot, &mut answers.0, now);
    (verdict.class() == Class::Exit).then_some(verdict.group)
}

/// The packet as the host would send it to the remote address that this one came from, without the
/// control bits by which answers of the host are recognised.
fn mirrored<F: Family>(packet: &Packet<F>) -> Packet<F> {
    Packet {
        source: packet.destination,
        destination: packet.source,
        ports: Ports {
            source: packet.ports.destination,
            destination: packet.ports.source,
        },
        tcp: Tcp::default(),
        ..*packet
    }
}
