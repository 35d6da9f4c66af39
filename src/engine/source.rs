//! Where a stage's tensors come from.

use std::ops::Range;

use crate::shape::WeightFormat;

/// A model's tensors by GGUF's names. Implemented by whoever holds the bytes.
pub trait TensorSource: Send + Sync {
    /// The tensor of that name, if the source has it.
    fn tensor(&self, name: &str) -> Option<TensorData<'_>>;

    /// These bytes of the tensor of that name will not be looked at soon: memory that they take may be given back.
    fn release(&self, _name: &str, _bytes: Range<usize>) {}
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
