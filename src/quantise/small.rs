//! `Q8_0` and `Q4_0`: 32 weights with one scale, bit for bit as llama.cpp's reference makes them.
//!
//! The scale is that of the largest weight by magnitude, and quants are found by its inverse before it is rounded to a half.
//! Where it rounds to zero the block is that of zeros, for nothing else can be told apart; that alone the reference does otherwise.
//! What such a block decodes to becomes the same block again.

use crate::quantise::fault::Fault;
use crate::quantise::fault::largest;
use crate::quantise::halves::narrow;
use crate::quantise::lanes::byte_of;
use crate::quantise::lanes::lower;
use crate::quantise::lanes::round_down;
use crate::quantise::lanes::round_half_away;

/// Elements of a block.
const ELEMENTS: usize = 32;

/// `Q8_0`: `scale = largest / 127`, `quant = round(weight / scale)`, halves away from zero.
pub(super) fn byte(values: &[f32; ELEMENTS]) -> Result<[u8; 34], Fault> {
    let (stored, inverse) = scale(largest(values)? / 127.0)?;
    let mut block = [0; 34];
    let (head, quants) = block.split_at_mut(2);
    head.copy_from_slice(&stored.to_le_bytes());
    for (quant, value) in quants.iter_mut().zip(values) {
        *quant = byte_of(round_half_away(value * inverse));
    }
    Ok(block)
}

/// `Q4_0`: `scale = signed largest / −8`, `quant = min(15, ⌊weight / scale + 8½⌋)`.
pub(super) fn nibble(values: &[f32; ELEMENTS]) -> Result<[u8; 18], Fault> {
    /// What the reference stores as the scale of zeros.
    const NEGATIVE_ZERO: u16 = 0x8000;
    let largest = largest(values)?;
    // The first of those that are as large decides.
    let signed = values.iter().find(|value| value.abs() == largest).copied().unwrap_or_default();
    let (stored, inverse) = scale(signed / -8.0)?;
    let stored = if inverse == 0.0 { NEGATIVE_ZERO } else { stored };
    let quant = |value: f32| byte_of(lower(round_down(value * inverse + 8.5), 15.0));
    let mut block = [0; 18];
    let (head, quants) = block.split_at_mut(2);
    head.copy_from_slice(&stored.to_le_bytes());
    let (low, high) = values.split_at(ELEMENTS / 2);
    for ((quants, low), high) in quants.iter_mut().zip(low).zip(high) {
        *quants = quant(*low) | quant(*high) << 4;
    }
    Ok(block)
}

/// A scale as stored, and its inverse before it was rounded, or zero if it is stored as zero.
fn scale(scale: f32) -> Result<(u16, f32), Fault> {
    let half = narrow(scale);
    match half & 0x7FFF {
        0 => Ok((half, 0.0)),
        0x7C00 => Err(Fault::TooLarge),
        _ => Ok((half, 1.0 / scale)),
    }
}
