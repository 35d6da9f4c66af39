//! `Q8_0`: 32 signed bytes with a scale.

use std::mem::offset_of;

use bytemuck::Pod;
use bytemuck::Zeroable;

use crate::engine::canonical::formats::Format;
use crate::engine::canonical::formats::Small;
use crate::engine::canonical::formats::bytes;
use crate::engine::canonical::formats::each_byte;
use crate::engine::canonical::formats::many_words;
use crate::engine::canonical::formats::map_words;
use crate::engine::canonical::half::widen;
use crate::engine::canonical::packed::Halves;
use crate::engine::canonical::packed::Quads;
use crate::engine::canonical::packed::same_size;
use crate::engine::canonical::round::Inputs;
use crate::engine::canonical::round::Rounding;
use crate::engine::canonical::round::SmallBlock;
use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Simd;

/// `weight = scale × quant`.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine::canonical) struct Q8_0;

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(in crate::engine::canonical) struct Stored {
    scale: u16,
    quants: [u8; 32],
}

/// Quants are packed with 128 added, so that they are unsigned.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(in crate::engine::canonical) struct Block {
    pub(in crate::engine::canonical) scales: Halves,
    pub(in crate::engine::canonical) quads: [Quads; 8],
}

const _: () = same_size::<Block, Stored>();

impl Format for Q8_0 {
    type Stored = Stored;
    type Block = Block;
    const COLUMNS: usize = 32;
    type Input = SmallBlock;
    const ROUNDING: Rounding = Rounding::Small;

    fn inputs(inputs: Inputs<'_>) -> Option<&[SmallBlock]> {
        if let Inputs::Small(blocks) = inputs { Some(blocks) } else { None }
    }

    #[inline(always)]
    fn pack(rows: &[Stored; LANES]) -> Block {
        const BIAS: u32 = each_byte(128);
        let mut quads = [[0; 4 * LANES]; 8];
        for (quads, words) in quads.iter_mut().zip(many_words::<_, 8>(rows, offset_of!(Stored, quants))) {
            *quads = bytes(map_words([&words], |[quants]| quants ^ BIAS));
        }
        Block { scales: rows.map(|row| row.scale), quads }
    }

    fn unpack(block: &Block, row: usize, out: &mut [f32]) {
        let scale = widen(block.scales[row]);
        for (column, out) in out.iter_mut().enumerate() {
            let quant = (block.quads[column / 4][4 * row + column % 4] ^ 128) as i8;
            *out = scale * f32::from(quant);
        }
    }

    #[inline(always)]
    fn accumulate<S: Simd, const N: usize>(s: S, block: &Block, inputs: &[&Self::Input; N], sums: &mut [S::F; N]) {
        let mut dots = [s.splat_int(0); N];
        for n in 0..N {
            dots[n] = s.biased(inputs[n].total);
        }
        for (j, quads) in block.quads.iter().enumerate() {
            let weights = s.load_bytes(quads);
            for n in 0..N {
                dots[n] = s.close(dots[n], s.dot_biased(s.open(dots[n]), weights, inputs[n].codes[j]));
            }
        }
        let scales = s.load_halves(&block.scales);
        for n in 0..N {
            sums[n] = s.fma(s.float(dots[n]), s.mul(scales, s.splat(inputs[n].scale)), sums[n]);
        }
    }
}

impl Small for Q8_0 {
    #[inline(always)]
    fn expand<S: Simd>(_: S, block: &Block, quads: &mut [Quads; 8]) {
        for (signed, biased) in quads.as_flattened_mut().iter_mut().zip(block.quads.as_flattened()) {
            *signed = biased ^ 128;
        }
    }

    #[inline(always)]
    fn scales<S: Simd>(s: S, block: &Block) -> [S::F; 2] {
        [s.load_halves(&block.scales), s.splat(0.0)]
    }

    #[inline(always)]
    fn finish<S: Simd>(s: S, scales: &[S::F; 2], scale: f32, _: f32, dot: S::I, sum: S::F) -> S::F {
        s.fma(s.float(dot), s.mul(scales[0], s.splat(scale)), sum)
    }
}
