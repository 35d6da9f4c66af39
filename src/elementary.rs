//! Exponential, logarithm, power, sine and cosine in f64 from arithmetic alone: the same bits on every machine.
//!
//! They build tables and weigh candidates; nothing here is for inner loops. Every function is a fixed sequence of additions,
//! subtractions, multiplications and divisions of IEEE 754, each rounded to nearest even, without a fused multiply-add.
//! The stated errors are tested against the platform's functions, whose own error is below 1 ulp, and bits against golden ones.

/// `eˣ`: relative error at most 4 × 2⁻⁵³ within `[-700, 709]`; 0 below and +∞ above, not-a-number of itself.
///
/// x = k ln 2 + r with |r| ≤ ½ ln 2; ln 2 is split in two so that k ln 2 is exact enough (Cody and Waite, 1980);
/// then the Taylor series of eʳ to r¹³, whose remainder is below 2⁻⁵⁶.
pub fn exp(x: f64) -> f64 {
    // The first has 32 trailing zero bits, so that its product with k is exact.
    const LN_2_HIGH: f64 = f64::from_bits(0x3FE6_2E42_FEE0_0000);
    const LN_2_LOW: f64 = f64::from_bits(0x3DEA_39EF_3579_3C76);
    const TERMS: i32 = 13;
    if x < -700.0 {
        return 0.0;
    }
    if x > 709.0 {
        return f64::INFINITY;
    }
    let k = (x * std::f64::consts::LOG2_E).round();
    let r = (x - k * LN_2_HIGH) - k * LN_2_LOW;
    let mut sum = 1.0;
    for term in (1..=TERMS).rev() {
        sum = 1.0 + sum * r / f64::from(term);
    }
    // k lies in -1010..=1023, so the exponent stays in the normal range.
    sum * f64::from_bits(((1023 + k as i64) as u64) << 52)
}

/// The natural logarithm: absolute error at most 10⁻¹⁴ where |ln x| ≤ 50, else relative at most 2⁻⁵².
///
/// −∞ of 0, not-a-number of itself and of what is negative, +∞ of itself.
///
/// x = m 2ᵉ with √½ ≤ m < √2; ln m = 2 artanh(s), s = (m − 1) / (m + 1), by its series to s²¹.
pub fn ln(x: f64) -> f64 {
    const TERMS: i32 = 10;
    /// Makes every denormal number normal.
    const RAISE: i32 = 54;
    if x.is_nan() || x < 0.0 {
        return f64::NAN;
    }
    if x == 0.0 || x == f64::INFINITY {
        return if x == 0.0 { f64::NEG_INFINITY } else { x };
    }
    let (x, raised) = if x < f64::MIN_POSITIVE { (x * (1_u64 << RAISE) as f64, RAISE) } else { (x, 0) };
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7FF) as i32 - 1023 - raised;
    let mut m = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if m >= std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for term in (0..=TERMS).rev() {
        sum = sum * square + 1.0 / f64::from(2 * term + 1);
    }
    f64::from(exponent) * std::f64::consts::LN_2 + 2.0 * s * sum
}

/// `exp(y ln x)` of a positive x: relative error at most (8 + 4 |y ln x|) × 2⁻⁵³ where |y ln x| ≤ 700 and |ln x| ≥ ½.
///
/// Nearer to 1 the absolute error of [`ln`], times y, comes on top.
pub fn pow(x: f64, y: f64) -> f64 {
    exp(y * ln(x))
}

/// Sine and cosine of an angle within ±2²⁴: error at most 1 ulp, or 2⁻⁶⁰ if that is more. Beyond, both are not-a-number.
///
/// x = k π/2 + r with |r| ≤ π/4. π/2 is the sum of three parts of 29 bits and a rest, so that k times each of the three is
/// exact (Cody and Waite, 1980); what the subtractions round off is kept (Knuth, volume 2, §4.2.2, theorem B) and
/// counted to first order. Then the Taylor series to r¹⁷ and r¹⁶, whose remainders are below 2⁻⁵⁸.
pub fn sin_cos(x: f64) -> (f64, f64) {
    if x.abs() > (1 << 24) as f64 || x.is_nan() {
        return (f64::NAN, f64::NAN);
    }
    let k = (x * std::f64::consts::FRAC_2_PI).round();
    let (r, rest) = reduce(x, k);
    let (sine, cosine) = near_zero(r, rest);
    match k as i64 & 3 {
        0 => (sine, cosine),
        1 => (cosine, -sine),
        2 => (-sine, -cosine),
        _ => (-cosine, sine),
    }
}

