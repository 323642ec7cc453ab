//! The frame token, and the pool where unused ones rest.

use std::fmt;

/// One buffer of the UMEM, in somebody's hands.
///
/// Neither `Copy` nor `Clone`: handing it to a ring gives it away, and only a completion or a
/// reception returns it. A packet longer than a buffer is a run of frames of which all but the
/// last say that [more](Frame::has_more) follow.
#[derive(PartialEq, Eq)]
#[must_use = "a frame that is dropped is lost to the pool"]
pub struct Frame {
    chunk: u32,
    length: u16,
    more: bool,
}

impl Frame {
    /// Makes the token of a chunk. Each chunk must have one token only; the rooms that talk to
    /// the kernel, and the memory ports, see to that.
    pub(super) const fn new(chunk: u32, length: u16, more: bool) -> Self {
        Self {
            chunk,
            length,
            more,
        }
    }

    /// The buffer's number.
    #[inline]
    pub(super) const fn chunk(&self) -> usize {
        self.chunk as usize
    }

    /// How many bytes of the packet are in this buffer.
    #[inline]
    pub const fn length(&self) -> usize {
        self.length as usize
    }

    /// Whether the packet goes on in the next frame.
    #[inline]
    pub const fn has_more(&self) -> bool {
        self.more
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = if self.more { "+" } else { "" };
        write!(f, "#{}({}{more})", self.chunk, self.length)
    }
}

/// Where the bytes of frames are.
pub trait Memory {
    /// The bytes of a frame. Holding the token is the right to them.
    fn bytes(&mut self, frame: &Frame) -> &mut [u8];

    /// Asks the processor to fetch the bytes where the headers are.
    fn prefetch(&self, frame: &Frame);
}

/// The frames that nobody uses, last in first out: what was touched last is still in the cache.
pub struct FramePool {
    free: Vec<Frame>,
    total: usize,
}

impl FramePool {
    /// A pool that holds the tokens of chunks 0 to `total` - 1.
    pub(super) fn new(total: u32) -> Self {
        Self {
            free: (0..total)
                .rev()
                .map(|chunk| Frame::new(chunk, 0, false))
                .collect(),
            total: total as usize,
        }
    }

    /// Takes a frame out, if one is left.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        self.free.pop()
    }

    /// Puts a frame back.
    #[inline]
    pub fn put(&mut self, frame: Frame) {
        debug_assert!(
            self.free.len() < self.total && frame.chunk() < self.total,
            "{frame:?} is not of this pool of {}",
            self.total
        );
        self.free.push(frame);
    }

    /// How many frames rest here.
    pub fn len(&self) -> usize {
        self.free.len()
    }

    /// Whether every frame is in somebody's hands.
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// How many frames there are at all, here and elsewhere.
    pub const fn total(&self) -> usize {
        self.total
    }

    /// Whether each frame that rests here rests here once. Slow; for tests and the shutdown.
    pub fn is_sound(&self) -> bool {
        let mut seen = vec![false; self.total];
        self.free
            .iter()
            .all(|frame| !std::mem::replace(&mut seen[frame.chunk()], true))
    }
}
