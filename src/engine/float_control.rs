//! The floating-point control register of a thread.
//!
//! Canonical arithmetic rounds to nearest and keeps denormals. A library, a plug-in or a parent's settings may have turned either
//! off for a thread, which changes results, so every thread that computes sets and checks its own register.

use std::io;

/// What of the register changes results, as this machine has it.
#[cfg(target_arch = "x86_64")]
mod register {
    use std::arch::asm;

    /// MXCSR: denormals-are-zero (bit 6), flush-to-zero (15). Source: Intel SDM, vol. 1, §10.2.3.
    pub(super) const FLUSHING: u64 = 1 << 6 | 1 << 15;

    /// MXCSR: the same and rounding (13 and 14).
    pub(super) const FORBIDDEN: u64 = FLUSHING | 0b11 << 13;

    /// MXCSR: all exceptions masked (bits 7 to 12), or an overflow would end the process.
    pub(super) const REQUIRED: u64 = 0b11_1111 << 7;

    pub(super) fn read() -> u64 {
        let mut value = 0_u32;
        // SAFETY: every x86-64 machine has the instruction; it writes four bytes to where it is told, which is `value`.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack, preserves_flags)) };
        value.into()
    }

    pub(super) fn write(value: u64) {
        let value = value as u32;
        // SAFETY: every x86-64 machine has the instruction; it reads four bytes of `value`. No reserved bit is set, as the
        // value was read from the register and only named bits were changed. What it leaves is the state that Rust's own
        // arithmetic assumes: rounding to nearest, no flushing, exceptions masked.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, preserves_flags, readonly)) };
    }
}

#[cfg(target_arch = "aarch64")]
mod register {
    use std::arch::asm;

    /// FPCR: FIZ (bit 0), FZ16 (19), FZ (24). Source: Arm ARM, "FPCR, Floating-point Control Register".
    pub(super) const FLUSHING: u64 = 1 | 1 << 19 | 1 << 24;

    /// FPCR: the same and AH, NEP (bits 1 and 2), rounding (22 and 23), default NaN (25), halves without infinities (26), and the
    /// traps (8 to 12, and 15), by which an overflow would end the process.
    pub(super) const FORBIDDEN: u64 = FLUSHING | 0b110 | 0b11 << 22 | 1 << 25 | 1 << 26 | 0b1_1111 << 8 | 1 << 15;

    pub(super) const REQUIRED: u64 = 0;

    pub(super) fn read() -> u64 {
        let value: u64;
        // SAFETY: reads a register that every process may read.
        unsafe { asm!("mrs {}, fpcr", out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }

    pub(super) fn write(value: u64) {
        // SAFETY: writes a register that every process may write. What it leaves is the state that Rust's own arithmetic
        // assumes: rounding to nearest, no flushing.
        unsafe { asm!("msr fpcr, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
    }
}

/// Elsewhere Rust's own assumptions must do: rounding to nearest, denormals kept.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod register {
    pub(super) const FLUSHING: u64 = 0;
    pub(super) const FORBIDDEN: u64 = 0;
    pub(super) const REQUIRED: u64 = 0;

    pub(super) fn read() -> u64 {
        0
    }

    pub(super) fn write(_: u64) {}
}

/// Whether this thread rounds to nearest and keeps denormals.
pub(super) fn is_canonical() -> bool {
    register::read() & (register::FORBIDDEN | register::REQUIRED) == register::REQUIRED
}

/// Makes this thread round to nearest and keep denormals, and checks that it does. Costs a few cycles if it did already.
///
/// # Errors
/// If the register does not keep what is written, as under some emulators.
pub(super) fn make_canonical() -> io::Result<()> {
    if is_canonical() {
        return Ok(());
    }
    register::write(register::read() & !register::FORBIDDEN | register::REQUIRED);
    if is_canonical() {
        Ok(())
    } else {
        Err(io::Error::other("the processor does not round as the engine needs it to"))
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    #[test]
    fn a_thread_that_flushes_denormals_is_set_right() {
        // The outer box keeps the compiler from multiplying later.
        let halved = || black_box(black_box(f32::MIN_POSITIVE) * black_box(0.5));
        // On a thread of its own, so that no other test is disturbed.
        let (flushed, kept) = std::thread::spawn(move || {
            register::write(register::read() | register::FLUSHING);
            let flushed = (is_canonical(), halved());
            make_canonical().unwrap();
            (flushed, (is_canonical(), halved()))
        })
        .join()
        .unwrap();

        assert_eq!(kept, (true, f32::MIN_POSITIVE / 2.0));
        if register::FLUSHING != 0 {
            assert_eq!(flushed, (false, 0.0));
        }
    }

    #[test]
    fn each_setting_that_changes_results_is_noticed_and_taken_back() {
        let settings = (0..u64::BITS).map(|bit| 1 << bit).filter(|bit| register::FORBIDDEN & bit != 0);
        std::thread::spawn(move || {
            for setting in settings {
                register::write(register::read() | setting);
                // Some processors have no such setting.
                let is_set = register::read() & setting != 0;
                let noticed = !is_canonical();
                make_canonical().unwrap();
                assert_eq!((noticed, is_canonical()), (is_set, true), "{setting:#x}");
            }
        })
        .join()
        .unwrap();
    }
}
