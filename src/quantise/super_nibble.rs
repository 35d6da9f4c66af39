//! `Q4_K` and `Q5_K`: 256 weights in 8 parts of 32, `weight = scale × part scale × quant − minimum × part minimum`, quants from 0
//! to 15 or 31, part scales and minima from 0 to 63.
//!
//! 1. Of every part a scale s and a minimum m ≥ 0 are sought that leave little of Σ w (x − s q + m)², where w is [`importance`]. With
//!    `low` the least of the weights and 0, and `range` up to the largest weight, y = (x − low) / range. Candidates of quants are
//!    q = round(k y), clamped, for k from 12 to 16 in steps of ¼, or 24 to 32 in steps of ½. Of such quants the best line through
//!    (q, y) follows from Σ w, Σ w y, Σ w q, Σ w q² and Σ w y q; where its minimum is below 0 it is 0, and the best scale for
//!    that is taken. The first of the least counts. Where quants are too alike for a line, a candidate does not count; if
//!    none does, s is range / 15 or range / 31 and m is −low.
//! 2. The block's scale and minimum are the largest of its parts', over 63, as halves ([`narrow_scale`]).
//! 3. Part scales and minima are rounded to multiples of these. Of the nine pairs of those multiples and their neighbours each part
//!    takes the first whose quants round((x + m) / s), clamped, leave least; the middle one is the first.
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
use crate::quantise::lanes::higher;
use crate::quantise::lanes::importance;
use crate::quantise::lanes::inverse;
use crate::quantise::lanes::lower;
use crate::quantise::lanes::round_half_even;
use crate::quantise::lanes::round_within;

/// Elements of a part.
const COLUMNS: usize = 32;

/// The largest quant of `Q4_K`.
const FOUR: u8 = 15;

/// The largest quant of `Q5_K`.
const FIVE: u8 = 31;

/// Makes one block of `Q4_K`.
pub(super) fn four(values: &[f32; 256]) -> Result<[u8; 144], Fault> {
    let quantised = Quantised::new::<FOUR>(values)?;
    let mut block = [0; 144];
    quantised.put_head(&mut block);
    quantised.put_nibbles(&mut block[16..]);
    Ok(block)
}

/// Makes one block of `Q5_K`.
pub(super) fn five(values: &[f32; 256]) -> Result<[u8; 176], Fault> {
    let quantised = Quantised::new::<FIVE>(values)?;
    let mut block = [0; 176];
    quantised.put_head(&mut block);
    quantised.put_fifths(&mut block[16..48]);
    quantised.put_nibbles(&mut block[48..]);
    Ok(block)
}

/// A block before it is packed.
#[derive(Clone, Debug)]
struct Quantised {
    scale: u16,
    minimum: u16,
    scales: [u8; LANES],
    minima: [u8; LANES],
    quants: [[u8; COLUMNS]; LANES],
}

impl Quantised {
    #[inline(always)]
    fn new<const TOP: u8>(values: &[f32; 256]) -> Result<Self, Fault> {
        bounded(values)?;
        let parts = &values.as_chunks().0.as_chunks().0[0];
        let x = columns(parts);
        let w = importance(&x);
        let lines = Lines::<TOP>::new(&x, &w).search();
        let [scale, minimum] = [stored(&lines.scales)?, stored(&lines.minima)?];
        let (scales, minima) = settle::<TOP>(&x, &w, &lines, [widen(scale), widen(minimum)]);
        let mut quants = [[0; COLUMNS]; LANES];
        for (part, quants) in quants.iter_mut().enumerate() {
            let (scale, minimum) = (widen(scale) * scales[part], widen(minimum) * minima[part]);
            let inverse = inverse(scale);
            for (quants, value) in quants.iter_mut().zip(&parts[part]) {
                *quants = byte_of(quant::<TOP>((value + minimum) * inverse));
            }
        }
        Ok(Self { scale, minimum, scales: scales.map(byte_of), minima: minima.map(byte_of), quants })
    }

    /// Scale, minimum and the parts' own; see `stored` for where their bits go.
    fn put_head(&self, block: &mut [u8]) {
        block[..2].copy_from_slice(&self.scale.to_le_bytes());
        block[2..4].copy_from_slice(&self.minimum.to_le_bytes());
        for part in 0..4 {
            let (scale, minimum) = (self.scales[part + 4], self.minima[part + 4]);
            block[4 + part] = self.scales[part] | scale >> 4 << 6;
            block[8 + part] = self.minima[part] | minimum >> 4 << 6;
            block[12 + part] = scale & 15 | (minimum & 15) << 4;
        }
    }

