//! Tensors that came from other peers, by their hash.
//!
//! ```text
//!  tensors/ab/abcd…         whole: verified piece by piece before it got its name
//!  tensors/incoming/abcd…   on its way: of the full length, with holes
//!  tensors/outlines/abcd…   what its pieces hash to, also of tensors that lie in imported files
//! ```
//!
//! What is on its way needs no table of what is there: after a crash every piece is held against the outline, and a hole is a piece that is
//! wrong. So is a piece of a whole tensor that the disk has damaged: the tensor is set aside among those on their way, and what is wrong
//! with it is fetched again.

use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use memmap2::Mmap;
use thiserror::Error;

use crate::amounts::Bytes;
use crate::ids::BlobHash;
use crate::os;
use crate::swarm::outline::Outline;
use crate::swarm::outline::PIECE;
use crate::swarm::outline::pieces;
use crate::weights::durable;

const INCOMING: &str = "incoming";
const OUTLINES: &str = "outlines";

/// The operating system refused.
#[derive(Debug, Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct TensorError {
    /// What was tried.
    pub action: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl TensorError {
    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// A directory of tensors. One process owns it at a time.
#[derive(Clone, Debug)]
pub struct Tensors {
    directory: PathBuf,
}

/// A tensor on its way here.
#[derive(Debug)]
pub struct Incoming {
    tensor: BlobHash,
    bytes: Bytes,
    file: File,
    path: PathBuf,
    target: PathBuf,
}

impl Tensors {
    /// Opens the directory, or makes it.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn open(directory: &Path) -> Result<Self, TensorError> {
        for part in [INCOMING, OUTLINES] {
            let path = directory.join(part);
            fs::create_dir_all(&path).map_err(failed("create", &path))?;
        }
        Ok(Self { directory: directory.to_owned() })
    }

    /// Whether a tensor of that length is here, whole. It may turn out damaged when read.
    pub fn holds(&self, tensor: BlobHash, bytes: Bytes) -> bool {
        fs::metadata(self.path(tensor)).is_ok_and(|found| found.is_file() && found.len() == bytes.0)
    }

    /// The file of a whole tensor.
    pub fn path(&self, tensor: BlobHash) -> PathBuf {
        let name = tensor.to_string();
        self.directory.join(&name[..2]).join(name)
    }

    /// A whole tensor, mapped.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn map(&self, tensor: BlobHash) -> Result<Mmap, TensorError> {
        let path = self.path(tensor);
        let file = File::open(&path).map_err(failed("open", &path))?;
        // SAFETY: the mapping is read-only and handed out only as shared slices that borrow from it. Files under their final names are
        // never written again, only renamed and removed, which leaves the mapping as it is; what another process does to them may change
        // bytes between two reads, which no code here relies on not happening, or end this process, like any lost disk under a mapping.
        unsafe { Mmap::map(&file) }.map_err(failed("map", &path))
    }

    /// The outline that is kept of a tensor, if it leads to the tensor's hash.
    pub fn outline(&self, tensor: BlobHash, bytes: Bytes) -> Option<Outline> {
        if bytes.0 <= PIECE {
            return Outline::of(tensor, bytes.0, Vec::new()).ok();
        }
        let kept = fs::read(self.outline_path(tensor)).ok()?;
        Outline::from_bytes(tensor, bytes.0, &kept).ok()
    }

    /// Keeps an outline. A crash may lose or spoil it, which shows when it is read.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn keep_outline(&self, outline: &Outline) -> Result<(), TensorError> {
        if outline.hashes().is_empty() {
            return Ok(());
        }
        let path = self.outline_path(outline.blob());
        fs::write(&path, outline.to_bytes()).map_err(failed("write", &path))
    }

    /// Takes up a tensor where it was left, or begins it.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn begin(&self, tensor: BlobHash, bytes: Bytes) -> Result<Incoming, TensorError> {
        let path = self.incoming_path(tensor);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = opened.map_err(failed("open", &path))?;
        file.set_len(bytes.0).map_err(failed("make room for", &path))?;
        Ok(Incoming { tensor, bytes, file, path, target: self.path(tensor) })
    }

    /// Whether anything of a tensor was begun.
    pub fn is_begun(&self, tensor: BlobHash) -> bool {
        self.incoming_path(tensor).is_file()
    }

    /// Puts a whole tensor that is damaged among those on their way: it is not whole any more. Nothing happens if it is not here.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn set_aside(&self, tensor: BlobHash) -> Result<(), TensorError> {
        let path = self.path(tensor);
        match fs::rename(&path, self.incoming_path(tensor)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("set aside", &path)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes a tensor, whole or on its way, and its outline; how many bytes that frees at most.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn remove(&self, tensor: BlobHash) -> Result<Bytes, TensorError> {
        let mut freed = Bytes::ZERO;
        for path in [self.path(tensor), self.incoming_path(tensor), self.outline_path(tensor)] {
            let length = fs::metadata(&path).map_or(0, |found| found.len());
            match fs::remove_file(&path) {
                Ok(()) => freed = freed.plus(Bytes(length)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("remove", &path)(error)),
            }
        }
        Ok(freed)
    }

    /// Bytes that may still be written here, if that can be told.
    pub fn room(&self) -> Option<Bytes> {
        os::free_space(&self.directory)
    }

    fn incoming_path(&self, tensor: BlobHash) -> PathBuf {
        self.directory.join(INCOMING).join(tensor.to_string())
    }

    fn outline_path(&self, tensor: BlobHash) -> PathBuf {
        self.directory.join(OUTLINES).join(tensor.to_string())
    }
}

