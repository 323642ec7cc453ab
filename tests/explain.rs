//! Tier: any machine. `exitmark explain` on captures of all kinds.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

use exitmark_lab::frames::tcp;
use pcap_file::pcap::PcapReader;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const CONFIGURATION: &str = "\
[ports]
host = \"no-such-nic0\"
uplink = \"no-such-nic1\"
incoming = \"no-such-nic2\"
[host]
addresses = [\"192.0.2.10\"]
[steer]
next_hop = \"02:00:00:00:03:02\"
[relays]
extra = [\"198.18.0.1:9001\"]
";

fn explain(directory: &Path, arguments: &[&str]) -> Output {
    explain_by(CONFIGURATION, directory, arguments)
}

fn explain_by(text: &str, directory: &Path, arguments: &[&str]) -> Output {
    let configuration = directory.join("exitmark.toml");
    fs::write(&configuration, text).unwrap();
    Command::new(env!("CARGO_BIN_EXE_exitmark"))
        .args(["explain", "--incoming-mac", "02:00:00:00:03:01", "--config"])
        .arg(configuration)
        .args(arguments)
        .output()
        .unwrap()
}

fn story(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The first and a later fragment of a packet to a relay, `seconds` apart, each with 20 bytes more
/// on the wire than captured.
fn fragments(seconds: u32) -> [(u32, Vec<u8>); 2] {
    let frame = tcp("192.0.2.10:5000", "198.18.0.1:9001").payload(80);
    let kept = |frame: Vec<u8>| frame[..frame.len() - 20].to_vec();
    [
        (1_000, kept(frame.clone().fragment(7, 0, true).build())),
        (1_000 + seconds, kept(frame.fragment(7, 10, false).build())),
    ]
}

/// Words in little-endian order.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn hexadecimal(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pcap(frames: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut file = words(&[0xa1b2_c3d4, 0x0004_0002, 0, 0, 96, 1]);
    for (seconds, frame) in frames {
        let length = u32::try_from(frame.len()).unwrap();
        file.extend(words(&[*seconds, 0, length, length + 20]));
        file.extend_from_slice(frame);
    }
    file
}

/// A pcapng file whose interface gives no time resolution, which means microseconds.
fn pcapng(frames: &[(u32, Vec<u8>)]) -> Vec<u8> {
    fn block(file: &mut Vec<u8>, kind: u32, body: &[u8]) {
        let mut body = body.to_vec();
        body.resize(body.len().next_multiple_of(4), 0);
        let length = u32::try_from(body.len() + 12).unwrap().to_le_bytes();
        file.extend_from_slice(&kind.to_le_bytes());
        file.extend_from_slice(&length);
        file.extend_from_slice(&body);
        file.extend_from_slice(&length);
    }
    let mut file = Vec::new();
    let section = words(&[0x1a2b_3c4d, 1, u32::MAX, u32::MAX]);
    block(&mut file, 0x0a0d_0d0a, &section);
    block(&mut file, 1, &words(&[1, 96]));
    for (seconds, frame) in frames {
        let micros = u64::from(*seconds) * 1_000_000;
        let length = u32::try_from(frame.len()).unwrap();
        let high = u32::try_from(micros >> 32).unwrap();
        let low = u32::try_from(micros & 0xffff_ffff).unwrap();
        let mut body = words(&[0, high, low, length, length + 20]);
        body.extend_from_slice(frame);
        block(&mut file, 6, &body);
    }
    file
}

#[test]
fn explains_truncated_frames_and_times_alike_in_both_formats() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("capture");
    for (seconds, follows) in [(29, true), (31, false)] {
        let frames = fragments(seconds);
        for file in [pcap(&frames), pcapng(&frames)] {
            fs::write(&path, file).unwrap();
            let out = directory.path().join("out.pcap");
            let arguments = [path.to_str().unwrap(), "--write", out.to_str().unwrap()];
            let story = story(&explain(directory.path(), &arguments));
            let lines: Vec<_> = story.lines().collect();
            assert!(lines[0].contains("relay"), "{story}");
            assert!(lines[0].contains("→ incoming"), "{story}");
            assert_eq!(lines[1].contains("→ incoming"), follows, "{story}");
            assert_eq!(lines[1].contains("was not seen"), !follows, "{story}");

            let mut written = PcapReader::new(fs::File::open(&out).unwrap()).unwrap();
            for (index, (time, frame)) in frames.iter().enumerate() {
                let packet = written.next_raw_packet().unwrap().unwrap();
                assert_eq!((packet.ts_sec, packet.ts_frac), (*time, 0));
                assert_eq!(packet.orig_len as usize, frame.len() + 20);
                let steered = index == 0 || follows;
                assert_eq!(packet.data[12..], frame[12..]);
                assert_eq!(packet.data[..12] == frame[..12], !steered);
            }
            assert!(written.next_raw_packet().is_none());
        }
    }
}

#[test]
fn a_frame_in_hexadecimal_shows_the_bytes_that_change() {
    let directory = tempfile::tempdir().unwrap();
    let frame = tcp("192.0.2.10:5000", "198.51.100.7:443").build();
    let digits: Vec<_> = frame.iter().map(|byte| format!("{byte:02X}")).collect();
    let story = story(&explain(directory.path(), &[&digits.join(":")]));
    for words in ["exit", "→ uplink, marked af11 (10)", "15: 00→28"] {
        assert!(story.contains(words), "no `{words}` in: {story}");
    }
}

#[test]
fn explains_frames_by_the_hosts_mark() {
    let directory = tempfile::tempdir().unwrap();
    let text = CONFIGURATION.replace("[ports]", "classify_by = \"host-mark\"\n[ports]");
    let text = text.replace("[host]", "[mark]\ndscp = \"ef\"\n[host]");
    for (tos, expected) in [
        (0x28, ["exit", "the host sets on exit traffic", "marked ef"]),
        (0, ["relay", "without the host's own mark", "→ incoming"]),
        (0xb8, ["relay", "→ incoming, mark cleared", "15: b8→00"]),
    ] {
        let frame = tcp("192.0.2.10:5000", "198.51.100.7:443").tos(tos).build();
        let digits = hexadecimal(&frame);
        let story = story(&explain_by(&text, directory.path(), &[&digits]));
        for words in expected {
            assert!(story.contains(words), "no `{words}` in: {story}");
        }
    }
}

#[test]
fn reports_what_cannot_be_explained_or_written() {
    let directory = tempfile::tempdir().unwrap();
    // An odd number of digits is wrong usage; the input is not repeated.
    let output = explain(directory.path(), &["c6336407c"]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("hexadecimal"), "{error}");
    assert!(!error.contains("c633"), "{error}");

    let garbage = directory.path().join("garbage");
    fs::write(&garbage, b"neither pcap nor pcapng").unwrap();
    let output = explain(directory.path(), &[garbage.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));

    let frame = tcp("192.0.2.10:5000", "198.51.100.7:443").build();
    let digits = hexadecimal(&frame);
    let output = explain(directory.path(), &[&digits, "--write", "/dev/full"]);
    assert_eq!(output.status.code(), Some(1), "a full disk is an error");
}

#[test]
fn reports_why_relay_traffic_is_not_steered() {
    let directory = tempfile::tempdir().unwrap();
    let to_ipv6 = CONFIGURATION
        .replace("02:00:00:00:03:02", "2001:db8:3::1")
        .replace("[host]", "[host]\nresolvers = \"any\"");
    let relay = tcp("192.0.2.10:5000", "198.18.0.1:9001");
    let tagged = relay.clone().tag(0x8100, 100);
    let query = tcp("192.0.2.10:5000", "198.51.100.53:53");
    for (text, frame, expected) in [
        (
            CONFIGURATION,
            tagged,
            "→ uplink, not steered: it has a VLAN tag",
        ),
        (
            &to_ipv6,
            relay,
            "→ uplink, not steered: the next hop is of the other",
        ),
        (&to_ipv6, query, "resolver"),
    ] {
        let digits = hexadecimal(&frame.build());
        let printed = story(&explain_by(text, directory.path(), &[&digits]));
        assert!(printed.contains(expected), "{printed}");
    }
}

/// A capture truncated in its last frame, one with another link type beside Ethernet, and one whose
/// frames have an FCS: what can be read is explained.
#[test]
fn explains_readable_frames_before_reporting_a_fault() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("capture");
    let out = directory.path().join("out.pcap");
    let arguments = [path.to_str().unwrap(), "--write", out.to_str().unwrap()];
    let frames = fragments(1);
    let printed = |file: &[u8]| {
        fs::write(&path, file).unwrap();
        let output = explain(directory.path(), &arguments);
        let story = String::from_utf8(output.stdout).unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), story, error)
    };
    let (code, whole, error) = printed(&pcap(&frames));
    assert_eq!((code, whole.lines().count(), &*error), (Some(0), 2, ""));
    let first = whole.lines().next().unwrap();
    let last = frames[1].1.len();
    for file in [pcap(&frames), pcapng(&frames)] {
        let end = file.len();
        for cut in [1, last, last + 10] {
            let (code, story, error) = printed(&file[..end - cut]);
            assert_eq!((code, story.trim_end()), (Some(1), first));
            assert!(error.contains("ends within a record"), "{error}");
            let mut written = PcapReader::new(fs::File::open(&out).unwrap()).unwrap();
            assert!(written.next_raw_packet().unwrap().is_ok());
            assert!(written.next_raw_packet().is_none());
        }
    }
    // The upper bits of the link type say that frames have an FCS of four bytes.
    let mut with_checksums = pcap(&frames);
    with_checksums[20..24].copy_from_slice(&0x4400_0001_u32.to_le_bytes());
    let readable = (Some(0), whole.clone(), String::new());
    assert_eq!(printed(&with_checksums), readable);
    // The interface of another link type has a packet, or none.
    let described = pcapng(&[]);
    let other = |number: u32| {
        let mut file = described.clone();
        file.extend(words(&[1, 20, 220, 96, 20]));
        file.extend(&pcapng(&frames)[described.len()..]);
        if number > 0 {
            file.extend(words(&[6, 36, number, 0, 0, 4, 4]));
            file.extend(b"usb!");
            file.extend(words(&[36]));
        }
        file
    };
    assert_eq!(printed(&other(0)), readable);
    let (code, story, error) = printed(&other(1));
    assert_eq!((code, story), (Some(1), whole));
    let expected = "1 packets are of link type 220, not Ethernet";
    assert!(error.contains(expected), "{error}");
}
