//! A tensor on its way to the disk.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;

use crate::amounts::Bytes;
use crate::ids::BlobHash;
use crate::swarm::outline::Outline;
use crate::swarm::outline::PIECE;
use crate::swarm::outline::pieces;
use crate::weights::tensors::Incoming;
use crate::weights::tensors::TensorError;
use crate::weights::tensors::Tensors;

/// Why something that came was not taken.
#[derive(Debug)]
pub(super) enum NotTaken {
    /// It is not what was asked for; whoever sent it is wrong.
    Wrong,
    /// Whoever sent it has something of another length under that name: one of the two manifests is wrong, not the source.
    Other,
    /// There is nothing yet to hold it against.
    Early,
    /// It cannot be written.
    Disk(TensorError),
}

impl From<TensorError> for NotTaken {
    fn from(error: TensorError) -> Self {
        Self::Disk(error)
    }
}

/// A tensor that is wanted: takes its outline and its pieces from any thread, whoever they come from.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) tensor: BlobHash,
    pub(super) bytes: Bytes,
    tensors: Tensors,
    outline: OnceLock<Outline>,
    file: Mutex<Place>,
}

/// Where its bytes go.
#[derive(Debug)]
enum Place {
    NotYet,
    Open(Arc<Incoming>),
    /// The tensor is whole; what comes now comes too late.
    Done,
}

impl Target {
    /// A tensor of which nothing is known here, or what a run before left of it. What is there of it, if its outline is known.
    ///
    /// # Errors
    /// [`TensorError`].
    pub(super) fn resume(
        tensors: Tensors,
        tensor: BlobHash,
        bytes: Bytes,
    ) -> Result<(Self, Option<BTreeSet<u64>>), TensorError> {
        let kept = tensors.outline(tensor, bytes);
        let is_begun = tensors.is_begun(tensor, bytes);
        let target = Self { tensor, bytes, tensors, outline: OnceLock::new(), file: Mutex::new(Place::NotYet) };
        let Some(outline) = kept else { return Ok((target, None)) };
        let file = if is_begun { target.file()? } else { None };
        let there = file.map(|file| file.there(&outline)).transpose()?.unwrap_or_default();
        // Nobody else has it yet.
        let _ = target.outline.set(outline);
        Ok((target, Some(there)))
    }

    /// Whether so many pieces are all of them.
    pub(super) fn is_whole(&self, there: &BTreeSet<u64>) -> bool {
        there.len() as u64 == pieces(self.bytes.0)
    }

    /// Takes an outline, and keeps it for a restart and for others.
    pub(super) fn take_outline(&self, total: u64, data: &[u8]) -> Result<(), NotTaken> {
        if total != self.outline_bytes() {
            return Err(NotTaken::Other);
        }
        let outline = Outline::from_bytes(self.tensor, self.bytes.0, data).map_err(|_| NotTaken::Wrong)?;
        self.tensors.keep_outline(&outline)?;
        // Another source may have been quicker; there is only one outline that is right.
        let _ = self.outline.set(outline);
        Ok(())
    }

    /// Verifies a piece and writes it. `total` is the tensor's length as the source says.
    pub(super) fn take_piece(&self, piece: u64, total: u64, data: &[u8]) -> Result<(), NotTaken> {
        if total != self.bytes.0 {
            return Err(NotTaken::Other);
        }
        if !self.outline.get().ok_or(NotTaken::Early)?.admits(piece, data) {
            return Err(NotTaken::Wrong);
        }
        if let Some(file) = self.file()? {
            file.write(piece, data)?;
        }
        Ok(())
    }

    /// Every piece was taken: the tensor gets its name.
    ///
    /// # Errors
    /// [`TensorError`].
    pub(super) fn finish(&self) -> Result<(), TensorError> {
        if let Some(file) = self.file()? {
            file.finish()?;
        }
        *self.opened() = Place::Done;
        Ok(())
    }

    /// Bytes of its outline.
    pub(super) fn outline_bytes(&self) -> u64 {
        if self.bytes.0 <= PIECE { 0 } else { 32 * pieces(self.bytes.0) }
    }

    fn file(&self) -> Result<Option<Arc<Incoming>>, TensorError> {
        let mut opened = self.opened();
        match &*opened {
            Place::Done => Ok(None),
            Place::Open(file) => Ok(Some(Arc::clone(file))),
            Place::NotYet => {
                let file = Arc::new(self.tensors.begin(self.tensor, self.bytes)?);
                *opened = Place::Open(Arc::clone(&file));
                Ok(Some(file))
            }
        }
    }

    fn opened(&self) -> MutexGuard<'_, Place> {
        // Every change is one assignment.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::outline::piece_hash;

    const BYTES: u64 = PIECE + 9;

    fn sample() -> (Vec<u8>, BlobHash, Vec<u8>) {
        let data: Vec<u8> = (0..BYTES).map(|index| (index ^ (index >> 10)) as u8).collect();
        let outline = (0..).zip(data.chunks(PIECE as usize)).flat_map(|(piece, bytes)| piece_hash(piece, bytes));
        let outline = outline.collect();
        let hash = BlobHash::new(*blake3::hash(&data).as_bytes());
        (data, hash, outline)
    }

    #[test]
    fn only_what_is_right_is_taken_and_what_comes_late_does_no_harm() {
        let directory = tempfile::tempdir().unwrap();
        let tensors = Tensors::open(directory.path()).unwrap();
        let (data, hash, outline) = sample();
        let (first, second) = data.split_at(PIECE as usize);
        let (target, there) = Target::resume(tensors.clone(), hash, Bytes(BYTES)).unwrap();
        assert!(there.is_none() && target.outline_bytes() == 64);

        assert!(matches!(target.take_piece(0, BYTES, first), Err(NotTaken::Early)));
        assert!(matches!(target.take_outline(64, &[1; 64]), Err(NotTaken::Wrong)));
        assert!(matches!(target.take_outline(96, &outline), Err(NotTaken::Other)));
        assert!(matches!(target.take_outline(64, &outline[..63]), Err(NotTaken::Wrong)));
        target.take_outline(64, &outline).unwrap();
        assert!(matches!(target.take_piece(1, BYTES, first), Err(NotTaken::Wrong)));
        assert!(matches!(target.take_piece(0, BYTES + 1, first), Err(NotTaken::Other)));
        target.take_piece(1, BYTES, second).unwrap();

        drop(target);
        let (target, there) = Target::resume(tensors.clone(), hash, Bytes(BYTES)).unwrap();
        assert_eq!(there, Some(BTreeSet::from([1])));
        assert!(!target.is_whole(&there.unwrap()));
        target.take_piece(0, BYTES, first).unwrap();
        target.finish().unwrap();
        target.take_piece(0, BYTES, first).unwrap();

        assert!(tensors.holds(hash, Bytes(BYTES)) && !tensors.is_begun(hash, Bytes(BYTES)));
        assert_eq!(tensors.map(hash).unwrap()[..], data[..]);
    }
}
