//! Frames that a NIC cut at the end of its receive buffer.
//!
//! In zero-copy mode a driver gives the NIC the size of a chunk, rounded down to the NIC's buffer
//! granularity: 1,024 bytes on igb and ixgbe (`srrctl |= size >> E1000_SRRCTL_BSIZEPKT_SHIFT`
//! in igb_main.c, `igb_setup_srrctl`), 128 on i40e and ice. A longer frame is cut there, and
//! nothing reports it. Chunks are large enough for every known driver; this detects the others.
//!
//! An outsider can also send a frame whose IP length exceeds the frame, so these are only counted.

use super::{Frame, FrameMemory};
use exitmark_policy::packet::{Headers, Malformed, parse};

/// Sizes of receive buffers are multiples of this, in bytes.
const STEP: usize = 128;

/// The number of frames from `first` on that end where a receive buffer may end, before their IP
/// packet does. Packets in several buffers are not counted.
pub(super) fn count(arrived: &[Frame], first: usize, memory: &mut impl FrameMemory) -> u64 {
    let (before, new) = arrived.split_at(first);
    let mut goes_on = before.last().is_some_and(Frame::has_more);
    let mut cut = 0;
    for frame in new {
        let is_whole = !goes_on && !frame.has_more();
        goes_on = frame.has_more();
        if is_whole && frame.length().is_multiple_of(STEP) && is_short(memory.bytes(frame)) {
            cut += 1;
        }
    }
    cut
}

fn is_short(frame: &[u8]) -> bool {
    matches!(
        parse(frame, frame.len()),
        Headers::Malformed(Malformed::BeyondFrame)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::HeapMemory;

    /// A frame with an IPv4 packet, cut to `arrived` bytes; both lengths include the Ethernet
    /// header.
    fn frame(length: u16, arrived: usize) -> Vec<u8> {
        let mut frame = vec![0; usize::from(length)];
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame[14] = 0x45;
        frame[16..18].copy_from_slice(&(length - 14).to_be_bytes());
        frame.truncate(arrived);
        frame
    }

    #[test]
    fn a_frame_is_cut_where_it_ends_at_a_step_before_its_packet_does() {
        for (length, arrived, expected) in [
            (1514, 1024, 1),
            (1514, 1280, 1),
            (1514, 1514, 0),
            // A wrong IP length that no buffer size explains.
            (1514, 1000, 0),
            // Whole, and as long as a buffer.
            (1024, 1024, 0),
            (1152, 1152, 0),
        ] {
            let (mut memory, mut pool) = HeapMemory::new(1, 2048);
            let frames = memory.load(&frame(length, arrived), &mut pool);
            assert_eq!(
                count(&frames, 0, &mut memory),
                expected,
                "{length} {arrived}"
            );
        }
    }

    #[test]
    fn does_not_count_packets_in_several_buffers_and_frames_before_first() {
        let (mut memory, mut pool) = HeapMemory::new(4, 1024);
        let mut frames = memory.load(&frame(1514, 1514), &mut pool);
        frames.extend(memory.load(&frame(1514, 1024), &mut pool));
        assert_eq!(frames.len(), 3);
        assert_eq!(count(&frames, 0, &mut memory), 1);
        assert_eq!(count(&frames, 1, &mut memory), 1);
        assert_eq!(count(&frames, 3, &mut memory), 0);
    }
}
