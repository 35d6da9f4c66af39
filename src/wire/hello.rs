//! The first message of every stream: which versions and features its opener speaks.

/// The first message of every stream, in both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The lowest minor version spoken.
    pub min: u32,
    /// The highest minor version spoken.
    pub max: u32,
    /// A bit per optional feature; unknown bits are ignored.
    pub features: u64,
    /// Name and version of the software, for people, at most 64 bytes.
    pub software: String,
}
