//! Stages on a device of candle's: a GPU. The same formulas as [`canonical`](crate::engine::canonical), in the arithmetic of the
//! device's own libraries, and so in a class of its own.
//!
//! # What is promised
//!
//! What a session gets depends on its own tokens alone, up to rounding: a position is never computed from another session's, nor
//! from one that was rewound. Bits are not promised: products of one row and of many may take different kernels, whose sums
//! run in different orders. A value that is not finite fails the step at the stage's end, as everywhere; but a norm over squares that
//! overflow gives zeros, where canonical arithmetic gives none.
//!
//! # A pass
//!
//! | step | where, and how |
//! |---|---|
//! | embedding | the processor, from its own copy of the table, as in canonical arithmetic; rows go to the device |
//! | norms, residual sums, gate | the device, f32 |
//! | products | the device: quantised formats by candle's `QMatMul`; F32, F16 and BF16 by the device's library, with the input rounded to the weights' format |
//! | biases, norms of heads | the device, f32 |
//! | rotation | the device, f32, with canonical arithmetic's tables of sines and cosines |
//! | keys and values | the device, as halves in a buffer for each block that grows by [`cache::CHUNK`] positions; beyond the largest half they become infinite |
//! | attention | the device, f32: each key/value head with all of its query heads in one product, none copied; later positions masked, and those before the window; what no row sees is not read |
//! | rounding at a boundary inside the range | the processor |
//! | logits | the device, of the rows that want them |
//!
//! # What was tried
//!
//! The formulas are tested on candle's CPU device against canonical arithmetic and against f64. Whether a GPU of a certain kind agrees
//! is to be found out on one: `brigade bench FILE --device cuda`.

pub(super) mod attention;
pub(super) mod block;
pub(super) mod cache;
pub(super) mod stage;

#[cfg(test)]
mod tests;
