//! Captures that the format allows, but most programs do not write.

use super::captured::{counted, directly, ever, refuses_link};
use super::written::{
    END, IF_FCSLEN, IF_NAME, IF_TSOFFSET, IF_TSRESOL, IF_TZONE, Written, micros, pcap,
};
use super::{HOST, SYN, counter, many, segment};
use crate::says;
use exitmark_lab::frames::tcp;
use exitmark_monitor::ledger::Ledger;
use exitmark_monitor::pcap::{Capture, Remarks};
use exitmark_monitor::tally::DEFAULT_CELLS;
use std::fs;
use std::path::Path;

type Options<'a> = &'a [(u16, &'a [u8])];

fn some() -> Vec<Vec<u8>> {
    many(50).into_iter().take(100).collect()
}

/// Frames at one interface, with these options of section, interface and packets.
fn described(section: Options<'_>, interface: Options<'_>, packet: Options<'_>) -> Vec<u8> {
    let mut file = Written::new(true, section);
    file.interface(1, 0, interface);
    for (frame, at) in some().iter().zip(0..) {
        file.enhanced(0, micros(at), frame, 0, packet);
    }
    file.bytes
}

#[test]
fn ignores_options_that_are_not_needed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("foreign.pcapng");
    let expected = directly(&some());
    let name: Options<'_> = &[(IF_NAME, b"eth0")];
    let latin: Options<'_> = &[(IF_NAME, b"Ger\xe4t"), (1, b"\xff\xfe"), END];
    let named_end: Options<'_> = &[(0, b"abcd"), (IF_TSRESOL, &[9])];
    #[rustfmt::skip]
    let table = [
        ("a section's options have no end", described(&[(2, b"x")], &[], &[])),
        ("an interface's options have no end", described(&[], name, &[])),
        ("a packet's options have no end", described(&[], &[], &[(1, b"a comment")])),
        ("the time zone has four bytes", described(&[], &[(IF_TZONE, &[0, 0, 0, 1])], &[])),
        ("the time zone has none", described(&[], &[(IF_TZONE, b"")], &[])),
        ("names are Latin-1", described(latin, latin, latin)),
        ("the end has a value", described(&[], named_end, &[])),
        ("a resolution has two bytes", described(&[], &[(IF_TSRESOL, &[6, 6]), END], &[])),
        ("an offset has four bytes", described(&[], &[(IF_TSOFFSET, &[0; 4]), END], &[])),
        ("an option is unknown", described(&[], &[(0x7fff, b"12345")], &[])),
        ("there are many",
         described(&[], &[(1, &b"comment"[..]); 400], &[(1, &b"comment"[..]); 9])),
        ("frames have checksums", described(&[], &[(IF_FCSLEN, &[4]), END], &[])),
    ];
    for (what, bytes) in table {
        fs::write(&path, bytes).unwrap();
        assert_eq!(counted(&path), expected, "{what}");
    }
    // An option that is longer than its list.
    let mut file = Written::new(false, &[]);
    let mut body = vec![0, 1, 0, 0, 0, 0, 0, 0];
    body.extend([0, 2, 0, 200, b'x', 0, 0, 0]);
    file.block(1, &body);
    for frame in &some() {
        file.enhanced(0, micros(0), frame, 0, &[]);
    }
    fs::write(&path, file.bytes).unwrap();
    assert_eq!(counted(&path), expected);
}

#[test]
fn reads_sections_of_any_byte_order_and_blocks_of_any_kind() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("foreign.pcapng");
    let frames = some();
    let mut file = Written::new(true, &[]);
    file.interface(1, 0, &[]);
    for (index, frame) in frames.iter().enumerate() {
        match index % 20 {
            // The next section has other interfaces.
            7 => {
                file.section(index % 40 == 7, &[]).interface(1, 96, &[]);
            }
            8 => {
                // Name resolution, statistics, secrets: with content that no reader could parse.
                for kind in [4, 5, 10, 0xbad, 0x4000_0bad, 0x8000_0bad] {
                    file.block(kind, &[0xff; 50]);
                }
            }
            9 => {
                file.block(0xbad, &[]);
            }
            _ => {}
        }
        match index % 3 {
            0 => file.obsolete(0, micros(0), frame),
            _ => file.enhanced(0, micros(0), frame, 0, &[]),
        };
    }
    fs::write(&path, &file.bytes).unwrap();
    assert_eq!(counted(&path), directly(&frames));
}

#[test]
fn skips_interfaces_of_other_link_types() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("several.pcapng");
    let frames = some();
    let (usb, ethernet) = (220, 1);
    for others in [0, 3] {
        let mut file = Written::new(true, &[]);
        file.interface(usb, 0, &[]).interface(ethernet, 0, &[]);
        for frame in &frames {
            file.enhanced(1, micros(0), frame, 0, &[]);
        }
        for _ in 0..others {
            file.enhanced(0, micros(0), b"no frame", 0, &[]);
        }
        fs::write(&path, &file.bytes).unwrap();
        let (ledger, remarks) = remarked(&path);
        assert_eq!(ledger, directly(&frames));
        assert_eq!(remarks.other_links, others);
        let is_said = remarks
            .to_string()
            .contains("3 packets are of interfaces with");
        assert_eq!(is_said, others == 3);
    }
    // Without other packets, the file is refused.
    let mut file = Written::new(true, &[]);
    file.interface(usb, 0, &[]);
    file.enhanced(0, micros(0), b"no frame", 0, &[]);
    fs::write(&path, &file.bytes).unwrap();
    let mut capture = Capture::open(&path).unwrap();
    let counted = capture.count_until(ever(), &mut counter(4));
    refuses_link(counted.unwrap_err(), 220);
}

