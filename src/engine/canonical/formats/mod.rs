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

/// A word of each of sixteen rows: what one vector of packed bytes is made of.
type Words = [u32; LANES];

/// The same bit of every byte of a word.
const fn each_byte(bits: u8) -> u32 {
    u32::from_ne_bytes([bits; 4])
}

/// `value` of the words of every row.
#[inline(always)]
fn map_words<const N: usize>(words: [&Words; N], value: impl Fn([u32; N]) -> u32) -> Words {
    let mut mapped = [0; LANES];
    for (row, mapped) in mapped.iter_mut().enumerate() {
        *mapped = value(words.map(|words| words[row]));
    }
    mapped
}

/// The four bytes from byte `at` on of every row.
#[inline(always)]
fn words<T: Pod>(rows: &[T; LANES], at: usize) -> Words {
    let mut words = [0; LANES];
    for (word, row) in words.iter_mut().zip(rows) {
        *word = bytemuck::pod_read_unaligned(&bytemuck::bytes_of(row)[at..at + 4]);
    }
    words
}

/// Words from byte `at` on of every row, `words[j]` being bytes `4j..4j + 4` of them.
#[inline(always)]
fn many_words<T: Pod, const N: usize>(rows: &[T; LANES], at: usize) -> [Words; N] {
    let mut all = [[0; LANES]; N];
    for (j, all) in all.iter_mut().enumerate() {
        *all = words(rows, at + 4 * j);
    }
    all
}

/// Byte `byte` of every row's word.
#[inline(always)]
fn byte_of(words: &Words, byte: usize) -> [u8; LANES] {
    let mut bytes = [0; LANES];
    for (to, word) in bytes.iter_mut().zip(words) {
        *to = word.to_ne_bytes()[byte];
    }
    bytes
}

/// Words as the bytes of a vector.
#[inline(always)]
fn bytes(words: Words) -> [u8; 4 * LANES] {
    bytemuck::cast(words)
}

/// Nibbles of 32 columns of sixteen rows in four vectors: quad `j` in the lower halves of vector `j`, quad `j + 4` in the upper.
///
/// - `stored`: 32 bytes of every row, of which the columns are the lower halves
#[inline(always)]
fn pack_lower(stored: &[Words; 8]) -> [[u8; 4 * LANES]; 4] {
    const LOWER: u32 = each_byte(15);
    let mut packed = [[0; 4 * LANES]; 4];
    for (j, packed) in packed.iter_mut().enumerate() {
        *packed = bytes(map_words([&stored[j], &stored[j + 4]], |[a, b]| a & LOWER | (b & LOWER) << 4));
    }
    packed
}

/// The same, of the upper halves.
#[inline(always)]
fn pack_upper(stored: &[Words; 8]) -> [[u8; 4 * LANES]; 4] {
    const UPPER: u32 = each_byte(0xf0);
    let mut packed = [[0; 4 * LANES]; 4];
    for (j, packed) in packed.iter_mut().enumerate() {
        *packed = bytes(map_words([&stored[j], &stored[j + 4]], |[a, b]| (a & UPPER) >> 4 | b & UPPER));
    }
    packed
}

/// The nibble of a column of a row, as [`pack_lower`] left it.
fn nibble(packed: &[[u8; 4 * LANES]; 4], row: usize, column: usize) -> u8 {
    let (quad, i) = (column / 4, column % 4);
    packed[quad % 4][4 * row + i] >> (quad / 4 * 4) & 15
}

/// The fifth bit of a column of a row, in its place. Bit `j` of a packed byte is that of quad `j`.
fn fifth(packed: &[u8; 4 * LANES], row: usize, column: usize) -> u8 {
    (packed[4 * row + column % 4] >> (column / 4) & 1) << 4
}

/// The eight quads of 32 columns, from what [`pack_lower`] made.
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

/// The same with the fifth bits, packed as for [`fifth`].
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