/// `x − k π/2` as a value and what it lacks.
fn reduce(x: f64, k: f64) -> (f64, f64) {
    let [first, second, third, last] = HALF_PI;
    // Exact: both are multiples of 2⁻⁵³ and nearly equal.
    let whole = x - k * first;
    let (value, lost) = subtract(whole, k * second);
    let (value, more) = subtract(value, k * third);
    (value, lost + more - k * last)
}

/// `a − b` as the rounded difference and what rounding took.
fn subtract(a: f64, b: f64) -> (f64, f64) {
    let difference = a - b;
    let taken = a - difference;
    (difference, (a - (difference + taken)) + (taken - b))
}

/// Sine and cosine of `r + rest`, where the rest is tiny.
fn near_zero(r: f64, rest: f64) -> (f64, f64) {
    let square = r * r;
    let series = |terms: &[f64]| terms.iter().rev().fold(0.0, |sum, term| sum * square + term);
    let sine = r + (r * square * series(&SINE) + rest);
    let cosine = 1.0 - (0.5 * square - (square * square * series(&COSINE) - r * rest));
    (sine, cosine)
}

/// π/2 in parts of 29, 29 and 29 bits, and the rest. Source: its hexadecimal expansion, 1.921FB544 42D18469 898CC517 01B839A2…
const HALF_PI: [f64; 4] = [
    f64::from_bits(0x3FF9_21FB_5400_0000),
    f64::from_bits(0x3E11_0B46_1100_0000),
    f64::from_bits(0x3C44_C4C6_6200_0000),
    f64::from_bits(0x3A71_701B_839A_2520),
];

/// The sine's Taylor coefficients from r³ on.
const SINE: [f64; 8] = [
    -1.0 / 6.0,
    1.0 / 120.0,
    -1.0 / 5_040.0,
    1.0 / 362_880.0,
    -1.0 / 39_916_800.0,
    1.0 / 6_227_020_800.0,
    -1.0 / 1_307_674_368_000.0,
    1.0 / 355_687_428_096_000.0,
];