fn flows(ledger: &Ledger) -> u64 {
    ledger.cells.iter().map(|(_, counts)| counts.flows).sum()
}

fn remarked(path: &Path) -> (Ledger, Remarks) {
    let mut counter = counter(DEFAULT_CELLS);
    let mut capture = Capture::open(path).unwrap();
    capture.count_until(ever(), &mut counter).unwrap();
    (counter.tally().ledger(), capture.remarks())
}

#[test]
fn reads_pcap_of_every_writer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("any.pcap");
    let frames = some();
    let expected = directly(&frames);
    for is_little in [true, false] {
        for (magic, more) in [(0xa1b2_c3d4, 0), (0xa1b2_3c4d, 0), (0xa1b2_cd34, 8)] {
            // The upper bits: frames with an FCS of four bytes.
            for link in [1, 0x4400_0001, 0x2400_0001] {
                fs::write(&path, pcap(magic, is_little, link, &frames, more)).unwrap();
                assert_eq!(counted(&path), expected, "{magic:x} {is_little} {link:x}");
            }
        }
    }
}

/// A frame as captured on "any", at this interface of the host.
fn cooked(frame: &[u8], interface: u32) -> Vec<u8> {
    let mut packet = vec![frame[12], frame[13], 0, 0];
    packet.extend(interface.to_be_bytes());
    packet.extend([0, 1, 4, 6, 9, 9, 9, 9, 9, 9, 0, 0]);
    packet.extend(&frame[14..]);
    packet
}

fn syn(to: &str) -> Vec<u8> {
    segment(to, SYN).build()
}

#[test]
fn counts_a_packet_of_several_interfaces_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("any.pcapng");
    let one = syn("1.2.3.4:443");
    let six = syn("[2001:db8:1::5]:443");
    let other = syn("1.2.3.4:80");
    // Behind a router, and with another TCP checksum, as a NIC fills it in.
    let mut routed = one.clone();
    routed[22] -= 1;
    routed[24..26].fill(0x11);
    routed[50..52].fill(0x22);
    let second = 1_000_000;
    // Interface and time of each packet, and how many of them are distinct.
    /// Bytes, interface, and time in ns.
    type Packets<'a> = Vec<(&'a [u8], u32, u64)>;
    #[rustfmt::skip]
    let cases: [(&str, Packets<'_>, u64); 8] = [
        ("a bridge, its port, and what is below", vec![(&one, 2, 0), (&one, 3, 1), (&one, 7, 90)],
         1),
        ("another TTL, other checksums", vec![(&one, 2, 0), (&routed, 3, 5)], 1),
        ("IPv6", vec![(&six, 2, 0), (&six, 3, 5)], 1),
        ("the same interface: sent again", vec![(&one, 2, 0), (&one, 2, 5)], 2),
        ("a second later", vec![(&one, 2, 0), (&one, 3, second)], 2),
        ("other packets", vec![(&one, 2, 0), (&other, 3, 0), (&six, 4, 0)], 3),
        ("two ways out", vec![(&one, 2, 0), (&other, 3, 1), (&one, 2, 2), (&other, 3, 3)], 4),
        ("each twice", vec![(&one, 2, 0), (&other, 2, 1), (&one, 3, 2), (&other, 3, 3)], 2),
    ];
    for (what, packets, expected) in cases {
        let mut any = Written::new(true, &[]);
        any.interface(276, 0, &[]);
        // The same for interfaces that have packets of their own.
        let mut several = Written::new(false, &[]);
        (0..8).for_each(|_| {
            several.interface(1, 0, &[]);
        });
        for &(frame, interface, at) in &packets {
            any.enhanced(0, micros(at), &cooked(frame, interface), 0, &[]);
            several.enhanced(interface, micros(at), frame, 0, &[]);
        }
        for file in [any, several] {
            fs::write(&path, &file.bytes).unwrap();
            let (ledger, remarks) = remarked(&path);
            let flows = flows(&ledger);
            let copies = packets.len() as u64 - expected;
            assert_eq!((flows, remarks.copies), (expected, copies), "{what}");
            let words = format!("{copies} packets were also captured at another interface");
            let is_said = remarks.to_string().contains(&words);
            assert_eq!(is_said, copies > 0, "{remarks}");
        }
    }
}

/// The older format of "any" does not record the interface.
#[test]
fn reports_a_capture_without_interface_numbers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("any.pcap");
    let marked = syn("1.2.3.4:443");
    let unmarked = tcp(HOST, "1.2.3.4:443").build();
    let frames = [marked, unmarked].map(|frame| [&[0; 14][..], &frame[12..]].concat());
    fs::write(&path, pcap(0xa1b2_c3d4, true, 113, &frames, 0)).unwrap();
    let (_, remarks) = remarked(&path);
    assert_eq!(remarks.anywhere, 1);
    says(&remarks, "LINUX_SLL2");
}

/// A packet truncated within its link header, and the record behind it.
#[test]
fn a_packet_without_headers_does_not_affect_others() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("short.pcap");
    let whole = cooked(&syn("1.2.3.4:443"), 2);
    for kept in 0..40 {
        let frames = [whole[..kept].to_vec(), whole.clone()];
        fs::write(&path, pcap(0xa1b2_c3d4, true, 276, &frames, 0)).unwrap();
        let (ledger, _) = remarked(&path);
        assert_eq!(flows(&ledger), 1, "{kept} bytes were kept");
    }
}
