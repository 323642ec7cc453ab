//! A fast, deterministic pseudorandom number generator.

/// SplitMix64 (Steele, Lea and Flood 2014): one addition and two multiplications per number.
#[derive(Clone, Debug)]
pub struct Random(u64);

#[allow(
    clippy::cast_possible_truncation,
    reason = "the upper bits of a random number are as random as all of them"
)]
impl Random {
    /// Starts the sequence of this seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64-bit number.
    pub const fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A 128-bit number, from two words.
    pub fn double(&mut self) -> u128 {
        u128::from(self.word()) << 64 | u128::from(self.word())
    }

    /// A 32-bit number, from one word.
    pub const fn wide(&mut self) -> u32 {
        (self.word() >> 32) as u32
    }

    /// A 16-bit number, from one word.
    pub const fn half(&mut self) -> u16 {
        (self.word() >> 48) as u16
    }

    /// An 8-bit number, from one word.
    pub const fn byte(&mut self) -> u8 {
        (self.word() >> 56) as u8
    }

    /// A number below `bound`, or 0 if `bound` is 0.
    pub const fn below(&mut self, bound: usize) -> usize {
        ((self.word() >> 32) as usize * bound) >> 32
    }

    /// True with a probability of `chance` percent.
    pub const fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    /// A random item; `None` if the slice is empty.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> Option<T> {
        items.get(self.below(items.len())).copied()
    }

    /// A random item of a non-empty array.
    pub fn one_of<T: Copy, const N: usize>(&mut self, items: [T; N]) -> T {
        items[self.below(N)]
    }
}
