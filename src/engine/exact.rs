//! A whole model in f64, straight from its formulas, but for keys and values, which are rounded to halves as a cache does. What is
//! left between it and the engine is the rounding of f32 alone.

use std::collections::BTreeMap;

use half::f16;

use crate::shape::ModelShape;
use crate::shape::RopePairs;
use crate::shape::RopeScaling;

/// The matrices and vectors of a model by name, row-major.
pub(super) type Tensors = BTreeMap<String, Vec<f64>>;

/// The logits after each of `tokens`.
pub(super) fn logits(shape: &ModelShape, tensors: &Tensors, tokens: &[u32]) -> Vec<Vec<f32>> {
    let width = shape.width as usize;
    let embedding = &tensors["token_embd.weight"];
    let mut hidden: Vec<Vec<f64>> =
        tokens.iter().map(|token| embedding[*token as usize * width..][..width].to_vec()).collect();
    for block in 0..shape.blocks {
        run_block(shape, tensors, block, &mut hidden);
    }
    let head = tensors.get("output.weight").unwrap_or(embedding);
    let decide = |row: &Vec<f64>| product(head, &normalise(row, &tensors["output_norm.weight"], shape.norm_eps));
    hidden.iter().map(|row| decide(row).into_iter().map(|logit| logit as f32).collect()).collect()
}

fn run_block(shape: &ModelShape, tensors: &Tensors, block: u16, hidden: &mut [Vec<f64>]) {
    let part = |name: &str| &tensors[&format!("blk.{block}.{name}.weight")];
    let inputs: Vec<Vec<f64>> = hidden.iter().map(|row| normalise(row, part("attn_norm"), shape.norm_eps)).collect();
    let projected = |name: &str, row: &[f64]| {
        let mut output = product(part(name), row);
        if shape.architecture.has_biases() {
            add(&mut output, tensors[&format!("blk.{block}.{name}.bias")].clone());
        }
        output
    };
    let rotated = |name: &str| -> Vec<Vec<f64>> {
        let turn = |(at, row): (usize, &Vec<f64>)| {
            let mut output = projected(name, row);
            if shape.architecture.normalises_heads() {
                let heads = output.chunks_exact(shape.head_dim as usize);
                output =
                    heads.flat_map(|head| normalise(head, part(&format!("{name}_norm")), shape.norm_eps)).collect();
            }
            rotate(shape, at, output)
        };
        inputs.iter().enumerate().map(turn).collect()
    };
    let (queries, mut keys) = (rotated("attn_q"), rotated("attn_k"));
    let mut values: Vec<Vec<f64>> = inputs.iter().map(|row| projected("attn_v", row)).collect();
    keys.iter_mut().chain(&mut values).flatten().for_each(|value| *value = f16::from_f64(*value).to_f64());
    for (at, row) in hidden.iter_mut().enumerate() {
        let first = shape.window.map_or(0, |window| (at + 1).saturating_sub(window as usize));
        let attended = attend(shape, &queries[at], &keys[first..=at], &values[first..=at]);
        add(row, product(part("attn_output"), &attended));
        let input = normalise(row, part("ffn_norm"), shape.norm_eps);
        let (gate, up) = (product(part("ffn_gate"), &input), product(part("ffn_up"), &input));
        let gated: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
        add(row, product(part("ffn_down"), &gated));
    }
}

fn product(matrix: &[f64], input: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(input.len()).map(|row| row.iter().zip(input).map(|(a, b)| a * b).sum()).collect()
}

fn add(to: &mut [f64], from: Vec<f64>) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

fn normalise(row: &[f64], weight: &[f64], epsilon: f32) -> Vec<f64> {
    let mean = row.iter().map(|value| value * value).sum::<f64>() / row.len() as f64;
    let scale = 1.0 / (mean + f64::from(epsilon)).sqrt();
    row.iter().zip(weight).map(|(value, weight)| value * scale * weight).collect()
}

/// Turns the pairs of each head at position `at`.
fn rotate(shape: &ModelShape, at: usize, mut row: Vec<f64>) -> Vec<f64> {
    for head in row.chunks_exact_mut(shape.head_dim as usize) {
        let pairs = shape.rope.dimensions as usize / 2;
        for pair in 0..pairs {
            let (sin, cos) = (at as f64 * frequency(shape, pair)).sin_cos();
            let [one, other] = match shape.rope.pairs {
                RopePairs::Interleaved => [2 * pair, 2 * pair + 1],
                RopePairs::Halves => [pair, pair + pairs],
            };
            let (a, b) = (head[one], head[other]);
            (head[one], head[other]) = (a * cos - b * sin, a * sin + b * cos);
        }
    }
    row
}

fn frequency(shape: &ModelShape, pair: usize) -> f64 {
    let plain = f64::from(shape.rope.base).powf(-2.0 * pair as f64 / f64::from(shape.rope.dimensions));
    match shape.rope.scaling {
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let wavelength = std::f64::consts::TAU / plain;
            let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
            let kept = ((f64::from(original_context) / wavelength - low) / (high - low)).clamp(0.0, 1.0);
            plain * (kept + (1.0 - kept) / f64::from(factor))
        }
        RopeScaling::Linear { factor } => plain / f64::from(factor),
        RopeScaling::None | RopeScaling::Tensor => plain,
    }
}

fn attend(shape: &ModelShape, query: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
    let dim = shape.head_dim as usize;
    let group = (shape.heads / shape.kv_heads) as usize;
    let mut attended = Vec::new();
    for (head, query) in query.chunks_exact(dim).enumerate() {
        let part = head / group * dim..(head / group + 1) * dim;
        let scores = keys.iter().map(|key| key[part.clone()].iter().zip(query).map(|(a, b)| a * b).sum::<f64>());
        let weights: Vec<f64> = scores.map(|score| (score / (dim as f64).sqrt()).exp()).collect();
        let total: f64 = weights.iter().sum();
        attended.extend(
            part.map(|index| {
                weights.iter().zip(values).map(|(weight, value)| weight * value[index]).sum::<f64>() / total
            }),
        );
    }
    attended
}
