//! Where a stage's tensors come from.

use crate::shape::WeightFormat;

/// A model's tensors by GGUF's names. Implemented by whoever holds the bytes.
pub trait TensorSource: Send + Sync {
    /// The tensor of that name, if the source has it.
    fn tensor(&self, name: &str) -> Option<TensorData<'_>>;
}

/// One tensor as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorData<'a> {
    /// How the elements are stored.
    pub format: WeightFormat,
    /// Elements per dimension in GGUF's order: the first runs fastest.
    pub dimensions: Vec<u64>,
    /// The bytes, of any alignment.
    pub bytes: &'a [u8],
}
