//! Sixteen lanes at a time, on every instruction set.
//!
//! The kernels are written once, over `Simd`, and compiled for each instruction set by `kernels!`. Every operation here
//! is one that all sets perform with the same bits: exact integer operations, and the correctly rounded ones of IEEE 754.
//! A value of an implementing type is a proof that the machine has the instructions, so that its methods are safe: it
//! comes from [`InstructionSet::is_available`] alone.

use crate::engine::canonical::fused::fused;
use crate::engine::canonical::half::narrow;
use crate::engine::canonical::half::widen;

/// Lanes of a vector, and rows of a weight group.
pub(super) const LANES: usize = 16;

/// Bytes of a vector of bytes: four for each lane.
pub(super) const BYTES: usize = 4 * LANES;

/// What a machine may compute with, those of a processor slowest first. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InstructionSet {
    /// Nothing but what every machine has.
    Plain,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same with VNNI.
    Vnni,
    /// The same with AMX-int8, for products of many rows.
    Amx,
    /// 64-bit ARM, which always has NEON.
    Neon,
    /// The same with the dot-product extension.
    NeonDot,
    /// What breaks a rule, for tests to see. On no list.
    #[cfg(test)]
    Wrong(super::wrong::Slip),
}

impl InstructionSet {
    /// All of them, those of a processor slowest first.
    pub const ALL: [Self; 7] =
        [Self::Plain, Self::Avx2, Self::Avx512, Self::Vnni, Self::Amx, Self::Neon, Self::NeonDot];

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Plain => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => super::x86::Avx2::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => super::x86::Avx512::<false>::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Vnni => super::x86::Avx512::<true>::detect().is_some(),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx => Self::Vnni.is_available() && super::amx::is_available(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => super::neon::Neon::<false>::detect().is_some(),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => super::neon::Neon::<true>::detect().is_some(),
            #[allow(unreachable_patterns, reason = "reachable on other architectures")]
            _ => false,
        }
    }

    /// The fastest that this machine has.
    pub fn best() -> Self {
        static BEST: std::sync::OnceLock<InstructionSet> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| Self::ALL.into_iter().rev().find(|set| set.is_available()).unwrap_or(Self::Plain))
    }

    /// The name that flags and messages use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Vnni => "vnni",
            Self::Amx => "amx",
            Self::Neon => "neon",
            Self::NeonDot => "neon-dot",
            #[cfg(test)]
            Self::Wrong(_) => "wrong",
        }
    }
}

/// Operations on 16 lanes.
///
/// - `F`: 16 × f32; `I`: 16 × i32; `B`: 64 bytes, four for each lane; `Run`: dot products on the way
pub(super) trait Simd: Copy {
    type F: Copy;
    type I: Copy;
    type B: Copy;
    type Run: Copy;
    /// Inputs that a product takes at once: as many as there are registers for.
    const TILE: usize;

    /// Whether the registers hold 16 sums at once, and what they are made of; else they hold four.
    const ROOMY: bool;

