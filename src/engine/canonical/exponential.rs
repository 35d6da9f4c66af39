//! Canonical arithmetic v1: the exponential function and the gates of the feed-forward layer.
//!
//! All is f32, element by element; every operation rounds to nearest even and keeps denormals. `fma(a, b, c)` is a × b + c and
//! `fnma(a, b, c)` is c − a × b, each rounded once.
//!
//! # `exp(x)`
//!
//! 1. Not-a-number stays so. Otherwise x is raised to −105 if below, and lowered to 90 if above.
//! 2. `k = fma(x, L, M) − M` with L = log₂ e and M = 1.5 × 2²³: x log₂ e as a whole number.
//! 3. `r = fnma(k, B, fnma(k, A, x))` with A = 0.693145751953125, whose product with k is exact, and B = ln 2 − A.
//! 4. `p = fma(fma(fma(fma(fma(fma(C₆, r, C₅), r, C₄), r, C₃), r, C₂), r, 1), r, 1)`.
//! 5. The result is p × 2ᵏ, rounded once: +∞ beyond the largest number, denormal or +0 below the smallest normal one.
//!
//! C₂ to C₆ were fitted to `(eʳ − 1 − r) / r²` for |r| ≤ 0.3466 by the exchange algorithm of Remez with weight r² e⁻ʳ and then
//! rounded; the polynomial is off by at most 2⁻²⁸ in relation to eʳ. The result is within 1 ulp of eˣ (tested), exp(±0) = 1,
//! exp(+∞) = +∞, exp(−∞) = +0.
//!
//! # Gates
//!
//! * `silu(x) = x / (1 + exp(0 − x))`
//! * `gelu(x) = x / (1 + exp(0 − x × fma(x × x, G₃, G₁)))` with G₁ = 2 √(2/π) and G₃ = 0.044715 G₁: the form of GELU by tanh,
//!   since ½ (1 + tanh u) = 1 / (1 + e⁻²ᵘ). Source: Hendrycks and Gimpel, "Gaussian error linear units" (2016).
//! * The layer's gate is `gate(x) × up`.
//!
//! Both functions give −0 where the exponential is +∞ and x finite, and not-a-number of −∞.

use std::f32::consts::LOG2_E;

use crate::engine::canonical::part::load_part;
use crate::engine::canonical::part::store_part;
use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Simd;
use crate::engine::canonical::simd::kernels;

const LOWEST: f32 = -105.0;
const HIGHEST: f32 = 90.0;
const MAGIC: f32 = 12_582_912.0;
const LN_2_HIGH: f32 = f32::from_bits(0x3F31_7200);
const LN_2_LOW: f32 = f32::from_bits(0x35BF_BE8E);
/// C₆ to C₂.
const COEFFICIENTS: [u32; 5] = [0x3AB5_121D, 0x3C09_1CF0, 0x3D2A_AC79, 0x3E2A_AA49, 0x3EFF_FFFE];
/// G₁ = 1.5957691.
const GELU_1: f32 = f32::from_bits(0x3FCC_422A);
/// G₃ = 0.07135481.
const GELU_3: f32 = f32::from_bits(0x3D92_2279);

/// Which function gates the feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gate {
    /// x / (1 + e⁻ˣ).
    Silu,
    /// GELU by tanh.
    Gelu,
}

kernels! {
    /// `gate ← function(gate) × up`, element by element.
    pub fn gate_in_place(function: Gate, gate: &mut [f32], up: &[f32]) = gate_body;
}

#[cfg(test)]
kernels! {
    /// `exp` of each element in place.
    pub(super) fn exponentiate(values: &mut [f32]) = exponentiate_body;
}

/// `exp` as the module's docs say it.
#[inline(always)]
pub(super) fn exponential<S: Simd>(s: S, x: S::F) -> S::F {
    // The limit comes first, so that a not-a-number passes.
    let x = s.min(s.splat(HIGHEST), s.max(s.splat(LOWEST), x));
    let magic = s.splat(MAGIC);
    let k = s.sub(s.fma(x, s.splat(LOG2_E), magic), magic);
    let r = s.fnma(k, s.splat(LN_2_LOW), s.fnma(k, s.splat(LN_2_HIGH), x));
    let [first, others @ ..] = COEFFICIENTS.map(f32::from_bits);
    let mut sum = s.splat(first);
    for coefficient in others {
        sum = s.fma(sum, r, s.splat(coefficient));
    }
    let one = s.splat(1.0);
    s.scale(s.fma(s.fma(sum, r, one), r, one), k)
}

#[inline(always)]
fn gate_body<S: Simd>(s: S, function: Gate, gate: &mut [f32], up: &[f32]) {
    match function {
        Gate::Silu => gate_rows::<S, false>(s, gate, up),
        Gate::Gelu => gate_rows::<S, true>(s, gate, up),
    }
}

#[inline(always)]
fn gate_rows<S: Simd, const GELU: bool>(s: S, gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.chunks_mut(LANES).zip(up.chunks(LANES)) {
        let x = load_part(s, gate);
        let slope = if GELU { s.mul(x, s.fma(s.mul(x, x), s.splat(GELU_3), s.splat(GELU_1))) } else { x };
        let divisor = s.add(s.splat(1.0), exponential(s, s.sub(s.splat(0.0), slope)));
        store_part(s, s.mul(s.div(x, divisor), load_part(s, up)), gate);
    }
}

#[cfg(test)]
#[inline(always)]
fn exponentiate_body<S: Simd>(s: S, values: &mut [f32]) {
    for part in values.chunks_mut(LANES) {
        let result = exponential(s, load_part(s, part));
        store_part(s, result, part);
    }
}
