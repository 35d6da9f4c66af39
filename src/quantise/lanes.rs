//! Rounding, and the parts of a super-block side by side.
//!
//! Every function is a fixed sequence of operations on the numbers of one part; that eight parts go side by side lets a compiler
//! use whatever vectors a machine has, and changes nothing.

/// Parts that are worked on side by side.
pub(super) const LANES: usize = 8;

/// One number of each part.
pub(super) type Lanes = [f32; LANES];

/// Parts of `COLUMNS` elements each: `columns[c][p]` is element `c` of part `p`.
pub(super) type Columns<const COLUMNS: usize> = [Lanes; COLUMNS];

/// A range or a magnitude below which a part is flat: far below the 2⁻²⁵ at which a scale that is a half vanishes, and such
/// that its inverse is finite.
pub(super) const FLAT: f32 = 1.0 / (1_u64 << 40) as f32;

/// One number for each part.
#[inline(always)]
pub(super) fn each(number: impl FnMut(usize) -> f32) -> Lanes {
    std::array::from_fn(number)
}

/// Puts parts side by side.
#[inline(always)]
pub(super) fn columns<const COLUMNS: usize>(parts: &[[f32; COLUMNS]; LANES]) -> Columns<COLUMNS> {
    std::array::from_fn(|column| each(|part| parts[part][column]))
}

/// How much the error of each weight counts: its magnitude and the root mean square of its part, one as much as the other.
#[inline(always)]
pub(super) fn importance<const COLUMNS: usize>(columns: &Columns<COLUMNS>) -> Columns<COLUMNS> {
    let squares = columns.iter().fold([0.0; LANES], |sum, x| each(|lane| sum[lane] + x[lane] * x[lane]));
    let mean = each(|lane| (squares[lane] / COLUMNS as f32).sqrt());
    columns.map(|x| each(|lane| x[lane].abs() + mean[lane]))
}

/// The inverse of a scale, or zero of zero.
#[inline(always)]
pub(super) fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// A number from which on an `f32` counts in ones, 1½ × 2²³: its lowest bits are an integer of either sign, 0 for itself.
const ONES: f32 = 12_582_912.0;

/// The nearest integer, ties to even, of a number within ±2²².
#[inline(always)]
pub(super) fn round_half_even(value: f32) -> f32 {
    (value + ONES) - ONES
}

/// The nearest integer, ties away from zero, of a number within ±2²².
#[inline(always)]
pub(super) fn round_half_away(value: f32) -> f32 {
    let even = round_half_even(value);
    // Exact, for both are near.
    let rest = value - even;
    let up = if rest == 0.5 && value > 0.0 { 1.0 } else { 0.0 };
    let down = if rest == -0.5 && value < 0.0 { 1.0 } else { 0.0 };
    even + up - down
}

/// The largest integer that is not above a number within ±2²².
#[inline(always)]
pub(super) fn round_down(value: f32) -> f32 {
    let even = round_half_even(value);
    even - if even > value { 1.0 } else { 0.0 }
}

/// The nearest integer between two bounds, ties to even. The number may be of any size.
#[inline(always)]
pub(super) fn round_within(value: f32, low: f32, high: f32) -> f32 {
    round_half_even(lower(higher(value, low), high))
}

/// An integer within ±2²² as the byte of its lowest eight bits.
#[inline(always)]
pub(super) fn byte_of(integer: f32) -> u8 {
    (integer + ONES).to_bits() as u8
}

/// The lower of two numbers, the second if they are equal.
#[inline(always)]
pub(super) fn lower(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// The higher of two numbers, the second if they are equal.
#[inline(always)]
pub(super) fn higher(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_agrees_with_the_standard_library() {
        for step in -4_200..=4_200_i16 {
            for near in [-1, 0, 1] {
                let tie = f32::from(step) / 16.0;
                let value = if tie == 0.0 { tie } else { f32::from_bits(tie.to_bits().wrapping_add_signed(near)) };
                assert_eq!(round_half_even(value), value.round_ties_even(), "{value}");
                assert_eq!(round_half_away(value), value.round(), "{value}");
                assert_eq!(round_down(value), value.floor(), "{value}");
                assert_eq!(byte_of(value.floor()), value.floor() as i32 as u8, "{value}");
            }
        }
        assert_eq!([round_within(-1e30, -32.0, 31.0), round_within(f32::MAX, -32.0, 31.0)], [-32.0, 31.0]);
    }
}
