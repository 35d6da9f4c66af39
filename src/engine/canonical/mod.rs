#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
pub(in crate::engine) mod attention;
pub(in crate::engine) mod cache;
pub(in crate::engine) mod exponential;
mod fused;
mod half;
pub(in crate::engine) mod norm;
mod part;
pub(in crate::engine) mod rope;
pub mod simd;
#[cfg(test)]
mod simd_tests;
#[cfg(test)]
mod vector_tests;
#[cfg(target_arch = "x86_64")]
mod x86;
