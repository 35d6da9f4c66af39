//! Builds a model's manifest from its file.

use crate::amounts::Bytes;
use crate::ids::BlobHash;
use crate::shape::ModelShape;
use crate::weights::gguf::GgufFile;
use crate::weights::gguf::TensorView;
use crate::weights::llama;
use crate::weights::llama::ModelError;
use crate::wire::manifest::Manifest;
use crate::wire::manifest::TensorEntry;

/// Bytes hashed between two reports of progress.
const PIECE: usize = 4 << 20;

/// How far the hashing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes hashed so far.
    pub done: Bytes,
    /// Bytes of all tensors.
    pub total: Bytes,
}

/// Reads the shape and hashes every tensor, once, in ascending order of names.
///
/// # Errors
/// Whatever makes the file no model that can be run.
pub fn build_manifest(
    file: &GgufFile,
    vocabulary: BlobHash,
    mut progress: impl FnMut(Progress),
) -> Result<Manifest, ModelError> {
    let shape = llama::shape(file)?;
    let total = file.tensors().map(|(_, view)| Bytes(view.bytes.len() as u64)).sum();
    let mut done = Bytes::ZERO;
    let mut tensors = Vec::with_capacity(file.tensors().len());
    for (name, view) in file.tensors() {
        let hash = hash(view.bytes, |piece| {
            done = done.plus(piece);
            progress(Progress { done, total });
        });
        tensors.push(entry(&shape, name, view, hash));
    }
    Ok(Manifest { shape, vocabulary, tensors })
}

fn entry(shape: &ModelShape, name: &str, view: TensorView<'_>, hash: BlobHash) -> TensorEntry {
    TensorEntry {
        name: name.to_owned(),
        units: llama::units_of(shape, name),
        dimensions: view.dimensions.to_vec(),
        format: view.format,
        bytes: Bytes(view.bytes.len() as u64),
        hash,
    }
}

fn hash(bytes: &[u8], mut hashed: impl FnMut(Bytes)) -> BlobHash {
    let mut hasher = blake3::Hasher::new();
    for piece in bytes.chunks(PIECE) {
        hasher.update(piece);
        hashed(Bytes(piece.len() as u64));
    }
    BlobHash::new(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::fixture::RandomModel;

    #[test]
    fn the_same_weights_give_the_same_manifest_and_one_changed_byte_another() {
        let bytes = RandomModel::tiny().bytes();
        let mut changed = bytes.clone();
        *changed.last_mut().unwrap() ^= 1;
        let vocabulary = BlobHash::new([7; 32]);
        let manifest = |bytes| build_manifest(&GgufFile::from_bytes(bytes).unwrap(), vocabulary, |_| ()).unwrap();

        let (first, again, other) = (manifest(bytes.clone()), manifest(bytes), manifest(changed));

        assert_eq!(first, again);
        assert_eq!(first.tensors.iter().zip(&other.tensors).filter(|(one, two)| one != two).count(), 1);
        assert!(first.tensors.is_sorted_by(|one, two| one.name < two.name));
    }

    #[test]
    fn progress_ends_at_the_total() {
        let file = GgufFile::from_bytes(RandomModel::tiny().bytes()).unwrap();
        let mut seen = Vec::new();

        build_manifest(&file, BlobHash::new([0; 32]), |progress| seen.push(progress)).unwrap();

        let last = seen.last().unwrap();
        assert_eq!(last.done, last.total);
        assert!(seen.is_sorted_by_key(|progress| progress.done));
    }
}
