//! The outline of a blob: the chaining values of its pieces in blake3's tree, from which the blob's hash follows.
//!
//! A piece is [`PIECE`] bytes, a power of two of blake3's chunks, so each one is a subtree: whoever has an outline that leads to the
//! blob's hash can tell of every single piece, from whomever it comes and in whatever order, whether it is the right one. An outline
//! has 32 bytes per MiB.

use blake3::Hasher;
use blake3::hazmat::ChainingValue;
use blake3::hazmat::HasherExt;
use blake3::hazmat::Mode;
use blake3::hazmat::left_subtree_len;
use blake3::hazmat::merge_subtrees_non_root;
use blake3::hazmat::merge_subtrees_root;
use thiserror::Error;

use crate::ids::BlobHash;
use crate::wire::fetch::MAX_PIECE;
use crate::wire::fetch::MAX_TENSOR;

/// Bytes of a piece; the last one of a blob may have fewer.
pub const PIECE: u64 = MAX_PIECE as u64;

/// Bytes of a piece's hash. The outline of the largest blob has 512 KiB.
const HASH: usize = 32;

/// What a piece hashes to where it stands.
pub type PieceHash = ChainingValue;

/// How many pieces so many bytes have.
pub const fn pieces(bytes: u64) -> u64 {
    bytes.div_ceil(PIECE)
}

/// The pieces of a blob, which lead to its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    blob: BlobHash,
    bytes: u64,
    hashes: Vec<PieceHash>,
}

/// An outline that is not the blob's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadOutline {
    /// It has another number of pieces than the blob.
    #[error("an outline of {got} pieces for {bytes} bytes")]
    Count {
        /// Pieces given.
        got: u64,
        /// Bytes of the blob.
        bytes: u64,
    },
    /// Its pieces lead to another hash.
    #[error("the pieces lead to another hash")]
    Hash,
}

impl Outline {
    /// The outline of a blob of so many bytes, which its pieces lead to. A blob of one piece is its own outline, and has no pieces to
    /// be told.
    ///
    /// # Errors
    /// [`BadOutline`]; whoever sent it is wrong.
    pub fn of(blob: BlobHash, bytes: u64, hashes: Vec<PieceHash>) -> Result<Self, BadOutline> {
        let expected = if bytes <= PIECE { 0 } else { pieces(bytes) };
        let got = hashes.len() as u64;
        if got != expected || bytes > MAX_TENSOR {
            return Err(BadOutline::Count { got, bytes });
        }
        if expected > 0 && root(&hashes, bytes) != *blob.as_bytes() {
            return Err(BadOutline::Hash);
        }
        Ok(Self { blob, bytes, hashes })
    }

    /// The outline from its bytes: the pieces' hashes one after the other.
    ///
    /// # Errors
    /// [`BadOutline`]; whoever sent it is wrong.
    pub fn from_bytes(blob: BlobHash, bytes: u64, outline: &[u8]) -> Result<Self, BadOutline> {
        let (hashes, rest) = outline.as_chunks::<HASH>();
        if !rest.is_empty() {
            return Err(BadOutline::Hash);
        }
        Self::of(blob, bytes, hashes.to_vec())
    }

