//! Canonical arithmetic, version 1: every floating-point operation that a stage performs, and its order.
//!
//! A model's output depends on its weights, the tokens, the parameters and the seed alone. It does not depend on how many
//! peers share the model and where the cuts are, on how the prompt was chunked, what else was in the batch, how many threads
//! ran, or which instructions the processor has. This page is the rule; the modules named below state each part of it exactly, and
//! `reference` and `vector_tests` follow them one element at a time. Golden hashes of every part are in the tests. Whoever changes a
//! bit of it raises [`VERSION`], because peers compare results by hash.
//!
//! # Numbers
//!
//! - f32 and f64 are IEEE 754's, with results rounded to nearest, ties to even. Denormals are kept: each thread that computes has its
//!   control register set and checked (`float_control`).
//! - `fma(a, b, c)` is `a × b + c`, rounded once; machines without the instruction compute the same in software (`fused`).
//! - No function of a platform's library is used: `exp`, `sin`, `cos`, `pow` and `ln` are ours, with stated errors
//!   ([`elementary`](crate::elementary), `exponential`). Division and square root are IEEE 754's.
//! - Infinities and not-a-numbers follow IEEE 754 until they reach a stage's end; there a value that is not finite fails the step. All
//!   not-a-numbers are one: their bits are never looked at, stored or sent.
//!
//! # A pass
//!
//! | step | rule |
//! |---|---|
//! | embedding | the token's row of the matrix, widened as `formats` says |
//! | norm | `norm`: squares summed over 16 lanes and a fixed tree |
//! | input of a quantised product | `round`: blocks of 32 or 256 to signed bytes |
//! | product with a weight row | `formats`: from +0, blocks in ascending order: the integer dot product is exact, then `fma(f32(dot), scale of weights × scale of input, sum)`; formats with minima or offsets a second one |
//! | product of `F32`, `F16`, `BF16` | `formats::float`: stretches of 32 columns, each from +0 by `fma` in ascending order, added in ascending order; the input is not rounded |
//! | biases of queries, keys and values, where the model has them | `norm`: added to the finished product, element by element |
//! | norm of each head of queries and keys, where the model has it | `norm`: a row is a head; after the bias, before the rotation |
//! | rotation | `rope`: angles in f64, then f32; two `fma` for each pair, wherever the model has its two elements |
//! | keys and values | `cache`: rounded to halves, to nearest even; beyond the largest half, the largest |
//! | attention | `attention`: scores over the dimensions in ascending order; the true maximum first; sums in absolute blocks of 512 positions; later positions, and those before the model's window, are skipped, never masked |
//! | feed-forward gate | `exponential`: `gate ÷ (1 + exp(−gate)) × up` |
//! | residual | `hidden + projected`, element by element |
//! | hidden states at a boundary | f32 as they are, or rounded to the boundary's dtype |
//! | sampling | [`sampling`](crate::sampling): f64, a pure function |
//!
//! # How it is made fast
//!
//! Kernels are written once over sixteen lanes ([`simd`]) and compiled for each instruction set, which are AVX2, AVX-512, VNNI and
//! AMX on x86-64 and NEON with and without dot products on ARM; the fastest is chosen when the program runs. Weights are repacked so that lanes are output rows (`packed`), and keys so that lanes are positions, so the
//! order above is the natural one at every width. Work is cut by output rows and by heads, never along a sum.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
pub(in crate::engine) mod attention;
pub(in crate::engine) mod cache;
pub mod exponential;
mod formats;
mod fused;
mod half;
pub(in crate::engine) mod memory;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(in crate::engine) mod norm;
pub(in crate::engine) mod packed;
mod part;
pub(in crate::engine) mod products;
#[cfg(test)]
mod products_tests;
#[cfg(test)]
mod reference;
pub(in crate::engine) mod rope;
pub(in crate::engine) mod round;
pub mod simd;
#[cfg(test)]
mod simd_tests;
#[cfg(test)]
mod vector_tests;
#[cfg(test)]
mod wrong;
#[cfg(target_arch = "x86_64")]
mod x86;

/// The version of the arithmetic. A change of a single bit anywhere raises it.
pub const VERSION: u32 = 1;

/// The name of the arithmetic that peers announce: canonical, with a key/value cache of halves.
pub const CLASS: &str = "canonical-1-f16";
