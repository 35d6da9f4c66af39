//! What can be wrong with the weights of a block.

/// Why a block cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    NotFinite,
    TooLarge,
}

/// The largest magnitude.
pub(super) fn largest<const N: usize>(values: &[f32; N]) -> Result<f32, Fault> {
    // Magnitudes are ordered as their bits are.
    let largest = values.iter().fold(0, |largest, value| largest.max((value.to_bits() & 0x7FFF_FFFF) as i32));
    let largest = f32::from_bits(largest as u32);
    if largest < f32::INFINITY { Ok(largest) } else { Err(Fault::NotFinite) }
}

/// Checks the weights of a super-block: they are numbers, and small enough that no sum over them overflows.
///
/// A block of 256 can hold no weight above 2²⁸: 128 × 32 times the largest half.
#[inline(always)]
pub(super) fn bounded(values: &[f32; 256]) -> Result<(), Fault> {
    const BOUND: f32 = (1 << 30) as f32;
    if largest(values)? < BOUND { Ok(()) } else { Err(Fault::TooLarge) }
}
