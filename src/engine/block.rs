//! One transformer block.

use crate::engine::attention::Heads;
use crate::engine::attention::attend;
use crate::engine::cache::BlockCache;
use crate::engine::lanes::add;
use crate::engine::lanes::gate_in_place;
use crate::engine::lanes::normalise;
use crate::engine::matrix::Matrix;
use crate::engine::rope::Angles;

/// A root-mean-square norm.
#[derive(Debug)]
pub(super) struct Norm {
    pub(super) weight: Vec<f32>,
    pub(super) epsilon: f32,
}

impl Norm {
    /// Normalises each row of `hidden`, `[positions, width]`.
    pub(super) fn apply(&self, hidden: &[f32]) -> Vec<f32> {
        let mut output = vec![0.0; hidden.len()];
        normalise(hidden, &self.weight, self.epsilon, &mut output);
        output
    }
}

/// The weights of a block of the Llama family.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) attention_norm: Norm,
    pub(super) query: Matrix,
    pub(super) key: Matrix,
    pub(super) value: Matrix,
    pub(super) output: Matrix,
    pub(super) feed_norm: Norm,
    pub(super) gate: Matrix,
    pub(super) up: Matrix,
    pub(super) down: Matrix,
}

impl Block {
    /// Runs the block over some positions in place.
    ///
    /// - `hidden`: `[positions, width]`, f32
    /// - `first`: absolute position of the first row
    ///
    /// Writes the keys and values of these positions into `cache`, which must have room.
    pub(super) fn forward(
        &self,
        hidden: &mut [f32],
        cache: &mut BlockCache,
        first: usize,
        angles: &Angles,
        heads: Heads,
    ) {
        let input = self.attention_norm.apply(hidden);
        let mut queries = self.query.multiply(&input);
        let mut keys = self.key.multiply(&input);
        angles.rotate(&mut queries, heads.query, heads.dim);
        angles.rotate(&mut keys, heads.kv, heads.dim);
        cache.keys.write(first, &keys);
        cache.values.write(first, &self.value.multiply(&input));
        add(hidden, &self.output.multiply(&attend(&queries, cache, first, heads)));

        let input = self.feed_norm.apply(hidden);
        let mut gate = self.gate.multiply(&input);
        gate_in_place(&mut gate, &self.up.multiply(&input));
        add(hidden, &self.down.multiply(&gate));
    }
}