    /// The fifth bits: bit `p` of byte `c` is that of column `c` of part `p`.
    fn put_fifths(&self, bytes: &mut [u8]) {
        for (part, quants) in self.quants.iter().enumerate() {
            for (byte, quant) in bytes.iter_mut().zip(quants) {
                *byte |= quant >> 4 << part;
            }
        }
    }

    /// The lower four bits: parts `2k` in the lower halves and `2k + 1` in the upper of 32 bytes.
    fn put_nibbles(&self, bytes: &mut [u8]) {
        for (bytes, [even, odd]) in bytes.chunks_exact_mut(COLUMNS).zip(self.quants.as_chunks().0) {
            for (byte, (low, high)) in bytes.iter_mut().zip(even.iter().zip(odd)) {
                *byte = low & 15 | high << 4;
            }
        }
    }
}

#[inline(always)]
fn quant<const TOP: u8>(value: f32) -> f32 {
    round_within(value, 0.0, f32::from(TOP))
}

/// The block's scale of what parts have, as a half.
fn stored(parts: &Lanes) -> Result<u16, Fault> {
    let half = narrow_scale(parts.iter().fold(0.0, |largest, part| higher(*part, largest)) / 63.0);
    if widen(half).is_infinite() { Err(Fault::TooLarge) } else { Ok(half) }
}

/// Scales and minima of parts before they are rounded.
#[derive(Clone, Debug)]
struct Fit {
    scales: Lanes,
    minima: Lanes,
}

/// What lines are laid through, y over q, for each part.
#[derive(Clone, Debug)]
struct Lines<const TOP: u8> {
    y: Columns<COLUMNS>,
    w: Columns<COLUMNS>,
    wy: Columns<COLUMNS>,
    sum_w: Lanes,
    sum_wy: Lanes,
    low: Lanes,
    range: Lanes,
    /// 0 as a y: no line may start above it, for minima are not negative.
    zero: Lanes,
}

/// A line y = slope × q + start of each part, and the error that it leaves, less Σ w y².
#[derive(Clone, Debug)]
struct Line {
    slope: Lanes,
    start: Lanes,
    error: Lanes,
}

impl<const TOP: u8> Lines<TOP> {
    #[inline(always)]
    fn new(x: &Columns<COLUMNS>, w: &Columns<COLUMNS>) -> Self {
        let low = x.iter().fold([0.0; LANES], |low, x| each(|lane| lower(x[lane], low[lane])));
        let high = x.iter().fold(x[0], |high, x| each(|lane| higher(x[lane], high[lane])));
        let range = each(|lane| high[lane] - low[lane]);
        let inverse = each(|lane| if range[lane] < FLAT { 0.0 } else { 1.0 / range[lane] });
        let y = x.map(|x| each(|lane| (x[lane] - low[lane]) * inverse[lane]));
        let mut wy = y;
        let (mut sum_w, mut sum_wy) = ([0.0; LANES], [0.0; LANES]);
        for (wy, w) in wy.iter_mut().zip(w) {
            *wy = each(|lane| w[lane] * wy[lane]);
            sum_w = each(|lane| sum_w[lane] + w[lane]);
            sum_wy = each(|lane| sum_wy[lane] + wy[lane]);
        }
        let zero = each(|lane| -low[lane] * inverse[lane]);
        Self { y, w: *w, wy, sum_w, sum_wy, low, range, zero }
    }

    #[inline(always)]
    fn search(&self) -> Fit {
        const FACTORS: u8 = 17;
        let top = f32::from(TOP);
        let mut best = Line { slope: [1.0 / top; LANES], start: [0.0; LANES], error: [f32::INFINITY; LANES] };
        for index in 0..FACTORS {
            // From ¾ of the number of quants up to all of it: exact.
            let factor = (top + 1.0) * (f32::from(48 + index) / 64.0);
            let line = self.line(&self.sums(factor));
            let better = |lane: usize, than: &Lanes| line.error[lane] < than[lane];
            best.slope = each(|lane| if better(lane, &best.error) { line.slope[lane] } else { best.slope[lane] });
            best.start = each(|lane| if better(lane, &best.error) { line.start[lane] } else { best.start[lane] });
            best.error = each(|lane| lower(line.error[lane], best.error[lane]));
        }
        let flat = |lane: usize| self.range[lane] < FLAT;
        let scales = each(|lane| if flat(lane) { 0.0 } else { higher(best.slope[lane] * self.range[lane], 0.0) });
        let minima = each(|lane| higher(-(self.low[lane] + best.start[lane] * self.range[lane]), 0.0));
        Fit { scales, minima }
    }

