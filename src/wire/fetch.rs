//! Fetching manifests and vocabularies by hash: one request and one answer per stream, in bounded pieces.

use bytes::Bytes;

use crate::ids::BlobHash;

/// The largest piece that one answer may carry.
pub const MAX_PIECE: u32 = 1 << 20;

/// The largest blob that is fetched this way (a vocabulary of 256 k tokens takes about 5 MiB).
pub const MAX_BLOB: u64 = 64 << 20;

/// Asks for a piece of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    /// Which blob. A manifest's hash is its model's id.
    pub blob: BlobHash,
    /// The first byte wanted.
    pub offset: u64,
    /// How many bytes at most, `1..=MAX_PIECE`.
    pub length: u32,
}

/// Answers a [`FetchRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchAnswer {
    /// A piece. Fewer bytes than asked for only at the blob's end.
    Piece {
        /// Length of the whole blob, at most [`MAX_BLOB`].
        total: u64,
        /// The bytes, at most [`MAX_PIECE`].
        data: Bytes,
    },
    /// The peer does not have it.
    NotFound,
    /// The peer serves as many as it will at the moment.
    Busy,
}
