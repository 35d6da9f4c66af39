//! `Q6_K`: 256 weights in 16 parts of 16, `weight = scale × part scale × quant`, quants from −32 to 31.
//!
//! 1. Of every part a scale s is sought that leaves little of Σ w (x − s q)², where w is [`importance`]. Candidates of its quants
//!    are q = round(−k x / largest), clamped, for k from 25 to 32½ in steps of ⅜, where `largest` is the first weight of largest
//!    magnitude. The best s for such quants is Σ w x q / Σ w q²; it leaves Σ w x² − (Σ w x q)² / Σ w q². The first of the least counts.
//! 2. The block's scale is that of the parts that is largest by magnitude, over −128, as a half ([`narrow_scale`]).
//! 3. Part scales are rounded to multiples of it, from −128 to 127. Of that multiple and its two neighbours each part takes the
//!    first whose quants round(x / s), clamped, leave least.
//!
//! Roundings go to nearest even. Source: the least squares over a few candidates are an idea of ggml's; the neighbours are ours.
//! The candidates were chosen by measuring Gaussian rows.

use crate::quantise::fault::Fault;
use crate::quantise::fault::bounded;
use crate::quantise::halves::narrow_scale;
use crate::quantise::halves::widen;
use crate::quantise::lanes::Columns;
use crate::quantise::lanes::FLAT;
use crate::quantise::lanes::LANES;
use crate::quantise::lanes::Lanes;
use crate::quantise::lanes::byte_of;
use crate::quantise::lanes::columns;
use crate::quantise::lanes::each;
use crate::quantise::lanes::importance;
use crate::quantise::lanes::inverse;
use crate::quantise::lanes::round_within;

/// Elements of a part.
const COLUMNS: usize = 16;

/// Eight parts: their weights and how much each counts.
#[derive(Clone, Debug)]
struct Parts {
    x: Columns<COLUMNS>,
    w: Columns<COLUMNS>,
}

/// Makes one block.
pub(super) fn encode(values: &[f32; 256]) -> Result<[u8; 210], Fault> {
    bounded(values)?;
    let halves = [0, 1].map(|half| Parts::new(&values.as_chunks().0.as_chunks().0[half]));
    let scales = halves.each_ref().map(Parts::search);
    let larger = |largest: f32, scale: &f32| if scale.abs() > largest.abs() { *scale } else { largest };
    let stored = narrow_scale(scales.as_flattened().iter().fold(0.0, larger) / -128.0);
    let scale = widen(stored);
    if scale.is_infinite() {
        return Err(Fault::TooLarge);
    }
    if scale == 0.0 {
        return Ok([0; 210]);
    }
    let settled = [0, 1].map(|half| halves[half].settle(scale, &scales[half]));
    let mut part_scales = [0; 2 * LANES];
    let mut quants = [0; 256];
    let stretches = quants.chunks_exact_mut(COLUMNS).zip(values.chunks_exact(COLUMNS));
    for ((part, stored), (quants, values)) in settled.as_flattened().iter().zip(&mut part_scales).zip(stretches) {
        *stored = byte_of(*part);
        let inverse = inverse(scale * part);
        for (stored, value) in quants.iter_mut().zip(values) {
            *stored = byte_of(quant(value * inverse) + 32.0);
        }
    }
    Ok(pack(&quants, &part_scales, stored))
}

#[inline(always)]
fn quant(value: f32) -> f32 {
    round_within(value, -32.0, 31.0)
}

impl Parts {
    #[inline(always)]
    fn new(parts: &[[f32; COLUMNS]; LANES]) -> Self {
        let x = columns(parts);
        Self { w: importance(&x), x }
    }

    /// The scales before they are rounded.
    #[inline(always)]
    fn search(&self) -> Lanes {
        let largest = self.x.iter().fold([0.0_f32; LANES], |largest, x| {
            each(|lane| if x[lane].abs() > largest[lane].abs() { x[lane] } else { largest[lane] })
        });
        let inverse = each(|lane| if largest[lane].abs() < FLAT { 0.0 } else { 1.0 / largest[lane] });
        let (mut products, mut squares) = ([0.0; LANES], [1.0; LANES]);
        for eighths in (200..=260_i16).step_by(3) {
            let factor = each(|lane| inverse[lane] * (f32::from(-eighths) / 8.0));
            let (product, square) = self.sums(&factor);
            let better = |lane: usize| {
                product[lane] * product[lane] * squares[lane] > products[lane] * products[lane] * square[lane]
            };
            let kept = each(|lane| if better(lane) { product[lane] } else { products[lane] });
            squares = each(|lane| if better(lane) { square[lane] } else { squares[lane] });
            products = kept;
        }
        each(|lane| products[lane] / squares[lane])
    }

    /// Σ w x q and Σ w q² of the quants of x times a factor.
    #[inline(always)]
    fn sums(&self, factor: &Lanes) -> (Lanes, Lanes) {
        let (mut products, mut squares) = ([0.0; LANES], [0.0; LANES]);
        for (x, w) in self.x.iter().zip(&self.w) {
            let q = each(|lane| quant(x[lane] * factor[lane]));
            let wq = each(|lane| w[lane] * q[lane]);
            products = each(|lane| products[lane] + wq[lane] * x[lane]);
            squares = each(|lane| squares[lane] + wq[lane] * q[lane]);
        }
        (products, squares)
    }

    /// The part scales as multiples of the block's.
    #[inline(always)]
    fn settle(&self, scale: f32, scales: &Lanes) -> Lanes {
        let nearest = each(|lane| round_within(scales[lane] / scale, -128.0, 127.0));
        let (mut best, mut least) = (nearest, self.error(&nearest.map(|part| scale * part)));
        for step in [-1.0, 1.0] {
            let part = each(|lane| round_within(nearest[lane] + step, -128.0, 127.0));
            let error = self.error(&part.map(|part| scale * part));
            best = each(|lane| if error[lane] < least[lane] { part[lane] } else { best[lane] });
            least = each(|lane| if error[lane] < least[lane] { error[lane] } else { least[lane] });
        }
        best
    }

    /// Σ w (x − s q)² of scales.
    #[inline(always)]
    fn error(&self, scales: &Lanes) -> Lanes {
        let inverse = scales.map(inverse);
        self.x.iter().zip(&self.w).fold([0.0; LANES], |sum, (x, w)| {
            let off = each(|lane| x[lane] - scales[lane] * quant(x[lane] * inverse[lane]));
            each(|lane| sum[lane] + w[lane] * off[lane] * off[lane])
        })
    }
}

/// Lays a block out as GGUF has it: lower four bits, upper two, part scales, scale. See `stored`.
#[inline(always)]
fn pack(quants: &[u8; 256], scales: &[u8; 2 * LANES], scale: u16) -> [u8; 210] {
    let mut block = [0; 210];
    for (half, quants) in quants.chunks_exact(128).enumerate() {
        let (low, high) = (64 * half, 128 + 32 * half);
        for at in 0..64 {
            block[low + at] = quants[at] & 15 | quants[at + 64] << 4;
        }
        for at in 0..32 {
            let [a, b, c, d] = [quants[at], quants[at + 32], quants[at + 64], quants[at + 96]];
            block[high + at] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
        }
    }
    block[192..208].copy_from_slice(scales);
    block[208..].copy_from_slice(&scale.to_le_bytes());
    block
}
