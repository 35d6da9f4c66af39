//! [`Simd`] on 64-bit ARM: four registers of four lanes.
//!
//! On an x86-64 machine the module's tests run under an emulator, once with the dot-product extension and once without:
//!
//! ```text
//! rustup target add aarch64-unknown-linux-gnu
//! apt-get install gcc-aarch64-linux-gnu qemu-user-static
//! export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
//! for cpu in max cortex-a57; do
//!     CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu -cpu $cpu" \
//!         cargo test --target aarch64-unknown-linux-gnu --lib engine::
//! done
//! ```

use std::arch::aarch64::*;
use std::arch::asm;
use std::arch::is_aarch64_feature_detected;

use crate::engine::canonical::simd::BYTES;
use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Simd;

/// The largest half.
const LARGEST_HALF: f32 = 65_504.0;

/// NEON, with the dot-product extension if so said. A value proves that the machine has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Neon<const DOT: bool>(());

impl<const DOT: bool> Neon<DOT> {
    /// The proof, if it is so.
    #[inline]
    pub(super) fn detect() -> Option<Self> {
        let has = is_aarch64_feature_detected!("neon") && (!DOT || is_aarch64_feature_detected!("dotprod"));
        has.then_some(Self(()))
    }
}

/// `$body` for each register, of number `$at`. A closure of the standard library would send the registers through memory.
macro_rules! each {
    ($at:ident => $body:expr) => {
        [each!($at, 0 => $body), each!($at, 1 => $body), each!($at, 2 => $body), each!($at, 3 => $body)]
    };
    ($at:ident, $number:literal => $body:expr) => {{
        let $at: usize = $number;
        $body
    }};
}

/// Four halves as f32. The instruction is every machine's, its intrinsic younger than the oldest compiler supported.
#[inline(always)]
fn widen(halves: uint16x4_t) -> float32x4_t {
    let wide;
    // SAFETY: every 64-bit ARM machine with NEON has the instruction, which touches the named registers alone.
    unsafe { asm!("fcvtl {0:v}.4s, {1:v}.4h", lateout(vreg) wide, in(vreg) halves, options(pure, nomem, nostack)) };
    wide
}

/// The nearest halves, ties to even.
#[inline(always)]
fn narrow(wide: float32x4_t) -> uint16x4_t {
    let halves;
    // SAFETY: as in `widen`.
    unsafe { asm!("fcvtn {0:v}.4h, {1:v}.4s", lateout(vreg) halves, in(vreg) wide, options(pure, nomem, nostack)) };
    halves
}

/// Adds to each lane of the sums the products of its four bytes of `a` and `b`.
///
/// # Safety
/// The machine must have the dot-product extension.
#[inline(always)]
unsafe fn sdot(sums: [int32x4_t; 4], a: [int8x16_t; 4], b: int8x16_t) -> [int32x4_t; 4] {
    let [mut first, mut second, mut third, mut fourth] = sums;
    // SAFETY: the caller says that the machine has the instruction, which touches the named registers alone. The directive tells
    // the assembler so, wherever the compiler may put the function; it holds for this statement. One statement, as each
    // counts for as much as many instructions when the compiler weighs whether to unroll a loop.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {0:v}.4s, {4:v}.16b, {8:v}.16b",
            "sdot {1:v}.4s, {5:v}.16b, {8:v}.16b",
            "sdot {2:v}.4s, {6:v}.16b, {8:v}.16b",
            "sdot {3:v}.4s, {7:v}.16b, {8:v}.16b",
            inout(vreg) first, inout(vreg) second, inout(vreg) third, inout(vreg) fourth,
            in(vreg) a[0], in(vreg) a[1], in(vreg) a[2], in(vreg) a[3], in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    [first, second, third, fourth]
}

/// The same without the extension. Two products of bytes fit into 16 bits, if no byte of `b` is −128.
#[inline(always)]
fn sdot_in_steps(sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: every 64-bit ARM machine that Rust's target names has NEON.
    unsafe {
        let low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
        vpadalq_s16(sum, vpaddq_s16(low, vmull_high_s8(a, b)))
    }
}

/// Asks for the cache line of an address.
#[inline(always)]
fn prefetch(address: usize) {
    // SAFETY: a prefetch of any address is harmless.
    unsafe { asm!("prfm pldl1keep, [{}]", in(reg) address, options(nomem, nostack, preserves_flags)) };
}

