//! The frame token, and the pool of unused frames.

use std::fmt;

/// Exclusive ownership of one chunk of the UMEM.
///
/// Neither `Copy` nor `Clone`: submitting it to a ring moves it, and only a completion or a
/// reception returns it. A packet longer than a chunk is a run of frames, all but the last with
/// [`Frame::has_more`] set.
#[derive(PartialEq, Eq)]
#[must_use = "a frame that is dropped is lost to the pool"]
pub struct Frame {
    chunk: u32,
    length: u16,
    more: bool,
    /// How many bytes the frame begins behind the place where it was received.
    moved: i8,
}

impl Frame {
    /// Makes the token of a chunk. Each chunk must have only one token; the `xsk` module and the
    /// memory ports ensure that.
    pub(super) const fn new(chunk: u32, length: u16, more: bool) -> Self {
        Self {
            chunk,
            length,
            more,
            moved: 0,
        }
    }

    /// The token of the same chunk, whose first `old` bytes are replaced by `new` bytes: the frame
    /// ends where it ended. Gives the token back if the numbers do not fit.
    pub(super) fn lengthened(self, new: usize, old: usize) -> Result<Self, Self> {
        let more = i64::try_from(new).unwrap_or(i64::MAX) - i64::try_from(old).unwrap_or(i64::MAX);
        let length = u16::try_from(i64::from(self.length) + more);
        let moved = i8::try_from(i64::from(self.moved) - more);
        match (length, moved) {
            (Ok(length), Ok(moved)) => Ok(Self {
                length,
                moved,
                ..self
            }),
            _ => Err(self),
        }
    }

    /// How many bytes the frame begins behind the place where it was received; negative: before.
    #[inline]
    pub(super) const fn moved(&self) -> isize {
        self.moved as isize
    }

    /// The chunk's number, from 0; its offset is this times the size of a chunk.
    #[inline]
    pub(super) const fn chunk(&self) -> usize {
        self.chunk as usize
    }

    /// How many bytes of the packet are in this chunk.
    #[inline]
    pub const fn length(&self) -> usize {
        self.length as usize
    }

    /// Whether the packet continues in the next frame.
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

/// The memory that holds the bytes of frames.
pub trait FrameMemory {
    /// The bytes of a frame. The caller owns them because it holds the token.
    fn bytes(&mut self, frame: &Frame) -> &mut [u8];

    /// The bytes of a frame, to be read only.
    fn view(&self, frame: &Frame) -> &[u8];

    /// Prefetches the cache line with the headers.
    fn prefetch(&self, frame: &Frame);

    /// Makes room for `new` bytes in place of the first `old` bytes of a frame: the frame begins
    /// earlier or later, and ends where it ended. The new bytes are undefined.
    ///
    /// # Errors
    /// Gives the frame back if the memory in front of it has no room for them.
    fn lengthen(&mut self, frame: Frame, new: usize, old: usize) -> Result<Frame, Frame>;
}

/// The most bytes by which a frame can begin before the place where it was received: two tags.
pub(super) const LONGEST_GROWTH: isize = 8;

/// The unused frames, last in first out: the frame used last is still in the cache.
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

    /// Puts a frame of this pool back, to be taken next.
    #[inline]
    pub fn put(&mut self, frame: Frame) {
        debug_assert!(
            self.free.len() < self.total && frame.chunk() < self.total,
            "{frame:?} is not of this pool of {}",
            self.total
        );
        self.free.push(frame);
    }

    /// The number of frames in the pool.
    pub fn len(&self) -> usize {
        self.free.len()
    }

    /// Whether every frame is in use.
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// The number of all frames, in the pool and in use.
    pub const fn total(&self) -> usize {
        self.total
    }

    /// Whether no frame is in the pool twice. Slow; for tests and the shutdown.
    pub fn is_sound(&self) -> bool {
        let mut found = vec![false; self.total];
        self.free
            .iter()
            .all(|frame| !std::mem::replace(&mut found[frame.chunk()], true))
    }
}
