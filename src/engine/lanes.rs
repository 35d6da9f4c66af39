//! Sums, exponentials and products over vectors, the same bits on every machine.
//!
//! A sum runs over 16 virtual lanes (element `i` goes to lane `i mod 16`), which are then added as a fixed tree. There is no
//! fused multiply-add and no function of a platform library, so the compiler may use registers of any width, and
//! does: `widest!` compiles a body a second time for AVX2 and chooses when it runs.

/// Virtual lanes of a sum: what one AVX-512 register holds.
const LANES: usize = 16;

/// Defines a function that runs `$body` (which must be `#[inline(always)]`) compiled for AVX2 where the machine has it.
/// AVX2 alone brings no fused multiply-add, so both give the same bits.
macro_rules! widest {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $body:ident) => {
        $(#[$meta])*
        $vis fn $name($($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn wide($($arg: $type),*) {
                    $body($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the machine has AVX2, as just checked.
                    return unsafe { wide($($arg),*) };
                }
            }
            $body($($arg),*)
        }
    };
}
pub(super) use widest;

#[inline(always)]
fn reduce(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The scalar product of two vectors of one length.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_whole, b_whole) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_whole.remainder().iter().zip(b_whole.remainder());
    for (a, b) in a_whole.zip(b_whole) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(rest) {
        *lane += a * b;
    }
    reduce(lanes)
}

#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let whole = values.chunks_exact(LANES);
    let rest = whole.remainder();
    for values in whole {
        for lane in 0..LANES {
            lanes[lane] += values[lane];
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += value;
    }
    reduce(lanes)
}

/// `eˣ` for x in `[-87, 88]`; outside, as at the nearer end. Relative error at most 2⁻²² (tested).
///
/// x = k ln 2 + r as in Cody and Waite (1980); the polynomial is the Taylor series of eʳ to r⁷, whose remainder for
/// |r| ≤ ½ ln 2 is below 2⁻²⁷.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 × 2²³ rounds to the nearest whole number.
    const ROUND: f32 = 12_582_912.0;
    // 9 significant bits, so that its product with k is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -87.0 { x } else { -87.0 };
    let x = if x < 88.0 { x } else { 88.0 };
    let k = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = (x - k * LN_2_HIGH) - k * LN_2_LOW;
    let mut sum = 1.0 / 5040.0;
    sum = sum * r + 1.0 / 720.0;
    sum = sum * r + 1.0 / 120.0;
    sum = sum * r + 1.0 / 24.0;
    sum = sum * r + 1.0 / 6.0;
    sum = sum * r + 0.5;
    sum = sum * r + 1.0;
    sum = sum * r + 1.0;
    // k lies in -126..=127, so the exponent stays in the normal range.
    sum * f32::from_bits(((k as i32 + 127) as u32) << 23)
}

/// Turns scores into weights `exp(score − largest)` and returns their sum.
#[inline(always)]
pub(super) fn exponentiate(scores: &mut [f32]) -> f32 {
    let mut largest = f32::NEG_INFINITY;
    for &score in scores.iter() {
        largest = if score > largest { score } else { largest };
    }
    for score in scores.iter_mut() {
        *score = exp(*score - largest);
    }
    sum(scores)
}

/// Adds `factor × from` to `to`.
#[inline(always)]
pub(super) fn add_scaled(to: &mut [f32], factor: f32, from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += factor * from;
    }
}

/// Adds `from` to `to`.
pub(super) fn add(to: &mut [f32], from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}

widest! {
    /// Divides each row of `input` by its root mean square and multiplies it with `weight`, into `output`.
    ///
    /// - `input`, `output`: `[rows, weight.len()]`
    pub(super) fn normalise(input: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) = normalise_rows
}

#[inline(always)]
fn normalise_rows(input: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) {
    let width = weight.len();
    for (row, out) in input.chunks_exact(width).zip(output.chunks_exact_mut(width)) {
        let square = dot(row, row) / width as f32;
        // Squares that overflow would silently make the row zero.
        let scale = if square.is_finite() { 1.0 / (square + epsilon).sqrt() } else { f32::NAN };
        for ((out, value), weight) in out.iter_mut().zip(row).zip(weight) {
            *out = value * scale * weight;
        }
    }
}

widest! {
    /// The feed-forward gate: `gate ← gate / (1 + exp(−gate)) × up`, element by element.
    pub(super) fn gate_in_place(gate: &mut [f32], up: &[f32]) = gate_elements
}

#[inline(always)]
fn gate_elements(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_sum_has_one_order_whatever_its_length() {
        let values: Vec<f32> = (0..37).map(|index| 1.0 + index as f32 * 1e-3).collect();
        let mut lanes = [0.0_f32; LANES];
        for (index, value) in values.iter().enumerate() {
            lanes[index % LANES] += value * value;
        }

        assert_eq!(dot(&values, &values).to_bits(), reduce(lanes).to_bits());
    }

    proptest! {
        #[test]
        fn exp_stays_within_its_stated_error(x in -86.9..87.9_f32) {
            let exact = f64::from(x).exp();
            prop_assert!((f64::from(exp(x)) / exact - 1.0).abs() < 1.0 / f64::from(1 << 22));
        }

        #[test]
        fn wide_registers_change_no_bit(gate in prop::collection::vec(-20.0..20.0_f32, 1..70)) {
            let up: Vec<f32> = gate.iter().map(|value| value * 0.37 + 1.0).collect();
            let (mut wide, mut narrow) = (gate.clone(), gate.clone());
            let (mut wide_norm, mut narrow_norm) = (gate.clone(), gate.clone());

            gate_in_place(&mut wide, &up);
            gate_elements(&mut narrow, &up);
            normalise(&gate, &up, 1e-5, &mut wide_norm);
            normalise_rows(&gate, &up, 1e-5, &mut narrow_norm);

            prop_assert_eq!(bits(&wide), bits(&narrow));
            prop_assert_eq!(bits(&wide_norm), bits(&narrow_norm));
        }
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }
}