impl Incoming {
    /// The pieces that are there, by the outline. Reads all of it.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn there(&self, outline: &Outline) -> Result<BTreeSet<u64>, TensorError> {
        let mut there = BTreeSet::new();
        let mut data = Vec::new();
        for piece in 0..pieces(self.bytes.0) {
            read_piece(&self.file, 0, self.bytes, piece, &mut data).map_err(failed("read", &self.path))?;
            if outline.admits(piece, &data) {
                there.insert(piece);
            }
        }
        Ok(there)
    }

    /// Writes a piece that the outline admits. Twice the same does no harm.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn write(&self, piece: u64, data: &[u8]) -> Result<(), TensorError> {
        os::write_all_at(&self.file, data, piece.saturating_mul(PIECE)).map_err(failed("write", &self.path))
    }

    /// All pieces are there: makes them durable and gives the tensor its name.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn finish(&self) -> Result<(), TensorError> {
        self.file.sync_all().map_err(failed("write", &self.path))?;
        if let Some(parent) = self.target.parent() {
            fs::create_dir_all(parent).map_err(failed("create", parent))?;
        }
        durable::rename(&self.path, &self.target).map_err(failed("name", &self.target))
    }

    /// Which tensor it is.
    pub const fn tensor(&self) -> BlobHash {
        self.tensor
    }
}

