//! `Q4_K` and `Q5_K`: super-blocks of 256 quants of 4 or 5 bits; each 32 have a scale and a minimum of 6 bits.

use std::mem::offset_of;

use bytemuck::Pod;
use bytemuck::Zeroable;

use crate::engine::canonical::formats::Format;
use crate::engine::canonical::formats::Large;
use crate::engine::canonical::formats::Words;
use crate::engine::canonical::formats::ask_ahead;
use crate::engine::canonical::formats::byte_of;
use crate::engine::canonical::formats::bytes;
use crate::engine::canonical::formats::codes32;
use crate::engine::canonical::formats::dots32;
use crate::engine::canonical::formats::each_byte;
use crate::engine::canonical::formats::fifth;
use crate::engine::canonical::formats::load_fives;
use crate::engine::canonical::formats::load_nibbles;
use crate::engine::canonical::formats::many_words;
use crate::engine::canonical::formats::map_words;
use crate::engine::canonical::formats::nibble;
use crate::engine::canonical::formats::pack_lower;
use crate::engine::canonical::formats::pack_upper;
use crate::engine::canonical::fused::fused;
use crate::engine::canonical::half::widen;
use crate::engine::canonical::packed::Bytes;
use crate::engine::canonical::packed::Halves;
use crate::engine::canonical::packed::Quads;
use crate::engine::canonical::packed::same_size;
use crate::engine::canonical::round::Inputs;
use crate::engine::canonical::round::LargeBlock;
use crate::engine::canonical::round::Rounding;
use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Simd;

/// Sub-blocks of a super-block.
const PARTS: usize = 8;

/// `weight = scale × part scale × quant − minimum × part minimum`.
///
/// - `FIVE`: 1 if there is a fifth bit
#[derive(Clone, Copy, Debug)]
pub(in crate::engine::canonical) struct SuperNibble<const FIVE: usize>;

#[derive(Clone, Copy, Debug, Zeroable)]
#[repr(C)]
pub(in crate::engine::canonical) struct Stored<const FIVE: usize> {
    scale: u16,
    minimum: u16,
    /// Part scales and minima, 6 bits each, see [`pack_parts`].
    parts: [u8; 12],
    /// Bit `p` of byte `c` is the fifth of column `c` of part `p`.
    fifths: [[u8; 32]; FIVE],
    /// Parts `2k` in the lower halves and `2k + 1` in the upper halves of 32 bytes.
    nibbles: [[u8; 32]; 4],
}

// SAFETY: a `repr(C)` structure of two halves and an even number of bytes, without padding; every pattern of bits is a value.
unsafe impl<const FIVE: usize> Pod for Stored<FIVE> {}

#[derive(Clone, Copy, Debug, Zeroable)]
#[repr(C)]
pub(in crate::engine::canonical) struct Block<const FIVE: usize> {
    pub(in crate::engine::canonical) scales: Halves,
    pub(in crate::engine::canonical) minima: Halves,
    /// Of each part: the lower four bits of its scale in the lower halves, those of its minimum in the upper.
    pub(in crate::engine::canonical) low: [Bytes; PARTS],
    /// Of parts `p` and `p + 4`: the upper two bits of scale, minimum, scale, minimum, from the lowest bits up.
    pub(in crate::engine::canonical) high: [Bytes; PARTS / 2],
    pub(in crate::engine::canonical) fifths: [[Quads; PARTS]; FIVE],
    pub(in crate::engine::canonical) nibbles: [[Quads; 4]; PARTS],
}

// SAFETY: as above.
unsafe impl<const FIVE: usize> Pod for Block<FIVE> {}

const _: () = same_size::<Block<0>, Stored<0>>();
const _: () = same_size::<Block<1>, Stored<1>>();

