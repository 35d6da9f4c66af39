//! Canonical arithmetic v1: the rotary position embedding.
//!
//! # Tables, in f64 by [`crate::elementary`], every operation rounded to nearest even
//!
//! 1. Pair i of D rotated dimensions has the plain frequency `f = pow(base, (−2 × i) / D)`.
//! 2. The scaling changes it: `Linear` to `f / factor`; `Tensor` to `f / divisorᵢ`; `Llama3` with
//!    `turns = (original_context × f) / 2π` and `kept = (turns − low) / (high − low)`, limited to 0 … 1, to
//!    `f × kept + (f / factor) × (1 − kept)`.
//! 3. At position p the pair has `(sin, cos) = sin_cos(p × f)`, each then rounded to f32.
//!
//! # Rotation, in f32
//!
//! The first D elements of every head are pairs (a, b): pair i is the elements 2i and 2i + 1, or i and i + D/2, as the model has
//! them ([`RopePairs`]). With `fma(x, y, z)` = x × y + z, rounded once: `a′ = fma(a, cos, b × −sin)` and
//! `b′ = fma(b, cos, a × sin)`. So the same pairs get the same bits wherever they lie.
//!
//! Source: Su et al., "RoFormer" (2021), §3.2.2; the scaling is described at [`RopeScaling`].

use std::f64::consts::TAU;

use crate::elementary::pow;
use crate::elementary::sin_cos;
use crate::engine::canonical::part::load_part;
use crate::engine::canonical::part::store_part;
use crate::engine::canonical::simd::InstructionSet;
use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Simd;
use crate::engine::canonical::simd::kernels;
use crate::shape::Rope;
use crate::shape::RopePairs;
use crate::shape::RopeScaling;

/// The angle per position of each rotated pair.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::engine) struct Rotation {
    frequencies: Vec<f64>,
    pairs: RopePairs,
}

impl Rotation {
    /// - `divisors`: the values of `rope_freqs.weight`, one per pair; used if the scaling is `Tensor`, and 1 where missing
    pub(in crate::engine) fn new(rope: &Rope, divisors: Option<&[f32]>) -> Self {
        let frequency = |pair: u32| {
            let plain = pow(f64::from(rope.base), -2.0 * f64::from(pair) / f64::from(rope.dimensions));
            let divisor = divisors.and_then(|divisors| divisors.get(pair as usize)).copied().unwrap_or(1.0);
            stretch(plain, rope.scaling, divisor)
        };
        Self { frequencies: (0..rope.dimensions / 2).map(frequency).collect(), pairs: rope.pairs }
    }

    /// Appends sines and cosines for the positions `first..first + count` to `angles`.
    ///
    /// They are the same for all blocks, so once per step is enough. Nothing is allocated where `angles` has held as many before.
    pub(in crate::engine) fn append(&self, first: usize, count: usize, angles: &mut Angles) {
        let dimensions = 2 * self.frequencies.len();
        (angles.dimensions, angles.pairs) = (dimensions, self.pairs);
        for position in first..first + count {
            let start = angles.table.len();
            angles.table.resize(start + 2 * dimensions, 0.0);
            let (cosines, sines) = angles.table[start..].split_at_mut(dimensions);
            for (pair, frequency) in self.frequencies.iter().enumerate() {
                let (sine, cosine) = sin_cos(position as f64 * frequency);
                let [one, other] = elements(self.pairs, dimensions, pair);
                (cosines[one], cosines[other]) = (cosine as f32, cosine as f32);
                (sines[one], sines[other]) = (-(sine as f32), sine as f32);
            }
        }
    }
}

/// The two elements of a pair.
fn elements(pairs: RopePairs, dimensions: usize, pair: usize) -> [usize; 2] {
    match pairs {
        RopePairs::Interleaved => [2 * pair, 2 * pair + 1],
        RopePairs::Halves => [pair, pair + dimensions / 2],
    }
}

fn stretch(plain: f64, scaling: RopeScaling, divisor: f32) -> f64 {
    match scaling {
        RopeScaling::None => plain,
        RopeScaling::Linear { factor } => plain / f64::from(factor),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let turns = f64::from(original_context) * plain / TAU;
            let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            plain * kept + plain / f64::from(factor) * (1.0 - kept)
        }
        RopeScaling::Tensor => plain / f64::from(divisor),
    }
}