/// Reads piece number `piece` of what begins at `start` of a file and has so many bytes. `data` has the piece's length then.
///
/// # Errors
/// What the system says; `UnexpectedEof` if the file is shorter.
pub fn read_piece(file: &File, start: u64, bytes: Bytes, piece: u64, data: &mut Vec<u8>) -> io::Result<()> {
    let offset = piece.saturating_mul(PIECE);
    let length = bytes.0.saturating_sub(offset).min(PIECE);
    data.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
    os::read_exact_at(file, data, start.saturating_add(offset))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TensorError {
    let path = path.to_owned();
    move |source| TensorError { action, path, source }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::swarm::outline::piece_hash;

    const BYTES: u64 = 2 * PIECE + 7;

    #[test]
    fn a_tensor_is_whole_when_its_last_piece_was_written_and_not_before() {
        let (_directory, tensors) = empty();
        let (data, outline) = sample();
        let incoming = tensors.begin(outline.blob(), Bytes(BYTES)).unwrap();

        for (piece, bytes) in (0..).zip(data.chunks(PIECE as usize)) {
            assert!(!tensors.holds(outline.blob(), Bytes(BYTES)));
            incoming.write(piece, bytes).unwrap();
        }
        incoming.finish().unwrap();

        assert!(tensors.holds(outline.blob(), Bytes(BYTES)));
        assert!(!tensors.holds(outline.blob(), Bytes(BYTES - 1)), "of another length");
        assert_eq!(tensors.map(outline.blob()).unwrap()[..], data[..]);
    }

    #[test]
    fn what_was_written_before_a_crash_is_there_after_it_and_what_was_half_written_is_not() {
        let (directory, tensors) = empty();
        let (data, outline) = sample();
        tensors.keep_outline(&outline).unwrap();
        let incoming = tensors.begin(outline.blob(), Bytes(BYTES)).unwrap();
        incoming.write(2, &data[2 * PIECE as usize..]).unwrap();
        incoming.write(0, &data[..PIECE as usize / 2]).unwrap();
        drop(incoming);

        let again = Tensors::open(directory.path()).unwrap();

        assert!(again.is_begun(outline.blob()));
        assert_eq!(again.outline(outline.blob(), Bytes(BYTES)), Some(outline.clone()));
        let incoming = again.begin(outline.blob(), Bytes(BYTES)).unwrap();
        assert_eq!(incoming.there(&outline).unwrap(), BTreeSet::from([2]));
    }

    #[test]
    fn a_damaged_tensor_that_is_set_aside_lacks_only_what_is_wrong() {
        let (_directory, tensors) = empty();
        let (data, outline) = sample();
        let incoming = tensors.begin(outline.blob(), Bytes(BYTES)).unwrap();
        (0..).zip(data.chunks(PIECE as usize)).for_each(|(piece, bytes)| incoming.write(piece, bytes).unwrap());
        incoming.finish().unwrap();
        let path = tensors.path(outline.blob());
        let mut wrong = data;
        wrong[PIECE as usize + 9] ^= 4;
        fs::write(path, wrong).unwrap();

        tensors.set_aside(outline.blob()).unwrap();

        assert!(!tensors.holds(outline.blob(), Bytes(BYTES)));
        let incoming = tensors.begin(outline.blob(), Bytes(BYTES)).unwrap();
        assert_eq!(incoming.there(&outline).unwrap(), BTreeSet::from([0, 2]));
        tensors.set_aside(BlobHash::new([9; 32])).unwrap();
    }

    #[test]
    fn an_outline_that_was_spoiled_is_none() {
        let (_directory, tensors) = empty();
        let (_, outline) = sample();
        tensors.keep_outline(&outline).unwrap();
        assert!(tensors.outline(outline.blob(), Bytes(BYTES)).is_some());
        let path = tensors.outline_path(outline.blob());

        for spoiled in [&b""[..], &[7; 33], &[7; 96]] {
            fs::write(&path, spoiled).unwrap();

            assert_eq!(tensors.outline(outline.blob(), Bytes(BYTES)), None);
        }
    }

    #[test]
    fn removing_says_what_it_frees_and_leaves_nothing() {
        let (_directory, tensors) = empty();
        let (_, outline) = sample();
        tensors.keep_outline(&outline).unwrap();
        drop(tensors.begin(outline.blob(), Bytes(BYTES)).unwrap());

        assert_eq!(tensors.remove(outline.blob()).unwrap(), Bytes(BYTES + 96));
        assert_eq!(tensors.remove(outline.blob()).unwrap(), Bytes::ZERO);
        assert!(!tensors.is_begun(outline.blob()));
    }

    fn empty() -> (TempDir, Tensors) {
        let directory = tempfile::tempdir().unwrap();
        let tensors = Tensors::open(directory.path()).unwrap();
        (directory, tensors)
    }

    fn sample() -> (Vec<u8>, Outline) {
        let data: Vec<u8> = (0..BYTES).map(|index| (index ^ (index >> 9)) as u8).collect();
        let hashes = (0..).zip(data.chunks(PIECE as usize)).map(|(piece, bytes)| piece_hash(piece, bytes)).collect();
        let hash = BlobHash::new(*blake3::hash(&data).as_bytes());
        let outline = Outline::of(hash, BYTES, hashes).unwrap();
        (data, outline)
    }
}