/// Packs part scales and minima. GGUF has them of the first four parts whole in bytes 0 to 3 and 4 to 7; of the others the
/// lower four bits in bytes 8 to 11 and the upper two above those of the first four.
#[inline(always)]
fn pack_parts(stored: &[Words; 3]) -> ([Bytes; PARTS], [Bytes; PARTS / 2]) {
    const TWO: u32 = each_byte(3);
    const FOUR: u32 = each_byte(15);
    let [a, b, c] = stored;
    let first = map_words([a, b], |[scales, minima]| scales & FOUR | (minima & FOUR) << 4);
    let upper = map_words([a, b], |[scales, minima]| {
        let [first, second] = [4, 6].map(|bit| scales >> bit & TWO | (minima >> bit & TWO) << 2);
        first | second << 4
    });
    let low = |part| byte_of(if part < 4 { &first } else { c }, part % 4);
    (std::array::from_fn(low), std::array::from_fn(|part| byte_of(&upper, part)))
}

/// Packs the fifth bits of a part: bit `part` of every stored byte.
#[inline(always)]
fn pack_fifths(stored: &[Words; 8], part: usize) -> Quads {
    let mut packed = [0; LANES];
    for (j, stored) in stored.iter().enumerate() {
        packed = map_words([&packed, stored], |[packed, bits]| packed | (bits >> part & each_byte(1)) << j);
    }
    bytes(packed)
}

impl<const FIVE: usize> Format for SuperNibble<FIVE> {
    type Stored = Stored<FIVE>;
    type Block = Block<FIVE>;
    const COLUMNS: usize = 256;
    type Input = LargeBlock;
    const ROUNDING: Rounding = Rounding::Large;

    fn inputs(inputs: Inputs<'_>) -> Option<&[LargeBlock]> {
        if let Inputs::Large(blocks) = inputs { Some(blocks) } else { None }
    }

    #[inline(always)]
    fn pack(rows: &[Self::Stored; LANES]) -> Self::Block {
        let (low, high) = pack_parts(&many_words(rows, offset_of!(Self::Stored, parts)));
        let mut fifths = [[[0; 4 * LANES]; PARTS]; FIVE];
        for fifths in &mut fifths {
            let stored = many_words(rows, offset_of!(Self::Stored, fifths));
            for (part, fifths) in fifths.iter_mut().enumerate() {
                *fifths = pack_fifths(&stored, part);
            }
        }
        let mut nibbles = [[[0; 4 * LANES]; 4]; PARTS];
        for (pair, nibbles) in nibbles.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let stored = many_words(rows, offset_of!(Self::Stored, nibbles) + 32 * pair);
            *nibbles = [pack_lower(&stored), pack_upper(&stored)];
        }
        let (scales, minima) = (rows.map(|row| row.scale), rows.map(|row| row.minimum));
        Block { scales, minima, low, high, fifths, nibbles }
    }

    fn unpack(block: &Self::Block, row: usize, out: &mut [f32]) {
        for (part, out) in out.chunks_exact_mut(32).enumerate() {
            let (scale, minimum) = part_scales(block, part)[row];
            let scale = widen(block.scales[row]) * f32::from(scale);
            let minimum = widen(block.minima[row]) * f32::from(minimum);
            for (column, out) in out.iter_mut().enumerate() {
                let bit = block.fifths.first().map_or(0, |fifths| fifth(&fifths[part], row, column));
                let quant = nibble(&block.nibbles[part], row, column) | bit;
                *out = fused(scale, f32::from(quant), -minimum);
            }
        }
    }

    #[inline(always)]
    fn accumulate<S: Simd, const N: usize>(
        s: S,
        block: &Self::Block,
        inputs: &[&Self::Input; N],
        sums: &mut [S::F; N],
    ) {
        let (mut dots, mut minima) = ([s.splat_int(0); N], [s.splat_int(0); N]);
        for part in 0..PARTS {
            if N < 8 {
                ask_ahead::<S, _, PARTS>(s, block, part);
            }
            let (scale, minimum) = load_part(s, block, part);
            let weights = match block.fifths.first() {
                Some(fifths) => load_fives(s, &block.nibbles[part], &fifths[part]),
                None => load_nibbles(s, &block.nibbles[part]),
            };
            let codes = codes32(inputs, part);
            // 8 × 15 and 4 × 31 are below 128.
            let products =
                if FIVE == 0 { dots32::<S, N, 8>(s, &weights, &codes) } else { dots32::<S, N, 4>(s, &weights, &codes) };
            for n in 0..N {
                dots[n] = s.add_ints(dots[n], s.mul_ints(products[n], scale));
                let total = inputs[n].totals[2 * part] + inputs[n].totals[2 * part + 1];
                minima[n] = s.add_ints(minima[n], s.mul_ints(s.splat_int(total), minimum));
            }
        }
        let scales = Self::scales(s, block);
        for n in 0..N {
            sums[n] = Self::finish(s, &scales, inputs[n].scale, dots[n], minima[n], sums[n]);
        }
    }
}

