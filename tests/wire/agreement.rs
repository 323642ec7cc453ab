//! `exitmark explain` agrees with the running box on a capture.

use crate::craft::{AF11, QINQ, VLAN, ethernet, exit, families, mac, noise, relay};
use crate::rig::{Config, EXITMARK, Rig, Side, both_engines, moved};
use crate::stacks::converse;
use exitmark_lab::site::{CLEARNET_MAC, HOST_MAC, INCOMING_MAC, OR_PORT, Plan};
use exitmark_lab::{Capture, CapturedFrame};
use pcap_file::DataLink;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use std::fs::File;
use std::path::Path;
use std::process::Command;

/// Frames of the host besides its real connections, for every rule.
fn raw_frames() -> Vec<Vec<u8>> {
    let mut frames = vec![
        ethernet(CLEARNET_MAC, HOST_MAC, &[], 0x88b5, &noise(1, 46)),
        ethernet(CLEARNET_MAC, HOST_MAC, &[VLAN], 0x0800, &noise(2, 46)),
    ];
    for family in [0, 1] {
        for tags in [&[][..], &[VLAN], &[QINQ, VLAN]] {
            frames.push(exit(family, 30).outbound(tags));
            frames.push(exit(family, 30).tos(AF11).outbound(tags));
            frames.push(relay(family, 30).tos(AF11 | 1).outbound(tags));
            for offset in [0, 10, 20] {
                let more = offset < 20;
                frames.push(exit(family, 80).part(5, offset, more).outbound(tags));
                frames.push(relay(family, 80).part(6, offset, more).outbound(tags));
            }
        }
    }
    frames
}

fn write(frames: &[CapturedFrame], path: &Path) {
    let header = PcapHeader {
        snaplen: 65_536,
        datalink: DataLink::ETHERNET,
        ..PcapHeader::default()
    };
    let mut writer = PcapWriter::with_header(File::create(path).unwrap(), header).unwrap();
    for frame in frames {
        let length = u32::try_from(frame.bytes.len()).unwrap();
        let packet = PcapPacket::new(frame.time, length, &frame.bytes);
        writer.write_packet(&packet).unwrap();
    }
}

fn read(path: &Path) -> Vec<Vec<u8>> {
    let mut reader = PcapReader::new(File::open(path).unwrap()).unwrap();
    let mut frames = Vec::new();
    while let Some(packet) = reader.next_packet() {
        frames.push(packet.unwrap().data.into_owned());
    }
    frames
}

#[test]
fn explain_and_the_wire_agree_byte_for_byte() {
    both_engines(|| {
        let rig = Rig::lively(Plan::default(), &Config::default());
        let site = &rig.site;
        // The box's input, captured at the host's own NIC before any rewriting.
        let mut sent = Capture::start(&site.host, "eth0", "out", "").unwrap();
        let (mut uplink, mut incoming) = (rig.watch(Side::Clearnet), rig.watch(Side::Tornet));
        // Between these two, both captures must be the same; the stacks send before and after.
        let [first, last] =
            [76, 77].map(|seed| ethernet(CLEARNET_MAC, HOST_MAC, &[], 0x88b7, &noise(seed, 46)));
        let port = rig.port(Side::Host);
        port.send(&first).unwrap();
        for (_, server, relay) in families() {
            converse(&site.host, &site.clearnet, server, 80, 100_000);
            converse(&site.host, &site.tornet, relay, OR_PORT, 100_000);
        }
        for frame in raw_frames() {
            port.send(&frame).unwrap();
        }
        // Fragments may go through user space, and be overtaken by later frames.
        let last_exit = exit(1, 80).part(5, 20, false).tos(AF11);
        let last_exit = last_exit.outbound(&[QINQ, VLAN]);
        // Tagged frames are not steered.
        let tagged_relay = relay(1, 80).part(6, 20, false).outbound(&[QINQ, VLAN]);
        assert!(uplink.sees(&last_exit) && uplink.sees(&tagged_relay));
        port.send(&last).unwrap();
        assert!(sent.sees(&last) && uplink.sees(&last));
        let last_relay = relay(1, 80).part(6, 20, false).tos(0);
        assert!(incoming.sees(&last_relay.steered()));
        let between = |capture: Capture| {
            let frames = capture.finish().unwrap().into_iter();
            let frames = frames.skip_while(|frame| frame.bytes != first);
            let mut frames: Vec<_> = frames.collect();
            let end = frames.iter().position(|frame| frame.bytes == last);
            frames.truncate(end.unwrap() + 1);
            frames
        };
        let (sent, uplink) = (between(sent), between(uplink));
        let incoming = incoming.finish().unwrap();
        moved(&rig.running.stop().unwrap());

        let [before, after] = ["sent.pcap", "out.pcap"].map(|name| rig.directory.path().join(name));
        write(&sent, &before);
        let explained = Command::new(EXITMARK)
            .args(["explain", "--config"])
            .arg(&rig.configuration)
            .args(["--incoming-mac", INCOMING_MAC, "--write"])
            .args([&after, &before])
            .output()
            .unwrap();
        assert!(explained.status.success(), "{explained:?}");
        let explained = read(&after);
        assert!(explained.len() > 300 && explained.len() == sent.len());
        let is_steered = |frame: &Vec<u8>| frame[6..12] == mac(INCOMING_MAC);
        let (steered, to_uplink): (Vec<_>, Vec<_>) = explained.into_iter().partition(is_steered);
        let captured = |frames: Vec<CapturedFrame>| frames.into_iter().map(|frame| frame.bytes);
        assert_same(to_uplink, captured(uplink).collect());
        // The box's own stack sends on incoming too, from the same MAC, but not from the host's
        // address.
        let of_host = captured(incoming).filter(|frame| steered.contains(frame));
        assert_same(steered.clone(), of_host.collect());
    });
}

/// Compares frames as multisets: two CPUs may have raced for the order.
fn assert_same(mut explained: Vec<Vec<u8>>, mut captured: Vec<Vec<u8>>) {
    explained.sort();
    captured.sort();
    for (explained, captured) in explained.iter().zip(&captured) {
        assert!(explained == captured, "{explained:02x?}\n{captured:02x?}");
    }
    assert_eq!(explained.len(), captured.len());
}
