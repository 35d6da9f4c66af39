//! `Q6_K`: super-blocks of 256 quants of 6 bits; each 16 have a scale of a signed byte.

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
use crate::engine::canonical::formats::each_byte;
use crate::engine::canonical::formats::load_nibbles;
use crate::engine::canonical::formats::many_words;
use crate::engine::canonical::formats::map_words;
use crate::engine::canonical::formats::nibble;
use crate::engine::canonical::formats::pack_lower;
use crate::engine::canonical::formats::pack_upper;
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

/// Stretches of 32 columns in a super-block.
const STRETCHES: usize = 8;

/// `weight = scale × part scale × (quant − 32)`.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine::canonical) struct Q6K;

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(in crate::engine::canonical) struct Stored {
    /// Of each half super-block 64 bytes: columns 0 to 63 in the lower halves, 64 to 127 in the upper.
    nibbles: [[u8; 64]; 2],
    /// Of each half super-block 32 bytes: the upper bits of columns `c`, `c + 32`, `c + 64` and `c + 96`, from the lowest up.
    upper: [[u8; 32]; 2],
    parts: [u8; 16],
    scale: u16,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(in crate::engine::canonical) struct Block {
    pub(in crate::engine::canonical) scales: Halves,
    pub(in crate::engine::canonical) parts: [Bytes; 2 * STRETCHES],
    /// Of each stretch two vectors: the upper bits of quads 0 to 3, and of 4 to 7, from the lowest up.
    pub(in crate::engine::canonical) upper: [[Quads; 2]; STRETCHES],
    pub(in crate::engine::canonical) nibbles: [[Quads; 4]; STRETCHES],
}

const _: () = same_size::<Block, Stored>();

/// Packs the upper bits of four quads, which are bits `2 × quarter` and the next of these bytes.
#[inline(always)]
fn pack_sixths(stored: &[Words], quarter: usize) -> Quads {
    let mut packed = [0; LANES];
    for (j, stored) in stored.iter().enumerate() {
        packed =
            map_words([&packed, stored], |[packed, bits]| packed | (bits >> (2 * quarter) & each_byte(3)) << (2 * j));
    }
    bytes(packed)
}

impl Format for Q6K {
    type Stored = Stored;
    type Block = Block;
    const COLUMNS: usize = 256;
    type Input = LargeBlock;
    const ROUNDING: Rounding = Rounding::Large;

    fn inputs(inputs: Inputs<'_>) -> Option<&[LargeBlock]> {
        if let Inputs::Large(blocks) = inputs { Some(blocks) } else { None }
    }

    #[inline(always)]
    fn pack(rows: &[Stored; LANES]) -> Block {
        let mut upper = [[[0; 4 * LANES]; 2]; STRETCHES];
        let mut nibbles = [[[0; 4 * LANES]; 4]; STRETCHES];
        for half in 0..2 {
            let bits: [_; 8] = many_words(rows, offset_of!(Stored, upper) + 32 * half);
            for quarter in 0..4 {
                let (first, second) = bits.split_at(4);
                upper[4 * half + quarter] = [pack_sixths(first, quarter), pack_sixths(second, quarter)];
            }
            for odd in 0..2 {
                let stored = many_words(rows, offset_of!(Stored, nibbles) + 64 * half + 32 * odd);
                nibbles[4 * half + odd] = pack_lower(&stored);
                nibbles[4 * half + 2 + odd] = pack_upper(&stored);
            }
        }
        let parts: [_; 4] = many_words(rows, offset_of!(Stored, parts));
        let parts = std::array::from_fn(|part| byte_of(&parts[part / 4], part % 4));
        Block { scales: rows.map(|row| row.scale), parts, upper, nibbles }
    }

    fn unpack(block: &Block, row: usize, out: &mut [f32]) {
        for (part, out) in out.chunks_exact_mut(16).enumerate() {
            let scale = widen(block.scales[row]) * f32::from(block.parts[part][row] as i8);
            for (index, out) in out.iter_mut().enumerate() {
                let (stretch, column) = (part / 2, part % 2 * 16 + index);
                let upper = block.upper[stretch][part % 2][4 * row + column % 4] >> (index / 4 * 2) & 3;
                let quant = nibble(&block.nibbles[stretch], row, column) | upper << 4;
                *out = scale * (i32::from(quant) - 32) as f32;
            }
        }
    }

    #[inline(always)]
    fn accumulate<S: Simd, const N: usize>(s: S, block: &Block, inputs: &[&Self::Input; N], sums: &mut [S::F; N]) {
        let mut dots = [s.splat_int(0); N];
        for stretch in 0..STRETCHES {
            if N < 8 {
                ask_ahead::<S, _, STRETCHES>(s, block, stretch);
            }
            let weights = load_sixes(s, block, stretch);
            let parts = [s.load_signed(&block.parts[2 * stretch]), s.load_signed(&block.parts[2 * stretch + 1])];
            let codes = codes32(inputs, stretch);
            for half in 0..2 {
                let mut products = [s.splat_int(0); N];
                for n in 0..N {
                    products[n] = s.splat_int(-32 * inputs[n].totals[2 * stretch + half]);
                }
                // 2 × 63 is below 128.
                for pair in 0..2 {
                    for n in 0..N {
                        let run = s.dot(s.open(products[n]), weights[half][2 * pair], codes[n][4 * half + 2 * pair]);
                        let run = s.dot(run, weights[half][2 * pair + 1], codes[n][4 * half + 2 * pair + 1]);
                        products[n] = s.close(products[n], run);
                    }
                }
                for n in 0..N {
                    dots[n] = s.add_ints(dots[n], s.mul_ints(products[n], parts[half]));
                }
            }
        }
        let scales = Self::scales(s, block);
        for n in 0..N {
            sums[n] = Self::finish(s, &scales, inputs[n].scale, dots[n], dots[n], sums[n]);
        }
    }
}

impl Large for Q6K {
    #[inline(always)]
    fn expand(block: &Block, planes: &mut [[[i8; 4 * LANES]; 64]; 2]) {
        let [high, low] = planes;
        for part in 0..2 * STRETCHES {
            let (stretch, half) = (part / 2, part % 2);
            let mut scale = [0; 4 * LANES];
            for (at, scale) in scale.iter_mut().enumerate() {
                *scale = i16::from(block.parts[part][at / 4] as i8);
            }
            for j in 0..4 {
                let (high, low) = (&mut high[4 * part + j], &mut low[4 * part + j]);
                let (nibbles, upper) = (&block.nibbles[stretch][j], &block.upper[stretch][half]);
                for at in 0..4 * LANES {
                    let quant = nibbles[at] >> (4 * half) & 15 | (upper[at] >> (2 * j) & 3) << 4;
                    let weight = (i16::from(quant) - 32) * scale[at];
                    high[at] = (weight >> 6) as i8;
                    low[at] = (weight & 63) as i8;
                }
            }
        }
    }

    #[inline(always)]
    fn minima(_: &Block) -> Option<[[i32; LANES]; 4]> {
        None
    }

    #[inline(always)]
    fn scales<S: Simd>(s: S, block: &Block) -> [S::F; 2] {
        [s.load_halves(&block.scales), s.splat(0.0)]
    }

    #[inline(always)]
    fn finish<S: Simd>(s: S, scales: &[S::F; 2], scale: f32, dot: S::I, _: S::I, sum: S::F) -> S::F {
        s.fma(s.float(dot), s.mul(scales[0], s.splat(scale)), sum)
    }
}

/// The eight quads of a stretch, four for each part.
#[inline(always)]
fn load_sixes<S: Simd>(s: S, block: &Block, stretch: usize) -> [[S::B; 4]; 2] {
    let [a, b, c, d, e, f, g, h] = load_nibbles(s, &block.nibbles[stretch]);
    let [first, second] = &block.upper[stretch];
    [join_upper(s, [a, b, c, d], s.load_bytes(first)), join_upper(s, [e, f, g, h], s.load_bytes(second))]
}

/// Puts the upper bits of quad `j`, bits `2j` and `2j + 1`, to places 4 and 5.
#[inline(always)]
fn join_upper<S: Simd>(s: S, [a, b, c, d]: [S::B; 4], bits: S::B) -> [S::B; 4] {
    [
        s.or_bytes(a, s.raise::<4>(s.bits_of::<0>(bits, 3))),
        s.or_bytes(b, s.raise::<2>(s.bits_of::<0>(bits, 12))),
        s.or_bytes(c, s.bits_of::<0>(bits, 48)),
        s.or_bytes(d, s.bits_of::<2>(bits, 48)),
    ]
}
