//! Products as the specification says them, one element after the other, from the bytes of a file: what every kernel must
//! equal, and the reader's guide to the formats.

use crate::engine::canonical::fused::fused;
use crate::engine::canonical::half::widen;
use crate::shape::WeightFormat;

/// A block of input, rounded.
struct Rounded {
    scale: f32,
    codes: Vec<i32>,
}

/// Rule by rule as the docs of `round` say.
fn round(input: &[f32]) -> Rounded {
    if input.iter().any(|value| !value.is_finite()) {
        return Rounded { scale: f32::NAN, codes: vec![0; input.len()] };
    }
    let largest = input.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let scale = (largest / 127.0).max(2.0_f32.powi(-100));
    let inverse = 1.0 / scale;
    let code = |value: &f32| (value * inverse).round_ties_even().clamp(-127.0, 127.0) as i32;
    Rounded { scale, codes: input.iter().map(code).collect() }
}

fn half(bytes: &[u8], at: usize) -> f32 {
    widen(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

fn dot(quants: &[i32], codes: &[i32]) -> i32 {
    quants.iter().zip(codes).map(|(quant, code)| quant * code).sum()
}

/// Rules that are not the specification's: what a test must see to differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Breach {
    /// Multiply, round, add, round.
    Unfused,
    /// The last block first.
    Reversed,
    /// `(dot × scale of weights) × scale of input`.
    OtherScales,
}

/// The product of a row of `Q8_0` with one of input, by a wrong rule.
pub(super) fn wrong_product(breach: Breach, row: &[u8], input: &[f32]) -> f32 {
    let mut blocks: Vec<(&[u8], &[f32])> = row.chunks_exact(34).zip(input.chunks_exact(32)).collect();
    if breach == Breach::Reversed {
        blocks.reverse();
    }
    blocks.into_iter().fold(0.0, |sum, (stored, input)| {
        let input = round(input);
        let quants: Vec<i32> = stored[2..].iter().map(|quant| i32::from(*quant as i8)).collect();
        let (dot, scale) = (dot(&quants, &input.codes) as f32, half(stored, 0));
        match breach {
            Breach::Unfused => dot * (scale * input.scale) + sum,
            Breach::Reversed => fused(dot, scale * input.scale, sum),
            Breach::OtherScales => fused(dot * scale, input.scale, sum),
        }
    })
}

/// The product of one row of weights, as stored, with one row of input.
pub(super) fn product(format: WeightFormat, row: &[u8], input: &[f32]) -> f32 {
    let block = format.block_elements() as usize;
    if block == 1 {
        return floats(format, row, input);
    }
    let stored = row.chunks_exact(format.block_bytes() as usize);
    stored.zip(input.chunks_exact(block)).fold(0.0, |sum, (stored, input)| {
        let input = round(input);
        match format {
            WeightFormat::Q4K | WeightFormat::Q5K => super_block(format, stored, &input, sum),
            WeightFormat::Q6K => six(stored, &input, sum),
            _ => small(format, stored, &input, sum),
        }
    })
}

fn floats(format: WeightFormat, row: &[u8], input: &[f32]) -> f32 {
    let weight = |column: usize| match format {
        WeightFormat::F32 => f32::from_le_bytes(row[4 * column..4 * column + 4].try_into().unwrap()),
        WeightFormat::F16 => half(row, 2 * column),
        _ => f32::from_bits(u32::from(u16::from_le_bytes([row[2 * column], row[2 * column + 1]])) << 16),
    };
    let mut sum = 0.0;
    for first in (0..input.len()).step_by(32) {
        let stretch = first..input.len().min(first + 32);
        sum += stretch.fold(0.0, |part, column| fused(weight(column), input[column], part));
    }
    sum
}

fn small(format: WeightFormat, stored: &[u8], input: &Rounded, sum: f32) -> f32 {
    let scale = half(stored, 0) * input.scale;
    let total: i32 = input.codes.iter().sum();
    let nibble = |at: usize, column: usize| i32::from(stored[at + column % 16] >> (column / 16 * 4) & 15);
    let bit = |at: usize, column: usize| i32::from(stored[at + column / 8] >> (column % 8) & 1) << 4;
    let quants: Vec<i32> = (0..32)
        .map(|column| match format {
            WeightFormat::Q4_0 => nibble(2, column) - 8,
            WeightFormat::Q4_1 => nibble(4, column),
            WeightFormat::Q5_0 => (nibble(6, column) | bit(2, column)) - 16,
            WeightFormat::Q5_1 => nibble(8, column) | bit(4, column),
            _ => i32::from(stored[2 + column] as i8),
        })
        .collect();
    let sum = fused(dot(&quants, &input.codes) as f32, scale, sum);
    match format {
        WeightFormat::Q4_1 | WeightFormat::Q5_1 => fused(total as f32, half(stored, 2) * input.scale, sum),
        _ => sum,
    }
}

fn super_block(format: WeightFormat, stored: &[u8], input: &Rounded, sum: f32) -> f32 {
    let parts = &stored[4..16];
    let low = if format == WeightFormat::Q5K { 48 } else { 16 };
    let (mut dots, mut minima) = (0, 0);
    for part in 0..8 {
        let (scale, minimum) = if part < 4 {
            (parts[part] & 63, parts[part + 4] & 63)
        } else {
            (parts[part + 4] & 15 | parts[part - 4] >> 6 << 4, parts[part + 4] >> 4 | parts[part] >> 6 << 4)
        };
        let codes = &input.codes[32 * part..32 * part + 32];
        let quants: Vec<i32> = (0..32)
            .map(|column| {
                let nibble = stored[low + part / 2 * 32 + column] >> (part % 2 * 4) & 15;
                let bit = if low == 48 { stored[16 + column] >> part & 1 } else { 0 };
                i32::from(nibble | bit << 4)
            })
            .collect();
        dots += i32::from(scale) * dot(&quants, codes);
        minima += i32::from(minimum) * codes.iter().sum::<i32>();
    }
    let sum = fused(dots as f32, half(stored, 0) * input.scale, sum);
    fused(-(minima as f32), half(stored, 2) * input.scale, sum)
}

fn six(stored: &[u8], input: &Rounded, sum: f32) -> f32 {
    let quant = |column: usize| {
        let (side, quarter, at) = (column / 128, column % 128 / 32, column % 32);
        let nibble = stored[side * 64 + quarter % 2 * 32 + at] >> (quarter / 2 * 4) & 15;
        i32::from(nibble | (stored[128 + side * 32 + at] >> (2 * quarter) & 3) << 4) - 32
    };
    let mut dots = 0;
    for part in 0..16 {
        let quants: Vec<i32> = (16 * part..16 * part + 16).map(quant).collect();
        dots += i32::from(stored[192 + part] as i8) * dot(&quants, &input.codes[16 * part..16 * part + 16]);
    }
    fused(dots as f32, half(stored, 208) * input.scale, sum)
}
