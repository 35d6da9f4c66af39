//! Fetching blobs by hash, in bounded pieces: manifests and vocabularies whole, tensors piece by piece with their outline.

use bytes::Bytes;

use crate::ids::BlobHash;
use crate::wire::bad::BadMessage;
use crate::wire::bad::array;
use crate::wire::bad::at_most;
use crate::wire::bad::required;
use crate::wire::bad::within;
use crate::wire::doors;
use crate::wire::proto;

/// The largest piece that one answer may carry.
pub const MAX_PIECE: u32 = 1 << 20;

/// The largest blob that is fetched whole (a vocabulary of 256 k tokens takes about 5 MiB).
pub const MAX_BLOB: u64 = 64 << 20;

/// The largest blob that is fetched in pieces which are verified one by one: a tensor (arbitrary; the largest in use, the experts of
/// one layer together, have about half of that).
pub const MAX_TENSOR: u64 = 16 << 30;

/// What of a blob is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum FetchPart {
    /// Its bytes.
    #[default]
    Data,
    /// Its outline: what its pieces of 1 MiB hash to, 32 bytes each. Offset and length count in its bytes.
    Outline,
}

/// Asks for a piece of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    /// Which blob. A manifest's hash is its model's id.
    pub blob: BlobHash,
    /// What of it.
    pub part: FetchPart,
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
        /// Length of all that could be asked for, at most [`MAX_TENSOR`].
        total: u64,
        /// The bytes, at most [`MAX_PIECE`].
        data: Bytes,
    },
    /// The peer does not have it.
    NotFound,
    /// The peer serves as many as it will at the moment.
    Busy,
}

doors!(FetchRequest, 64);
doors!(FetchAnswer, MAX_PIECE as usize + 64);

impl TryFrom<proto::FetchRequest> for FetchRequest {
    type Error = BadMessage;

    fn try_from(request: proto::FetchRequest) -> Result<Self, BadMessage> {
        Ok(Self {
            blob: BlobHash::new(array("fetch blob", &request.blob)?),
            part: if request.outline { FetchPart::Outline } else { FetchPart::Data },
            offset: within("fetch offset", request.offset, 0..=MAX_TENSOR)?,
            length: within("fetch length", request.length, 1..=MAX_PIECE)?,
        })
    }
}

impl From<&FetchRequest> for proto::FetchRequest {
    fn from(request: &FetchRequest) -> Self {
        Self {
            blob: request.blob.as_bytes().to_vec().into(),
            offset: request.offset,
            length: request.length,
            outline: request.part == FetchPart::Outline,
        }
    }
}

impl TryFrom<proto::FetchAnswer> for FetchAnswer {
    type Error = BadMessage;

    fn try_from(answer: proto::FetchAnswer) -> Result<Self, BadMessage> {
        match required("fetch answer", answer.kind)? {
            proto::fetch_answer::Kind::Piece(proto::Piece { total, data }) => {
                let total = within("blob length", total, 0..=MAX_TENSOR)?;
                at_most("piece", data.len(), (MAX_PIECE as usize).min(usize::try_from(total).unwrap_or(usize::MAX)))?;
                Ok(Self::Piece { total, data })
            }
            proto::fetch_answer::Kind::NotFound(_) => Ok(Self::NotFound),
            proto::fetch_answer::Kind::Busy(_) => Ok(Self::Busy),
        }
    }
}

impl From<&FetchAnswer> for proto::FetchAnswer {
    fn from(answer: &FetchAnswer) -> Self {
        let kind = match answer {
            FetchAnswer::Piece { total, data } => {
                proto::fetch_answer::Kind::Piece(proto::Piece { total: *total, data: data.clone() })
            }
            FetchAnswer::NotFound => proto::fetch_answer::Kind::NotFound(proto::Nothing {}),
            FetchAnswer::Busy => proto::fetch_answer::Kind::Busy(proto::Nothing {}),
        };
        Self { kind: Some(kind) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::samples;

    #[test]
    fn a_request_asks_for_something_of_a_blob_that_can_be() {
        let request = FetchRequest { blob: samples::blob(1), part: FetchPart::Data, offset: 0, length: 1 };
        let refused = |request: FetchRequest| FetchRequest::decode(&request.encode()).is_err();

        assert!(!refused(request));
        assert!(refused(FetchRequest { length: 0, ..request }));
        assert!(refused(FetchRequest { length: MAX_PIECE + 1, ..request }));
        assert!(refused(FetchRequest { offset: MAX_TENSOR + 1, ..request }));
    }

    #[test]
    fn a_piece_is_no_longer_than_its_blob_or_the_limit() {
        let piece = |total, length| FetchAnswer::Piece { total, data: vec![7; length].into() };
        let refused = |answer: FetchAnswer| FetchAnswer::decode(&answer.encode()).is_err();

        assert!(!refused(piece(MAX_TENSOR, MAX_PIECE as usize)));
        assert!(!refused(piece(0, 0)));
        assert!(refused(piece(4, 5)));
        assert!(refused(piece(MAX_TENSOR, MAX_PIECE as usize + 1)));
        assert!(refused(piece(MAX_TENSOR + 1, 1)));
    }
}
