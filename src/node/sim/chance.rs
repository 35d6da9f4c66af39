//! Everything that is left to chance, from one seed.

use crate::amounts::Span;

/// A deterministic source of chance: splitmix64, Steele, Lea and Flood 2014.
#[derive(Clone, Debug)]
pub(in crate::node) struct Chance(u64);

impl Chance {
    pub(in crate::node) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(in crate::node) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// One of `0..sides`; 0 if there is none.
    pub(in crate::node) fn below(&mut self, sides: u64) -> u64 {
        self.next() % sides.max(1)
    }

    pub(in crate::node) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(in crate::node) fn span(&mut self, least: Span, most: Span) -> Span {
        Span(least.0 + self.below(most.0.saturating_sub(least.0) + 1))
    }

    pub(in crate::node) fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len() as u64) as usize]
    }
}

/// Spreads a number evenly.
pub(super) const fn mix(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}
