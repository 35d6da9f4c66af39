//! [`Simd`] on x86-64.

use std::arch::x86_64::*;

use crate::engine::canonical::simd::BYTES;
use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Simd;

/// The largest half.
const LARGEST_HALF: f32 = 65_504.0;

/// AVX2, FMA and F16C: two registers of eight lanes. A value proves that the machine has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

impl Avx2 {
    /// The proof, if it is so.
    #[inline]
    pub(super) fn detect() -> Option<Self> {
        let has =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }
}

// SAFETY of every block in this implementation: a value of `Avx2` proves that the machine has the instructions, and what is read
// or written is a reference to an array of exactly the length that the instructions touch.
impl Simd for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];
    type Run = [__m256i; 2];
    const TILE: usize = 4;

    const ROOMY: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
    }

    #[inline(always)]
    fn store(self, value: Self::F, to: &mut [f32; LANES]) {
        // SAFETY: as said at the implementation.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), value[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), value[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_fnmadd_ps(a[0], b[0], c[0]), _mm256_fnmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn load_halves(self, from: &[u16; LANES]) -> Self::F {
        let from = from.as_ptr().cast::<__m128i>();
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from.add(1)))] }
    }

    #[inline(always)]
    fn store_halves(self, value: Self::F, to: &mut [u16; LANES]) {
        let to = to.as_mut_ptr().cast::<__m128i>();
        // The limit comes first, so that a not-a-number passes.
        let value = self.max(self.splat(-LARGEST_HALF), self.min(self.splat(LARGEST_HALF), value));
        // SAFETY: as said at the implementation.
        unsafe {
            _mm_storeu_si128(to, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value[0]));
            _mm_storeu_si128(to.add(1), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value[1]));
        }
    }

    #[inline(always)]
    fn load_brains(self, from: &[u16; LANES]) -> Self::F {
        let from = from.as_ptr().cast::<__m128i>();
        // SAFETY: as said at the implementation.
        unsafe {
            let low = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from)));
            let high = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(1))));
            [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
        }
    }

    #[inline(always)]
    fn scale(self, value: Self::F, power: Self::F) -> Self::F {
        // In two steps, of which the first is exact. Without closures, into which the compiler may not inline intrinsics.
        // SAFETY: as said at the implementation.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let power = [_mm256_cvtps_epi32(power[0]), _mm256_cvtps_epi32(power[1])];
            let first = [_mm256_srai_epi32::<1>(power[0]), _mm256_srai_epi32::<1>(power[1])];
            let second = [_mm256_sub_epi32(power[0], first[0]), _mm256_sub_epi32(power[1], first[1])];
            let mut product = value;
            for step in [first, second] {
                let exponents = [_mm256_add_epi32(step[0], bias), _mm256_add_epi32(step[1], bias)];
                let factors = [_mm256_slli_epi32::<23>(exponents[0]), _mm256_slli_epi32::<23>(exponents[1])];
                product[0] = _mm256_mul_ps(product[0], _mm256_castsi256_ps(factors[0]));
                product[1] = _mm256_mul_ps(product[1], _mm256_castsi256_ps(factors[1]));
            }
            product
        }
    }

    #[inline(always)]
    fn swap_pairs(self, value: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_permute_ps::<0b10_11_00_01>(value[0]), _mm256_permute_ps::<0b10_11_00_01>(value[1])] }
    }

    #[inline(always)]
    fn sum(self, value: Self::F) -> f32 {
        // SAFETY: as said at the implementation.
        unsafe {
            let eight = _mm256_add_ps(value[0], value[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_set1_epi32(value); 2] }
    }

    #[inline(always)]
    fn load_ints(self, from: &[i32; LANES]) -> Self::I {
        let from = from.as_ptr().cast::<__m256i>();
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))] }
    }

    #[inline(always)]
    fn store_ints(self, value: Self::I, to: &mut [i32; LANES]) {
        let to = to.as_mut_ptr().cast::<__m256i>();
        // SAFETY: as said at the implementation.
        unsafe {
            _mm256_storeu_si256(to, value[0]);
            _mm256_storeu_si256(to.add(1), value[1]);
        }
    }

    #[inline(always)]
    fn add_ints(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul_ints(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_mullo_epi32(a[0], b[0]), _mm256_mullo_epi32(a[1], b[1])] }
    }

    #[inline(always)]
    fn max_ints(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_max_epi32(a[0], b[0]), _mm256_max_epi32(a[1], b[1])] }
    }

    #[inline(always)]
    fn and_ints(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])] }
    }

    #[inline(always)]
    fn shift_left<const BITS: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe {
            let count = _mm_cvtsi32_si128(BITS as i32);
            [_mm256_sll_epi32(a[0], count), _mm256_sll_epi32(a[1], count)]
        }
    }

    #[inline(always)]
    fn shift_right<const BITS: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe {
            let count = _mm_cvtsi32_si128(BITS as i32);
            [_mm256_srl_epi32(a[0], count), _mm256_srl_epi32(a[1], count)]
        }
    }

    #[inline(always)]
    fn round(self, value: Self::F) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_cvtps_epi32(value[0]), _mm256_cvtps_epi32(value[1])] }
    }

    #[inline(always)]
    fn float(self, value: Self::I) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_cvtepi32_ps(value[0]), _mm256_cvtepi32_ps(value[1])] }
    }

    #[inline(always)]
    fn bits(self, value: Self::F) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_castps_si256(value[0]), _mm256_castps_si256(value[1])] }
    }

    #[inline(always)]
    fn load_signed(self, from: &[u8; LANES]) -> Self::I {
        let from = from.as_ptr().cast::<__m128i>();
        // SAFETY: as said at the implementation.
        unsafe {
            let bytes = _mm_loadu_si128(from);
            [_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes))]
        }
    }

    #[inline(always)]
    fn load_unsigned(self, from: &[u8; LANES]) -> Self::I {
        let from = from.as_ptr().cast::<__m128i>();
        // SAFETY: as said at the implementation.
        unsafe {
            let bytes = _mm_loadu_si128(from);
            [_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes))]
        }
    }

    #[inline(always)]
    fn store_bytes(self, value: Self::I, to: &mut [i8; LANES]) {
        // SAFETY: as said at the implementation.
        unsafe {
            // Packing works within halves of a register: 0–3 8–11 4–7 12–15 come out as quarters 0 2 1 3.
            let pairs = _mm256_packs_epi32(value[0], value[1]);
            let pairs = _mm256_permute4x64_epi64::<0b11_01_10_00>(pairs);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
            _mm_storeu_si128(to.as_mut_ptr().cast::<__m128i>(), bytes);
        }
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; BYTES]) -> Self::B {
        let from = from.as_ptr().cast::<__m256i>();
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))] }
    }

    #[inline(always)]
    fn store_quads(self, value: Self::B, to: &mut [u8; BYTES]) {
        let to = to.as_mut_ptr().cast::<__m256i>();
        // SAFETY: as said at the implementation.
        unsafe {
            _mm256_storeu_si256(to, value[0]);
            _mm256_storeu_si256(to.add(1), value[1]);
        }
    }

    #[inline(always)]
    fn or_bytes(self, a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: as said at the implementation.
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }

    #[inline(always)]
    fn bits_of<const SHIFT: u32>(self, value: Self::B, mask: u8) -> Self::B {
        // SAFETY: as said at the implementation.
        unsafe {
            let (count, mask) = (_mm_cvtsi32_si128(SHIFT as i32), _mm256_set1_epi8(mask as i8));
            let shifted = [_mm256_srl_epi16(value[0], count), _mm256_srl_epi16(value[1], count)];
            [_mm256_and_si256(shifted[0], mask), _mm256_and_si256(shifted[1], mask)]
        }
    }

    #[inline(always)]
    fn raise<const SHIFT: u32>(self, value: Self::B) -> Self::B {
        // SAFETY: as said at the implementation.
        unsafe {
            let count = _mm_cvtsi32_si128(SHIFT as i32);
            [_mm256_sll_epi16(value[0], count), _mm256_sll_epi16(value[1], count)]
        }
    }

    #[inline(always)]
    fn open(self, _: Self::I) -> Self::Run {
        self.splat_int(0)
    }

    #[inline(always)]
    fn dot(self, run: Self::Run, weights: Self::B, codes: i32) -> Self::Run {
        // SAFETY: as said at the implementation.
        unsafe {
            let codes = _mm256_set1_epi32(codes);
            let low = _mm256_add_epi16(run[0], _mm256_maddubs_epi16(weights[0], codes));
            [low, _mm256_add_epi16(run[1], _mm256_maddubs_epi16(weights[1], codes))]
        }
    }

    #[inline(always)]
    fn biased(self, _: i32) -> Self::I {
        self.splat_int(0)
    }

    #[inline(always)]
    fn dot_biased(self, _: Self::Run, weights: Self::B, codes: i32) -> Self::Run {
        // SAFETY: as said at the implementation.
        unsafe {
            let (bias, codes) = (_mm256_set1_epi8(-128), _mm256_set1_epi32(codes));
            let (low, high) = (_mm256_xor_si256(weights[0], bias), _mm256_xor_si256(weights[1], bias));
            // The codes take the weights' signs; 128 × 127 × 2 fits into 16 bits.
            let first = _mm256_maddubs_epi16(_mm256_abs_epi8(low), _mm256_sign_epi8(codes, low));
            [first, _mm256_maddubs_epi16(_mm256_abs_epi8(high), _mm256_sign_epi8(codes, high))]
        }
    }

    #[inline(always)]
    fn close(self, sum: Self::I, run: Self::Run) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let low = _mm256_add_epi32(sum[0], _mm256_madd_epi16(run[0], ones));
            [low, _mm256_add_epi32(sum[1], _mm256_madd_epi16(run[1], ones))]
        }
    }

    #[inline(always)]
    fn prefetch(self, from: &[u8], ahead: usize) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().wrapping_add(ahead).cast::<i8>()) }
    }

    #[inline(always)]
    fn prefetch_at<T>(self, at: &T) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(at).cast::<i8>()) }
    }
}

