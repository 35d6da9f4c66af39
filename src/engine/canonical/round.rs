//! Rounding of inputs to integers, for products with quantised weights.
//!
//! A row of f32 is cut into blocks of 32 or of 256 elements, whatever the format of the weights says. For each block:
//!
//! 1. If an element is infinite or not a number, the block's scale is not a number and its codes are 0.
//! 2. Else `scale = max(largest |x| ÷ 127, 2⁻¹⁰⁰)` and `inverse = 1 ÷ scale`, both in f32, rounded to nearest even.
//! 3. `code = round(x × inverse)`, the product in f32, to the nearest whole number, ties to even, then limited to ±127.
//!
//! The floor of the scale keeps `inverse` finite; a block below it consists of zeros.

use crate::engine::canonical::simd::InstructionSet;
use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Simd;
use crate::engine::canonical::simd::kernels;

/// The smallest scale of a block: 2⁻¹⁰⁰.
const SMALLEST_SCALE: f32 = f32::from_bits(27 << 23);

/// The bits of infinity: not-a-numbers lie above, numbers below.
const INFINITY_BITS: i32 = 0x7f80_0000;

/// What a matrix takes for input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::engine) enum Rounding {
    /// f32 as they are.
    None,
    /// Integers with a scale for each 32.
    Small,
    /// Integers with a scale for each 256.
    Large,
}

impl Rounding {
    /// Elements of a block.
    pub(super) const fn block(self) -> usize {
        match self {
            Self::None => 1,
            Self::Small => 32,
            Self::Large => 256,
        }
    }

    /// Elements of which sums are kept.
    const fn summed(self) -> usize {
        match self {
            Self::None => 1,
            Self::Small => 32,
            Self::Large => 16,
        }
    }

    /// Words of a rounded row of so many elements, which fill whole blocks.
    pub(in crate::engine) const fn row_words(self, columns: usize) -> usize {
        match self {
            Self::None => columns,
            Self::Small | Self::Large => columns / 4 + columns / self.block() + columns / self.summed(),
        }
    }
}

/// A row of input as a product wants it: one stretch of words, so that rows are rounded independently.
///
/// Rounded: `[columns / 4]` words of four codes each, the first in the lowest byte; then the scales of the blocks as bits;
/// then the sums of the codes of every 32 elements, or of every 16 in large blocks. Not rounded: the bits of the elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row<'a> {
    pub(super) codes: &'a [i32],
    pub(super) scales: &'a [i32],
    pub(super) sums: &'a [i32],
}

impl<'a> Row<'a> {
    /// The parts of a rounded row of `columns` elements.
    #[inline(always)]
    pub(super) fn new(rounding: Rounding, columns: usize, words: &'a [i32]) -> Self {
        if rounding == Rounding::None {
            return Self { codes: words, scales: &[], sums: &[] };
        }
        let (codes, rest) = words.split_at(columns / 4);
        let (scales, sums) = rest.split_at(columns / rounding.block());
        Self { codes, scales, sums }
    }

    /// The scale of a block.
    #[inline(always)]
    pub(super) fn scale(&self, block: usize) -> f32 {
        f32::from_bits(self.scales[block] as u32)
    }
}

/// Rounds rows of input.
///
/// - `input`: `[rows, columns]`; `columns` must fill whole blocks
/// - `words`: `[rows, rounding.row_words(columns)]`
pub(in crate::engine) fn round(
    set: InstructionSet,
    rounding: Rounding,
    columns: usize,
    input: &[f32],
    words: &mut [i32],
) {
    let rows = input.chunks_exact(columns).zip(words.chunks_exact_mut(rounding.row_words(columns)));
    for (input, words) in rows {
        if rounding == Rounding::None {
            for (word, value) in words.iter_mut().zip(input) {
                *word = value.to_bits() as i32;
            }
        } else {
            round_row(set, rounding, input, words);
        }
    }
}

kernels! {
    fn round_row(rounding: Rounding, input: &[f32], words: &mut [i32]) = round_blocks;
}

#[inline(always)]
fn round_blocks<S: Simd>(s: S, rounding: Rounding, input: &[f32], words: &mut [i32]) {
    let (codes, rest) = words.split_at_mut(input.len() / 4);
    let (scales, sums) = rest.split_at_mut(input.len() / rounding.block());
    let blocks = input.chunks_exact(rounding.block()).zip(codes.chunks_exact_mut(rounding.block() / 4));
    for ((input, codes), scale) in blocks.zip(scales) {
        *scale = round_block(s, input.as_chunks().0, codes.as_chunks_mut().0).to_bits() as i32;
    }
    for (sum, codes) in sums.iter_mut().zip(codes.chunks_exact(rounding.summed() / 4)) {
        *sum = codes.iter().flat_map(|word| word.to_le_bytes()).map(|code| i32::from(code as i8)).sum();
    }
}

/// Returns the scale.
#[inline(always)]
fn round_block<S: Simd>(s: S, input: &[[f32; LANES]], codes: &mut [[i32; LANES / 4]]) -> f32 {
    let positive = s.splat_int(i32::MAX);
    let mut largest = s.splat_int(0);
    for values in input {
        // The bits of numbers above zero are in the order of the numbers.
        largest = s.max_ints(largest, s.and_ints(s.bits(s.load(values)), positive));
    }
    let mut lanes = [0; LANES];
    s.store_ints(largest, &mut lanes);
    let largest = lanes.into_iter().fold(0, i32::max);
    if largest >= INFINITY_BITS {
        codes.fill([0; LANES / 4]);
        return f32::NAN;
    }
    let scale = (f32::from_bits(largest as u32) / 127.0).max(SMALLEST_SCALE);
    let inverse = s.splat(1.0 / scale);
    let (least, most) = (s.splat(-127.0), s.splat(127.0));
    for (values, codes) in input.iter().zip(codes) {
        let value = s.max(least, s.min(most, s.mul(s.load(values), inverse)));
        let mut bytes = [0; LANES];
        s.store_bytes(s.round(value), &mut bytes);
        for (word, bytes) in codes.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = i32::from_le_bytes(bytes.map(|byte| byte as u8));
        }
    }
    scale
}