    /// Σ w q, Σ w q² and Σ w y q of each part, where the quants q are y times a factor.
    #[inline(always)]
    fn sums(&self, factor: f32) -> [Lanes; 3] {
        let [mut once, mut twice, mut mixed] = [[0.0; LANES]; 3];
        for ((y, w), wy) in self.y.iter().zip(&self.w).zip(&self.wy) {
            // No y is negative.
            let q = each(|lane| round_half_even(lower(y[lane] * factor, f32::from(TOP))));
            let wq = each(|lane| w[lane] * q[lane]);
            once = each(|lane| once[lane] + wq[lane]);
            twice = each(|lane| twice[lane] + wq[lane] * q[lane]);
            mixed = each(|lane| mixed[lane] + wy[lane] * q[lane]);
        }
        [once, twice, mixed]
    }

    /// The best line of each part through quants. Its error is not a number where they are too alike for one.
    #[inline(always)]
    fn line(&self, [once, twice, mixed]: &[Lanes; 3]) -> Line {
        /// How much of Σ w × Σ w q² must remain when (Σ w q)² is taken away: some roundings of an `f32`.
        const APART: f32 = 1.0 / (1 << 17) as f32;
        let (w, wy, zero) = (&self.sum_w, &self.sum_wy, &self.zero);
        let apart = each(|lane| w[lane] * twice[lane] - once[lane] * once[lane]);
        let free = each(|lane| (twice[lane] * wy[lane] - once[lane] * mixed[lane]) / apart[lane]);
        let start = each(|lane| lower(free[lane], zero[lane]));
        let bound = each(|lane| (mixed[lane] - start[lane] * once[lane]) / twice[lane]);
        let slope = each(|lane| {
            let free_slope = (w[lane] * mixed[lane] - wy[lane] * once[lane]) / apart[lane];
            if free[lane] > zero[lane] { bound[lane] } else { free_slope }
        });
        let error = each(|lane| {
            let of_slope = slope[lane] * (slope[lane] * twice[lane] + 2.0 * (start[lane] * once[lane] - mixed[lane]));
            of_slope + start[lane] * (start[lane] * w[lane] - 2.0 * wy[lane])
        });
        let error = each(|lane| if apart[lane] > w[lane] * twice[lane] * APART { error[lane] } else { f32::NAN });
        Line { slope, start, error }
    }
}

/// Part scales and minima as multiples of the block's.
#[inline(always)]
fn settle<const TOP: u8>(
    x: &Columns<COLUMNS>,
    w: &Columns<COLUMNS>,
    fit: &Fit,
    [scale, minimum]: [f32; 2],
) -> (Lanes, Lanes) {
    let multiple = |value: f32| round_within(value, 0.0, 63.0);
    let (by_scale, by_minimum) = (inverse(scale), inverse(minimum));
    let nearest =
        (fit.scales.map(|part| multiple(part * by_scale)), fit.minima.map(|part| multiple(part * by_minimum)));
    let (mut best, mut least) = (nearest, [f32::INFINITY; LANES]);
    for step in [0.0, -1.0, 1.0] {
        for other in [0.0, -1.0, 1.0] {
            let scales = nearest.0.map(|part| multiple(part + step));
            let minima = nearest.1.map(|part| multiple(part + other));
            let error = error::<TOP>(x, w, &scales.map(|part| part * scale), &minima.map(|part| part * minimum));
            best.0 = each(|lane| if error[lane] < least[lane] { scales[lane] } else { best.0[lane] });
            best.1 = each(|lane| if error[lane] < least[lane] { minima[lane] } else { best.1[lane] });
            least = each(|lane| lower(error[lane], least[lane]));
        }
    }
    best
}

/// Σ w (x − s q + m)² of scales and minima.
#[inline(always)]
fn error<const TOP: u8>(x: &Columns<COLUMNS>, w: &Columns<COLUMNS>, scales: &Lanes, minima: &Lanes) -> Lanes {
    let inverse = scales.map(inverse);
    x.iter().zip(w).fold([0.0; LANES], |sum, (x, w)| {
        let above = each(|lane| x[lane] + minima[lane]);
        let off = each(|lane| above[lane] - scales[lane] * quant::<TOP>(above[lane] * inverse[lane]));
        each(|lane| sum[lane] + w[lane] * off[lane] * off[lane])
    })
}
