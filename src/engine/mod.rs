//! The engine: a unit range of a model in memory, the sessions on it, and the thread that steps them.
//!
//! On the processor the arithmetic is [`canonical`]: the same bits whatever the cuts, the chunks, the batch, the threads and the
//! processor. The threads are those given at [`thread::start`]: candle's own pool is never used. Steps of many sessions go through
//! a stage in one pass (see [`stage::StageModel::forward_batch`]), which changes no bit of any.
//!
//! A GPU ([`device`]) computes the same formulas in its own arithmetic (`accelerated`), under the name of another class.

mod accelerated;
mod batch;
pub mod bench;
mod block;
pub mod canonical;
pub mod command;
pub mod device;
pub mod error;
mod float_control;
mod load;
mod matrix;
mod pass;
pub mod payload;
pub mod pool;
pub mod source;
pub mod stage;
pub mod thread;
pub mod workspace;

#[cfg(test)]
mod exact;
#[cfg(test)]
mod quantise_tests;
#[cfg(test)]
mod tests;