    /// The outline of a blob that is read piece after piece: each call of `next` gives the next [`PIECE`] bytes, or what is left. None
    /// if they are not the blob's.
    ///
    /// # Errors
    /// Those of `next`.
    pub fn read<E>(
        blob: BlobHash,
        bytes: u64,
        mut next: impl FnMut(u64, &mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Option<Self>, E> {
        let mut data = Vec::new();
        let mut hashes = Vec::new();
        for piece in 0..pieces(bytes) {
            next(piece, &mut data)?;
            hashes.push(piece_hash(piece, &data));
        }
        if bytes > PIECE {
            return Ok(Self::of(blob, bytes, hashes).ok());
        }
        let outline = Self { blob, bytes, hashes: Vec::new() };
        Ok(outline.admits(0, &data).then_some(outline))
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.hashes.concat()
    }

    /// Which blob it is of.
    pub const fn blob(&self) -> BlobHash {
        self.blob
    }

    /// Whether this is the piece of that number.
    pub fn admits(&self, piece: u64, data: &[u8]) -> bool {
        let length = self.bytes.saturating_sub(piece.saturating_mul(PIECE)).min(PIECE);
        if piece >= pieces(self.bytes) || data.len() as u64 != length {
            return false;
        }
        match usize::try_from(piece).ok().and_then(|piece| self.hashes.get(piece)) {
            Some(hash) => piece_hash(piece, data) == *hash,
            None => self.hashes.is_empty() && *blake3::hash(data).as_bytes() == *self.blob.as_bytes(),
        }
    }

    /// The hashes of the pieces; none if there is only one.
    pub fn hashes(&self) -> &[PieceHash] {
        &self.hashes
    }

    /// Bytes of the blob.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What a piece of that number hashes to, in a blob of several. At most [`PIECE`] bytes, and not none.
pub fn piece_hash(piece: u64, data: &[u8]) -> PieceHash {
    Hasher::new().set_input_offset(piece.saturating_mul(PIECE)).update(data).finalize_non_root()
}

/// What at least two pieces lead to.
fn root(hashes: &[PieceHash], bytes: u64) -> [u8; 32] {
    let (left, right) = halves(hashes, bytes);
    *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()
}

/// The values of a subtree's two children.
fn halves(hashes: &[PieceHash], bytes: u64) -> (PieceHash, PieceHash) {
    let left = left_subtree_len(bytes);
    // As many as fit: there is one for every piece, and the left part is a whole number of them.
    let (first, second) = hashes.split_at(usize::try_from(pieces(left)).unwrap_or(usize::MAX).min(hashes.len()));
    (subtree(first, left), subtree(second, bytes - left))
}

fn subtree(hashes: &[PieceHash], bytes: u64) -> PieceHash {
    match hashes {
        [] => ChainingValue::default(),
        [hash] => *hash,
        _ => {
            let (left, right) = halves(hashes, bytes);
            merge_subtrees_non_root(&left, &right, Mode::Hash)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that differ from piece to piece.
    fn blob(bytes: u64) -> Vec<u8> {
        (0..bytes).map(|index| (index ^ (index >> 11) ^ (index / PIECE)) as u8).collect()
    }

    fn hash(blob: &[u8]) -> BlobHash {
        BlobHash::new(*blake3::hash(blob).as_bytes())
    }

    fn hashes(blob: &[u8]) -> Vec<PieceHash> {
        if blob.len() as u64 <= PIECE {
            return Vec::new();
        }
        (0..).zip(blob.chunks(PIECE as usize)).map(|(piece, data)| piece_hash(piece, data)).collect()
    }

    #[test]
    fn the_pieces_of_a_blob_of_any_length_lead_to_its_hash() {
        for bytes in [1, 1_000, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE, 5 * PIECE + 77, 8 * PIECE - 1] {
            let blob = blob(bytes);
            let outline = Outline::of(hash(&blob), bytes, hashes(&blob)).unwrap();

            for (piece, data) in (0..).zip(blob.chunks(PIECE as usize)) {
                assert!(outline.admits(piece, data), "piece {piece} of {bytes} bytes");
                assert!(!outline.admits(piece + 1, data), "in another place");
                assert!(!outline.admits(piece, &data[1..]), "too short");
                let mut wrong = data.to_vec();
                wrong[data.len() / 2] ^= 1;
                assert!(!outline.admits(piece, &wrong), "one bit");
            }
        }
    }

    #[test]
    fn an_outline_that_leads_elsewhere_is_refused() {
        let blob = blob(3 * PIECE + 5);
        let (hash, bytes, hashes) = (hash(&blob), blob.len() as u64, hashes(&blob));
        let mut swapped = hashes.clone();
        swapped.swap(0, 1);

        assert_eq!(Outline::of(hash, bytes, swapped), Err(BadOutline::Hash));
        // A lie about the length that leaves as many pieces is found with the last one.
        let longer = Outline::of(hash, bytes + 1, hashes.clone()).unwrap();
        assert!(!longer.admits(3, &blob[3 * PIECE as usize..]));
        assert_eq!(Outline::of(hash, bytes, hashes[1..].to_vec()), Err(BadOutline::Count { got: 3, bytes }));
        assert_eq!(Outline::of(hash, PIECE, hashes[..1].to_vec()), Err(BadOutline::Count { got: 1, bytes: PIECE }));
        let huge = MAX_TENSOR + 1;
        assert_eq!(Outline::of(hash, huge, Vec::new()), Err(BadOutline::Count { got: 0, bytes: huge }));
    }
}
