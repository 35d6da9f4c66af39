//! Halves (IEEE 754 binary16), as stored in weights and in the key/value cache.

use half::f16;

/// A half as f32, exactly.
#[inline(always)]
pub(super) fn widen(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32_const()
}

/// The nearest half, ties to even; beyond the largest, the largest. Not-a-number stays so.
#[inline(always)]
pub(super) fn narrow(value: f32) -> u16 {
    /// The largest half.
    const LARGEST: f32 = 65_504.0;
    let value = if value > LARGEST { LARGEST } else { value };
    let value = if value < -LARGEST { -LARGEST } else { value };
    f16::from_f32_const(value).to_bits()
}
