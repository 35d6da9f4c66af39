//! Rounding of inputs to integers, for products with quantised weights.
//!
//! A row of f32 is cut into blocks of 32 or of 256 elements, whatever the format of the weights says. For each block:
//!
//! 1. If an element is infinite or not a number, the block's scale is not a number and its codes are 0.
//! 2. Else `scale = max(largest |x| ÷ 127, 2⁻¹⁰⁰)` and `inverse = 1 ÷ scale`, both in f32, rounded to nearest even.
//! 3. `code = round(x × inverse)`, the product in f32, to the nearest whole number, ties to even, then limited to ±127.
//!
//! The floor of the scale keeps `inverse` finite; a block below it consists of zeros.

use bytemuck::Pod;
use bytemuck::Zeroable;

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

/// A rounded block of 32 elements.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(in crate::engine) struct SmallBlock {
    /// Four codes a word, the first in the lowest byte.
    pub(super) codes: [i32; 8],
    pub(super) scale: f32,
    /// The sum of the codes.
    pub(super) total: i32,
    unused: [i32; 2],
}

/// A rounded block of 256 elements.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(in crate::engine) struct LargeBlock {
    /// Four codes a word, the first in the lowest byte.
    pub(super) codes: [i32; 64],
    /// The sums of 16 codes each.
    pub(super) totals: [i32; 16],
    pub(super) scale: f32,
    unused: [i32; 3],
}

/// Rows of input, one after the other, as a product wants them.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) enum Inputs<'a> {
    /// Not rounded.
    Plain(&'a [f32]),
    /// Rounded in small blocks.
    Small(&'a [SmallBlock]),
    /// Rounded in large blocks.
    Large(&'a [LargeBlock]),
}

/// A rounded block of input.
pub(in crate::engine) trait InputBlock: Pod + Sync + Send {
    /// Elements of a block.
    const ELEMENTS: usize;

    /// Rounds `row`, which fills whole blocks, into `blocks`.
    fn round(set: InstructionSet, row: &[f32], blocks: &mut [Self]);
}

impl InputBlock for SmallBlock {
    const ELEMENTS: usize = 32;

    fn round(set: InstructionSet, row: &[f32], blocks: &mut [Self]) {
        round_small(set, row, blocks);
    }
}

impl InputBlock for LargeBlock {
    const ELEMENTS: usize = 256;

    fn round(set: InstructionSet, row: &[f32], blocks: &mut [Self]) {
        round_large(set, row, blocks);
    }
}

kernels! {
    fn round_small(row: &[f32], blocks: &mut [SmallBlock]) = small_body;
    fn round_large(row: &[f32], blocks: &mut [LargeBlock]) = large_body;
}

#[inline(always)]
fn small_body<S: Simd>(s: S, row: &[f32], blocks: &mut [SmallBlock]) {
    for (input, block) in row.chunks_exact(SmallBlock::ELEMENTS).zip(blocks) {
        block.scale = round_block(s, input.as_chunks().0, block.codes.as_chunks_mut().0);
        block.total = total(&block.codes);
    }
}

#[inline(always)]
fn large_body<S: Simd>(s: S, row: &[f32], blocks: &mut [LargeBlock]) {
    for (input, block) in row.chunks_exact(LargeBlock::ELEMENTS).zip(blocks) {
        block.scale = round_block(s, input.as_chunks().0, block.codes.as_chunks_mut().0);
        for (sum, codes) in block.totals.iter_mut().zip(block.codes.as_chunks::<4>().0) {
            *sum = total(codes);
        }
    }
}

/// The sum of the codes in some words.
#[inline(always)]
fn total(words: &[i32]) -> i32 {
    words.iter().flat_map(|word| word.to_le_bytes()).map(|code| i32::from(code as i8)).sum()
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
