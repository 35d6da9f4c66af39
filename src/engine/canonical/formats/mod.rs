//! The formats of weights: how they are stored, how packed, and what a block adds to a product.

mod byte;
mod float;
mod nibble;
mod six;
mod super_nibble;

use bytemuck::Pod;

pub(super) use byte::Q8_0;
pub(super) use float::Bf16;
pub(super) use float::F16;
pub(super) use float::F32;
pub(super) use nibble::Nibble;
pub(super) use six::Q6K;
pub(super) use super_nibble::SuperNibble;

use crate::engine::canonical::round::Inputs;
use crate::engine::canonical::round::LargeBlock;
use crate::engine::canonical::round::Rounding;
use crate::engine::canonical::round::SmallBlock;
use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Simd;

/// 4 bits less 8, with a scale.
pub(super) type Q4_0 = Nibble<0, 0>;
/// 4 bits with a scale and an offset.
pub(super) type Q4_1 = Nibble<1, 0>;
/// 5 bits less 16, with a scale.
pub(super) type Q5_0 = Nibble<0, 1>;
/// 5 bits with a scale and an offset.
pub(super) type Q5_1 = Nibble<1, 1>;
/// Super-blocks of 4 bits.
pub(super) type Q4K = SuperNibble<0>;
/// Super-blocks of 5 bits.
pub(super) type Q5K = SuperNibble<1>;

/// A format of weights.
pub(super) trait Format {
    /// A block of one row, as GGUF stores it.
    type Stored: Pod;
    /// A block of sixteen rows, packed; as large as sixteen stored ones.
    type Block: Pod;
    /// Elements of a block of one row.
    const COLUMNS: usize;
    /// A block of input that goes with a block of weights.
    type Input: Pod;
    /// What inputs must be rounded to.
    const ROUNDING: Rounding;

    /// The rows of input, if they are rounded as they must be.
    fn inputs(inputs: Inputs<'_>) -> Option<&[Self::Input]>;

    fn pack(rows: &[Self::Stored; LANES]) -> Self::Block;

    /// Writes the block of row `row` as f32 into `out`, of `COLUMNS` elements.
    fn unpack(block: &Self::Block, row: usize, out: &mut [f32]);

    /// Adds to `sums[n]` the products of the sixteen rows' block with that of input `n`.
    fn accumulate<S: Simd, const N: usize>(s: S, block: &Self::Block, inputs: &[&Self::Input; N], sums: &mut [S::F; N]);

    /// The products of some groups of sixteen rows with some inputs: from +0, block after block.
    ///
    /// - `groups`, `inputs`: all as long as the first
    #[inline(always)]
    fn product<S: Simd, const G: usize, const N: usize>(
        s: S,
        groups: [&[Self::Block]; G],
        inputs: &[&[Self::Input]; N],
    ) -> [[S::F; N]; G] {
        let mut sums = [[s.splat(0.0); N]; G];
        #[allow(clippy::needless_range_loop, reason = "it counts through all groups and inputs")]
        for index in 0..groups[0].len() {
            for g in 0..G {
                let block = &groups[g][index];
                // Larger blocks ask part by part, unless there is time enough.
                if Self::COLUMNS < 256 || N >= 8 {
                    ask_ahead::<S, _, 1>(s, block, 0);
                }
                Self::accumulate(s, block, &at(inputs, index), &mut sums[g]);
            }
        }
        sums
    }
}

/// Block `index` of each input.
#[inline(always)]
fn at<'a, T, const N: usize>(inputs: &[&'a [T]; N], index: usize) -> [&'a T; N] {
    let mut blocks = [&inputs[0][index]; N];
    for n in 1..N {
        blocks[n] = &inputs[n][index];
    }
    blocks
}

/// Asks for the memory that lies ahead of one of the `COUNT` equal parts of a block. Larger blocks do so part by part: a
/// processor keeps no more than about sixteen lines on their way.
#[inline(always)]
fn ask_ahead<S: Simd, B: Pod, const COUNT: usize>(s: S, block: &B, part: usize) {
    let bytes = size_of::<B>() / COUNT;
    for line in (0..bytes).step_by(CACHE_LINE) {
        s.prefetch(bytemuck::bytes_of(block), part * bytes + line + AHEAD);
    }
}

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

/// How far ahead of its use memory is asked for, in bytes (1,024 and 3,072 are a little worse, 6,144 is 20 % worse: measured).
const AHEAD: usize = 2048;

/// A format with blocks of 32, in the two steps that matrix units need.
pub(super) trait Small: Format<Input = SmallBlock> {
    /// Writes the quads of a block as signed bytes.
    fn expand<S: Simd>(s: S, block: &Self::Block, quads: &mut [[u8; 4 * LANES]; 8]);

