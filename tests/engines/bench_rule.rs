//! The minimal program to which the packet rate bench compares exitmark has the same rule: it marks
//! the same frames.

use etherparse::{PacketBuilder, TcpHeader};
use exitmark_lab::bpf::{Programs, compile};
use exitmark_lab::needs_root;
use libbpf_rs::{MapCore, MapFlags, ProgramInput};

const HOST4: [u8; 4] = [192, 0, 2, 10];
const HOST6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
const RELAY4: [u8; 4] = [198, 51, 100, 7];
const RELAY6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
const ORPORT: u16 = 9001;
const AF11: u8 = 0x28;

/// The ToS byte of an untagged frame.
fn tos(frame: &[u8]) -> u8 {
    match frame[14] >> 4 {
        4 => frame[15],
        _ => frame[14] << 4 | frame[15] >> 4,
    }
}

fn segment(is_v4: bool, port: u16, change: impl Fn(&mut TcpHeader)) -> Vec<u8> {
    let mut header = TcpHeader::new(40_000, port, 1000, 0xffff);
    change(&mut header);
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = match is_v4 {
        true => ethernet.ipv4(HOST4, RELAY4, 64),
        false => ethernet.ipv6(HOST6, RELAY6, 64),
    };
    let mut frame = Vec::new();
    ip.tcp_header(header).write(&mut frame, &[]).unwrap();
    frame
}

#[test]
fn neither_marks_answers_to_outsiders() {
    needs_root!();
    let mut constants = HOST4.to_vec();
    constants.extend(HOST6);
    let compiled = compile("benches/bpf/rule.bpf.c").unwrap();
    let programs = Programs::load_prepared("rule.bpf.c", &compiled, &[], &constants).unwrap();
    for (map, address) in [("relays4", &RELAY4[..]), ("relays6", &RELAY6[..])] {
        let mut key = address.to_vec();
        key.extend(ORPORT.to_be_bytes());
        key.extend([0; 2]);
        let map = programs.map(map).unwrap();
        map.update(&key, &[1], MapFlags::ANY).unwrap();
    }
    type Change = fn(&mut TcpHeader);
    #[rustfmt::skip]
    let table: [(&str, u16, Change, bool); 8] = [
        ("exit", 443, |tcp| tcp.ack = true, true),
        ("relay", ORPORT, |tcp| tcp.ack = true, false),
        ("SYN", 443, |tcp| tcp.syn = true, true),
        ("SYN and ACK", 443, |tcp| (tcp.syn, tcp.ack) = (true, true), false),
        ("RST", 443, |tcp| tcp.rst = true, false),
        (
            "RST and ACK, sequence number 0", 443,
            |tcp| (tcp.rst, tcp.ack, tcp.sequence_number) = (true, true, 0), false,
        ),
        ("RST and ACK", 443, |tcp| (tcp.rst, tcp.ack) = (true, true), true),
        ("ACK, sequence number 0", 443, |tcp| (tcp.ack, tcp.sequence_number) = (true, 0), true),
    ];
    for (what, port, change, is_marked) in table {
        for is_v4 in [true, false] {
            let frame = segment(is_v4, port, change);
            let mut left = vec![0; frame.len()];
            let input = ProgramInput {
                data_in: Some(&frame),
                data_out: Some(&mut left),
                ..ProgramInput::default()
            };
            let program = programs.program("rule_xdp").unwrap();
            program.test_run(input).unwrap();
            let expected = if is_marked { AF11 } else { 0 };
            assert_eq!(tos(&left), expected, "{what}, IPv4: {is_v4}");
        }
    }
}
