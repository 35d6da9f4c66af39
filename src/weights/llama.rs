//! The Llama family in GGUF (`llama`, `qwen2`, `qwen3`): from a file's metadata to a [`ModelShape`].
//!
//! Mistral's files say `llama`, with a window if they have one.

use thiserror::Error;

use crate::shape::Architecture;
use crate::shape::ModelShape;
use crate::shape::Rope;
use crate::shape::RopePairs;
use crate::shape::RopeScaling;
use crate::weights::gguf::GgufError;
use crate::weights::gguf::GgufFile;
use crate::weights::layout;
use crate::weights::layout::OUTPUT;
use crate::weights::layout::ROPE_FREQS;
use crate::weights::layout::TOKEN_EMBEDDING;

/// The most blocks that unit numbers allow: two more units must fit in 16 bits.
pub(super) const MAX_BLOCKS: u64 = 65_533;

/// Numbers that change what a model computes in ways that the engine does not know, and what they are where nothing is changed.
const FOREIGN: [(&str, f64, &str); 10] = [
    ("expert_count", 0.0, "a mixture of experts"),
    ("attn_logit_softcapping", 0.0, "soft-capped scores"),
    ("final_logit_softcapping", 0.0, "soft-capped logits"),
    ("attention.scale", 0.0, "a scale of its own for scores"),
    ("attention.sliding_window_pattern", 0.0, "windows on some of the blocks"),
    ("attention.clamp_kqv", 0.0, "clamped queries, keys and values"),
    ("logit_scale", 1.0, "scaled logits"),
    ("residual_scale", 1.0, "scaled residuals"),
    ("embedding_scale", 1.0, "scaled embeddings"),
    ("rope.scaling.attn_factor", 1.0, "scores scaled with the rotation"),
];