/// Sines and cosines of some positions, in any order of positions.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::engine) struct Angles {
    /// Per position: the cosine for every element, then the sine, of which that for the first of a pair is negative.
    table: Vec<f32>,
    dimensions: usize,
    pairs: RopePairs,
}

impl Default for Angles {
    /// No positions.
    fn default() -> Self {
        Self { table: Vec::new(), dimensions: 0, pairs: RopePairs::Interleaved }
    }
}

impl Angles {
    /// Forgets all positions, and keeps the memory.
    pub(in crate::engine) fn clear(&mut self) {
        self.table.clear();
    }

    /// Which elements turn together.
    pub(in crate::engine) fn pairs(&self) -> RopePairs {
        self.pairs
    }

    /// The cosines and the sines of the pairs, `[positions, pairs]` each.
    pub(in crate::engine) fn by_pair(&self) -> [Vec<f32>; 2] {
        let second = |pair| elements(self.pairs, self.dimensions, pair)[1];
        let of = |table: usize| {
            let positions = self.table.chunks_exact(2 * self.dimensions);
            let start = table * self.dimensions;
            positions.flat_map(|table| (0..self.dimensions / 2).map(move |pair| table[start + second(pair)])).collect()
        };
        [of(0), of(1)]
    }

    /// Turns the first dimensions of every head; row i is at the appended position `first + i`.
    ///
    /// - `rows`: `[positions, stride]`, of which each row begins with `heads × head_dim` elements to be turned
    pub(in crate::engine) fn rotate(
        &self,
        set: InstructionSet,
        first: usize,
        rows: &mut [f32],
        stride: usize,
        heads: usize,
        head_dim: usize,
    ) {
        if self.dimensions > 0 {
            let table = &self.table[2 * self.dimensions * first..];
            let rotate = match self.pairs {
                RopePairs::Interleaved => rotate_interleaved,
                RopePairs::Halves => rotate_halves,
            };
            rotate(set, table, self.dimensions, rows, stride, heads, head_dim);
        }
    }
}

kernels! {
    fn rotate_interleaved(
        table: &[f32], dimensions: usize, rows: &mut [f32], stride: usize, heads: usize, head_dim: usize,
    ) = interleaved_body;
    fn rotate_halves(
        table: &[f32], dimensions: usize, rows: &mut [f32], stride: usize, heads: usize, head_dim: usize,
    ) = halves_body;
}

#[inline(always)]
fn interleaved_body<S: Simd>(
    s: S,
    table: &[f32],
    dimensions: usize,
    rows: &mut [f32],
    stride: usize,
    heads: usize,
    head_dim: usize,
) {
    for (row, angles) in rows.chunks_mut(stride).zip(table.chunks_exact(2 * dimensions)) {
        let (cosines, sines) = angles.split_at(dimensions);
        for head in row[..heads * head_dim].chunks_exact_mut(head_dim) {
            let parts = head[..dimensions].chunks_mut(LANES);
            for ((part, cosine), sine) in parts.zip(cosines.chunks(LANES)).zip(sines.chunks(LANES)) {
                let x = load_part(s, part);
                let crossed = s.mul(s.swap_pairs(x), load_part(s, sine));
                store_part(s, s.fma(x, load_part(s, cosine), crossed), part);
            }
        }
    }
}

#[inline(always)]
fn halves_body<S: Simd>(
    s: S,
    table: &[f32],
    dimensions: usize,
    rows: &mut [f32],
    stride: usize,
    heads: usize,
    head_dim: usize,
) {
    let half = dimensions / 2;
    for (row, angles) in rows.chunks_mut(stride).zip(table.chunks_exact(2 * dimensions)) {
        // Both halves of the cosines are the same.
        let (cosines, sines) = (&angles[..half], &angles[dimensions..]);
        let (negatives, sines) = sines.split_at(half);
        let signed = negatives.chunks(LANES).zip(sines.chunks(LANES));
        for head in row[..heads * head_dim].chunks_exact_mut(head_dim) {
            let (ones, others) = head[..dimensions].split_at_mut(half);
            let parts = ones.chunks_mut(LANES).zip(others.chunks_mut(LANES));
            for ((one, other), (cosine, (negative, sine))) in parts.zip(cosines.chunks(LANES).zip(signed.clone())) {
                let (a, b, cosine) = (load_part(s, one), load_part(s, other), load_part(s, cosine));
                store_part(s, s.fma(a, cosine, s.mul(b, load_part(s, negative))), one);
                store_part(s, s.fma(b, cosine, s.mul(a, load_part(s, sine))), other);
            }
        }
    }
}
