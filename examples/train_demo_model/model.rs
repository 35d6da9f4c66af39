//! The network: a Llama-architecture decoder with grouped queries and a tied embedding.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Device;
use candle_core::Result;
use candle_core::Tensor;
use candle_core::Var;

use super::attention::Attention;
use super::attention::Heads;
use super::kernels::Rotation;
use super::ops::linear;
use super::ops::rms_norm;
use super::ops::swiglu;

/// Transformer blocks.
pub(crate) const BLOCKS: usize = 6;
/// Values per position between blocks.
pub(crate) const HIDDEN: usize = 256;
/// Width of the feed-forward layers.
pub(crate) const FEED_FORWARD: usize = 256;
/// How the 256 values are divided into heads.
pub(crate) const HEADS: Heads = Heads { queries: 8, keys: 2, width: 32 };
/// Longest sequence.
pub(crate) const CONTEXT: usize = 512;
/// Base of the rotary frequencies.
pub(crate) const ROPE_BASE: f32 = 10_000.0;
/// The name and shape of a parameter. Matrices are `[outputs, inputs]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parameter {
    /// As in checkpoints.
    pub(crate) name: String,
    /// One dimension for norms, two for matrices.
    pub(crate) shape: Vec<usize>,
}

impl Parameter {
    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether this is a matrix: those decay, and are quantised.
    pub(crate) fn is_matrix(&self) -> bool {
        self.shape.len() == 2
    }
}

/// All parameters, in the order in which everything here holds them.
pub(crate) fn parameters(vocabulary: usize) -> Vec<Parameter> {
    let parameter = |name: String, shape: &[usize]| Parameter { name, shape: shape.to_vec() };
    let mut all = vec![parameter("embedding".to_owned(), &[vocabulary, HIDDEN])];
    for block in 0..BLOCKS {
        let shapes: [(&str, &[usize]); 6] = [
            ("attention_norm", &[HIDDEN]),
            ("query_key_value", &[HEADS.columns(), HIDDEN]),
            ("attention_output", &[HIDDEN, HIDDEN]),
            ("feed_forward_norm", &[HIDDEN]),
            ("gate_up", &[2 * FEED_FORWARD, HIDDEN]),
            ("down", &[HIDDEN, FEED_FORWARD]),
        ];
        all.extend(shapes.map(|(name, shape)| parameter(format!("block.{block}.{name}"), shape)));
    }
    all.push(parameter("output_norm".to_owned(), &[HIDDEN]));
    all
}

/// Documents laid end to end.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// Token ids.
    pub(crate) tokens: Vec<u32>,
    /// The rows of each document, none longer than [`CONTEXT`].
    pub(crate) documents: Arc<[Range<usize>]>,
}

/// A network with trainable weights.
#[derive(Debug)]
pub(crate) struct Model {
    vars: Vec<Var>,
    rotation: Arc<Rotation>,
}

impl Model {
    /// Builds the network from values in the order of [`parameters`].
    pub(crate) fn new(vocabulary: usize, values: &[Vec<f32>]) -> Result<Self> {
        let var = |(parameter, values): (Parameter, &Vec<f32>)| {
            Var::from_slice(values, parameter.shape.as_slice(), &Device::Cpu)
        };
        let vars = parameters(vocabulary).into_iter().zip(values).map(var).collect::<Result<_>>()?;
        Ok(Self { vars, rotation: Arc::new(Rotation::new(CONTEXT, HEADS.width, ROPE_BASE)) })
    }

    /// The weights, in the order of [`parameters`].
    pub(crate) fn vars(&self) -> &[Var] {
        &self.vars
    }

    /// Scores for the token after each token of `batch`: `[tokens, vocabulary]`.
    pub(crate) fn forward(&self, batch: &Batch) -> Result<Tensor> {
        let [embedding, blocks @ .., output_norm] = self.vars.as_slice() else {
            unreachable!("`parameters` lists more than two")
        };
        let ids = Tensor::from_slice(&batch.tokens, batch.tokens.len(), &Device::Cpu)?;
        let mut hidden = embedding.index_select(&ids, 0)?;
        for block in blocks.chunks_exact(6) {
            hidden = self.block(block, &hidden, batch)?;
        }
        linear(&rms_norm(&hidden, output_norm)?, embedding)
    }

    fn block(&self, weights: &[Var], hidden: &Tensor, batch: &Batch) -> Result<Tensor> {
        let [attention_norm, query_key_value, attention_output, feed_forward_norm, gate_up, down] = weights else {
            unreachable!("a block has six parameters")
        };
        let attention =
            Attention { heads: HEADS, documents: Arc::clone(&batch.documents), rotation: Arc::clone(&self.rotation) };
        let normed = rms_norm(hidden, attention_norm)?;
        let mixed = linear(&normed, query_key_value)?.apply_op1(attention)?;
        let hidden = (hidden + linear(&mixed, attention_output)?)?;
        let normed = rms_norm(&hidden, feed_forward_norm)?;
        hidden + linear(&swiglu(&linear(&normed, gate_up)?)?, down)?
    }
}

#[cfg(test)]
mod tests {
    use super::super::ops::View;
    use super::super::ops::cross_entropy;
    use super::super::start::initial_values;
    use super::*;

    /// The loss of two short documents, and its gradient if wanted.
    fn loss(values: &[Vec<f32>], batch: &Batch) -> (f32, Vec<Vec<f32>>) {
        let model = Model::new(16, values).unwrap();
        let targets = batch.tokens.iter().map(|token| ((token * 7 + 3) % 16, 1.0)).collect();
        let loss = cross_entropy(&model.forward(batch).unwrap(), targets).unwrap();
        let gradients = loss.backward().unwrap();
        let of = |var: &Var| View::of(gradients.get(var).unwrap()).values().unwrap().to_vec();
        (loss.to_scalar().unwrap(), model.vars().iter().map(of).collect())
    }

    #[test]
    fn a_small_step_along_the_gradient_changes_the_loss_as_it_says() {
        let values = initial_values(16, 5);
        let tokens = (0..50).map(|index| index * index % 16).collect();
        let batch = Batch { tokens, documents: [0..40, 40..50].into() };
        let (_, gradient) = loss(&values, &batch);

        for index in 0..values.len() {
            let squares: f32 = gradient[index].iter().map(|value| value * value).sum();
            let moved = |length: f32| {
                let mut moved = values.clone();
                let along = moved[index].iter_mut().zip(&gradient[index]);
                along.for_each(|(value, slope)| *value += length * slope / squares.sqrt());
                loss(&moved, &batch).0
            };
            let length = 0.002;
            let slope = (moved(length) - moved(-length)) / (2.0 * length);
            let error = (slope / squares.sqrt() - 1.0).abs();
            assert!(error < 0.02, "parameter {index}: slope {slope}, gradient {}", squares.sqrt());
        }
    }
}
