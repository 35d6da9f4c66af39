//! Canonical arithmetic v1: the root-mean-square norm, the residual sum and biases.
//!
//! All is f32; every operation rounds to nearest even and keeps denormals. `fma(a, b, c)` is a × b + c, rounded once.
//!
//! # Norm of a row x of n elements with weights w
//!
//! 1. Sixteen lanes begin at +0. For ascending i: `lane[i mod 16] = fma(xᵢ, xᵢ, lane[i mod 16])`.
//! 2. `sum` adds the lanes as a tree: lanes i and i + 8, then i and i + 4, i and i + 2, i and i + 1 ([`Simd::sum`]).
//! 3. `mean = sum / n`, `scale = 1 / √(mean + ε)`. If the sum is not finite, the scale is not-a-number: squares that overflow
//!    would silently make the row zero.
//! 4. `outᵢ = (xᵢ × scale) × wᵢ`.
//!
//! Where a model normalises heads, each head of a query or key is such a row, with the same weights for all heads of a kind.
//!
//! # Residual sum
//!
//! `toᵢ = toᵢ + fromᵢ`.
//!
//! # Biases
//!
//! The finished product of a matrix, then `productᵢ = productᵢ + biasᵢ`.

use crate::engine::canonical::part::load_part;
use crate::engine::canonical::part::store_part;
use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Simd;
use crate::engine::canonical::simd::kernels;

kernels! {
    /// Normalises each row.
    ///
    /// - `input`, `output`: `[rows, weight.len()]`
    pub(in crate::engine) fn normalise(input: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) = normalise_rows;
    /// Normalises each row in place.
    ///
    /// - `rows`: `[rows, weight.len()]`
    pub(in crate::engine) fn normalise_in_place(rows: &mut [f32], weight: &[f32], epsilon: f32) = normalise_body_in_place;
    /// Adds `from` to `to`, element by element.
    pub(in crate::engine) fn add(to: &mut [f32], from: &[f32]) = add_body;
}

#[inline(always)]
fn normalise_rows<S: Simd>(s: S, input: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) {
    let width = weight.len();
    if width == 0 {
        return;
    }
    for (row, out) in input.chunks_exact(width).zip(output.chunks_exact_mut(width)) {
        let scale = s.splat(scale_of(s, row, epsilon));
        for ((x, weight), out) in row.chunks(LANES).zip(weight.chunks(LANES)).zip(out.chunks_mut(LANES)) {
            store_part(s, s.mul(s.mul(load_part(s, x), scale), load_part(s, weight)), out);
        }
    }
}

#[inline(always)]
fn normalise_body_in_place<S: Simd>(s: S, rows: &mut [f32], weight: &[f32], epsilon: f32) {
    let width = weight.len();
    if width == 0 {
        return;
    }
    for row in rows.chunks_exact_mut(width) {
        let scale = s.splat(scale_of(s, row, epsilon));
        for (x, weight) in row.chunks_mut(LANES).zip(weight.chunks(LANES)) {
            store_part(s, s.mul(s.mul(load_part(s, x), scale), load_part(s, weight)), x);
        }
    }
}

#[inline(always)]
fn scale_of<S: Simd>(s: S, row: &[f32], epsilon: f32) -> f32 {
    let mut lanes = s.splat(0.0);
    for x in row.chunks(LANES) {
        // Lanes that a short part lacks gain +0 × +0, which changes no bit of a sum of squares.
        let x = load_part(s, x);
        lanes = s.fma(x, x, lanes);
    }
    let sum = s.sum(lanes);
    if sum.is_finite() { 1.0 / (sum / row.len() as f32 + epsilon).sqrt() } else { f32::NAN }
}

#[inline(always)]
fn add_body<S: Simd>(s: S, to: &mut [f32], from: &[f32]) {
    for (to, from) in to.chunks_mut(LANES).zip(from.chunks(LANES)) {
        let sum = s.add(load_part(s, to), load_part(s, from));
        store_part(s, sum, to);
    }
}
