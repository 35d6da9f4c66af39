//! `Q4_0`, `Q4_1`, `Q5_0` and `Q5_1`: 32 quants of 4 or 5 bits with a scale, and an offset or none.

use std::mem::offset_of;

use bytemuck::Pod;
use bytemuck::Zeroable;

use crate::engine::canonical::formats::Format;
use crate::engine::canonical::formats::Small;
use crate::engine::canonical::formats::bytes;
use crate::engine::canonical::formats::dots32;
use crate::engine::canonical::formats::fifth;
use crate::engine::canonical::formats::load_fives;
use crate::engine::canonical::formats::load_nibbles;
use crate::engine::canonical::formats::many_words;
use crate::engine::canonical::formats::map_words;
use crate::engine::canonical::formats::nibble;
use crate::engine::canonical::formats::words;
use crate::engine::canonical::fused::fused;
use crate::engine::canonical::half::widen;
use crate::engine::canonical::packed::Halves;
use crate::engine::canonical::packed::Quads;
use crate::engine::canonical::packed::same_size;
use crate::engine::canonical::round::Inputs;
use crate::engine::canonical::round::Rounding;
use crate::engine::canonical::round::SmallBlock;
use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Simd;

/// With an offset, `weight = scale × quant + offset`; else `weight = scale × (quant − 8)`, or `− 16` for 5 bits.
///
/// - `OFFSET`: 1 if there is one
/// - `FIVE`: 1 if there is a fifth bit
#[derive(Clone, Copy, Debug)]
pub(in crate::engine::canonical) struct Nibble<const OFFSET: usize, const FIVE: usize>;

#[derive(Clone, Copy, Debug, Zeroable)]
#[repr(C)]
pub(in crate::engine::canonical) struct Stored<const OFFSET: usize, const FIVE: usize> {
    scale: u16,
    offset: [u16; OFFSET],
    /// Bit `c` of the 32 is the fifth of column `c`.
    fifths: [[u16; 2]; FIVE],
    /// Columns 0 to 15 in the lower halves, 16 to 31 in the upper.
    nibbles: [u8; 16],
}

// SAFETY: a `repr(C)` structure of halves and then an even number of bytes, without padding; every pattern of bits is a value.
unsafe impl<const OFFSET: usize, const FIVE: usize> Pod for Stored<OFFSET, FIVE> {}

#[derive(Clone, Copy, Debug, Zeroable)]
#[repr(C)]
pub(in crate::engine::canonical) struct Block<const OFFSET: usize, const FIVE: usize> {
    pub(in crate::engine::canonical) scales: Halves,
    pub(in crate::engine::canonical) offsets: [Halves; OFFSET],
    pub(in crate::engine::canonical) fifths: [Quads; FIVE],
    pub(in crate::engine::canonical) nibbles: [Quads; 4],
}

// SAFETY: as above.
unsafe impl<const OFFSET: usize, const FIVE: usize> Pod for Block<OFFSET, FIVE> {}

const _: () = same_size::<Block<0, 0>, Stored<0, 0>>();
const _: () = same_size::<Block<1, 0>, Stored<1, 0>>();
const _: () = same_size::<Block<0, 1>, Stored<0, 1>>();
const _: () = same_size::<Block<1, 1>, Stored<1, 1>>();

impl<const OFFSET: usize, const FIVE: usize> Nibble<OFFSET, FIVE> {
    /// What quants without an offset are above.
    pub(in crate::engine::canonical) const ZERO: i32 = if FIVE == 1 { 16 } else { 8 };
}

/// Bit `4j + i` of a word goes to bit `j` of byte `i`: the fifth bits of 32 columns by quads.
#[inline(always)]
fn spread(bits: u32) -> u32 {
    let mut spread = 0;
    for i in 0..4 {
        // One of four bits is kept, and the gaps are closed in three steps.
        let kept = bits >> i & 0x1111_1111;
        let pairs = (kept | kept >> 3) & 0x0303_0303;
        let fours = (pairs | pairs >> 6) & 0x000f_000f;
        spread |= ((fours | fours >> 12) & 0xff) << (8 * i);
    }
    spread
}