/// Why a model is not one that can be run.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The file itself is in the way.
    #[error(transparent)]
    File(#[from] GgufError),
    /// A model of another family.
    #[error("the architecture \"{got}\" is not supported; supported are {known}")]
    Architecture {
        /// What the model calls it.
        got: String,
        /// Every name that is known.
        known: String,
    },
    /// A model with something that the engine does not compute.
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
    /// A tensor that a manifest gives to other units than compute with it.
    #[error("the tensor \"{name}\" should belong to the units {expected:?}, got {got:?}")]
    TensorUnits {
        /// Its name.
        name: String,
        /// By the hyper-parameters.
        expected: Vec<u16>,
        /// By the manifest.
        got: Vec<u16>,
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

impl ModelError {
    pub(super) fn unsupported(feature: impl Into<String>) -> Self {
        Self::Unsupported { feature: feature.into() }
    }

    pub(super) fn wrong(key: &str, expected: impl Into<String>, got: impl ToString) -> Self {
        Self::Hyperparameter { key: key.to_owned(), expected: expected.into(), got: got.to_string() }
    }
}

/// Reads the shape, and checks that every tensor it asks for is there in that shape, and no other.
///
/// # Errors
/// What is missing, contradictory or not supported, by name.
pub fn shape(file: &GgufFile) -> Result<ModelShape, ModelError> {
    let name = file.text("general.architecture")?.unwrap_or("");
    let Ok(architecture) = name.parse::<Architecture>() else {
        let known = Architecture::ALL.map(Architecture::name).join(", ");
        return Err(ModelError::Architecture { got: name.to_owned(), known });
    };
    let shape = Parameters { file, architecture }.shape()?;
    layout::check(&shape, file.files())?;
    Ok(shape)
}

/// The hyper-parameters of a file, whose keys begin with the architecture.
#[derive(Clone, Copy)]
struct Parameters<'a> {
    file: &'a GgufFile,
    architecture: Architecture,
}

impl Parameters<'_> {
    fn shape(self) -> Result<ModelShape, ModelError> {
        self.refuse_foreign()?;
        let key = self.key("block_count");
        let blocks = at_most(&key, self.needed_number("block_count")?.into(), MAX_BLOCKS)?;
        let width = self.needed_number("embedding_length")?;
        let heads = self.needed_number("attention.head_count")?;
        let kv_heads = self.number("attention.head_count_kv")?.unwrap_or(heads);
        let head_dim = self.head_dim(width, heads, kv_heads)?;
        let context = self.needed_number("context_length")?;
        Ok(ModelShape {
            architecture: self.architecture,
            blocks: blocks as u16,
            width,
            heads,
            kv_heads,
            head_dim,
            feed_forward: self.needed_number("feed_forward_length")?,
            vocab: self.vocab()?,
            context,
            window: self.window(context)?,
            norm_eps: self.norm_eps()?,
            rope: self.rope(head_dim)?,
            tied: self.file.tensor(OUTPUT).is_none(),
        })
    }

    fn refuse_foreign(self) -> Result<(), ModelError> {
        for (key, harmless, feature) in FOREIGN {
            let key = self.key(key);
            let is_array = self.file.value(&key).is_some_and(|value| value.as_array().is_some());
            if is_array || self.file.float(&key)?.is_some_and(|value| value != harmless) {
                return Err(ModelError::unsupported(format!("{feature} (\"{key}\")")));
            }
        }
        if self.file.flag(&self.key("use_parallel_residual"))? == Some(true) {
            return Err(ModelError::unsupported("attention and feed-forward side by side"));
        }
        Ok(())
    }

    fn key(self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name())
    }

    /// A number of 32 bits, if it is there.
    fn number(self, name: &str) -> Result<Option<u32>, ModelError> {
        let key = self.key(name);
        let Some(number) = self.file.unsigned(&key)? else {
            return Ok(None);
        };
        at_most(&key, number, u32::MAX.into()).map(|number| Some(number as u32))
    }

    /// A number of 32 bits that must be there and above 0.
    fn needed_number(self, name: &str) -> Result<u32, ModelError> {
        match self.number(name)? {
            None => Err(GgufError::Missing { key: self.key(name) }.into()),
            Some(0) => Err(ModelError::wrong(&self.key(name), "above 0", 0)),
            Some(number) => Ok(number),
        }
    }

    fn head_dim(self, width: u32, heads: u32, kv_heads: u32) -> Result<u32, ModelError> {
        let wrong = |name: &str, expected, got: u32| Err(ModelError::wrong(&self.key(name), expected, got));
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return wrong("attention.head_count_kv", format!("a divisor of {heads}"), kv_heads);
        }
        let head_dim = match self.number("attention.key_length")? {
            Some(length) => length,
            None if width.is_multiple_of(heads) => width / heads,
            None => return wrong("attention.head_count", format!("a divisor of {width}"), heads),
        };
        let value_length = self.number("attention.value_length")?.unwrap_or(head_dim);
        if value_length != head_dim {
            return wrong("attention.value_length", format!("the key length {head_dim}"), value_length);
        }
        let query = u64::from(heads) * u64::from(head_dim);
        if head_dim == 0 || query > u64::from(u32::MAX) {
            return wrong("attention.key_length", "above 0 and fit the heads into 32 bits".to_owned(), head_dim);
        }
        Ok(head_dim)
    }

    /// The rows of the embedding, which the metadata must agree with where it says anything.
    fn vocab(self) -> Result<u32, ModelError> {
        let Some(embedding) = self.file.tensor(TOKEN_EMBEDDING) else {
            return Err(ModelError::MissingTensor { name: TOKEN_EMBEDDING.to_owned() });
        };
        let rows = embedding.dimensions.get(1).copied().unwrap_or(1);
        let rows = at_most("rows of token_embd.weight", rows, u32::MAX.into())?;
        let tokens = self.file.value("tokenizer.ggml.tokens").and_then(|value| value.as_array());
        let key = self.key("vocab_size");
        let claims =
            [(key.as_str(), self.file.unsigned(&key)?), ("tokenizer.ggml.tokens", tokens.map(|array| array.count()))];
        for (key, claim) in claims {
            if let Some(claim) = claim
                && claim != rows
            {
                return Err(ModelError::wrong(key, format!("the {rows} rows of token_embd.weight"), claim));
            }
        }
        Ok(rows as u32)
    }

    fn window(self, context: u32) -> Result<Option<u32>, ModelError> {
        let window = self.number("attention.sliding_window")?.filter(|window| (1..context).contains(window));
        match (window, self.architecture) {
            // Qwen's windows begin at some block, of which the files say nothing.
            (Some(_), Architecture::Qwen2 | Architecture::Qwen3) => {
                Err(ModelError::unsupported(format!("a window (\"{}\")", self.key("attention.sliding_window"))))
            }
            (window, _) => Ok(window),
        }
    }

    fn norm_eps(self) -> Result<f32, ModelError> {
        let key = self.key("attention.layer_norm_rms_epsilon");
        let Some(epsilon) = self.file.float(&key)? else {
            return Err(GgufError::Missing { key }.into());
        };
        positive(&key, epsilon)
    }

    fn rope(self, head_dim: u32) -> Result<Rope, ModelError> {
        let dimensions = self.number("rope.dimension_count")?.unwrap_or(head_dim);
        if dimensions == 0 || !dimensions.is_multiple_of(2) || dimensions > head_dim {
            let expected = format!("even, above 0 and at most the head's {head_dim}");
            return Err(ModelError::wrong(&self.key("rope.dimension_count"), expected, dimensions));
        }
        let key = self.key("rope.freq_base");
        let base = positive(&key, self.file.float(&key)?.unwrap_or(10_000.0))?;
        let pairs = match self.architecture {
            Architecture::Llama => RopePairs::Interleaved,
            Architecture::Qwen2 | Architecture::Qwen3 => RopePairs::Halves,
        };
        Ok(Rope { dimensions, pairs, base, scaling: self.rope_scaling()? })
    }

    fn rope_scaling(self) -> Result<RopeScaling, ModelError> {
        let key = self.key("rope.scaling.type");
        let kind = self.file.text(&key)?.unwrap_or("none");
        let has_divisors = self.file.tensor(ROPE_FREQS).is_some();
        match kind {
            "none" if has_divisors => Ok(RopeScaling::Tensor),
            "none" => Ok(RopeScaling::None),
            "linear" if has_divisors => {
                Err(ModelError::unsupported(format!("linear rope scaling together with {ROPE_FREQS}")))
            }
            "linear" => {
                let key = self.key("rope.scaling.factor");
                let Some(factor) = self.file.float(&key)? else {
                    return Err(GgufError::Missing { key }.into());
                };
                Ok(RopeScaling::Linear { factor: positive(&key, factor)? })
            }
            other => Err(ModelError::unsupported(format!("the rope scaling \"{other}\""))),
        }
    }
}

fn at_most(key: &str, number: u64, limit: u64) -> Result<u64, ModelError> {
    if number > limit { Err(ModelError::wrong(key, format!("at most {limit}"), number)) } else { Ok(number) }
}

/// The number in 32 bits, which must be finite and above 0.
pub(super) fn positive(key: &str, number: f64) -> Result<f32, ModelError> {
    let narrow = number as f32;
    if narrow.is_finite() && narrow > 0.0 { Ok(narrow) } else { Err(ModelError::wrong(key, "above 0", number)) }
}

#[cfg(test)]
#[path = "llama_tests.rs"]
mod tests;