    fn splat(self, value: f32) -> Self::F;
    fn load(self, from: &[f32; LANES]) -> Self::F;
    fn store(self, value: Self::F, to: &mut [f32; LANES]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a × b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c − a × b`, rounded once.
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a` where `a > b`, else `b`: also `b` where either is not a number.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a` where `a < b`, else `b`: also `b` where either is not a number.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// Halves to f32, exactly.
    fn load_halves(self, from: &[u16; LANES]) -> Self::F;
    /// f32 to halves, to nearest even; beyond the largest half, the largest half. Not-a-number stays so.
    fn store_halves(self, value: Self::F, to: &mut [u16; LANES]);
    /// The upper 16 bits of f32s to f32, exactly.
    fn load_brains(self, from: &[u16; LANES]) -> Self::F;
    /// `value × 2^power`, rounded once. The value is within [½, 2], the power whole and within ±160; not-a-number stays so.
    fn scale(self, value: Self::F, power: Self::F) -> Self::F;
    /// Lanes `2i` and `2i + 1` change places.
    fn swap_pairs(self, value: Self::F) -> Self::F;
    /// Adds lanes `i` and `i + 8`, then `i` and `i + 4`, and so on.
    fn sum(self, value: Self::F) -> f32;

    fn splat_int(self, value: i32) -> Self::I;
    fn load_ints(self, from: &[i32; LANES]) -> Self::I;
    fn store_ints(self, value: Self::I, to: &mut [i32; LANES]);
    fn add_ints(self, a: Self::I, b: Self::I) -> Self::I;
    /// The lower 32 bits of the products.
    fn mul_ints(self, a: Self::I, b: Self::I) -> Self::I;
    /// The larger, as signed.
    fn max_ints(self, a: Self::I, b: Self::I) -> Self::I;
    fn shift_left<const BITS: u32>(self, a: Self::I) -> Self::I;
    /// Zeros come in from above.
    fn shift_right<const BITS: u32>(self, a: Self::I) -> Self::I;
    fn and_ints(self, a: Self::I, b: Self::I) -> Self::I;
    /// The nearest whole numbers, halves to even. The values must be within ±2³⁰.
    fn round(self, value: Self::F) -> Self::I;
    /// Nearest even, where 24 bits are too few.
    fn float(self, value: Self::I) -> Self::F;
    fn bits(self, value: Self::F) -> Self::I;
    /// Sign-extended bytes.
    fn load_signed(self, from: &[u8; LANES]) -> Self::I;
    /// Zero-extended bytes.
    fn load_unsigned(self, from: &[u8; LANES]) -> Self::I;
    /// The lanes as bytes, into which they must fit.
    fn store_bytes(self, value: Self::I, to: &mut [i8; LANES]);

    fn load_bytes(self, from: &[u8; BYTES]) -> Self::B;
    fn store_quads(self, value: Self::B, to: &mut [u8; BYTES]);
    fn or_bytes(self, a: Self::B, b: Self::B) -> Self::B;
    /// `value >> SHIFT & mask` of each byte. The mask has no bits that the shift brings in from a neighbour.
    fn bits_of<const SHIFT: u32>(self, value: Self::B, mask: u8) -> Self::B;
    /// `value << SHIFT` of each byte, of whose bits none leaves it.
    fn raise<const SHIFT: u32>(self, value: Self::B) -> Self::B;
    /// Opens a run of dot products that will be added to `sum`.
    fn open(self, sum: Self::I) -> Self::Run;
    /// Adds to each lane the products of its bytes of `weights` (unsigned) with the four bytes of `codes` (signed, never −128).
    ///
    /// Over a run, the largest bytes of the weights together are at most 127: then sums of 16 bits suffice on the way, and
    /// the weights are the same as signed bytes.
    fn dot(self, run: Self::Run, weights: Self::B, codes: i32) -> Self::Run;
    /// What a run of [`Self::dot_biased`] is added to, if all its codes add up to `codes`.
    fn biased(self, codes: i32) -> Self::I;
    /// As [`Self::dot`] with weights `byte − 128`. A run is one of these.
    fn dot_biased(self, run: Self::Run, weights: Self::B, codes: i32) -> Self::Run;
    /// Closes the run that was opened with `sum`: returns the sum with the dot products added.
    fn close(self, sum: Self::I, run: Self::Run) -> Self::I;
    /// Asks for the cache line of `from + ahead` bytes; any address will do.
    fn prefetch(self, from: &[u8], ahead: usize);
    /// Asks for the cache line in which `at` begins, into the second level.
    fn prefetch_at<T>(self, at: &T);
}

/// Compiles `$body`, which must be `#[inline(always)]` and generic over [`Simd`], for every instruction set, and makes
/// a function that takes the set to use. One that the machine lacks gives way to the plain one.
macro_rules! kernels {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $body:path;)*) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "the first is the instruction set")]
        $vis fn $name(set: $crate::engine::canonical::simd::InstructionSet, $($arg: $type),*) $(-> $result)? {
            #[cfg(test)]
            if let $crate::engine::canonical::simd::InstructionSet::Wrong(slip) = set {
                return $body($crate::engine::canonical::wrong::Wrong(slip), $($arg),*);
            }
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::engine::canonical::simd::InstructionSet;
                use $crate::engine::canonical::x86::Avx2;
                use $crate::engine::canonical::x86::Avx512;
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2(simd: Avx2, $($arg: $type),*) $(-> $result)? {
                    $body(simd, $($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                fn avx512(simd: Avx512<false>, $($arg: $type),*) $(-> $result)? {
                    $body(simd, $($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
                fn vnni(simd: Avx512<true>, $($arg: $type),*) $(-> $result)? {
                    $body(simd, $($arg),*)
                }
                match set {
                    InstructionSet::Plain | InstructionSet::Neon | InstructionSet::NeonDot => {}
                    #[cfg(test)]
                    InstructionSet::Wrong(_) => {}
                    InstructionSet::Avx2 => if let Some(simd) = Avx2::detect() {
                        // SAFETY: `simd` proves that the machine has these instructions.
                        return unsafe { avx2(simd, $($arg),*) };
                    },
                    InstructionSet::Avx512 => if let Some(simd) = Avx512::<false>::detect() {
                        // SAFETY: as above.
                        return unsafe { avx512(simd, $($arg),*) };
                    },
                    InstructionSet::Vnni | InstructionSet::Amx => if let Some(simd) = Avx512::<true>::detect() {
                        // SAFETY: as above.
                        return unsafe { vnni(simd, $($arg),*) };
                    },
                }
            }
            #[cfg(target_arch = "aarch64")]
            {
                use $crate::engine::canonical::neon::Neon;
                use $crate::engine::canonical::simd::InstructionSet;
                #[inline(never)]
                fn neon(simd: Neon<false>, $($arg: $type),*) $(-> $result)? {
                    $body(simd, $($arg),*)
                }
                #[inline(never)]
                fn neon_dot(simd: Neon<true>, $($arg: $type),*) $(-> $result)? {
                    $body(simd, $($arg),*)
                }
                match set {
                    InstructionSet::Neon => if let Some(simd) = Neon::<false>::detect() {
                        return neon(simd, $($arg),*);
                    },
                    InstructionSet::NeonDot => if let Some(simd) = Neon::<true>::detect() {
                        return neon_dot(simd, $($arg),*);
                    },
                    InstructionSet::Plain
                    | InstructionSet::Avx2
                    | InstructionSet::Avx512
                    | InstructionSet::Vnni
                    | InstructionSet::Amx => {}
                    #[cfg(test)]
                    InstructionSet::Wrong(_) => {}
                }
            }
            #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
            let _ = set;
            $body($crate::engine::canonical::simd::Plain, $($arg),*)
        }
    )*};
}
pub(super) use kernels;

/// One lane after the other, on any machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain;

#[inline(always)]
fn each<A: Copy, B: Copy, C>(a: [A; LANES], b: [B; LANES], operation: impl Fn(A, B) -> C) -> [C; LANES] {
    std::array::from_fn(|lane| operation(a[lane], b[lane]))
}

/// 2^power, for powers in −126..=127.
#[inline(always)]
fn power_of_two(power: i32) -> f32 {
    f32::from_bits(((power + 127) as u32) << 23)
}

impl Simd for Plain {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type B = [u8; BYTES];
    type Run = [i32; LANES];
    const TILE: usize = 4;

    const ROOMY: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        *from
    }

    #[inline(always)]
    fn store(self, value: Self::F, to: &mut [f32; LANES]) {
        *to = value;
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|lane| fused(a[lane], b[lane], c[lane]))
    }

    #[inline(always)]
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|lane| fused(-a[lane], b[lane], c[lane]))
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn load_halves(self, from: &[u16; LANES]) -> Self::F {
        from.map(widen)
    }

    #[inline(always)]
    fn store_halves(self, value: Self::F, to: &mut [u16; LANES]) {
        *to = value.map(narrow);
    }

    #[inline(always)]
    fn load_brains(self, from: &[u16; LANES]) -> Self::F {
        from.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }

    #[inline(always)]
    fn scale(self, value: Self::F, power: Self::F) -> Self::F {
        // In two halves, of which the first is exact.
        each(value, power, |value, power| {
            let (power, half) = (power as i32, power as i32 >> 1);
            value * power_of_two(half) * power_of_two(power - half)
        })
    }

    #[inline(always)]
    fn swap_pairs(self, value: Self::F) -> Self::F {
        std::array::from_fn(|lane| value[lane ^ 1])
    }

    #[inline(always)]
    fn sum(self, mut value: Self::F) -> f32 {
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                value[lane] += value[lane + half];
            }
        }
        value[0]
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> Self::I {
        [value; LANES]
    }

    #[inline(always)]
    fn load_ints(self, from: &[i32; LANES]) -> Self::I {
        *from
    }

    #[inline(always)]
    fn store_ints(self, value: Self::I, to: &mut [i32; LANES]) {
        *to = value;
    }

    #[inline(always)]
    fn add_ints(self, a: Self::I, b: Self::I) -> Self::I {
        each(a, b, i32::wrapping_add)
    }

    #[inline(always)]
    fn mul_ints(self, a: Self::I, b: Self::I) -> Self::I {
        each(a, b, i32::wrapping_mul)
    }

    #[inline(always)]
    fn max_ints(self, a: Self::I, b: Self::I) -> Self::I {
        each(a, b, i32::max)
    }

    #[inline(always)]
    fn shift_left<const BITS: u32>(self, a: Self::I) -> Self::I {
        a.map(|a| a << BITS)
    }

    #[inline(always)]
    fn shift_right<const BITS: u32>(self, a: Self::I) -> Self::I {
        a.map(|a| (a as u32 >> BITS) as i32)
    }

    #[inline(always)]
    fn and_ints(self, a: Self::I, b: Self::I) -> Self::I {
        each(a, b, |a, b| a & b)
    }

    #[inline(always)]
    fn round(self, value: Self::F) -> Self::I {
        value.map(|value| value.round_ties_even() as i32)
    }

    #[inline(always)]
    fn float(self, value: Self::I) -> Self::F {
        value.map(|value| value as f32)
    }

    #[inline(always)]
    fn bits(self, value: Self::F) -> Self::I {
        value.map(|value| value.to_bits() as i32)
    }

    #[inline(always)]
    fn load_signed(self, from: &[u8; LANES]) -> Self::I {
        from.map(|byte| i32::from(byte as i8))
    }

    #[inline(always)]
    fn load_unsigned(self, from: &[u8; LANES]) -> Self::I {
        from.map(i32::from)
    }

    #[inline(always)]
    fn store_bytes(self, value: Self::I, to: &mut [i8; LANES]) {
        *to = value.map(|value| value as i8);
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; BYTES]) -> Self::B {
        *from
    }

    #[inline(always)]
    fn store_quads(self, value: Self::B, to: &mut [u8; BYTES]) {
        *to = value;
    }

    #[inline(always)]
    fn or_bytes(self, a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|index| a[index] | b[index])
    }

    #[inline(always)]
    fn bits_of<const SHIFT: u32>(self, value: Self::B, mask: u8) -> Self::B {
        value.map(|byte| byte >> SHIFT & mask)
    }

    #[inline(always)]
    fn raise<const SHIFT: u32>(self, value: Self::B) -> Self::B {
        value.map(|byte| byte << SHIFT)
    }

    #[inline(always)]
    fn open(self, sum: Self::I) -> Self::Run {
        sum
    }

    #[inline(always)]
    fn dot(self, mut run: Self::Run, weights: Self::B, codes: i32) -> Self::Run {
        let codes = codes.to_le_bytes().map(|code| i32::from(code as i8));
        for (sum, weights) in run.iter_mut().zip(weights.as_chunks::<4>().0) {
            for (weight, code) in weights.iter().zip(codes) {
                // No sum of a product comes near the end; as every instruction does there, it wraps round.
                *sum = sum.wrapping_add(i32::from(*weight) * code);
            }
        }
        run
    }

    #[inline(always)]
    fn biased(self, codes: i32) -> Self::I {
        [-128 * codes; LANES]
    }

    #[inline(always)]
    fn dot_biased(self, run: Self::Run, weights: Self::B, codes: i32) -> Self::Run {
        self.dot(run, weights, codes)
    }

    #[inline(always)]
    fn close(self, _: Self::I, run: Self::Run) -> Self::I {
        run
    }

    #[inline(always)]
    fn prefetch(self, _: &[u8], _: usize) {}

    #[inline(always)]
    fn prefetch_at<T>(self, _: &T) {}
}
