#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod fused;
mod half;
pub mod simd;
#[cfg(test)]
mod simd_tests;
#[cfg(target_arch = "x86_64")]
mod x86;