/// AVX-512 F, BW, DQ and VL, and VNNI if so said. A value proves that the machine has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512<const VNNI: bool>(());

impl<const VNNI: bool> Avx512<VNNI> {
    /// The proof, if it is so.
    #[inline]
    pub(super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && (!VNNI || is_x86_feature_detected!("avx512vnni"))
            && Avx2::detect().is_some();
        has.then_some(Self(()))
    }
}

// SAFETY of every block in this implementation: a value of `Avx512` proves that the machine has the instructions, and what is read
// or written is a reference to an array of exactly the length that the instructions touch.
impl<const VNNI: bool> Simd for Avx512<VNNI> {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    type Run = __m512i;
    const TILE: usize = 8;

    const ROOMY: bool = true;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, value: Self::F, to: &mut [f32; LANES]) {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn load_halves(self, from: &[u16; LANES]) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast::<__m256i>())) }
    }

    #[inline(always)]
    fn store_halves(self, value: Self::F, to: &mut [u16; LANES]) {
        // The limit comes first, so that a not-a-number passes.
        let value = self.max(self.splat(-LARGEST_HALF), self.min(self.splat(LARGEST_HALF), value));
        // SAFETY: as said at the implementation.
        unsafe {
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value);
            _mm256_storeu_si256(to.as_mut_ptr().cast::<__m256i>(), halves);
        }
    }

    #[inline(always)]
    fn load_brains(self, from: &[u16; LANES]) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast::<__m256i>()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    fn scale(self, value: Self::F, power: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_scalef_ps(value, power) }
    }

    #[inline(always)]
    fn swap_pairs(self, value: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_permute_ps::<0b10_11_00_01>(value) }
    }

    #[inline(always)]
    fn sum(self, value: Self::F) -> f32 {
        // SAFETY: as said at the implementation.
        unsafe {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps::<1>(value));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    fn load_ints(self, from: &[i32; LANES]) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast::<__m512i>()) }
    }

    #[inline(always)]
    fn store_ints(self, value: Self::I, to: &mut [i32; LANES]) {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast::<__m512i>(), value) }
    }

    #[inline(always)]
    fn add_ints(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn mul_ints(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_mullo_epi32(a, b) }
    }

    #[inline(always)]
    fn max_ints(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_max_epi32(a, b) }
    }

    #[inline(always)]
    fn and_ints(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_and_si512(a, b) }
    }

    #[inline(always)]
    fn shift_left<const BITS: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_slli_epi32::<BITS>(a) }
    }

    #[inline(always)]
    fn shift_right<const BITS: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_srli_epi32::<BITS>(a) }
    }

    #[inline(always)]
    fn round(self, value: Self::F) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_cvtps_epi32(value) }
    }

    #[inline(always)]
    fn float(self, value: Self::I) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_cvtepi32_ps(value) }
    }

    #[inline(always)]
    fn bits(self, value: Self::F) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_castps_si512(value) }
    }

    #[inline(always)]
    fn load_signed(self, from: &[u8; LANES]) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast::<__m128i>())) }
    }

    #[inline(always)]
    fn load_unsigned(self, from: &[u8; LANES]) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast::<__m128i>())) }
    }

    #[inline(always)]
    fn store_bytes(self, value: Self::I, to: &mut [i8; LANES]) {
        // SAFETY: as said at the implementation.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast::<__m128i>(), _mm512_cvtepi32_epi8(value)) }
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; BYTES]) -> Self::B {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast::<__m512i>()) }
    }

    #[inline(always)]
    fn store_quads(self, value: Self::B, to: &mut [u8; BYTES]) {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast::<__m512i>(), value) }
    }

    #[inline(always)]
    fn or_bytes(self, a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    fn bits_of<const SHIFT: u32>(self, value: Self::B, mask: u8) -> Self::B {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<SHIFT>(value), _mm512_set1_epi8(mask as i8)) }
    }

    #[inline(always)]
    fn raise<const SHIFT: u32>(self, value: Self::B) -> Self::B {
        // SAFETY: as said at the implementation.
        unsafe { _mm512_slli_epi16::<SHIFT>(value) }
    }

    #[inline(always)]
    fn open(self, sum: Self::I) -> Self::Run {
        if VNNI { sum } else { self.splat_int(0) }
    }

    #[inline(always)]
    fn dot(self, run: Self::Run, weights: Self::B, codes: i32) -> Self::Run {
        // SAFETY: as said at the implementation.
        unsafe {
            let codes = _mm512_set1_epi32(codes);
            if VNNI {
                _mm512_dpbusd_epi32(run, weights, codes)
            } else {
                _mm512_add_epi16(run, _mm512_maddubs_epi16(weights, codes))
            }
        }
    }

    #[inline(always)]
    fn biased(self, codes: i32) -> Self::I {
        self.splat_int(if VNNI { -128 * codes } else { 0 })
    }

    #[inline(always)]
    fn dot_biased(self, run: Self::Run, weights: Self::B, codes: i32) -> Self::Run {
        // SAFETY: as said at the implementation.
        unsafe {
            let codes = _mm512_set1_epi32(codes);
            if VNNI {
                return _mm512_dpbusd_epi32(run, weights, codes);
            }
            let weights = _mm512_xor_si512(weights, _mm512_set1_epi8(-128));
            // The codes take the weights' signs; 128 × 127 × 2 fits into 16 bits.
            let codes = _mm512_mask_sub_epi8(codes, _mm512_movepi8_mask(weights), _mm512_setzero_si512(), codes);
            _mm512_maddubs_epi16(_mm512_abs_epi8(weights), codes)
        }
    }

    #[inline(always)]
    fn close(self, sum: Self::I, run: Self::Run) -> Self::I {
        if VNNI {
            return run;
        }
        // SAFETY: as said at the implementation.
        unsafe { _mm512_add_epi32(sum, _mm512_madd_epi16(run, _mm512_set1_epi16(1))) }
    }

    #[inline(always)]
    fn prefetch(self, from: &[u8], ahead: usize) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().wrapping_add(ahead).cast::<i8>()) }
    }

    #[inline(always)]
    fn prefetch_at<T>(self, at: &T) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(at).cast::<i8>()) }
    }
}
