//! Numbers that look random, millions a second, the same ones for the same seed.

/// SplitMix64 (Steele, Lea and Flood 2014): one addition and two multiplications a number.
#[derive(Clone, Debug)]
pub struct Random(u64);

#[allow(
    clippy::cast_possible_truncation,
    reason = "the upper bits of a random number are as random as all of them"
)]
impl Random {
    /// The sequence of this seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of twice the width.
    pub fn double(&mut self) -> u128 {
        u128::from(self.word()) << 64 | u128::from(self.word())
    }

    /// 32 bits.
    pub const fn wide(&mut self) -> u32 {
        (self.word() >> 32) as u32
    }

    /// 16 bits.
    pub const fn half(&mut self) -> u16 {
        (self.word() >> 48) as u16
    }

    /// 8 bits.
    pub const fn byte(&mut self) -> u8 {
        (self.word() >> 56) as u8
    }

    /// A number below `bound`, 0 where that is 0.
    pub const fn below(&mut self, bound: usize) -> usize {
        ((self.word() >> 32) as usize * bound) >> 32
    }

    /// True in so many of a hundred cases.
    pub const fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    /// One of these, if there are any.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> Option<T> {
        items.get(self.below(items.len())).copied()
    }

    /// One of these, of which there are some.
    pub fn one_of<T: Copy, const N: usize>(&mut self, items: [T; N]) -> T {
        items[self.below(N)]
    }
}