/// The cosine's Taylor coefficients from r⁴ on.
const COSINE: [f64; 7] = [
    1.0 / 24.0,
    -1.0 / 720.0,
    1.0 / 40_320.0,
    -1.0 / 3_628_800.0,
    1.0 / 479_001_600.0,
    -1.0 / 87_178_291_200.0,
    1.0 / 20_922_789_888_000.0,
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_edges_are_defined() {
        assert_eq!([exp(-701.0), exp(f64::NEG_INFINITY), exp(0.0), exp(-0.0)], [0.0, 0.0, 1.0, 1.0]);
        assert_eq!([exp(710.0), exp(f64::INFINITY), ln(f64::INFINITY)], [f64::INFINITY; 3]);
        assert_eq!([ln(0.0), ln(-0.0)], [f64::NEG_INFINITY; 2]);
        assert_eq!([ln(1.0), pow(1.0, 1e9), pow(7.5, 0.0)], [0.0, 1.0, 1.0]);
        assert_eq!(sin_cos(0.0), (0.0, 1.0));
        let lost =
            [exp(f64::NAN), ln(f64::NAN), ln(-1.0), sin_cos(f64::INFINITY).0, sin_cos(1e8).1, sin_cos(f64::NAN).0];
        assert!(lost.iter().all(|value| value.is_nan()), "{lost:?}");
    }

    #[test]
    fn the_parts_of_half_pi_add_up_and_multiply_exactly() {
        for part in &HALF_PI[..3] {
            assert!(part.to_bits().trailing_zeros() >= 24, "{part:e}");
        }
        assert_eq!(HALF_PI.iter().sum::<f64>(), std::f64::consts::FRAC_PI_2);
        // What π/2 as an f64 lacks. Source: the same expansion.
        let lacks = ((HALF_PI[0] - std::f64::consts::FRAC_PI_2) + HALF_PI[1]) + HALF_PI[2] + HALF_PI[3];
        assert!((lacks - 6.123_233_995_736_766e-17).abs() < 1e-32, "{lacks:e}");
    }

    #[test]
    fn multiples_of_half_pi_are_reduced_to_the_last_bit() {
        // The double nearest to a multiple of π/2 among those below 2²⁴ has a sine or cosine of its own.
        for quarter in (1..10_000_000_u32).step_by(9_973) {
            let x = f64::from(quarter) * std::f64::consts::FRAC_PI_2;
            check(x);
            check(-x);
        }
    }

    #[test]
    fn the_bits_never_change() {
        let bits = |values: [f64; 8]| values.map(|value| format!("{:016x}", value.to_bits())).join(" ");
        let (a, b) = (sin_cos(131_071.0), sin_cos(-0.7));
        let trace = [
            bits([exp(1.0), exp(-0.5), exp(-37.25), exp(88.7), exp(-699.5), exp(1e-9), exp(708.9), exp(-2.0)]),
            bits([ln(2.0), ln(3.0), ln(1e-300), ln(0.5), ln(5e-324), ln(1e300), ln(10_000.0), ln(0.999)]),
            bits([pow(10_000.0, -0.25), pow(500_000.0, -0.968_75), pow(2.0, 0.5), pow(10.0, -3.0), a.0, a.1, b.0, b.1]),
        ];
        expect_test::expect![[r#"
            4005bf0a8b14576a 3fe368b2fc6f960a 3c93278bcd70e981 47ef4705bbffae5c 00dc89c2e339b392 3ff000000044b830 7fda796454e90694 3fc152aaa3bf81cc
            3fe62e42fefa39ef 3ff193ea7aad030a c085963447f87fb5 bfe62e42fefa39ef c0874385446d71c3 4085963447f87fb5 40226bb1bbb55515 bf5064670d979b73
            3fb999999999999b 3ec948360a975f40 3ff6a09e667f3bcc 3f50624dd2f1a9fd bfe268613f60babc bfea2cebbb513e7c bfe49d6e694619b8 3fe87996529f9d93"#]].assert_eq(&trace.join("\n"));
    }

    /// The distance of both from the platform's, in units of the last place, with a floor for values near 0.
    fn check(x: f64) {
        let (sine, cosine) = sin_cos(x);
        for (ours, theirs) in [(sine, x.sin()), (cosine, x.cos())] {
            // The platform's may be off by half a unit more.
            let allowed = 1.5 * ulp(theirs).max(2.0_f64.powi(-60));
            assert!((ours - theirs).abs() <= allowed, "{x:e}: {ours:e}, {theirs:e}");
        }
    }

    fn ulp(value: f64) -> f64 {
        f64::from_bits(value.abs().to_bits() + 1) - value.abs()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn exp_stays_within_its_stated_error(x in -699.0..709.0_f64) {
            prop_assert!((exp(x) / x.exp() - 1.0).abs() <= 5.0 * f64::EPSILON / 2.0);
        }

        #[test]
        fn ln_stays_within_its_stated_error(x in prop_oneof![1.0..1e19_f64, 1e-20..2.0_f64, 0.9..1.1_f64]) {
            prop_assert!((ln(x) - x.ln()).abs() <= 1e-14);
        }

        #[test]
        fn ln_of_any_positive_number_is_near(bits in 1..0x7FF0_0000_0000_0000_u64) {
            let x = f64::from_bits(bits);
            prop_assert!((ln(x) - x.ln()).abs() <= 1e-14_f64.max(x.ln().abs() * f64::EPSILON));
        }

        #[test]
        fn pow_stays_within_its_stated_error(x in prop_oneof![2.0..1e7_f64, 1e-7..0.5_f64], y in -30.0..30.0_f64) {
            let allowed = (9.0 + 4.0 * (y * x.ln()).abs()) * f64::EPSILON / 2.0;
            prop_assert!((pow(x, y) / x.powf(y) - 1.0).abs() <= allowed);
        }

        #[test]
        fn sine_and_cosine_stay_within_their_stated_error(
            x in prop_oneof![-4.0..4.0_f64, -16_777_216.0..16_777_216.0_f64, -200_000.0..200_000.0_f64],
        ) {
            check(x);
        }
    }
}
