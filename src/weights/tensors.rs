//! Tensors that came from other peers, by their hash.
//!
//! ```text
//!  tensors/ab/abcd…         whole: verified piece by piece before it got its name
//!  tensors/incoming/abcd…-N on its way: of its full length N, with holes
//!  tensors/outlines/abcd…   what its pieces hash to, also of tensors that lie in imported files
//!  tensors/damaged/abcd…    empty: it was found damaged, and has not come again
//!  tensors/passing/abcd…    empty: it is here only until others were made of it by quantising
//!  tensors/made/abcd…       of a tensor that was made by quantising another, and so is not called by its hash: its hash
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
const DAMAGED: &str = "damaged";
const MADE: &str = "made";
const PASSING: &str = "passing";

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
    bytes: Bytes,
    file: File,
    path: PathBuf,
    target: PathBuf,
    mark: PathBuf,
}

impl Tensors {
    /// Opens the directory, or makes it.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn open(directory: &Path) -> Result<Self, TensorError> {
        for part in [INCOMING, OUTLINES, DAMAGED, MADE, PASSING] {
            let path = directory.join(part);
            fs::create_dir_all(&path).map_err(failed("create", &path))?;
        }
        let tensors = Self { directory: directory.to_owned() };
        // A run that ended meanwhile may have left whole ones, which nobody would remove.
        for tensor in tensors.marked(PASSING)? {
            remove(&tensors.path(tensor))?;
            tensors.set_passing(tensor, false)?;
        }
        Ok(tensors)
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
        // SAFETY: the mapping is read-only and handed out only as shared slices that borrow from it. A file under its final name is renamed
        // and removed, which leaves the mapping as it is, never shortened; after it was set aside, or by a piece that came twice, right
        // bytes may be written over it. That, and what another process does to it, may change bytes between two reads, which no code here
        // relies on not happening, or end this process, like any lost disk under a mapping.
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
        let path = self.incoming_path(tensor, bytes);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = opened.map_err(failed("open", &path))?;
        file.set_len(bytes.0).map_err(failed("make room for", &path))?;
        Ok(Incoming { bytes, file, path, target: self.path(tensor), mark: self.mark_path(tensor) })
    }

    /// Whether anything of a tensor of that length was begun.
    pub fn is_begun(&self, tensor: BlobHash, bytes: Bytes) -> bool {
        self.incoming_path(tensor, bytes).is_file()
    }

    /// Puts a whole tensor that is damaged among those on their way, marked: it is not whole any more. Nothing happens if it is not here.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn set_aside(&self, tensor: BlobHash) -> Result<(), TensorError> {
        let path = self.path(tensor);
        let Ok(found) = fs::metadata(&path) else { return Ok(()) };
        self.mark_damaged(tensor)?;
        match fs::rename(&path, self.incoming_path(tensor, Bytes(found.len()))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("set aside", &path)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Marks a tensor as damaged until it has come again, so that a restart does not forget it.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn mark_damaged(&self, tensor: BlobHash) -> Result<(), TensorError> {
        let path = self.mark_path(tensor);
        File::create(&path).map(drop).map_err(failed("write", &path))
    }

    /// Takes the mark back.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn unmark(&self, tensor: BlobHash) -> Result<(), TensorError> {
        remove(&self.mark_path(tensor)).map(drop)
    }

    /// The tensors that are marked as damaged.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn damaged(&self) -> Result<BTreeSet<BlobHash>, TensorError> {
        self.marked(DAMAGED)
    }

    /// Says whether a tensor is here only until others were made of it.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn set_passing(&self, tensor: BlobHash, passing: bool) -> Result<(), TensorError> {
        let path = self.directory.join(PASSING).join(tensor.to_string());
        if passing { File::create(&path).map(drop).map_err(failed("write", &path)) } else { remove(&path).map(drop) }
    }

    /// Whether a tensor is here only until others were made of it.
    pub fn is_passing(&self, tensor: BlobHash) -> bool {
        self.directory.join(PASSING).join(tensor.to_string()).is_file()
    }

    fn marked(&self, part: &str) -> Result<BTreeSet<BlobHash>, TensorError> {
        let directory = self.directory.join(part);
        let entries = fs::read_dir(&directory).map_err(failed("list", &directory))?;
        // What is called otherwise is no mark.
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
    }

    /// Removes a tensor of that length, whole or on its way, with its outline and its mark; how many bytes that frees at most.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn remove(&self, tensor: BlobHash, bytes: Bytes) -> Result<Bytes, TensorError> {
        let paths = [
            self.path(tensor),
            self.incoming_path(tensor, bytes),
            self.outline_path(tensor),
            self.mark_path(tensor),
            self.made_path(tensor),
            self.directory.join(PASSING).join(tensor.to_string()),
        ];
        paths.iter().map(|path| remove(path)).sum()
    }

    /// The hash of what a tensor that was made here consists of, if it is known.
    pub fn made(&self, tensor: BlobHash) -> Option<BlobHash> {
        Some(BlobHash::new(fs::read(self.made_path(tensor)).ok()?.try_into().ok()?))
    }

    /// Keeps the hash of what a tensor consists of that is made here.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn keep_made(&self, tensor: BlobHash, hash: BlobHash) -> Result<(), TensorError> {
        let path = self.made_path(tensor);
        durable::replace(&path.with_extension("new"), &path, hash.as_bytes()).map_err(failed("write", &path))
    }

    /// Bytes that may still be written here, if that can be told.
    pub fn room(&self) -> Option<Bytes> {
        os::free_space(&self.directory)
    }

    /// By its length, too: a manifest that lies about it must not touch what another one says.
    fn incoming_path(&self, tensor: BlobHash, bytes: Bytes) -> PathBuf {
        self.directory.join(INCOMING).join(format!("{tensor}-{}", bytes.0))
    }

    fn mark_path(&self, tensor: BlobHash) -> PathBuf {
        self.directory.join(DAMAGED).join(tensor.to_string())
    }

    fn made_path(&self, tensor: BlobHash) -> PathBuf {
        self.directory.join(MADE).join(tensor.to_string())
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

    /// Writes a part of a tensor that is made here.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), TensorError> {
        os::write_all_at(&self.file, data, offset).map_err(failed("write", &self.path))
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
        match durable::rename(&self.path, &self.target) {
            // Somebody else was quicker, with the same bytes.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.target.is_file() => {}
            named => named.map_err(failed("name", &self.target))?,
        }
        remove(&self.mark).map(drop)
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

/// Removes a file that may not be there; how many bytes it had.
fn remove(path: &Path) -> Result<Bytes, TensorError> {
    let length = fs::metadata(path).map_or(0, |found| found.len());
    match fs::remove_file(path) {
        Ok(()) => Ok(Bytes(length)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Bytes::ZERO),
        Err(error) => Err(failed("remove", path)(error)),
    }
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

        assert!(again.is_begun(outline.blob(), Bytes(BYTES)));
        // Whoever says that it has another length begins another one.
        drop(again.begin(outline.blob(), Bytes(5)).unwrap());
        assert_eq!(again.outline(outline.blob(), Bytes(BYTES)), Some(outline.clone()));
        let incoming = again.begin(outline.blob(), Bytes(BYTES)).unwrap();
        assert_eq!(incoming.there(&outline).unwrap(), BTreeSet::from([2]));
    }

    #[test]
    fn a_damaged_tensor_that_is_set_aside_lacks_only_what_is_wrong() {
        let (directory, tensors) = empty();
        let (data, outline) = sample();
        let incoming = tensors.begin(outline.blob(), Bytes(BYTES)).unwrap();
        (0..).zip(data.chunks(PIECE as usize)).for_each(|(piece, bytes)| incoming.write(piece, bytes).unwrap());
        incoming.finish().unwrap();
        let path = tensors.path(outline.blob());
        let mut wrong = data.clone();
        wrong[PIECE as usize + 9] ^= 4;
        fs::write(path, wrong).unwrap();

        tensors.set_aside(outline.blob()).unwrap();

        assert_eq!(Tensors::open(directory.path()).unwrap().damaged().unwrap(), [outline.blob()].into());
        assert!(!tensors.holds(outline.blob(), Bytes(BYTES)));
        let incoming = tensors.begin(outline.blob(), Bytes(BYTES)).unwrap();
        assert_eq!(incoming.there(&outline).unwrap(), BTreeSet::from([0, 2]));
        incoming.write(1, &data[PIECE as usize..2 * PIECE as usize]).unwrap();
        incoming.finish().unwrap();
        incoming.finish().unwrap();
        assert!(tensors.damaged().unwrap().is_empty() && tensors.holds(outline.blob(), Bytes(BYTES)));
        tensors.set_aside(BlobHash::new([9; 32])).unwrap();
        assert!(tensors.damaged().unwrap().is_empty(), "it was not here");
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
    fn what_only_passes_through_is_gone_after_a_restart_unless_it_is_wanted_for_itself() {
        let (directory, tensors) = empty();
        let (data, outline) = sample();
        let bring = || {
            let incoming = tensors.begin(outline.blob(), Bytes(BYTES)).unwrap();
            (0..).zip(data.chunks(PIECE as usize)).for_each(|(piece, bytes)| incoming.write(piece, bytes).unwrap());
            incoming.finish().unwrap();
        };
        tensors.set_passing(outline.blob(), true).unwrap();
        bring();
        assert!(tensors.holds(outline.blob(), Bytes(BYTES)) && tensors.is_passing(outline.blob()));

        let again = Tensors::open(directory.path()).unwrap();
        assert!(!again.holds(outline.blob(), Bytes(BYTES)) && !again.is_passing(outline.blob()));

        tensors.set_passing(outline.blob(), true).unwrap();
        bring();
        tensors.set_passing(outline.blob(), false).unwrap();
        assert!(Tensors::open(directory.path()).unwrap().holds(outline.blob(), Bytes(BYTES)));
    }

    #[test]
    fn removing_says_what_it_frees_and_leaves_nothing() {
        let (_directory, tensors) = empty();
        let (_, outline) = sample();
        tensors.keep_outline(&outline).unwrap();
        drop(tensors.begin(outline.blob(), Bytes(BYTES)).unwrap());

        assert_eq!(tensors.remove(outline.blob(), Bytes(BYTES)).unwrap(), Bytes(BYTES + 96));
        assert_eq!(tensors.remove(outline.blob(), Bytes(BYTES)).unwrap(), Bytes::ZERO);
        assert!(!tensors.is_begun(outline.blob(), Bytes(BYTES)));
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