impl<const OFFSET: usize, const FIVE: usize> Format for Nibble<OFFSET, FIVE> {
    type Stored = Stored<OFFSET, FIVE>;
    type Block = Block<OFFSET, FIVE>;
    const COLUMNS: usize = 32;
    type Input = SmallBlock;
    const ROUNDING: Rounding = Rounding::Small;

    fn inputs(inputs: Inputs<'_>) -> Option<&[SmallBlock]> {
        if let Inputs::Small(blocks) = inputs { Some(blocks) } else { None }
    }

    #[inline(always)]
    fn pack(rows: &[Self::Stored; LANES]) -> Self::Block {
        let mut fifths = [[0; 4 * LANES]; FIVE];
        for fifths in &mut fifths {
            let bits = words(rows, offset_of!(Self::Stored, fifths));
            *fifths = bytes(map_words([&bits], |[bits]| spread(bits.to_le())));
        }
        // The columns of quads j and j + 4 share their bytes already.
        let nibbles = many_words(rows, offset_of!(Self::Stored, nibbles)).map(bytes);
        let offsets = std::array::from_fn(|at| rows.map(|row| row.offset[at]));
        Block { scales: rows.map(|row| row.scale), offsets, fifths, nibbles }
    }

    fn unpack(block: &Self::Block, row: usize, out: &mut [f32]) {
        let scale = widen(block.scales[row]);
        for (column, out) in out.iter_mut().enumerate() {
            let high = block.fifths.first().map_or(0, |bits| fifth(bits, row, column));
            let quant = i32::from(nibble(&block.nibbles, row, column) | high);
            *out = match block.offsets.first() {
                Some(offsets) => fused(scale, quant as f32, widen(offsets[row])),
                None => scale * (quant - Self::ZERO) as f32,
            };
        }
    }

    #[inline(always)]
    fn accumulate<S: Simd, const N: usize>(
        s: S,
        block: &Self::Block,
        inputs: &[&Self::Input; N],
        sums: &mut [S::F; N],
    ) {
        let weights = Self::load(s, block);
        let mut codes = [&inputs[0].codes; N];
        for n in 1..N {
            codes[n] = &inputs[n].codes;
        }
        // 8 × 15 and 4 × 31 are below 128.
        let dots =
            if FIVE == 0 { dots32::<S, N, 8>(s, &weights, &codes) } else { dots32::<S, N, 4>(s, &weights, &codes) };
        let scales = Self::scales(s, block);
        for n in 0..N {
            let dot =
                if OFFSET == 0 { s.add_ints(dots[n], s.splat_int(-Self::ZERO * inputs[n].total)) } else { dots[n] };
            sums[n] = Self::finish(s, &scales, inputs[n].scale, inputs[n].total as f32, dot, sums[n]);
        }
    }
}

impl<const OFFSET: usize, const FIVE: usize> Nibble<OFFSET, FIVE> {
    #[inline(always)]
    fn load<S: Simd>(s: S, block: &Block<OFFSET, FIVE>) -> [S::B; 8] {
        match block.fifths.first() {
            Some(fifths) => load_fives(s, &block.nibbles, fifths),
            None => load_nibbles(s, &block.nibbles),
        }
    }
}

impl<const OFFSET: usize, const FIVE: usize> Small for Nibble<OFFSET, FIVE> {
    #[inline(always)]
    fn expand<S: Simd>(s: S, block: &Self::Block, quads: &mut [Quads; 8]) {
        for (quads, weights) in quads.iter_mut().zip(Self::load(s, block)) {
            s.store_quads(weights, quads);
            if OFFSET == 0 {
                quads.iter_mut().for_each(|quant| *quant = quant.wrapping_sub(Self::ZERO as u8));
            }
        }
    }

    #[inline(always)]
    fn scales<S: Simd>(s: S, block: &Self::Block) -> [S::F; 2] {
        let scales = s.load_halves(&block.scales);
        [scales, if OFFSET == 0 { scales } else { s.load_halves(&block.offsets[0]) }]
    }

    #[inline(always)]
    fn finish<S: Simd>(s: S, scales: &[S::F; 2], scale: f32, total: f32, dot: S::I, sum: S::F) -> S::F {
        let scale = s.splat(scale);
        let sum = s.fma(s.float(dot), s.mul(scales[0], scale), sum);
        if OFFSET == 0 { sum } else { s.fma(s.splat(total), s.mul(scales[1], scale), sum) }
    }
}
