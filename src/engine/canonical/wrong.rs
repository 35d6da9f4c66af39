//! Arithmetic that breaks a rule: what the tests must see to differ when the kernels themselves run on it.

use crate::engine::canonical::half::narrow;
use crate::engine::canonical::half::widen;
use crate::engine::canonical::simd::BYTES;
use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Plain;
use crate::engine::canonical::simd::Simd;

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slip {
    /// Multiply, round, add, round.
    Unfused,
    /// `(a × b) × c + d` for what should be `a × (b × c) + d`, each rounded once: scales multiplied in another order.
    OtherScales,
    /// Sums over lanes from the first to the last.
    InOrder,
    /// Denormal results become zero.
    Flushing,
    /// Halfway to a whole number goes away from zero.
    TiesAway,
    /// What does not fit into a half is cut off.
    CutHalves,
}

/// [`Plain`] but for one rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wrong(pub(super) Slip);

/// Sixteen numbers, and what they are the products of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes {
    values: [f32; LANES],
    factors: Option<[[f32; LANES]; 2]>,
}

impl Wrong {
    /// The result of an operation.
    fn result(self, values: [f32; LANES]) -> Lanes {
        let flush = |value: f32| if value.is_subnormal() { 0.0_f32.copysign(value) } else { value };
        Lanes { values: if self.0 == Slip::Flushing { values.map(flush) } else { values }, factors: None }
    }
}

/// Operations that pass on to [`Plain`].
macro_rules! as_plain {
    ($(fn $name:ident $(<const $bits:ident>)? ($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {$(
        fn $name $(<const $bits: u32>)? (self, $($arg: $type),*) $(-> $result)? {
            Plain.$name $(::<$bits>)? ($($arg),*)
        }
    )*};
}

impl Simd for Wrong {
    type F = Lanes;
    type I = [i32; LANES];
    type B = [u8; BYTES];
    type Run = [i32; LANES];
    const TILE: usize = Plain::TILE;

    const ROOMY: bool = Plain::ROOMY;

    fn splat(self, value: f32) -> Lanes {
        Lanes { values: [value; LANES], factors: None }
    }

    fn load(self, from: &[f32; LANES]) -> Lanes {
        Lanes { values: *from, factors: None }
    }

    fn store(self, value: Lanes, to: &mut [f32; LANES]) {
        *to = value.values;
    }

    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        self.result(Plain.add(a.values, b.values))
    }

    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        self.result(Plain.sub(a.values, b.values))
    }

    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        Lanes { factors: Some([a.values, b.values]), ..self.result(Plain.mul(a.values, b.values)) }
    }

    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        self.result(Plain.div(a.values, b.values))
    }

    fn fma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        self.result(match (self.0, b.factors) {
            (Slip::Unfused, _) => Plain.add(Plain.mul(a.values, b.values), c.values),
            (Slip::OtherScales, Some([first, second])) => Plain.fma(Plain.mul(a.values, first), second, c.values),
            _ => Plain.fma(a.values, b.values, c.values),
        })
    }

    fn fnma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        self.fma(Lanes { values: a.values.map(|a| -a), factors: None }, b, c)
    }

    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        Lanes { values: Plain.max(a.values, b.values), factors: None }
    }

    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        Lanes { values: Plain.min(a.values, b.values), factors: None }
    }

    fn load_halves(self, from: &[u16; LANES]) -> Lanes {
        Lanes { values: Plain.load_halves(from), factors: None }
    }

    fn store_halves(self, value: Lanes, to: &mut [u16; LANES]) {
        *to = value.values.map(|value| {
            let half = narrow(value);
            // The half below in magnitude has the number below.
            if self.0 == Slip::CutHalves && widen(half).abs() > value.abs() { half - 1 } else { half }
        });
    }

    fn load_brains(self, from: &[u16; LANES]) -> Lanes {
        Lanes { values: Plain.load_brains(from), factors: None }
    }

    fn scale(self, value: Lanes, power: Lanes) -> Lanes {
        self.result(Plain.scale(value.values, power.values))
    }

    fn swap_pairs(self, value: Lanes) -> Lanes {
        Lanes { values: Plain.swap_pairs(value.values), factors: None }
    }

    fn sum(self, value: Lanes) -> f32 {
        if self.0 == Slip::InOrder { value.values.into_iter().sum() } else { Plain.sum(value.values) }
    }

    fn round(self, value: Lanes) -> Self::I {
        if self.0 == Slip::TiesAway {
            value.values.map(|value| value.round() as i32)
        } else {
            Plain.round(value.values)
        }
    }

    fn float(self, value: Self::I) -> Lanes {
        Lanes { values: Plain.float(value), factors: None }
    }

    fn bits(self, value: Lanes) -> Self::I {
        Plain.bits(value.values)
    }

    as_plain! {
        fn splat_int(value: i32) -> Self::I;
        fn load_ints(from: &[i32; LANES]) -> Self::I;
        fn store_ints(value: Self::I, to: &mut [i32; LANES]);
        fn add_ints(a: Self::I, b: Self::I) -> Self::I;
        fn mul_ints(a: Self::I, b: Self::I) -> Self::I;
        fn max_ints(a: Self::I, b: Self::I) -> Self::I;
        fn shift_left<const BITS>(a: Self::I) -> Self::I;
        fn shift_right<const BITS>(a: Self::I) -> Self::I;
        fn and_ints(a: Self::I, b: Self::I) -> Self::I;
        fn load_signed(from: &[u8; LANES]) -> Self::I;
        fn load_unsigned(from: &[u8; LANES]) -> Self::I;
        fn store_bytes(value: Self::I, to: &mut [i8; LANES]);
        fn load_bytes(from: &[u8; BYTES]) -> Self::B;
        fn store_quads(value: Self::B, to: &mut [u8; BYTES]);
        fn or_bytes(a: Self::B, b: Self::B) -> Self::B;
        fn bits_of<const SHIFT>(value: Self::B, mask: u8) -> Self::B;
        fn raise<const SHIFT>(value: Self::B) -> Self::B;
        fn open(sum: Self::I) -> Self::Run;
        fn dot(run: Self::Run, weights: Self::B, codes: i32) -> Self::Run;
        fn biased(codes: i32) -> Self::I;
        fn dot_biased(run: Self::Run, weights: Self::B, codes: i32) -> Self::Run;
        fn close(sum: Self::I, run: Self::Run) -> Self::I;
        fn prefetch(from: &[u8], ahead: usize);
    }

    fn prefetch_at<T>(self, _: &T) {}
}
