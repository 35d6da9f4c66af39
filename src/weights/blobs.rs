//! Contents by their hash: `blobs/ab/abcd…`, written once, verified whenever they are read.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use thiserror::Error;

use crate::amounts::Bytes;
use crate::ids::BlobHash;
use crate::weights::durable;
use crate::wire::fetch::MAX_BLOB;

/// Where blobs are written before they get their name.
const INCOMING: &str = "incoming";

/// Why a blob could not be stored or read.
#[derive(Debug, Error)]
pub enum BlobError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is none of that hash.
    #[error("the blob {hash} is not here")]
    Missing {
        /// The hash.
        hash: BlobHash,
    },
    /// The file's contents are not those of its name.
    #[error("the blob {expected} is damaged: its contents have the hash {got}")]
    Damaged {
        /// The hash by which it was stored.
        expected: BlobHash,
        /// The hash of what is there.
        got: BlobHash,
    },
    /// More bytes than a blob may have.
    #[error("a blob may have at most {limit} bytes, got {got}")]
    TooLarge {
        /// The most bytes.
        limit: u64,
        /// Bytes given or found.
        got: u64,
    },
}

/// A directory of blobs. One process owns it at a time.
#[derive(Debug)]
pub struct Blobs {
    directory: PathBuf,
    /// Names files that are being written.
    serial: AtomicU64,
}

impl Blobs {
    /// Opens the directory, or makes it; clears away what a crash left half written.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(directory: &Path) -> Result<Self, BlobError> {
        let incoming = directory.join(INCOMING);
        fs::create_dir_all(&incoming).map_err(io("create", &incoming))?;
        for entry in fs::read_dir(&incoming).map_err(io("list", &incoming))? {
            let path = entry.map_err(io("list", &incoming))?.path();
            fs::remove_file(&path).map_err(io("remove", &path))?;
        }
        Ok(Self { directory: directory.to_owned(), serial: AtomicU64::new(0) })
    }

    /// Stores contents and returns their hash. When it returns, they are on disk.
    ///
    /// # Errors
    /// `TooLarge` or `Io`.
    pub fn put(&self, bytes: &[u8]) -> Result<BlobHash, BlobError> {
        if bytes.len() as u64 > MAX_BLOB {
            return Err(BlobError::TooLarge { limit: MAX_BLOB, got: bytes.len() as u64 });
        }
        let hash = hash(bytes);
        if self.get(hash).is_ok() {
            return Ok(hash);
        }
        let target = self.path(hash);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(io("create", parent))?;
        }
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let temporary = self.directory.join(INCOMING).join(serial.to_string());
        durable::replace(&temporary, &target, bytes).map_err(io("write", &target))?;
        Ok(hash)
    }

    /// Reads contents and verifies them.
    ///
    /// # Errors
    /// `Missing`, `Damaged`, `TooLarge` or `Io`.
    pub fn get(&self, expected: BlobHash) -> Result<Vec<u8>, BlobError> {
        let path = self.path(expected);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BlobError::Missing { hash: expected });
            }
            Err(source) => return Err(BlobError::Io { action: "open", path, source }),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BLOB + 1).read_to_end(&mut bytes).map_err(io("read", &path))?;
        if bytes.len() as u64 > MAX_BLOB {
            return Err(BlobError::TooLarge { limit: MAX_BLOB, got: bytes.len() as u64 });
        }
        let got = hash(&bytes);
        if got != expected {
            return Err(BlobError::Damaged { expected, got });
        }
        Ok(bytes)
    }

    /// Whether there is a blob of that hash. It may turn out damaged when read.
    pub fn has(&self, hash: BlobHash) -> bool {
        self.path(hash).is_file()
    }

    /// Removes a blob; how many bytes that frees. One that is not there is no error.
    ///
    /// # Errors
    /// `Io`.
    pub fn remove(&self, hash: BlobHash) -> Result<Bytes, BlobError> {
        let path = self.path(hash);
        let length = fs::metadata(&path).map_or(0, |found| found.len());
        match fs::remove_file(&path) {
            Ok(()) => Ok(Bytes(length)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Bytes::ZERO),
            Err(source) => Err(BlobError::Io { action: "remove", path, source }),
        }
    }

    fn path(&self, hash: BlobHash) -> PathBuf {
        let name = hash.to_string();
        self.directory.join(&name[..2]).join(name)
    }
}

fn hash(bytes: &[u8]) -> BlobHash {
    BlobHash::new(*blake3::hash(bytes).as_bytes())
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BlobError {
    let path = path.to_owned();
    move |source| BlobError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn what_was_put_is_got_also_after_a_restart() {
        let (directory, blobs) = empty();

        let hash = blobs.put(b"weights").unwrap();

        assert!(blobs.has(hash));
        assert_eq!(Blobs::open(directory.path()).unwrap().get(hash).unwrap(), b"weights");
    }

    #[test]
    fn a_damaged_blob_is_reported_and_putting_it_again_heals_it() {
        let (_directory, blobs) = empty();
        let expected = blobs.put(b"weights").unwrap();
        fs::write(blobs.path(expected), b"weighty").unwrap();

        let error = blobs.get(expected).unwrap_err();

        assert!(
            matches!(error, BlobError::Damaged { expected: name, got } if name == expected && got == hash(b"weighty"))
        );
        blobs.put(b"weights").unwrap();
        assert_eq!(blobs.get(expected).unwrap(), b"weights");
    }

    #[test]
    fn a_blob_that_is_not_there_is_missing() {
        let (_directory, blobs) = empty();
        let nowhere = BlobHash::new([9; 32]);

        assert!(!blobs.has(nowhere));
        assert!(matches!(blobs.get(nowhere), Err(BlobError::Missing { hash }) if hash == nowhere));
    }

    #[test]
    fn what_a_crash_left_half_written_is_cleared_away() {
        let (directory, _) = empty();
        let half = directory.path().join(INCOMING).join("0");
        fs::write(&half, b"wei").unwrap();

        Blobs::open(directory.path()).unwrap();

        assert!(!half.exists());
    }

    fn empty() -> (TempDir, Blobs) {
        let directory = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(directory.path()).unwrap();
        (directory, blobs)
    }
}
