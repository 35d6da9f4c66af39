//! Builds a model's manifest from its files.

use crate::amounts::Bytes;
use crate::ids::BlobHash;
use crate::shape::ModelShape;
use crate::weights::files::ModelFiles;
use crate::weights::files::TensorView;
use crate::weights::layout;
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

/// Hashes every tensor, once, in ascending order of names.
///
/// - `shape`: with which the tensors agree
pub fn build_manifest(
    shape: ModelShape,
    files: &ModelFiles,
    vocabulary: BlobHash,
    mut progress: impl FnMut(Progress),
) -> Manifest {
    let total = files.tensors().map(|(_, view)| Bytes(view.bytes.len() as u64)).sum();
    let mut done = Bytes::ZERO;
    let mut tensors = Vec::with_capacity(files.tensors().len());
    for (name, view) in files.tensors() {
        let hash = hash(view.bytes, |piece| {
            done = done.plus(piece);
            progress(Progress { done, total });
        });
        tensors.push(entry(&shape, name, view, hash));
    }
    Manifest { shape, vocabulary, tensors, derivation: None }
}

/// A manifest without hashes: what can be told of a model without reading its weights. It names nothing.
pub fn unhashed_manifest(shape: ModelShape, files: &ModelFiles) -> Manifest {
    let none = BlobHash::new([0; 32]);
    let tensors = files.tensors().map(|(name, view)| entry(&shape, name, view, none)).collect();
    Manifest { shape, vocabulary: none, tensors, derivation: None }
}

fn entry(shape: &ModelShape, name: &str, view: TensorView<'_>, hash: BlobHash) -> TensorEntry {
    TensorEntry {
        name: name.to_owned(),
        units: layout::units_of(shape, name),
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
    use crate::weights::gguf::GgufFile;
    use crate::weights::llama;

    #[test]
    fn the_same_weights_give_the_same_manifest_and_one_changed_byte_another() {
        let bytes = RandomModel::tiny().bytes();
        let mut changed = bytes.clone();
        *changed.last_mut().unwrap() ^= 1;
        let vocabulary = BlobHash::new([7; 32]);
        let manifest = |bytes| {
            let file = GgufFile::from_bytes(bytes).unwrap();
            build_manifest(llama::shape(&file).unwrap(), file.files(), vocabulary, |_| ())
        };

        let (first, again, other) = (manifest(bytes.clone()), manifest(bytes), manifest(changed));

        assert_eq!(first, again);
        assert_eq!(first.tensors.iter().zip(&other.tensors).filter(|(one, two)| one != two).count(), 1);
        assert!(first.tensors.is_sorted_by(|one, two| one.name < two.name));
    }

    #[test]
    fn progress_ends_at_the_total() {
        let file = GgufFile::from_bytes(RandomModel::tiny().bytes()).unwrap();
        let mut seen = Vec::new();

        build_manifest(llama::shape(&file).unwrap(), file.files(), BlobHash::new([0; 32]), |step| seen.push(step));

        let last = seen.last().unwrap();
        assert_eq!(last.done, last.total);
        assert!(seen.is_sorted_by_key(|progress| progress.done));
    }
}
