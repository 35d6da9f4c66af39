//! `F32`, `F16` and `BF16`: a block is one column, and inputs are not rounded.
//!
//! Columns are taken 32 at a time, the last time fewer: each stretch is summed in ascending order by fused multiply-adds from
//! +0, and the stretches are added in ascending order. That keeps rounding errors small and chains of additions short.

use bytemuck::Pod;

use crate::engine::canonical::formats::AHEAD;
use crate::engine::canonical::formats::Format;
use crate::engine::canonical::formats::at;
use crate::engine::canonical::half::widen;
use crate::engine::canonical::round::Inputs;
use crate::engine::canonical::round::Rounding;
use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Simd;

/// Columns of a stretch.
const STRETCH: usize = 32;

/// Four bytes.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine::canonical) struct F32;

/// IEEE 754 binary16.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine::canonical) struct F16;

/// The upper half of an f32.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine::canonical) struct Bf16;

/// A format whose elements stand alone.
pub(in crate::engine::canonical) trait Element {
    /// An element as stored.
    type Stored: Pod;

    /// Its value, exactly.
    fn widen(stored: Self::Stored) -> f32;

    /// The values of a column of sixteen rows.
    fn load<S: Simd>(s: S, column: &[Self::Stored; LANES]) -> S::F;
}

impl Element for F32 {
    type Stored = f32;

    fn widen(stored: f32) -> f32 {
        stored
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, column: &[f32; LANES]) -> S::F {
        s.load(column)
    }
}

impl Element for F16 {
    type Stored = u16;

    fn widen(stored: u16) -> f32 {
        widen(stored)
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, column: &[u16; LANES]) -> S::F {
        s.load_halves(column)
    }
}

impl Element for Bf16 {
    type Stored = u16;

    fn widen(stored: u16) -> f32 {
        f32::from_bits(u32::from(stored) << 16)
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, column: &[u16; LANES]) -> S::F {
        s.load_brains(column)
    }
}

impl<E: Element> Format for E
where
    [E::Stored; LANES]: Pod,
{
    type Stored = E::Stored;
    type Block = [E::Stored; LANES];
    const COLUMNS: usize = 1;
    type Input = f32;
    const ROUNDING: Rounding = Rounding::None;

    fn inputs(inputs: Inputs<'_>) -> Option<&[f32]> {
        if let Inputs::Plain(elements) = inputs { Some(elements) } else { None }
    }

    #[inline(always)]
    fn pack(rows: &[E::Stored; LANES]) -> Self::Block {
        *rows
    }

    fn unpack(block: &Self::Block, row: usize, out: &mut [f32]) {
        out[0] = E::widen(block[row]);
    }

    #[inline(always)]
    fn accumulate<S: Simd, const N: usize>(
        s: S,
        block: &Self::Block,
        inputs: &[&Self::Input; N],
        sums: &mut [S::F; N],
    ) {
        let weights = E::load(s, block);
        for n in 0..N {
            sums[n] = s.fma(weights, s.splat(*inputs[n]), sums[n]);
        }
    }

    #[inline(always)]
    fn product<S: Simd, const G: usize, const N: usize>(
        s: S,
        groups: [&[Self::Block]; G],
        inputs: &[&[f32]; N],
    ) -> [[S::F; N]; G] {
        let mut sums = [[s.splat(0.0); N]; G];
        let length = groups[0].len();
        for start in (0..length).step_by(STRETCH) {
            let mut parts = [[s.splat(0.0); N]; G];
            #[allow(clippy::needless_range_loop, reason = "it counts through all groups and inputs")]
            for index in start..length.min(start + STRETCH) {
                for g in 0..G {
                    let column = &groups[g][index];
                    s.prefetch(bytemuck::bytes_of(column), AHEAD);
                    Self::accumulate(s, column, &at(inputs, index), &mut parts[g]);
                }
            }
            for g in 0..G {
                for n in 0..N {
                    sums[g][n] = s.add(sums[g][n], parts[g][n]);
                }
            }
        }
        sums
    }
}
