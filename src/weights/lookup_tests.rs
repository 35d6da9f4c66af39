use std::fs;
use std::fs::File;
use std::path::Path;
use std::time::SystemTime;

use tempfile::TempDir;

use super::*;
use crate::swarm::outline::PIECE;
use crate::swarm::outline::pieces;
use crate::weights::catalogue::Imported;
use crate::weights::fixture::RandomModel;
use crate::weights::gguf::GgufFile;

#[test]
fn an_imported_model_is_read_where_it_lies() {
    let (directory, mut catalogue) = empty();
    let imported = import(&mut catalogue, directory.path(), "small.gguf");
    let all = whole(&imported);

    assert_eq!(catalogue.held(imported.id).unwrap(), [all]);
    assert!(catalogue.missing(imported.id, all).unwrap().is_empty());
    let weights = catalogue.weights(imported.id, all).unwrap();
    for entry in &imported.manifest.tensors {
        let located = catalogue.locate(entry.hash).unwrap();
        let outline = located.outline(catalogue.tensors()).unwrap().unwrap();
        let view = weights.tensor(&entry.name).unwrap();
        assert_eq!((view.format, view.dimensions), (entry.format, &entry.dimensions[..]));
        let mut data = Vec::new();
        for (piece, expected) in (0..).zip(view.bytes.chunks(PIECE as usize)) {
            located.read(piece, &mut data).unwrap();
            assert!(outline.admits(piece, &data) && data == expected, "{} {piece}", entry.name);
        }
    }
    assert!(catalogue.locate(BlobHash::new([7; 32])).is_none());
}

#[test]
fn a_model_that_others_hold_is_here_unit_by_unit_as_its_tensors_come() {
    let (directory, mut ours) = empty();
    let (_elsewhere, mut theirs) = empty();
    let imported = import(&mut ours, directory.path(), "small.gguf");
    remember(&mut theirs, &imported);
    let (middle, all) = (UnitRange::new(1, 3).unwrap(), whole(&imported));

    assert_eq!(theirs.held(imported.id).unwrap(), []);
    assert!(matches!(theirs.weights(imported.id, middle), Err(CatalogueError::NoWeights { .. })));
    let missing = theirs.missing(imported.id, middle).unwrap();
    let needed: BTreeSet<_> = imported.manifest.tensors_of(middle).map(|entry| entry.hash).collect();
    assert_eq!(missing.iter().map(|missing| missing.tensor).collect::<BTreeSet<_>>(), needed);
    missing.iter().for_each(|missing| bring(missing.tensor, &mut ours, &theirs));

    assert_eq!(theirs.held(imported.id).unwrap(), [middle]);
    assert!(theirs.missing(imported.id, all).unwrap().len() < imported.manifest.tensors.len());
    let (expected, got) = (ours.weights(imported.id, all).unwrap(), theirs.weights(imported.id, middle).unwrap());
    for entry in imported.manifest.tensors_of(middle) {
        assert_eq!(got.tensor(&entry.name), expected.tensor(&entry.name));
    }
    assert!(theirs.locate(missing[0].tensor).is_some(), "it is a source, too");
}

