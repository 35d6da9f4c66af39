//! Makes a tensor by quantising another that is on this machine: a piece at a time, each verified before it is used.

use std::io;

use crate::daemon::library::Library;
use crate::ids::BlobHash;
use crate::quantise;
use crate::quantise::QuantiseError;
use crate::swarm::outline::pieces;
use crate::weights::lookup::Recipe;
use crate::weights::tensors::TensorError;

/// Elements that are quantised together, a whole number of blocks of every format.
const TOGETHER: u64 = 256;

/// Why a tensor could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum MakeError {
    #[error("what it is made of is not here any more")]
    Gone,
    #[error("what it is made of is damaged or cannot be read")]
    Unreadable,
    #[error(transparent)]
    Quantise(#[from] QuantiseError),
    #[error("expected {expected} bytes, quantising gave {got}")]
    Length { expected: u64, got: u64 },
    #[error(transparent)]
    Disk(#[from] TensorError),
    #[error("quantising broke off: {0}")]
    BrokeOff(String),
}

impl MakeError {
    /// Whether it would end the same way every time.
    pub(super) const fn is_final(&self) -> bool {
        matches!(self, Self::Quantise(_) | Self::Length { .. })
    }
}

impl Library {
    /// Makes a tensor and gives it its name. Takes as long as reading and quantising what it is made of.
    pub(super) fn make(&self, recipe: &Recipe) -> Result<(), MakeError> {
        let located = self.shelf().catalogue.locate(recipe.source.tensor).ok_or(MakeError::Gone)?;
        let outline = self.trusted(&located, self.outline(&located)).ok_or(MakeError::Unreadable)?;
        let incoming = self.tensors().begin(recipe.tensor, recipe.bytes)?;
        let mut writer = Writer { offset: 0, hasher: blake3::Hasher::new() };
        let (mut data, mut waiting, mut made) = (Vec::new(), Vec::new(), Vec::new());
        let together = recipe.source_format.bytes(TOGETHER).map_or(1, |bytes| bytes.0 as usize);
        let count = pieces(located.bytes.0);
        for piece in 0..count {
            let read: io::Result<_> =
                located.read(piece, &mut data).map(|()| outline.admits(piece, &data).then_some(()));
            self.trusted(&located, read).ok_or(MakeError::Unreadable)?;
            waiting.extend_from_slice(&data);
            let whole = if piece + 1 == count { waiting.len() } else { waiting.len() / together * together };
            made.clear();
            quantise::requantise(recipe.source_format, recipe.format, &waiting[..whole], &mut made)?;
            waiting.drain(..whole);
            incoming.write_at(writer.offset, &made)?;
            writer.took(&made);
        }
        if writer.offset != recipe.bytes.0 {
            return Err(MakeError::Length { expected: recipe.bytes.0, got: writer.offset });
        }
        // Before the tensor has its name, so that one that has can always be verified.
        self.tensors().keep_made(recipe.tensor, BlobHash::new(*writer.hasher.finalize().as_bytes()))?;
        Ok(incoming.finish()?)
    }
}

/// What was written so far.
struct Writer {
    offset: u64,
    hasher: blake3::Hasher,
}

impl Writer {
    fn took(&mut self, made: &[u8]) {
        self.hasher.update(made);
        self.offset += made.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::config::settings::Switch;
    use crate::daemon::handle::ModelChange;
    use crate::ids::ModelId;
    use crate::shape::WeightFormat;
    use crate::units::UnitRange;
    use crate::weights::fixture::RandomModel;

    fn library(directory: &Path, format: WeightFormat) -> (Library, ModelId) {
        let file = directory.join("model.gguf");
        // An embedding of several pieces, which hold no whole number of blocks of Q8_0.
        RandomModel { width: 256, vocab: 6_000, format, ..RandomModel::tiny() }.write(&file).unwrap();
        let library = Library::open(directory, Switch::On, BTreeSet::new()).unwrap();
        let model = library.import(&file).unwrap().id;
        (library, model)
    }

    fn make_all(library: &Library, model: ModelId, range: UnitRange) {
        for missing in library.missing(model, range).unwrap() {
            let (recipe, is_here) = library.recipe(&missing).unwrap().unwrap();
            assert!(is_here && recipe.tensor == missing.tensor);
            library.make(&recipe).unwrap();
        }
    }

    #[test]
    fn what_is_made_piece_by_piece_is_what_quantising_all_of_it_gives() {
        for (from, to) in [
            (WeightFormat::F16, WeightFormat::Q8_0),
            (WeightFormat::F32, WeightFormat::Q4K),
            (WeightFormat::Q8_0, WeightFormat::Q4_0),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let (library, source) = library(directory.path(), from);
            let known = library.known(source).unwrap();
            let made = known.derived.iter().find(|facts| facts.format == to).unwrap();
            let all = UnitRange::whole(made.shape.units()).unwrap();

            make_all(&library, made.id, all);

            assert!(library.missing(made.id, all).unwrap().is_empty());
            let (got, given) = (library.weights(made.id, all).unwrap(), library.weights(source, all).unwrap());
            let manifest = library.shelf().catalogue.described(made.id).unwrap();
            let mut compared = 0;
            for entry in &manifest.tensors {
                let (view, before) = (got.tensor(&entry.name).unwrap(), given.tensor(&entry.name).unwrap());
                assert_eq!((view.format, view.bytes.len() as u64), (entry.format, entry.bytes.0), "{}", entry.name);
                if manifest.made_from(entry).is_some() {
                    let mut expected = Vec::new();
                    quantise::requantise(before.format, entry.format, before.bytes, &mut expected).unwrap();
                    assert!(view.bytes == expected, "{} of {from} as {}", entry.name, entry.format);
                    compared += 1;
                }
            }
            assert!(compared > 10, "{compared}");
        }
    }

    #[test]
    fn what_was_made_is_verified_made_again_if_damaged_and_given_to_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let (library, source) = library(directory.path(), WeightFormat::F16);
        let made = library.known(source).unwrap().derived[0].id;
        let all = UnitRange::whole(library.known(source).unwrap().facts.shape.units()).unwrap();
        make_all(&library, made, all);
        let manifest = library.shelf().catalogue.described(made).unwrap();
        let tensor = manifest.tensors.iter().find(|entry| manifest.made_from(entry).is_some()).unwrap().hash;
        let verified = || library.change(made, ModelChange::Verify).unwrap();

        assert_eq!(verified().damaged, [""; 0]);
        assert!(library.given(made).is_empty() && library.held(made) == [all]);
        assert!(library.shelf().catalogue.locate(tensor).is_none(), "nobody could verify it");

        let path = library.tensors().path(tensor);
        let mut bytes = fs::read(&path).unwrap();
        bytes[9] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(verified().damaged.len(), 1);
        let missing = library.missing(made, all).unwrap();
        assert_eq!(missing.iter().map(|missing| missing.tensor).collect::<Vec<_>>(), [tensor]);
        assert_eq!(library.take_damaged(), missing);
        make_all(&library, made, all);
        assert_eq!(verified().damaged, [""; 0]);
    }

    #[test]
    fn weights_that_are_no_numbers_are_not_quantised() {
        let directory = tempfile::tempdir().unwrap();
        let (library, source) = library(directory.path(), WeightFormat::F32);
        let made = library.known(source).unwrap().derived[0].id;
        let all = UnitRange::whole(library.known(source).unwrap().facts.shape.units()).unwrap();
        let missing = library.missing(made, all).unwrap().remove(0);
        let (mut recipe, _) = library.recipe(&missing).unwrap().unwrap();

        // Of another format than it is: some of the bytes are no numbers.
        recipe.source_format = WeightFormat::F16;
        recipe.bytes.0 *= 2;
        assert!(matches!(library.make(&recipe), Err(MakeError::Quantise(_))));
        recipe.source.tensor = BlobHash::new([3; 32]);
        assert!(matches!(library.make(&recipe), Err(MakeError::Gone)));
        assert!(!library.tensors().holds(missing.tensor, missing.bytes));
    }
}
