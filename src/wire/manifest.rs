//! A model's manifest: a fixed, versioned byte encoding whose blake3 is the model's id.

use crate::amounts::Bytes;
use crate::ids::BlobHash;
use crate::shape::ModelShape;
use crate::shape::WeightFormat;

/// Everything that says which weights a model has. No file name, no title: the same weights give the same bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The hyper-parameters.
    pub shape: ModelShape,
    /// The blob of the [`Vocabulary`](crate::wire::vocabulary::Vocabulary), with the chat template.
    pub vocabulary: BlobHash,
    /// Every tensor, ascending by name.
    pub tensors: Vec<TensorEntry>,
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
    /// blake3 of the data.
    pub hash: BlobHash,
}