impl<const FIVE: usize> Large for SuperNibble<FIVE> {
    #[inline(always)]
    fn expand(block: &Self::Block, planes: &mut [[[i8; 4 * LANES]; 64]; 2]) {
        let [high, low] = planes;
        for part in 0..PARTS {
            let scales = part_scales(block, part);
            let mut scale = [0; 4 * LANES];
            for (at, scale) in scale.iter_mut().enumerate() {
                *scale = scales[at / 4].0;
            }
            for j in 0..8 {
                let (high, low) = (&mut high[8 * part + j], &mut low[8 * part + j]);
                let nibbles = &block.nibbles[part][j % 4];
                for at in 0..4 * LANES {
                    let bit = if FIVE == 1 { (block.fifths[0][part][at] >> j & 1) << 4 } else { 0 };
                    let weight = i16::from(nibbles[at] >> (j / 4 * 4) & 15 | bit) * scale[at];
                    high[at] = (weight >> 6) as i8;
                    low[at] = (weight & 63) as i8;
                }
            }
        }
    }

    #[inline(always)]
    fn minima(block: &Self::Block) -> Option<[[i32; LANES]; 4]> {
        let mut words = [[0; LANES]; 4];
        for (pair, words) in words.iter_mut().enumerate() {
            let (first, second) = (part_scales(block, 2 * pair), part_scales(block, 2 * pair + 1));
            for (row, word) in words.iter_mut().enumerate() {
                *word = i32::from(first[row].1) | i32::from(second[row].1) << 16;
            }
        }
        Some(words)
    }

    #[inline(always)]
    fn scales<S: Simd>(s: S, block: &Self::Block) -> [S::F; 2] {
        [s.load_halves(&block.scales), s.load_halves(&block.minima)]
    }

    #[inline(always)]
    fn finish<S: Simd>(s: S, scales: &[S::F; 2], scale: f32, dot: S::I, minimum: S::I, sum: S::F) -> S::F {
        let scale = s.splat(scale);
        let sum = s.fma(s.float(dot), s.mul(scales[0], scale), sum);
        s.fnma(s.float(minimum), s.mul(scales[1], scale), sum)
    }
}

/// Scale and minimum of a part for each of sixteen rows.
#[inline(always)]
fn part_scales<const FIVE: usize>(block: &Block<FIVE>, part: usize) -> [(i16, i16); LANES] {
    let mut scales = [(0, 0); LANES];
    for (row, scale) in scales.iter_mut().enumerate() {
        let (low, high) = (block.low[part][row], block.high[part % 4][row] >> (part / 4 * 4));
        *scale = (i16::from(low & 15 | (high & 3) << 4), i16::from(low >> 4 | (high >> 2 & 3) << 4));
    }
    scales
}

/// The scales and the minima of a part of sixteen rows.
#[inline(always)]
fn load_part<S: Simd, const FIVE: usize>(s: S, block: &Block<FIVE>, part: usize) -> (S::I, S::I) {
    let (low, high) = (s.load_unsigned(&block.low[part]), s.load_unsigned(&block.high[part % 4]));
    let high = if part < 4 { high } else { s.shift_right::<4>(high) };
    let scale = s.add_ints(s.and_ints(low, s.splat_int(15)), s.shift_left::<4>(s.and_ints(high, s.splat_int(3))));
    let minimum = s.add_ints(s.shift_right::<4>(low), s.shift_left::<2>(s.and_ints(high, s.splat_int(12))));
    (scale, minimum)
}
