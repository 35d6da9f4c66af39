//! A model's manifest: a fixed, versioned byte encoding whose blake3 is the model's id.
//!
//! All numbers little-endian; a text is its length and its bytes:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | mark, `BRGM` |
//! | 2 | version, 1 or 2 |
//! | 1 + n | architecture, by GGUF's name |
//! | 2 | blocks |
//! | 4 each | width, heads, kv heads, head dimension, feed-forward, vocabulary, context |
//! | 4 | norm epsilon, f32 |
//! | 4, 4 | rope dimensions, rope base (f32) |
//! | 1 | rope scaling: 0 none, 1 linear, 2 Llama 3, 3 tensor |
//! | 4 | linear: factor, f32 |
//! | 4 each | Llama 3: factor, low and high frequency factor (f32), original context |
//! | 1 | version 2: rotated pairs: 0 interleaved, 1 halves |
//! | 4 | version 2: window, or 0 without one |
//! | 1 | 1 if the output head is tied to the embedding, else 0 |
//! | 32 | hash of the vocabulary |
//! | 4 | how many tensors |
//!
//! and of each tensor, ascending by name:
//!
//! | bytes | what |
//! |---|---|
//! | 1 + n | name |
//! | 2 + 2 each | how many units, and the units, ascending |
//! | 1 + 8 each | how many dimensions, and the dimensions |
//! | 4 | format, GGUF's number |
//! | 8 | length of the data |
//! | 32 | hash of the data |
//!
//! Version 1 has the architecture `llama`, interleaved pairs and no window; every other model has version 2. A model that was made by
//! quantising another one ([`Derivation`]) has version 3, which is short:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | mark, `BRGM` |
//! | 2 | version, 3 |
//! | 1 | version of the quantiser |
//! | 4 | format asked for, GGUF's number |
//! | the rest | the source's manifest, of version 1 or 2 |
//!
//! So one manifest has exactly one encoding: what is accepted encodes to the same bytes again.

use crate::amounts::Bytes;
use crate::estimate::Footprint;
use crate::estimate::Tensor;
use crate::ids::BlobHash;
use crate::ids::ModelId;
use crate::shape::ModelShape;
use crate::shape::WeightFormat;
use crate::units::UnitRange;

mod codec;
mod derived;

pub use crate::wire::manifest::derived::Derivation;

/// The most bytes of an encoded manifest: the most tensors at about twice their usual size.
pub const MAX_MANIFEST: usize = 8 << 20;

/// The most transformer blocks (arbitrary; the deepest public models have about 128).
pub const MAX_BLOCKS: u16 = 1_024;

/// The most elements of a hidden state, a feed-forward layer, or all heads together (arbitrary; the widest have 53,248).
pub const MAX_WIDTH: u32 = 1 << 20;

/// The most token ids (arbitrary; the most in use are about 262,000).
pub const MAX_VOCAB: u32 = 1 << 21;

/// The longest context (arbitrary; the longest in use is ten million).
pub const MAX_CONTEXT: u32 = 1 << 24;

/// The most tensors: sixteen per block and sixteen more.
pub const MAX_TENSORS: usize = 16 * (MAX_BLOCKS as usize + 1);

/// The longest name of a tensor, in bytes.
pub const MAX_TENSOR_NAME: usize = 64;

/// The most dimensions of a tensor, GGUF's own limit.
pub const MAX_DIMENSIONS: usize = 4;

/// Everything that says which weights a model has. No file name, no title: the same weights give the same bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The hyper-parameters.
    pub shape: ModelShape,
    /// The blob of the [`Vocabulary`](crate::wire::vocabulary::Vocabulary), with the chat template.
    pub vocabulary: BlobHash,
    /// Every tensor, ascending by name.
    pub tensors: Vec<TensorEntry>,
    /// How it was made, if from another model; the tensors follow from it.
    pub derivation: Option<Derivation>,
}

/// One tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// GGUF's name, at most 64 bytes.
    pub name: String,
    /// The units that need it, ascending, at least one: a tied embedding belongs to two, `rope_freqs.weight` to every block.
    pub units: Vec<u16>,
    /// Elements per dimension, the fastest-varying first as in GGUF; 1 to 4 of them.
    pub dimensions: Vec<u64>,
    /// How its elements are stored.
    pub format: WeightFormat,
    /// Length of the data.
    pub bytes: Bytes,
    /// blake3 of the data; of a tensor that is made by quantising another, the name that follows from it ([`Manifest::made_from`]).
    pub hash: BlobHash,
}

impl Manifest {
    /// The model's id: blake3 of the encoding.
    pub fn id(&self) -> ModelId {
        ModelId::new(*blake3::hash(&self.encode()).as_bytes())
    }

    /// The tensors that a stage of `range` needs, ascending by name.
    pub fn tensors_of(&self, range: UnitRange) -> impl Iterator<Item = &TensorEntry> {
        self.tensors.iter().filter(move |tensor| tensor.units.iter().any(|&unit| range.contains(unit)))
    }

    /// Bytes of the tensors that a stage of `range` needs, each counted once.
    pub fn weight_bytes(&self, range: UnitRange) -> Bytes {
        self.tensors_of(range).map(|tensor| tensor.bytes).sum()
    }

    /// What the model takes in memory.
    pub fn footprint(&self) -> Footprint {
        fn tensor(entry: &TensorEntry) -> Tensor<'_> {
            Tensor { units: &entry.units, dimensions: &entry.dimensions, format: entry.format }
        }
        Footprint::of(&self.shape, self.tensors.iter().map(tensor))
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> Bytes {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// The format that stands for the precision of all: the one asked for where the model was made of another, else the main one.
    pub fn format(&self) -> WeightFormat {
        let asked = self.derivation.as_ref().map(|derivation| derivation.format);
        asked.or_else(|| self.main_format()).unwrap_or(WeightFormat::F32)
    }

    /// The format that most bytes are stored in; of equals, the one with the smallest number. `None` without tensors.
    pub fn main_format(&self) -> Option<WeightFormat> {
        let bytes_in = |format: WeightFormat| -> Bytes {
            self.tensors.iter().filter(|tensor| tensor.format == format).map(|tensor| tensor.bytes).sum()
        };
        let sums = WeightFormat::ALL.iter().map(|&format| (bytes_in(format), std::cmp::Reverse(format)));
        sums.max().filter(|(bytes, _)| *bytes > Bytes::ZERO).map(|(_, format)| format.0)
    }
}
