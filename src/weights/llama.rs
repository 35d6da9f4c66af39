//! The `llama` architecture: from a GGUF's metadata to a [`ModelShape`], and which unit needs which tensor.

use thiserror::Error;

use crate::shape::Architecture;
use crate::shape::ModelShape;
use crate::shape::Rope;
use crate::shape::RopeScaling;
use crate::weights::gguf::GgufError;
use crate::weights::gguf::GgufFile;

/// The tensor of ready-made rotary divisors.
pub const ROPE_FREQS: &str = "rope_freqs.weight";

const TOKEN_EMBEDDING: &str = "token_embd.weight";
const OUTPUT_NORM: &str = "output_norm.weight";
const OUTPUT: &str = "output.weight";

/// The most blocks that unit numbers allow: two more units must fit in 16 bits.
const MAX_BLOCKS: u64 = 65_533;

/// Why a GGUF's model is not one that can be run.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The file itself is in the way.
    #[error(transparent)]
    File(#[from] GgufError),
    /// A model of another family.
    #[error("the architecture \"{got}\" is not supported; only \"llama\" is")]
    Architecture {
        /// `general.architecture`.
        got: String,
    },
    /// A llama model with something that the engine does not compute.
    #[error("the model uses {feature}, which is not supported")]
    Unsupported {
        /// What it uses.
        feature: String,
    },
    /// A hyper-parameter that can't be right.
    #[error("the hyper-parameter \"{key}\" should be {expected}, got {got}")]
    Hyperparameter {
        /// Its key.
        key: String,
        /// What it should be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A tensor that is needed and missing.
    #[error("the tensor \"{name}\" is missing")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor of the wrong shape.
    #[error("the tensor \"{name}\" should have the dimensions {expected:?}, got {got:?}")]
    TensorShape {
        /// Its name.
        name: String,
        /// By the hyper-parameters.
        expected: Vec<u64>,
        /// By the file.
        got: Vec<u64>,
    },
}

/// Reads the shape, and checks that every tensor it asks for is there in that shape, and no other.
///
/// # Errors
/// What is missing, contradictory or not supported, by name.
pub fn shape(file: &GgufFile) -> Result<ModelShape, ModelError> {
    let shape = hyperparameters(file)?;
    for (name, view) in file.tensors() {
        let Some(expected) = dimensions(&shape, name) else {
            return Err(ModelError::Unsupported { feature: foreign_tensor(name) });
        };
        if view.dimensions != expected {
            let (name, got) = (name.to_owned(), view.dimensions.to_vec());
            return Err(ModelError::TensorShape { name, expected, got });
        }
    }
    for name in needed(&shape) {
        if file.tensor(&name).is_none() {
            return Err(ModelError::MissingTensor { name });
        }
    }
    Ok(shape)
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

fn hyperparameters(file: &GgufFile) -> Result<ModelShape, ModelError> {
    let architecture = file.text("general.architecture")?.unwrap_or("");
    let Ok(architecture) = architecture.parse::<Architecture>() else {
        return Err(ModelError::Architecture { got: architecture.to_owned() });
    };
    if number(file, "llama.expert_count")?.unwrap_or(0) > 0 {
        return Err(ModelError::Unsupported { feature: "a mixture of experts".to_owned() });
    }
    let blocks = at_most("llama.block_count", needed_number(file, "llama.block_count")?.into(), MAX_BLOCKS)?;
    let width = needed_number(file, "llama.embedding_length")?;
    let heads = needed_number(file, "llama.attention.head_count")?;
    let kv_heads = number(file, "llama.attention.head_count_kv")?.unwrap_or(heads);
    let head_dim = head_dim(file, width, heads, kv_heads)?;
    Ok(ModelShape {
        architecture,
        blocks: blocks as u16,
        width,
        heads,
        kv_heads,
        head_dim,
        feed_forward: needed_number(file, "llama.feed_forward_length")?,
        vocab: vocab(file)?,
        context: needed_number(file, "llama.context_length")?,
        norm_eps: norm_eps(file)?,
        rope: rope(file, head_dim)?,
        tied: file.tensor(OUTPUT).is_none(),
    })
}

/// A number of 32 bits, if it is there.
fn number(file: &GgufFile, key: &str) -> Result<Option<u32>, ModelError> {
    let Some(number) = file.unsigned(key)? else {
        return Ok(None);
    };
    at_most(key, number, u32::MAX.into()).map(|number| Some(number as u32))
}

/// A number of 32 bits that must be there and above 0.
fn needed_number(file: &GgufFile, key: &str) -> Result<u32, ModelError> {
    match number(file, key)? {
        None => Err(GgufError::Missing { key: key.to_owned() }.into()),
        Some(0) => Err(wrong(key, "above 0", 0)),
        Some(number) => Ok(number),
    }
}

fn at_most(key: &str, number: u64, limit: u64) -> Result<u64, ModelError> {
    if number > limit { Err(wrong(key, format!("at most {limit}"), number)) } else { Ok(number) }
}

fn wrong(key: &str, expected: impl Into<String>, got: impl ToString) -> ModelError {
    ModelError::Hyperparameter { key: key.to_owned(), expected: expected.into(), got: got.to_string() }
}

fn head_dim(file: &GgufFile, width: u32, heads: u32, kv_heads: u32) -> Result<u32, ModelError> {
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(wrong("llama.attention.head_count_kv", format!("a divisor of {heads}"), kv_heads));
    }
    let head_dim = match number(file, "llama.attention.key_length")? {
        Some(length) => length,
        None if width.is_multiple_of(heads) => width / heads,
        None => return Err(wrong("llama.attention.head_count", format!("a divisor of {width}"), heads)),
    };
    let value_length = number(file, "llama.attention.value_length")?.unwrap_or(head_dim);
    if value_length != head_dim {
        return Err(wrong("llama.attention.value_length", format!("the key length {head_dim}"), value_length));
    }
    let query = u64::from(heads) * u64::from(head_dim);
    if head_dim == 0 || query > u64::from(u32::MAX) {
        return Err(wrong("llama.attention.key_length", "above 0 and fit the heads into 32 bits", head_dim));
    }
    Ok(head_dim)
}

/// The rows of the embedding, which the metadata must agree with where it says anything.
fn vocab(file: &GgufFile) -> Result<u32, ModelError> {
    let Some(embedding) = file.tensor(TOKEN_EMBEDDING) else {
        return Err(ModelError::MissingTensor { name: TOKEN_EMBEDDING.to_owned() });
    };
    let rows =
        at_most("rows of token_embd.weight", embedding.dimensions.get(1).copied().unwrap_or(1), u32::MAX.into())?;
    let tokens = file.value("tokenizer.ggml.tokens").and_then(|value| value.as_array()).map(|array| array.count());
    let claims = [("llama.vocab_size", file.unsigned("llama.vocab_size")?), ("tokenizer.ggml.tokens", tokens)];
    for (key, claim) in claims {
        if let Some(claim) = claim
            && claim != rows
        {
            return Err(wrong(key, format!("the {rows} rows of token_embd.weight"), claim));
        }
    }
    Ok(rows as u32)
}

fn norm_eps(file: &GgufFile) -> Result<f32, ModelError> {
    let key = "llama.attention.layer_norm_rms_epsilon";
    let Some(epsilon) = file.float(key)? else {
        return Err(GgufError::Missing { key: key.to_owned() }.into());
    };
    positive(key, epsilon)
}

fn positive(key: &str, number: f64) -> Result<f32, ModelError> {
    let narrow = number as f32;
    if narrow.is_finite() && narrow > 0.0 { Ok(narrow) } else { Err(wrong(key, "above 0", number)) }
}

fn rope(file: &GgufFile, head_dim: u32) -> Result<Rope, ModelError> {
    let key = "llama.rope.dimension_count";
    let dimensions = number(file, key)?.unwrap_or(head_dim);
    if dimensions == 0 || !dimensions.is_multiple_of(2) || dimensions > head_dim {
        return Err(wrong(key, format!("even, above 0 and at most the head's {head_dim}"), dimensions));
    }
    let key = "llama.rope.freq_base";
    let base = positive(key, file.float(key)?.unwrap_or(10_000.0))?;
    Ok(Rope { dimensions, base, scaling: rope_scaling(file)? })
}

fn rope_scaling(file: &GgufFile) -> Result<RopeScaling, ModelError> {
    let kind = file.text("llama.rope.scaling.type")?.unwrap_or("none");
    let has_divisors = file.tensor(ROPE_FREQS).is_some();
    match kind {
        "none" if has_divisors => Ok(RopeScaling::Tensor),
        "none" => Ok(RopeScaling::None),
        "linear" if has_divisors => {
            Err(ModelError::Unsupported { feature: format!("linear rope scaling together with {ROPE_FREQS}") })
        }
        "linear" => {
            let key = "llama.rope.scaling.factor";
            let Some(factor) = file.float(key)? else {
                return Err(GgufError::Missing { key: key.to_owned() }.into());
            };
            Ok(RopeScaling::Linear { factor: positive(key, factor)? })
        }
        other => Err(ModelError::Unsupported { feature: format!("the rope scaling \"{other}\"") }),
    }
}

/// The dimensions that the tensor must have, or `None` if a model of this shape has no such tensor.
fn dimensions(shape: &ModelShape, name: &str) -> Option<Vec<u64>> {
    let (width, feed_forward) = (u64::from(shape.width), u64::from(shape.feed_forward));
    let query = u64::from(shape.heads) * u64::from(shape.head_dim);
    let keys = u64::from(shape.kv_heads) * u64::from(shape.head_dim);
    let vocab = u64::from(shape.vocab);
    match name {
        TOKEN_EMBEDDING | OUTPUT => return Some(vec![width, vocab]),
        OUTPUT_NORM => return Some(vec![width]),
        ROPE_FREQS => return Some(vec![u64::from(shape.rope.dimensions / 2)]),
        _ => {}
    }
    let (block, part) = block_tensor(name)?;
    if block >= shape.blocks {
        return None;
    }
    Some(match part {
        "attn_norm" | "ffn_norm" => vec![width],
        "attn_q" => vec![width, query],
        "attn_k" | "attn_v" => vec![width, keys],
        "attn_output" => vec![query, width],
        "ffn_gate" | "ffn_up" => vec![width, feed_forward],
        "ffn_down" => vec![feed_forward, width],
        _ => return None,
    })
}

/// Every tensor of a block, without prefix and suffix.
const BLOCK_PARTS: [&str; 9] =
    ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"];

/// Takes `blk.3.attn_q.weight` apart into block and part.
fn block_tensor(name: &str) -> Option<(u16, &str)> {
    let (block, part) = name.strip_prefix("blk.")?.strip_suffix(".weight")?.split_once('.')?;
    let number = block.parse::<u16>().ok()?;
    // One name for each tensor: `blk.03` and `blk.+3` are not `blk.3`.
    (number.to_string() == block).then_some((number, part))
}

/// Every tensor that the model can't do without.
fn needed(shape: &ModelShape) -> impl Iterator<Item = String> {
    let blocks = (0..shape.blocks)
        .flat_map(|block| BLOCK_PARTS.into_iter().map(move |part| format!("blk.{block}.{part}.weight")));
    [TOKEN_EMBEDDING, OUTPUT_NORM].into_iter().map(str::to_owned).chain(blocks)
}

/// Says in people's words what a tensor that the engine has no use for stands for.
fn foreign_tensor(name: &str) -> String {
    let kind = if name.contains("_exp") || name.contains("gate_inp") {
        "a mixture of experts"
    } else if name.ends_with(".bias") {
        "biases"
    } else {
        "a tensor that llama models don't have"
    };
    format!("{kind} (\"{name}\")")
}

#[cfg(test)]
#[path = "llama_tests.rs"]
mod tests;
