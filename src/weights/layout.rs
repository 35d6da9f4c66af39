//! Which tensors a model of a given shape has, how large they are, and which unit needs which.

use std::collections::BTreeSet;

use crate::shape::ModelShape;
use crate::shape::RopeScaling;
use crate::weights::files::ModelFiles;
use crate::weights::llama::ModelError;
use crate::wire::manifest::Manifest;

/// The tensor of ready-made rotary divisors.
pub const ROPE_FREQS: &str = "rope_freqs.weight";

pub(super) const TOKEN_EMBEDDING: &str = "token_embd.weight";
pub(super) const OUTPUT_NORM: &str = "output_norm.weight";
pub(super) const OUTPUT: &str = "output.weight";

/// Parts of every block.
const PARTS: [&str; 9] = [
    "attn_norm.weight",
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_output.weight",
    "ffn_norm.weight",
    "ffn_gate.weight",
    "ffn_up.weight",
    "ffn_down.weight",
];

/// Further parts where queries, keys and values have biases.
const BIASES: [&str; 3] = ["attn_q.bias", "attn_k.bias", "attn_v.bias"];

/// Further parts where heads are normalised.
const HEAD_NORMS: [&str; 2] = ["attn_q_norm.weight", "attn_k_norm.weight"];

/// Checks that every tensor that the shape asks for is there with its dimensions, and no other.
///
/// # Errors
/// The first tensor, by name, that is too much, of another shape, or missing.
pub fn check(shape: &ModelShape, files: &ModelFiles) -> Result<(), ModelError> {
    files.tensors().try_for_each(|(name, view)| check_dimensions(shape, name, view.dimensions))?;
    check_all(shape, |name| files.tensor(name).is_some())
}

/// Checks the same of a manifest that others made, and that each tensor is said to be needed where it is.
///
/// # Errors
/// The first tensor, by name, that is too much, of another shape, elsewhere, or missing.
pub fn check_manifest(manifest: &Manifest) -> Result<(), ModelError> {
    let Manifest { shape, tensors, .. } = manifest;
    for tensor in tensors {
        check_dimensions(shape, &tensor.name, &tensor.dimensions)?;
        let expected = units_of(shape, &tensor.name);
        if tensor.units != expected {
            let (name, got) = (tensor.name.clone(), tensor.units.clone());
            return Err(ModelError::TensorUnits { name, expected, got });
        }
    }
    let names: BTreeSet<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    check_all(shape, |name| names.contains(name))
}

fn check_dimensions(shape: &ModelShape, name: &str, got: &[u64]) -> Result<(), ModelError> {
    match dimensions(shape, name) {
        None => Err(ModelError::Unsupported { feature: foreign_tensor(name) }),
        Some(expected) if expected != got => {
            Err(ModelError::TensorShape { name: name.to_owned(), expected, got: got.to_vec() })
        }
        Some(_) => Ok(()),
    }
}

fn check_all(shape: &ModelShape, is_there: impl Fn(&str) -> bool) -> Result<(), ModelError> {
    match needed(shape).find(|name| !is_there(name)) {
        Some(name) => Err(ModelError::MissingTensor { name }),
        None => Ok(()),
    }
}

/// The units that need the tensor, ascending, or none if the model has no such tensor.
pub fn units_of(shape: &ModelShape, name: &str) -> Vec<u16> {
    match name {
        TOKEN_EMBEDDING if shape.tied => vec![0, shape.head_unit()],
        TOKEN_EMBEDDING => vec![0],
        OUTPUT_NORM | OUTPUT => vec![shape.head_unit()],
        ROPE_FREQS => (1..shape.head_unit()).collect(),
        _ => block_tensor(name)
            .filter(|(block, _)| *block < shape.blocks)
            .map(|(block, _)| block + 1)
            .into_iter()
            .collect(),
    }
}

/// The dimensions that the tensor must have, or `None` if a model of this shape has no such tensor.
fn dimensions(shape: &ModelShape, name: &str) -> Option<Vec<u64>> {
    let (width, vocab) = (u64::from(shape.width), u64::from(shape.vocab));
    match name {
        TOKEN_EMBEDDING => return Some(vec![width, vocab]),
        OUTPUT => return (!shape.tied).then(|| vec![width, vocab]),
        OUTPUT_NORM => return Some(vec![width]),
        ROPE_FREQS if shape.rope.scaling == RopeScaling::Tensor => {
            return Some(vec![u64::from(shape.rope.dimensions / 2)]);
        }
        _ => {}
    }
    let (block, part) = block_tensor(name)?;
    let known = block < shape.blocks && parts(shape).any(|known| known == part);
    known.then(|| part_dimensions(shape, part)).flatten()
}