    /// The scales of the sixteen rows, and their offsets if there are any.
    fn scales<S: Simd>(s: S, block: &Self::Block) -> [S::F; 2];

    /// Adds a block's part to a sum.
    ///
    /// - `dot`: the dot products of the sixteen rows' signed bytes with the codes
    fn finish<S: Simd>(s: S, scales: &[S::F; 2], scale: f32, total: f32, dot: S::I, sum: S::F) -> S::F;
}

/// A format with super-blocks of 256, in the two steps that matrix units need.
pub(super) trait Large: Format<Input = LargeBlock> {
    /// Quants times part scales, as `64 × high + low`, both in signed bytes: `[high, low]`.
    fn expand(block: &Self::Block, planes: &mut [[[i8; 4 * LANES]; 64]; 2]);

    /// The part minima of the sixteen rows as pairs of parts, part `2p` in the lower 16 bits of word `p`.
    fn minima(block: &Self::Block) -> Option<[[i32; LANES]; 4]>;

    /// The scales of the sixteen rows, and their minima if there are any.
    fn scales<S: Simd>(s: S, block: &Self::Block) -> [S::F; 2];

    /// Adds a block's part to a sum.
    ///
    /// - `dot`: the dot products of the sixteen rows with the codes, part scales included
    /// - `minimum`: the sums of part minima times sums of codes
    fn finish<S: Simd>(s: S, scales: &[S::F; 2], scale: f32, dot: S::I, minimum: S::I, sum: S::F) -> S::F;
}

/// Runs `$body` with the type `$name` standing for the format of that value.
macro_rules! with_format {
    ($format:expr, $name:ident => $body:expr) => {
        match $format {
            $crate::shape::WeightFormat::F32 => {
                type $name = $crate::engine::canonical::formats::F32;
                $body
            }
            $crate::shape::WeightFormat::F16 => {
                type $name = $crate::engine::canonical::formats::F16;
                $body
            }
            $crate::shape::WeightFormat::BF16 => {
                type $name = $crate::engine::canonical::formats::Bf16;
                $body
            }
            $crate::shape::WeightFormat::Q4_0 => {
                type $name = $crate::engine::canonical::formats::Q4_0;
                $body
            }
            $crate::shape::WeightFormat::Q4_1 => {
                type $name = $crate::engine::canonical::formats::Q4_1;
                $body
            }
            $crate::shape::WeightFormat::Q5_0 => {
                type $name = $crate::engine::canonical::formats::Q5_0;
                $body
            }
            $crate::shape::WeightFormat::Q5_1 => {
                type $name = $crate::engine::canonical::formats::Q5_1;
                $body
            }
            $crate::shape::WeightFormat::Q8_0 => {
                type $name = $crate::engine::canonical::formats::Q8_0;
                $body
            }
            $crate::shape::WeightFormat::Q4K => {
                type $name = $crate::engine::canonical::formats::Q4K;
                $body
            }
            $crate::shape::WeightFormat::Q5K => {
                type $name = $crate::engine::canonical::formats::Q5K;
                $body
            }
            $crate::shape::WeightFormat::Q6K => {
                type $name = $crate::engine::canonical::formats::Q6K;
                $body
            }
        }
    };
}
pub(super) use with_format;

/// The quads of eight in a block of 32 columns of one row, `quads[j][i]` being column `4j + i`.
type Columns32 = [u8; 32];

/// Byte `4 × row + i` of a vector is `value(row, i)`.
fn quads(value: impl Fn(usize, usize) -> u8) -> [u8; 4 * LANES] {
    std::array::from_fn(|at| value(at / 4, at % 4))
}

/// Nibbles of 32 columns of sixteen rows in four vectors: quad `j` in the lower halves of vector `j`, quad `j + 4` in the upper.
fn pack_nibbles(rows: &[Columns32; LANES]) -> [[u8; 4 * LANES]; 4] {
    const LOW: u32 = 0x0f0f_0f0f;
    let mut packed = [[0; 4 * LANES]; 4];
    for (row, columns) in rows.iter().enumerate() {
        let quad = |j: usize| u32::from_ne_bytes(columns.as_chunks::<4>().0[j]) & LOW;
        for (j, packed) in packed.iter_mut().enumerate() {
            packed[4 * row..4 * row + 4].copy_from_slice(&(quad(j) | quad(j + 4) << 4).to_ne_bytes());
        }
    }
    packed
}

