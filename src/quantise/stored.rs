//! From stored blocks to `f32`, by GGUF's formulas.
//!
//! | format | weight |
//! |---|---|
//! | `F32`, `F16`, `BF16` | exactly as stored |
//! | `Q8_0` | `scale × quant` |
//! | `Q4_0`, `Q5_0` | `scale × (quant − 8)`, `− 16` |
//! | `Q4_1`, `Q5_1` | `scale × quant + offset` |
//! | `Q6_K` | `(scale × part scale) × (quant − 32)` |
//! | `Q4_K`, `Q5_K` | `(scale × part scale) × quant − minimum × part minimum` |
//!
//! Every product and sum is rounded on its own. The engine's own unpacking fuses the last two of formats with an offset or a
//! minimum, so there it may differ in the last bit.

use crate::quantise::halves::half_at;
use crate::quantise::halves::widen;
use crate::shape::WeightFormat;

/// Writes whole blocks as `f32`, as many as both sides have.
pub(super) fn decode(format: WeightFormat, data: &[u8], out: &mut [f32]) {
    match format {
        WeightFormat::F32 => each(data, out, |bytes, out| *out = [f32::from_le_bytes(*bytes)]),
        WeightFormat::F16 => each(data, out, |bytes, out| *out = [widen(u16::from_le_bytes(*bytes))]),
        WeightFormat::BF16 => {
            each(data, out, |&[low, high], out| *out = [f32::from_le_bytes([0, 0, low, high])]);
        }
        WeightFormat::Q4_0 => each(data, out, four_signed),
        WeightFormat::Q4_1 => each(data, out, four_offset),
        WeightFormat::Q5_0 => each(data, out, five_signed),
        WeightFormat::Q5_1 => each(data, out, five_offset),
        WeightFormat::Q8_0 => each(data, out, byte),
        WeightFormat::Q4K => each(data, out, super_four),
        WeightFormat::Q5K => each(data, out, super_five),
        WeightFormat::Q6K => each(data, out, six),
    }
}

#[inline(always)]
fn each<const BYTES: usize, const ELEMENTS: usize>(
    data: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    for (block, out) in data.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        decode(block, out);
    }
}

fn four_signed(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    nibbles(&block[2..18], out, |quant, _| scale * f32::from(quant as i8 - 8));
}

fn four_offset(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, offset) = (half_at(block, 0), half_at(block, 2));
    nibbles(&block[4..20], out, |quant, _| scale * f32::from(quant) + offset);
}

fn five_signed(block: &[u8; 22], out: &mut [f32; 32]) {
    let (scale, fifths) = (half_at(block, 0), fifths(block, 2));
    nibbles(&block[6..22], out, |quant, column| scale * f32::from((quant | fifth(fifths, column)) as i8 - 16));
}

fn five_offset(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, offset, fifths) = (half_at(block, 0), half_at(block, 2), fifths(block, 4));
    nibbles(&block[8..24], out, |quant, column| scale * f32::from(quant | fifth(fifths, column)) + offset);
}

/// The weights of 16 bytes: columns 0 to 15 in the lower halves, 16 to 31 in the upper.
#[inline(always)]
fn nibbles(stored: &[u8], out: &mut [f32; 32], weight: impl Fn(u8, usize) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for (column, ((byte, low), high)) in stored.iter().zip(low).zip(high).enumerate() {
        *low = weight(byte & 15, column);
        *high = weight(byte >> 4, column + 16);
    }
}

/// The fifth bits of 32 columns, from the lowest up.
#[inline(always)]
fn fifths(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

#[inline(always)]
fn fifth(fifths: u32, column: usize) -> u8 {
    ((fifths >> column & 1) << 4) as u8
}

fn byte(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (out, quant) in out.iter_mut().zip(&block[2..]) {
        *out = scale * f32::from(*quant as i8);
    }
}

fn super_four(block: &[u8; 144], out: &mut [f32; 256]) {
    super_nibbles(&block[..16], &block[16..], out, |_, _| 0);
}

fn super_five(block: &[u8; 176], out: &mut [f32; 256]) {
    let fifths = &block[16..48];
    super_nibbles(&block[..16], &block[48..], out, |part, column| (fifths[column] >> part & 1) << 4);
}

/// The weights of eight parts: `2k` in the lower halves and `2k + 1` in the upper of 32 bytes each.
///
/// - `head`: scale, minimum and the parts' own
#[inline(always)]
fn super_nibbles(head: &[u8], stored: &[u8], out: &mut [f32; 256], fifth: impl Fn(usize, usize) -> u8) {
    let (scale, minimum) = (half_at(head, 0), half_at(head, 2));
    let (scales, minima) = part_scales(&head[4..]);
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = (scale * f32::from(scales[part]), minimum * f32::from(minima[part]));
        let stored = &stored[part / 2 * 32..][..32];
        for (column, (out, byte)) in out.iter_mut().zip(stored).enumerate() {
            let quant = byte >> (part % 2 * 4) & 15 | fifth(part, column);
            *out = scale * f32::from(quant) - minimum;
        }
    }
}

/// Scales and minima of eight parts, six bits each.
///
/// Those of the first four parts are whole in bytes 0 to 3 and 4 to 7; of the others the lower four bits are in bytes 8 to
/// 11 and the upper two above those of the first four.
fn part_scales(stored: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut minima) = ([0; 8], [0; 8]);
    for part in 0..4 {
        let (scale, minimum, rest) = (stored[part], stored[part + 4], stored[part + 8]);
        (scales[part], minima[part]) = (scale & 63, minimum & 63);
        (scales[part + 4], minima[part + 4]) = (rest & 15 | scale >> 6 << 4, rest >> 4 | minimum >> 6 << 4);
    }
    (scales, minima)
}

/// Each half of 128 columns has 64 bytes of lower bits, columns 0 to 63 in their lower halves and 64 to 127 in their upper, and
/// 32 bytes of upper bits, those of columns `c`, `c + 32`, `c + 64` and `c + 96` from the lowest up.
fn six(block: &[u8; 210], out: &mut [f32; 256]) {
    let scale = half_at(block, 208);
    for (stretch, out) in out.chunks_exact_mut(32).enumerate() {
        let (half, quarter) = (stretch / 4, stretch % 4);
        let low = &block[64 * half + 32 * (quarter % 2)..][..32];
        let high = &block[128 + 32 * half..][..32];
        for (odd, out) in out.chunks_exact_mut(16).enumerate() {
            let scale = scale * f32::from(block[192 + 2 * stretch + odd] as i8);
            let stored = low[16 * odd..].iter().zip(&high[16 * odd..]);
            for (out, (low, high)) in out.iter_mut().zip(stored) {
                let quant = low >> (quarter / 2 * 4) & 15 | (high >> (2 * quarter) & 3) << 4;
                *out = scale * f32::from(quant as i8 - 32);
            }
        }
    }
}
