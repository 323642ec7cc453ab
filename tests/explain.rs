//! Tier: any machine. `exitmark explain` on captures of all kinds, and on destinations.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

use exitmark_lab::consensus::{ConsensusBuilder, hours_from};
use exitmark_lab::frames::{Frame, tcp};
use exitmark_policy::packet::Tcp;
use exitmark_relays::Flavor;
use pcap_file::pcap::PcapReader;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

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
fn says_which_frames_are_copied_to_the_tap() {
    let directory = tempfile::tempdir().unwrap();
    let text = CONFIGURATION.replacen("[ports]\n", "[ports]\ntap = \"tap0\"\n", 1);
    let copied = |frame: &Frame, port: &str| {
        let hexadecimal = hexadecimal(&frame.build());
        let output = explain_by(&text, directory.path(), &["--port", port, &hexadecimal]);
        story(&output).contains("copied to the tap")
    };
    let (host, web) = ("192.0.2.10:40000", "198.51.100.7:443");
    assert!(copied(&tcp(host, web), "host"));
    assert!(copied(&tcp(web, host), "uplink"));
    assert!(!copied(&tcp(web, host).control(Tcp::SYN), "uplink"));
    assert!(!copied(&tcp(host, "198.18.0.1:9001"), "host"));
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

#[test]
fn reports_what_is_translated() {
    let directory = tempfile::tempdir().unwrap();
    let translating = CONFIGURATION
        .replace("[host]", "[host]\nmac = \"02:00:00:00:01:01\"\nrelay_addresses = [\"192.0.2.11\"]")
        .replace("[relays]", "source = { \"192.0.2.10\" = \"203.0.113.10\", \"192.0.2.11\" = \"203.0.113.11\" }\n[relays]");
    let own = "02:00:00:00:03:01".parse().unwrap();
    let router = "02:00:00:00:03:02".parse().unwrap();
    let answer = tcp("198.18.0.1:9001", "203.0.113.10:5000").macs(own, router);
    let sent = tcp("192.0.2.10:5000", "198.18.0.1:9001");
    let unlisted = tcp("192.0.2.11:5000", "198.51.100.7:443");
    for (port, frame, expected) in [
        ("host", &sent, "→ incoming, source translated"),
        ("host", &unlisted, "→ uplink, not steered: only a listed"),
        ("incoming", &answer, "translated back"),
    ] {
        let digits = hexadecimal(&frame.build());
        let printed = story(&explain_by(
            &translating,
            directory.path(),
            &["--port", port, &digits],
        ));
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

/// A Tor host. Its steering names what this machine does not have.
const TOR_HOST: &str = "\
engine = \"connect\"
[tor]
users = [\"debian-tor\"]
[host]
resolvers = [\"198.51.100.53\"]
exempt = [\"198.18.9.0/24\"]
[steer]
source = [\"203.0.113.10\"]
fwmark = 0x77
interface = \"no-such-nic0\"
[relays]
extra = [\"198.18.0.1:9001\", \"[2001:db8:18::1]:9001\"]
";

const WEB: &str = "198.51.100.7:443";
const RELAY: &str = "198.18.0.1:9001";
const RELAY_V6: &str = "[2001:db8:18::1]:9001";

/// Runs the program on these destinations: exit status, output and errors.
fn connect(text: &str, directory: &Path, destinations: &[&str]) -> (i32, String, String) {
    let configuration = directory.join("exitmark.toml");
    fs::write(&configuration, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_exitmark"));
    command.args(["explain", "--config"]).arg(configuration);
    for destination in destinations {
        command.args(["--connect", destination]);
    }
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

#[test]
fn explains_connections_by_class_rule_and_socket_options() {
    let directory = tempfile::tempdir().unwrap();
    let destinations = [
        WEB,
        "[2001:db8:51::7]:443",
        "[::ffff:198.51.100.7]:443",
        RELAY,
        "[::ffff:198.18.0.1]:9001",
        RELAY_V6,
        "198.51.100.53:53",
        "198.51.100.53:443",
        "198.18.9.1:9001",
        "127.0.0.1:9051",
        "[fe80::1]:80",
    ];
    let expected = "\
198.51.100.7:443           exit      to no relay → DSCP af11 (10)
[2001:db8:51::7]:443       exit      to no relay → DSCP af11 (10)
[::ffff:198.51.100.7]:443  exit      to no relay → DSCP af11 (10)
198.18.0.1:9001            relay     to a listed relay's address and port → source 203.0.113.10 \
(refused: it is not an address of this machine), fwmark 0x77, NIC no-such-nic0 (not set: it does \
not exist)
[::ffff:198.18.0.1]:9001   relay     to a listed relay's address and port → source 203.0.113.10 \
(refused: it is not an address of this machine), fwmark 0x77, NIC no-such-nic0 (not set: it does \
not exist)
[2001:db8:18::1]:9001      relay     to a listed relay's address and port → fwmark 0x77, NIC \
no-such-nic0 (not set: it does not exist)
198.51.100.53:53           resolver  to a configured resolver → unchanged
198.51.100.53:443          exit      to no relay → DSCP af11 (10)
198.18.9.1:9001            exempt    to an exempt prefix → unchanged
127.0.0.1:9051             exempt    to a loopback or link-local address → unchanged
[fe80::1]:80               exempt    to a loopback or link-local address → unchanged
";
    let explained = connect(TOR_HOST, directory.path(), &destinations);
    assert_eq!(explained, (0, expected.to_owned(), String::new()));
}

#[test]
fn explains_why_the_socket_of_a_connection_is_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let audit = TOR_HOST.replace("[tor]", "mode = \"audit\"\n[tor]");
    let steering = "fwmark = 0x77\ninterface = \"no-such-nic0\"\n";
    let lone_source = TOR_HOST.replace(steering, "");
    let lone_v6 = lone_source.replace("203.0.113.10", "2001:db8:3::10");
    let unsteered = lone_source.replace("source", "#source");
    for (text, destination, reason) in [
        (&audit, WEB, "mode = \"audit\""),
        (&audit, RELAY, "mode = \"audit\""),
        (&lone_source, RELAY_V6, "steer.source has no IPv6 address"),
        (&lone_v6, RELAY, "steer.source has no IPv4 address"),
        (
            &unsteered,
            RELAY,
            "[steer] names no source, fwmark or interface",
        ),
    ] {
        let (code, story, error) = connect(text, directory.path(), &[destination]);
        assert_eq!((code, &*error), (0, ""), "{reason}");
        let end = format!(" → unchanged: {reason}\n");
        assert!(story.ends_with(&end), "no `{end}` in: {story}");
    }
}

/// As the engine, which leaves all sockets alone then.
#[test]
fn explains_connections_without_a_relay_set_and_with_a_stale_one() {
    let directory = tempfile::tempdir().unwrap();
    let text = TOR_HOST.replace(
        "[relays]\n",
        "[relays]\nconsensus = [\"consensus\"]\nverify = false\n",
    );
    let both = [WEB, "198.18.7.7:9001"];
    let (code, story, error) = connect(&text, directory.path(), &both);
    let expected = "\
198.51.100.7:443  exit      to no relay → unchanged: there is no relay set
198.18.7.7:9001   exit      to no relay → unchanged: there is no relay set
";
    assert_eq!((code, &*story), (1, expected));
    assert!(error.contains("consensus: "), "{error}");

    // Valid until 21 or 25 hours ago; a set is stale after a day.
    for (ago, when_stale, is_left_alone) in
        [(24, "pass", false), (28, "pass", true), (28, "keep", false)]
    {
        let begin = SystemTime::now() - Duration::from_secs(ago * 3600);
        let builder = ConsensusBuilder {
            relays: 4,
            listed: vec!["198.18.7.7:9001".parse().unwrap()],
            ..ConsensusBuilder::full_size(Flavor::Microdesc, hours_from(begin, [0, 1, 3]))
        };
        fs::write(directory.path().join("consensus"), builder.write()).unwrap();
        let text = text.replace("extra", &format!("when_stale = \"{when_stale}\"\nextra"));
        let (code, story, _) = connect(&text, directory.path(), &both);
        assert_eq!(code, 0);
        let lines: Vec<_> = story.lines().collect();
        assert!(lines[1].contains("relay     to a listed relay"), "{story}");
        for (line, set) in lines.iter().zip(["DSCP af11 (10)", "source 203.0.113.10"]) {
            let reason = "unchanged: the relay set is stale, and relays.when_stale = \"pass\"";
            assert_eq!(line.ends_with(reason), is_left_alone, "{ago}: {story}");
            assert_eq!(line.contains(set), !is_left_alone, "{ago}: {story}");
        }
    }
}

#[test]
fn refuses_frames_of_a_tor_host_and_connections_of_a_box() {
    let directory = tempfile::tempdir().unwrap();
    let output = explain_by(TOR_HOST, directory.path(), &["00"]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("connections and no frames"), "{error}");
    assert!(error.contains("--connect"), "{error}");

    let (code, story, error) = connect(CONFIGURATION, directory.path(), &[WEB]);
    assert_eq!((code, &*story), (2, ""));
    let reason = "engine = \"auto\" judges frames and no connections";
    assert!(error.contains(reason), "{error}");
    assert!(!error.contains("198.51"), "{error}");

    let many = vec![WEB; 65];
    let (code, story, error) = connect(TOR_HOST, directory.path(), &many);
    assert_eq!((code, &*story), (2, ""));
    assert!(error.contains("65 destinations, more than 64"), "{error}");
    assert_eq!(connect(TOR_HOST, directory.path(), &many[1..]).0, 0);

    for wrong in ["198.51.100.7", "2001:db8::1:443", "example.org:443"] {
        let (code, _, error) = connect(TOR_HOST, directory.path(), &[wrong]);
        assert_eq!(code, 2, "{wrong}");
        assert!(error.contains("give an address and a port"), "{error}");
    }
    // Neither, and both.
    assert_eq!(connect(TOR_HOST, directory.path(), &[]).0, 2);
    for option in [&["00"][..], &["--port", "host"], &["--write", "out.pcap"]] {
        let arguments = [&["--connect", WEB], option].concat();
        let mut command = Command::new(env!("CARGO_BIN_EXE_exitmark"));
        command.args(["explain", "--config", "exitmark.toml"]);
        let output = command.args(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{option:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("cannot be used with"), "{error}");
    }
}
