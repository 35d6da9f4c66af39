//! The fused multiply-add for machines without the instruction.

/// `a × b + c`, rounded once to nearest even: what the instruction gives.
///
/// The product of two f32 is exact in f64. The sum is then rounded twice, to f64 and to f32, which is wrong only if the first
/// rounding lands on a tie of the second. So the first is done to odd instead: if it was not exact, the last bit is set, and
/// no tie remains. Source: Boldo and Melquiond, "Emulation of FMA and correctly rounded sums" (2008), theorem 1.
#[inline(always)]
pub(super) fn fused(a: f32, b: f32, c: f32) -> f32 {
    let product = f64::from(a) * f64::from(b);
    let c = f64::from(c);
    let sum = product + c;
    // What the addition lost, exactly. Source: Knuth, "The Art of Computer Programming", volume 2, §4.2.2, theorem B.
    let rounded = sum - product;
    let lost = (product - (sum - rounded)) + (c - rounded);
    let bits = sum.to_bits();
    let is_even = bits & 1 == 0;
    // A lost part that is not a number belongs to an infinite sum.
    if lost != 0.0 && is_even && sum.is_finite() && !lost.is_nan() {
        // Toward zero if the lost part has the other sign, else away from it; either neighbour is odd.
        let step = if (lost > 0.0) == (sum > 0.0) { 1 } else { u64::MAX };
        return f64::from_bits(bits.wrapping_add(step)) as f32;
    }
    sum as f32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::fused;

    #[test]
    fn ties_that_two_roundings_would_miss_are_rounded_once() {
        // 1 + 2⁻²⁴ is a tie of f32; the tiny third part decides it.
        let (a, b) = (1.0 + f32::EPSILON, 1.0 - f32::EPSILON / 2.0);
        for c in [2.0_f32.powi(-80), -2.0_f32.powi(-80), 1.0, -1.0, 0.5] {
            assert_eq!(fused(a, b, c).to_bits(), a.mul_add(b, c).to_bits(), "{c}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100_000))]
        #[test]
        fn any_bits_give_what_the_instruction_gives(a: u32, b: u32, c: u32, near: bool) {
            let (a, b) = (f32::from_bits(a), f32::from_bits(b));
            // Most random exponents are so far apart that one part does not count.
            let c = if near { -(a * b) * (1.0 + (c % 64) as f32 * f32::EPSILON) } else { f32::from_bits(c) };
            let (ours, exact) = (fused(a, b, c), a.mul_add(b, c));
            prop_assert!(ours.to_bits() == exact.to_bits() || ours.is_nan() && exact.is_nan(), "{a:e} {b:e} {c:e}: {ours:e} {exact:e}");
        }
    }
}