#[test]
fn a_model_that_is_made_of_another_lacks_what_is_quantised_and_shares_the_rest() {
    let (directory, mut ours) = empty();
    let (_elsewhere, mut theirs) = empty();
    let path = directory.path().join("halves.gguf");
    RandomModel { format: WeightFormat::F16, ..RandomModel::tiny() }.write(&path).unwrap();
    let imported = ours.import(&path, |_| ()).unwrap();
    let all = whole(&imported);
    let made = ours.derive(imported.id, WeightFormat::Q8_0).unwrap();
    let manifest = ours.described(made).unwrap();
    assert_eq!(ours.derive(imported.id, WeightFormat::Q8_0).unwrap(), made);
    assert!(matches!(ours.derive(imported.id, WeightFormat::F16), Err(CatalogueError::NotDerivable { .. })));
    assert!(matches!(ours.derive(made, WeightFormat::Q4_0), Err(CatalogueError::NotDerivable { .. })));

    // Vectors are those of the imported file; what is quantised is missing, and each has a recipe.
    let missing = ours.missing(made, all).unwrap();
    let quantised = manifest.tensors.iter().filter(|entry| manifest.made_from(entry).is_some());
    assert_eq!(missing.len(), quantised.clone().map(|entry| entry.hash).collect::<BTreeSet<_>>().len());
    assert!(matches!(ours.weights(made, all), Err(CatalogueError::NoWeights { .. })));
    for lacked in &missing {
        let recipe = ours.recipe(made, lacked.tensor).unwrap().unwrap();
        assert_eq!((recipe.format, recipe.source_format), (WeightFormat::Q8_0, WeightFormat::F16));
        assert_eq!((recipe.source.model, &recipe.source.units), (imported.id, &lacked.units));
        assert!(ours.locate(recipe.source.tensor).is_some());
    }
    let vector = manifest.tensors.iter().find(|entry| manifest.made_from(entry).is_none()).unwrap();
    assert_eq!(ours.recipe(made, vector.hash).unwrap(), None);

    // Who hears of it only knows its source as well, after a restart, too.
    let vocabulary = imported.vocabulary.encode();
    theirs.remember_remote(&manifest.encode(), &vocabulary, "halves").unwrap();
    assert!(theirs.entry(imported.id).is_some());
    assert_eq!(theirs.recipe(made, missing[0].tensor).unwrap(), ours.recipe(made, missing[0].tensor).unwrap());
    let mut again = Catalogue::open(directory.path()).unwrap();
    assert_eq!(again.missing(made, all).unwrap(), missing);
}

#[test]
fn what_the_disk_damaged_counts_as_missing_until_it_came_again() {
    let (directory, mut ours) = empty();
    let (elsewhere, mut theirs) = empty();
    let (mine, healthy) = (directory.path().join("small.gguf"), elsewhere.path().join("small.gguf"));
    let imported = import(&mut ours, directory.path(), "small.gguf");
    let all = whole(&imported);
    import(&mut theirs, elsewhere.path(), "small.gguf");
    assert!(healthy.is_file());
    let entry = imported.manifest.tensors.iter().find(|entry| entry.name == "blk.0.attn_q.weight").unwrap();
    let located = ours.locate(entry.hash).unwrap();
    let file = GgufFile::open(&mine).unwrap();
    rot(&mine, file.files().place(&entry.name).unwrap().offset as usize + 5);

    assert!(located.hash(ours.tensors()).unwrap().is_none(), "it is noticed");
    let missing = ours.damaged(&located).unwrap().unwrap();
    assert_eq!((missing.tensor, missing.bytes, missing.units.clone()), (entry.hash, entry.bytes, entry.units.clone()));

    assert!(ours.locate(entry.hash).is_none());
    assert_eq!(ours.missing(imported.id, all).unwrap(), [missing]);
    assert!(matches!(ours.weights(imported.id, all), Err(CatalogueError::NoWeights { .. })));
    assert_eq!(ours.awaited(imported.id).unwrap(), std::slice::from_ref(&entry.name));
    let again = Catalogue::open(directory.path()).unwrap().all_awaited();
    assert_eq!(
        again.iter().map(|missing| missing.tensor).collect::<Vec<_>>(),
        [entry.hash],
        "a restart forgets nothing"
    );
    bring(entry.hash, &mut theirs, &ours);
    assert!(ours.awaited(imported.id).unwrap().is_empty() && ours.all_awaited().is_empty());
    assert_eq!(ours.held(imported.id).unwrap(), [all]);
    let healed = ours.weights(imported.id, all).unwrap();
    assert_eq!(healed.tensor(&entry.name), theirs.weights(imported.id, all).unwrap().tensor(&entry.name));

    // The one that came is damaged in its turn.
    let stored = ours.locate(entry.hash).unwrap();
    rot(&ours.tensors().path(entry.hash), 5);
    assert!(ours.damaged(&stored).unwrap().is_some());
    assert!(ours.locate(entry.hash).is_none() && ours.tensors().is_begun(entry.hash, entry.bytes));
    assert_eq!(ours.damaged(&stored).unwrap(), None, "it was noticed before");

    // A file that was read in full elsewhere is trusted.
    let copy = directory.path().join("copy.gguf");
    fs::copy(&healthy, &copy).unwrap();
    fs::remove_file(&mine).unwrap();
    ours.import(&copy, |_| ()).unwrap();
    let located = ours.locate(entry.hash).unwrap();
    assert!(located.hash(ours.tensors()).unwrap().is_some());
    assert!(Catalogue::open(directory.path()).unwrap().all_awaited().is_empty());
}

