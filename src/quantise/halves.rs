//! Halves (IEEE 754 binary16) to and from `f32`, by arithmetic that needs no special instruction and has no branches.

/// A half as `f32`, exactly; not-a-number keeps its bits.
#[inline(always)]
pub(super) fn widen(bits: u16) -> f32 {
    /// What the exponents of the two formats differ by, in place.
    const BIAS: u32 = (127 - 15) << 23;
    let (sign, rest) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7FFF) << 13);
    let normal = rest + BIAS;
    // The bits of a denormal are multiples of 2⁻²⁴: below 2⁻¹⁴ with an implied one, which is taken away again.
    let denormal = (f32::from_bits(normal + (1 << 23)) - f32::from_bits(BIAS + (1 << 23))).to_bits();
    let endless = rest | 0x7F80_0000;
    let magnitude = if rest < 1 << 23 { denormal } else { normal };
    f32::from_bits(sign | if rest >= 31 << 23 { endless } else { magnitude })
}

/// The nearest half, ties to even; beyond the largest, infinity. The value is a number.
#[inline(always)]
pub(super) fn narrow(value: f32) -> u16 {
    /// The smallest normal half, 2⁻¹⁴.
    const NORMAL: u32 = 0x3880_0000;
    const INFINITY: u32 = 0x7C00;
    let (sign, magnitude) = ((value.to_bits() >> 16) as u16 & 0x8000, value.to_bits() & 0x7FFF_FFFF);
    // Between ½ and 1 an `f32` counts in steps of 2⁻²⁴, as a denormal half does, so the addition rounds.
    let denormal = (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5_f32.to_bits();
    let rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
    let normal = (rounded >> 13).wrapping_sub((127 - 15) << 10).min(INFINITY);
    sign | if magnitude < NORMAL { denormal } else { normal } as u16
}

/// A half for a scale of which multiples are taken: the nearest, but of denormals the next away from zero.
///
/// Their steps are so wide that the nearest might be far too small, or zero.
#[inline(always)]
pub(super) fn narrow_scale(value: f32) -> u16 {
    const NORMAL: u16 = 0x400;
    let half = narrow(value);
    let short = half & 0x7FFF < NORMAL && widen(half).abs() < value.abs();
    half + u16::from(short)
}

/// The half in bytes `at` and `at + 1` of a block.
#[inline(always)]
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    widen(u16::from_le_bytes([block[at], block[at + 1]]))
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn every_half_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let (ours, exact) = (widen(bits), f16::from_bits(bits).to_f32_const());
            assert!(ours.to_bits() == exact.to_bits() || ours.is_nan() && exact.is_nan(), "{bits:#x}");
        }
    }

    #[test]
    fn every_half_its_neighbours_and_the_ties_between_are_narrowed_to_nearest_even() {
        for bits in 0..=0x7C00_u16 {
            let next = if bits < 0x7BFF { widen(bits + 1) } else { 65_536.0 };
            let tie = if bits < 0x7C00 { (widen(bits) + next) / 2.0 } else { f32::MAX };
            for near in [tie.to_bits().saturating_sub(1), tie.to_bits(), tie.to_bits() + 1, widen(bits).to_bits()] {
                let value = f32::from_bits(near);
                for value in [value, -value] {
                    if !value.is_nan() {
                        assert_eq!(narrow(value), f16::from_f32_const(value).to_bits(), "{value:e}");
                    }
                }
            }
        }
    }

    #[test]
    fn scales_that_are_denormal_are_never_too_small() {
        let step = widen(1);
        let rounded = [0.0, -0.0, 1e-30, 0.3 * step, -1.1 * step, 7.0 * step, 1_023.4 * step, 1_024.4 * step];

        assert_eq!(rounded.map(narrow_scale), [0, 0x8000, 1, 1, 0x8002, 7, 1_024, 1_024]);
    }

    #[test]
    fn numbers_of_every_size_are_narrowed_to_nearest_even() {
        for bits in (0..0x7F80_0000_u32).step_by(4_099) {
            let value = f32::from_bits(bits);
            assert_eq!(narrow(value), f16::from_f32_const(value).to_bits(), "{value:e}");
        }
    }
}