/// The fifth bits of 32 columns of sixteen rows: bit `j` of a byte is that of quad `j`.
fn pack_fifths(rows: &[Columns32; LANES]) -> [u8; 4 * LANES] {
    const FIFTH: u32 = 0x1010_1010;
    let mut packed = [0; 4 * LANES];
    for (packed, columns) in packed.as_chunks_mut::<4>().0.iter_mut().zip(rows) {
        let quads = columns.as_chunks::<4>().0.iter().enumerate();
        let bits = quads.fold(0, |bits, (j, quad)| bits | (u32::from_ne_bytes(*quad) & FIFTH) >> 4 << j);
        *packed = bits.to_ne_bytes();
    }
    packed
}

/// The nibble of a column of a row, as [`pack_nibbles`] left it.
fn nibble(packed: &[[u8; 4 * LANES]; 4], row: usize, column: usize) -> u8 {
    let (quad, i) = (column / 4, column % 4);
    packed[quad % 4][4 * row + i] >> (quad / 4 * 4) & 15
}

/// The fifth bit of a column of a row, in its place, as [`pack_fifths`] left it.
fn fifth(packed: &[u8; 4 * LANES], row: usize, column: usize) -> u8 {
    (packed[4 * row + column % 4] >> (column / 4) & 1) << 4
}

/// The eight quads of 32 columns, from what [`pack_nibbles`] made.
///
/// Kernels spell such things out: what passes through a closure of the standard library leaves the registers.
#[inline(always)]
fn load_nibbles<S: Simd>(s: S, packed: &[[u8; 4 * LANES]; 4]) -> [S::B; 8] {
    let [a, b, c, d] = packed;
    let (a, b, c, d) = (s.load_bytes(a), s.load_bytes(b), s.load_bytes(c), s.load_bytes(d));
    [
        s.bits_of::<0>(a, 15),
        s.bits_of::<0>(b, 15),
        s.bits_of::<0>(c, 15),
        s.bits_of::<0>(d, 15),
        s.bits_of::<4>(a, 15),
        s.bits_of::<4>(b, 15),
        s.bits_of::<4>(c, 15),
        s.bits_of::<4>(d, 15),
    ]
}

/// The same with the fifth bits, from what [`pack_fifths`] made.
#[inline(always)]
fn load_fives<S: Simd>(s: S, packed: &[[u8; 4 * LANES]; 4], fifths: &[u8; 4 * LANES]) -> [S::B; 8] {
    let [a, b, c, d, e, f, g, h] = load_nibbles(s, packed);
    let bits = s.load_bytes(fifths);
    // The bit of quad j goes to place 4.
    [
        s.or_bytes(a, s.raise::<4>(s.bits_of::<0>(bits, 1))),
        s.or_bytes(b, s.raise::<3>(s.bits_of::<0>(bits, 2))),
        s.or_bytes(c, s.raise::<2>(s.bits_of::<0>(bits, 4))),
        s.or_bytes(d, s.raise::<1>(s.bits_of::<0>(bits, 8))),
        s.or_bytes(e, s.bits_of::<0>(bits, 16)),
        s.or_bytes(f, s.bits_of::<1>(bits, 16)),
        s.or_bytes(g, s.bits_of::<2>(bits, 16)),
        s.or_bytes(h, s.bits_of::<3>(bits, 16)),
    ]
}

/// The codes of stretch `stretch` of 32 columns of each input.
#[inline(always)]
fn codes32<'a, const N: usize>(inputs: &[&'a LargeBlock; N], stretch: usize) -> [&'a [i32; 8]; N] {
    let mut codes = [&inputs[0].codes.as_chunks().0[stretch]; N];
    for n in 1..N {
        codes[n] = &inputs[n].codes.as_chunks().0[stretch];
    }
    codes
}

/// The dot products of 32 columns: eight quads of weights, `RUN` of which make a run.
///
/// Loops go over inputs innermost and have small bodies, so that they are unrolled and sums stay in registers.
#[inline(always)]
fn dots32<S: Simd, const N: usize, const RUN: usize>(s: S, weights: &[S::B; 8], codes: &[&[i32; 8]; N]) -> [S::I; N] {
    let mut sums = [s.splat_int(0); N];
    for (part, weights) in weights.as_chunks::<RUN>().0.iter().enumerate() {
        let mut runs = [s.open(sums[0]); N];
        for n in 0..N {
            runs[n] = s.open(sums[n]);
        }
        for j in 0..RUN {
            for n in 0..N {
                runs[n] = s.dot(runs[n], weights[j], codes[n][RUN * part + j]);
            }
        }
        for n in 0..N {
            sums[n] = s.close(sums[n], runs[n]);
        }
    }
    sums
}