#[test]
fn a_model_that_is_removed_leaves_what_others_need() {
    let (directory, mut ours) = empty();
    let (_elsewhere, mut theirs) = empty();
    let one = import(&mut ours, directory.path(), "small.gguf");
    remember(&mut theirs, &one);
    let all = whole(&one);
    let missing = theirs.missing(one.id, all).unwrap();
    missing.iter().for_each(|missing| bring(missing.tensor, &mut ours, &theirs));
    let path = directory.path().join("small.gguf");

    let freed = theirs.remove(one.id).unwrap();

    assert!(freed >= one.manifest.total_bytes(), "{freed}");
    assert!(theirs.entry(one.id).is_none() && theirs.locate(one.manifest.tensors[0].hash).is_none());
    assert!(matches!(theirs.remove(one.id), Err(CatalogueError::Unknown { .. })));
    ours.remove(one.id).unwrap();
    assert!(path.is_file(), "an imported file is its owner's");
}

#[test]
fn a_private_model_stays_private_after_a_restart_and_other_imports() {
    let (directory, mut catalogue) = empty();
    let imported = import(&mut catalogue, directory.path(), "small.gguf");
    let tensor = imported.manifest.tensors[0].hash;
    assert!(catalogue.is_public(tensor) && catalogue.is_public(imported.manifest.vocabulary));

    catalogue.set_private(imported.id, true).unwrap();

    let mut again = Catalogue::open(directory.path()).unwrap();
    remember(&mut again, &imported);
    for blob in [tensor, imported.manifest.vocabulary, BlobHash::new(*imported.id.as_bytes())] {
        assert!(!again.is_public(blob));
    }
    assert!(!again.is_public(BlobHash::new([7; 32])), "what belongs to no model is for nobody");
}

fn empty() -> (TempDir, Catalogue) {
    let directory = tempfile::tempdir().unwrap();
    let catalogue = Catalogue::open(directory.path()).unwrap();
    (directory, catalogue)
}

fn import(catalogue: &mut Catalogue, directory: &Path, name: &str) -> Imported {
    let path = directory.join(name);
    RandomModel::tiny().write(&path).unwrap();
    catalogue.import(&path, |_| ()).unwrap()
}

fn remember(catalogue: &mut Catalogue, imported: &Imported) {
    let (manifest, vocabulary) = (imported.manifest.encode(), imported.vocabulary.encode());
    catalogue.remember_remote(&manifest, &vocabulary, "").unwrap();
}

fn whole(imported: &Imported) -> UnitRange {
    UnitRange::new(0, imported.manifest.shape.units()).unwrap()
}

/// Brings a tensor from one peer to another.
fn bring(tensor: BlobHash, from: &mut Catalogue, to: &Catalogue) {
    let located = from.locate(tensor).unwrap();
    let incoming = to.tensors().begin(tensor, located.bytes).unwrap();
    let mut data = Vec::new();
    for piece in 0..pieces(located.bytes.0) {
        located.read(piece, &mut data).unwrap();
        incoming.write(piece, &data).unwrap();
    }
    incoming.finish().unwrap();
}

/// Changes a byte of a file without its owner's doing.
fn rot(path: &Path, at: usize) {
    let before: SystemTime = fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
    File::options().append(true).open(path).unwrap().set_modified(before).unwrap();
}
