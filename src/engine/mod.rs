//! The engine: a unit range of a model in memory, the sessions on it, and the thread that steps them.
//!
//! candle gives the formats of weights and the dot products of their blocks; what surrounds them is ours, so that bits depend on
//! as little as possible (see [`stage::StageModel`]):
//!
//! - a weight row's product with an input row is computed the same way whatever runs beside it;
//! - sums of norms, scores and softmax denominators run over 16 virtual lanes and a fixed tree;
//! - `exp` is our own; later positions are skipped and not masked.
//!
//! Two things still differ between machines, and go with the kernels of our own: candle's dot products inside a row
//! depend on the instruction set, and the rotary angles use the platform's `sin`, `cos` and `powf` in f64.
//!
//! Everything runs on the CPU. The threads are those given at [`thread::start`]: candle's own pool is never used. Steps of
//! many sessions go through a stage in one pass (see [`stage::StageModel::forward_batch`]), which changes no bit of any.

mod attention;
mod batch;
pub mod bench;
mod block;
mod cache;
pub mod command;
pub mod error;
mod float_control;
mod lanes;
mod load;
mod matrix;
mod pass;
pub mod payload;
pub mod pool;
mod rope;
pub mod source;
pub mod stage;
pub mod thread;
pub mod workspace;

#[cfg(test)]
mod tests;
