#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod formats;
mod fused;
mod half;
mod memory;
pub(in crate::engine) mod packed;
pub(in crate::engine) mod products;
#[cfg(test)]
mod products_tests;
#[cfg(test)]
mod reference;
pub(in crate::engine) mod round;
pub mod simd;
#[cfg(test)]
mod simd_tests;
#[cfg(target_arch = "x86_64")]
mod x86;