fn part_dimensions(shape: &ModelShape, part: &str) -> Option<Vec<u64>> {
    let (width, feed_forward) = (u64::from(shape.width), u64::from(shape.feed_forward));
    let (head, heads) = (u64::from(shape.head_dim), u64::from(shape.heads));
    let (query, keys) = (heads * head, u64::from(shape.kv_heads) * head);
    Some(match part {
        "attn_norm.weight" | "ffn_norm.weight" => vec![width],
        "attn_q.weight" => vec![width, query],
        "attn_k.weight" | "attn_v.weight" => vec![width, keys],
        "attn_q.bias" => vec![query],
        "attn_k.bias" | "attn_v.bias" => vec![keys],
        "attn_q_norm.weight" | "attn_k_norm.weight" => vec![head],
        "attn_output.weight" => vec![query, width],
        "ffn_gate.weight" | "ffn_up.weight" => vec![width, feed_forward],
        "ffn_down.weight" => vec![feed_forward, width],
        _ => return None,
    })
}

/// The parts of each block.
fn parts(shape: &ModelShape) -> impl Iterator<Item = &'static str> + Clone + use<> {
    let biases = shape.architecture.has_biases().then_some(BIASES).into_iter().flatten();
    let norms = shape.architecture.normalises_heads().then_some(HEAD_NORMS).into_iter().flatten();
    PARTS.into_iter().chain(biases).chain(norms)
}

/// Every tensor that the model can't do without.
fn needed(shape: &ModelShape) -> impl Iterator<Item = String> + use<> {
    let parts = parts(shape);
    let blocks = (0..shape.blocks).flat_map(move |block| parts.clone().map(move |part| format!("blk.{block}.{part}")));
    let scaled = (shape.rope.scaling == RopeScaling::Tensor).then_some(ROPE_FREQS);
    let ends = [TOKEN_EMBEDDING, OUTPUT_NORM].into_iter().chain((!shape.tied).then_some(OUTPUT)).chain(scaled);
    ends.map(str::to_owned).chain(blocks)
}

/// Takes `blk.3.attn_q.weight` apart into block and part.
fn block_tensor(name: &str) -> Option<(u16, &str)> {
    let (block, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let number = block.parse::<u16>().ok()?;
    // One name for each tensor: `blk.03` and `blk.+3` are not `blk.3`.
    (number.to_string() == block).then_some((number, part))
}

/// Says in people's words what a tensor that the engine has no use for stands for.
fn foreign_tensor(name: &str) -> String {
    let kind = if name.contains("_exp") || name.contains("gate_inp") {
        "a mixture of experts"
    } else if name.ends_with(".bias") {
        "biases"
    } else if name.contains("attn_q_norm") || name.contains("attn_k_norm") {
        "norms of heads"
    } else {
        "a tensor that models of the architecture don't have"
    };
    format!("{kind} (\"{name}\")")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Architecture;
    use crate::weights::fixture::RandomModel;
    use crate::weights::gguf::GgufFile;
    use crate::weights::llama::shape;

    #[test]
    fn every_tensor_belongs_to_the_units_that_compute_with_it() {
        let file = GgufFile::from_bytes(RandomModel::tiny().bytes()).unwrap();
        let shape = shape(&file).unwrap();
        let tied = ModelShape { tied: true, ..shape };

        assert_eq!(units_of(&shape, "token_embd.weight"), [0]);
        assert_eq!(units_of(&tied, "token_embd.weight"), [0, 4]);
        assert_eq!(units_of(&shape, "blk.0.attn_q.weight"), [1]);
        assert_eq!(units_of(&shape, "blk.0.attn_q.bias"), [1]);
        assert_eq!(units_of(&shape, "blk.2.ffn_down.weight"), [3]);
        assert_eq!(units_of(&shape, "rope_freqs.weight"), [1, 2, 3]);
        assert_eq!(units_of(&shape, "output_norm.weight"), [4]);
        assert_eq!(units_of(&shape, "output.weight"), [4]);
        assert_eq!(units_of(&shape, "blk.3.attn_q.weight"), [0_u16; 0]);
        assert!(file.tensors().all(|(name, _)| !units_of(&shape, name).is_empty()));
    }

    #[test]
    fn every_architecture_has_its_own_tensors() {
        let file = GgufFile::from_bytes(RandomModel::tiny().bytes()).unwrap();
        let llama = shape(&file).unwrap();
        let dimensions = |architecture, name| dimensions(&ModelShape { architecture, ..llama }, name);
        let count = |architecture| needed(&ModelShape { architecture, ..llama }).count();

        assert_eq!(dimensions(Architecture::Qwen2, "blk.0.attn_q.bias"), Some(vec![64]));
        assert_eq!(dimensions(Architecture::Qwen2, "blk.0.attn_v.bias"), Some(vec![32]));
        assert_eq!(dimensions(Architecture::Qwen3, "blk.0.attn_k_norm.weight"), Some(vec![16]));
        assert_eq!(dimensions(Architecture::Llama, "blk.0.attn_q.bias"), None);
        assert_eq!(dimensions(Architecture::Qwen3, "blk.0.attn_q.bias"), None);
        assert_eq!(dimensions(Architecture::Qwen2, "blk.0.attn_k_norm.weight"), None);
        assert_eq!(dimensions(Architecture::Qwen2, "blk.0.attn_output.bias"), None);
        assert_eq!(Architecture::ALL.map(count), [3 + 3 * 9, 3 + 3 * 12, 3 + 3 * 11]);
    }
}