impl<const DOT: bool> Neon<DOT> {
    /// Adds the products of signed bytes.
    #[inline(always)]
    fn dot_signed(self, run: [int32x4_t; 4], weights: [int8x16_t; 4], codes: i32) -> [int32x4_t; 4] {
        // SAFETY: a value of `Neon<true>` proves that the machine has the extension.
        unsafe {
            let codes = vreinterpretq_s8_s32(vdupq_n_s32(codes));
            if DOT { sdot(run, weights, codes) } else { each!(at => sdot_in_steps(run[at], weights[at], codes)) }
        }
    }
}

// SAFETY of every block in this implementation: a value of `Neon` proves that the machine has the instructions, and what is read
// or written is a reference to an array of exactly the length that the instructions touch.
impl<const DOT: bool> Simd for Neon<DOT> {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type B = [uint8x16_t; 4];
    type Run = [int32x4_t; 4];
    const TILE: usize = 4;

    const ROOMY: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { [vdupq_n_f32(value); 4] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vld1q_f32(from.as_ptr().add(4 * at))) }
    }

    #[inline(always)]
    fn store(self, value: Self::F, to: &mut [f32; LANES]) {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vst1q_f32(to.as_mut_ptr().add(4 * at), value[at])) };
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vaddq_f32(a[at], b[at])) }
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vsubq_f32(a[at], b[at])) }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vmulq_f32(a[at], b[at])) }
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vdivq_f32(a[at], b[at])) }
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vfmaq_f32(c[at], a[at], b[at])) }
    }

    #[inline(always)]
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vfmsq_f32(c[at], a[at], b[at])) }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // The instruction of that name treats not-a-numbers and zeros otherwise.
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vbslq_f32(vcgtq_f32(a[at], b[at]), a[at], b[at])) }
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vbslq_f32(vcltq_f32(a[at], b[at]), a[at], b[at])) }
    }

    #[inline(always)]
    fn load_halves(self, from: &[u16; LANES]) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => widen(vld1_u16(from.as_ptr().add(4 * at)))) }
    }

    #[inline(always)]
    fn store_halves(self, value: Self::F, to: &mut [u16; LANES]) {
        // The limit comes first, so that a not-a-number passes.
        let value = self.max(self.splat(-LARGEST_HALF), self.min(self.splat(LARGEST_HALF), value));
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vst1_u16(to.as_mut_ptr().add(4 * at), narrow(value[at]))) };
    }

    #[inline(always)]
    fn load_brains(self, from: &[u16; LANES]) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.as_ptr().add(4 * at))))) }
    }

    #[inline(always)]
    fn scale(self, value: Self::F, power: Self::F) -> Self::F {
        // In two steps, of which the first is exact. Powers that are no numbers become 0.
        // SAFETY: as said at the implementation.
        unsafe {
            let bias = vdupq_n_s32(127);
            let power = each!(at => vcvtnq_s32_f32(power[at]));
            let first = each!(at => vshrq_n_s32::<1>(power[at]));
            let second = each!(at => vsubq_s32(power[at], first[at]));
            let first = each!(at => vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(first[at], bias))));
            let second = each!(at => vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(second[at], bias))));
            each!(at => vmulq_f32(vmulq_f32(value[at], first[at]), second[at]))
        }
    }

    #[inline(always)]
    fn swap_pairs(self, value: Self::F) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vrev64q_f32(value[at])) }
    }

    #[inline(always)]
    fn sum(self, value: Self::F) -> f32 {
        // SAFETY: as said at the implementation.
        unsafe {
            let four = vaddq_f32(vaddq_f32(value[0], value[2]), vaddq_f32(value[1], value[3]));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { [vdupq_n_s32(value); 4] }
    }

    #[inline(always)]
    fn load_ints(self, from: &[i32; LANES]) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vld1q_s32(from.as_ptr().add(4 * at))) }
    }

    #[inline(always)]
    fn store_ints(self, value: Self::I, to: &mut [i32; LANES]) {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vst1q_s32(to.as_mut_ptr().add(4 * at), value[at])) };
    }

    #[inline(always)]
    fn add_ints(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vaddq_s32(a[at], b[at])) }
    }

    #[inline(always)]
    fn mul_ints(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vmulq_s32(a[at], b[at])) }
    }

    #[inline(always)]
    fn max_ints(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vmaxq_s32(a[at], b[at])) }
    }

    #[inline(always)]
    fn shift_left<const BITS: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vshlq_s32(a[at], vdupq_n_s32(BITS as i32))) }
    }

    #[inline(always)]
    fn shift_right<const BITS: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe {
            let count = vdupq_n_s32(-(BITS as i32));
            each!(at => vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a[at]), count)))
        }
    }

    #[inline(always)]
    fn and_ints(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vandq_s32(a[at], b[at])) }
    }

    #[inline(always)]
    fn round(self, value: Self::F) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vcvtnq_s32_f32(value[at])) }
    }

    #[inline(always)]
    fn float(self, value: Self::I) -> Self::F {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vcvtq_f32_s32(value[at])) }
    }

    #[inline(always)]
    fn bits(self, value: Self::F) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vreinterpretq_s32_f32(value[at])) }
    }

    #[inline(always)]
    fn load_signed(self, from: &[u8; LANES]) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe {
            let bytes = vld1q_s8(from.as_ptr().cast::<i8>());
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            [vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)]
        }
    }

    #[inline(always)]
    fn load_unsigned(self, from: &[u8; LANES]) -> Self::I {
        // SAFETY: as said at the implementation.
        unsafe {
            let bytes = vld1q_u8(from.as_ptr());
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            let (first, third) = (vmovl_u16(vget_low_u16(low)), vmovl_u16(vget_low_u16(high)));
            let words = [first, vmovl_high_u16(low), third, vmovl_high_u16(high)];
            each!(at => vreinterpretq_s32_u32(words[at]))
        }
    }

    #[inline(always)]
    fn store_bytes(self, value: Self::I, to: &mut [i8; LANES]) {
        // SAFETY: as said at the implementation.
        unsafe {
            let low = vmovn_high_s32(vmovn_s32(value[0]), value[1]);
            let high = vmovn_high_s32(vmovn_s32(value[2]), value[3]);
            vst1q_s8(to.as_mut_ptr(), vmovn_high_s16(vmovn_s16(low), high));
        }
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; BYTES]) -> Self::B {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vld1q_u8(from.as_ptr().add(16 * at))) }
    }

    #[inline(always)]
    fn store_quads(self, value: Self::B, to: &mut [u8; BYTES]) {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vst1q_u8(to.as_mut_ptr().add(16 * at), value[at])) };
    }

    #[inline(always)]
    fn or_bytes(self, a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vorrq_u8(a[at], b[at])) }
    }

    #[inline(always)]
    fn bits_of<const SHIFT: u32>(self, value: Self::B, mask: u8) -> Self::B {
        // SAFETY: as said at the implementation.
        unsafe {
            let (count, mask) = (vdupq_n_s8(-(SHIFT as i8)), vdupq_n_u8(mask));
            each!(at => vandq_u8(vshlq_u8(value[at], count), mask))
        }
    }

    #[inline(always)]
    fn raise<const SHIFT: u32>(self, value: Self::B) -> Self::B {
        // SAFETY: as said at the implementation.
        unsafe { each!(at => vshlq_u8(value[at], vdupq_n_s8(SHIFT as i8))) }
    }

    #[inline(always)]
    fn open(self, sum: Self::I) -> Self::Run {
        sum
    }

    #[inline(always)]
    fn dot(self, run: Self::Run, weights: Self::B, codes: i32) -> Self::Run {
        // Bytes up to 127 are the same with a sign.
        // SAFETY: as said at the implementation.
        let weights = unsafe { each!(at => vreinterpretq_s8_u8(weights[at])) };
        self.dot_signed(run, weights, codes)
    }

    #[inline(always)]
    fn biased(self, _: i32) -> Self::I {
        self.splat_int(0)
    }

    #[inline(always)]
    fn dot_biased(self, run: Self::Run, weights: Self::B, codes: i32) -> Self::Run {
        // SAFETY: as said at the implementation.
        let weights = unsafe { each!(at => vreinterpretq_s8_u8(veorq_u8(weights[at], vdupq_n_u8(128)))) };
        self.dot_signed(run, weights, codes)
    }

    #[inline(always)]
    fn close(self, _: Self::I, run: Self::Run) -> Self::I {
        run
    }

    #[inline(always)]
    fn prefetch(self, from: &[u8], ahead: usize) {
        prefetch(from.as_ptr().addr().wrapping_add(ahead));
    }

    #[inline(always)]
    fn prefetch_at<T>(self, at: &T) {
        let address = std::ptr::from_ref(at).addr();
        // SAFETY: a prefetch of any address is harmless.
        unsafe { asm!("prfm pldl2keep, [{}]", in(reg) address, options(nomem, nostack, preserves_flags)) };
    }
}

#[cfg(test)]
mod tests {
    use std::arch::is_aarch64_feature_detected;

    use crate::engine::canonical::simd::InstructionSet;

    #[test]
    fn dot_products_are_used_where_the_machine_has_them() {
        let expected =
            if is_aarch64_feature_detected!("dotprod") { InstructionSet::NeonDot } else { InstructionSet::Neon };
        assert_eq!(InstructionSet::best(), expected);
    }
}
