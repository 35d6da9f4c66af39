use tempfile::TempDir;

use super::*;
use crate::weights::fixture::RandomModel;

#[test]
fn an_imported_model_is_known_after_a_restart_and_not_hashed_again() {
    let (directory, mut catalogue) = empty();
    let path = model(&directory, "small.gguf", 1);
    let mut hashed = 0;
    let first = catalogue.import(&path, |_| hashed += 1).unwrap();
    let hashed_once = hashed;

    let mut catalogue = Catalogue::open(directory.path()).unwrap();
    let again = catalogue.import(&path, |_| hashed += 1).unwrap();

    assert_eq!(first, again);
    assert!(hashed_once > 0 && hashed == hashed_once);
    assert_eq!(catalogue.manifest(first.id).unwrap(), first.manifest);
    assert_eq!(catalogue.vocabulary(first.id).unwrap(), first.vocabulary);
    assert_eq!(catalogue.source(first.id).unwrap().first(), fs::read(&path).unwrap());
    assert_eq!((first.id, first.title.as_str()), (first.manifest.id(), "random weights"));
}

#[test]
fn names_resolve_by_alias_id_and_prefix() {
    let (directory, mut catalogue) = empty();
    let id = catalogue.import(&model(&directory, "small.gguf", 1), |_| ()).unwrap().id;
    let text = id.to_string();

    assert_eq!(catalogue.resolve("small"), Ok(id));
    assert_eq!(catalogue.resolve(&text), Ok(id));
    assert_eq!(catalogue.resolve(&text[..8].to_uppercase()), Ok(id));
    assert!(matches!(catalogue.resolve(&text[..7]), Err(ResolveError::TooShort { .. })));
    assert!(matches!(catalogue.resolve("large"), Err(ResolveError::Unknown { .. })));
    assert!(matches!(catalogue.resolve(&"0".repeat(64)), Err(ResolveError::Unknown { .. })));
    assert!(matches!(catalogue.resolve(""), Err(ResolveError::Unknown { .. })));
}

#[test]
fn a_prefix_of_two_ids_is_ambiguous_and_names_both() {
    let (directory, mut catalogue) = empty();
    let id = catalogue.import(&model(&directory, "small.gguf", 1), |_| ()).unwrap().id;
    let mut twin = *id.as_bytes();
    twin[31] ^= 1;
    let twin = ModelId::new(twin);
    let entry = Entry { id: twin, alias: None, ..catalogue.entry(id).unwrap().clone() };
    catalogue.entries.insert(twin, entry);

    let error = catalogue.resolve(&id.to_string()[..12]).unwrap_err();

    let ResolveError::Ambiguous { mut matches, .. } = error else { panic!("{error}") };
    matches.sort();
    assert_eq!(matches, [id.min(twin), id.max(twin)]);
    assert_eq!(catalogue.resolve(&id.to_string()), Ok(id));
}

#[test]
fn an_alias_belongs_to_one_model_and_never_looks_like_an_id() {
    let (directory, mut catalogue) = empty();
    let one = catalogue.import(&model(&directory, "small.gguf", 1), |_| ()).unwrap().id;
    fs::create_dir(directory.path().join("other")).unwrap();
    let two = catalogue.import(&model(&directory, "other/small.gguf", 2), |_| ()).unwrap().id;

    assert_eq!(
        (catalogue.entry(one).unwrap().alias.as_deref(), &catalogue.entry(two).unwrap().alias),
        (Some("small"), &None)
    );
    for alias in ["small", "", " x", "deadbeef", "a\nb"] {
        assert!(matches!(catalogue.set_alias(two, alias), Err(CatalogueError::Alias { .. })), "{alias:?}");
    }
    catalogue.set_alias(two, "second").unwrap();
    assert_eq!(Catalogue::open(directory.path()).unwrap().resolve("second"), Ok(two));
}

#[test]
fn a_file_that_changed_is_not_used_until_it_is_imported_again() {
    let (directory, mut catalogue) = empty();
    let path = model(&directory, "small.gguf", 1);
    let id = catalogue.import(&path, |_| ()).unwrap().id;
    let bytes = RandomModel { vocab: 301, ..RandomModel::tiny() }.bytes();
    fs::write(&path, bytes).unwrap();

    assert!(matches!(catalogue.source(id), Err(CatalogueError::Changed { .. })));
    let other = catalogue.import(&path, |_| ()).unwrap().id;
    assert_ne!(other, id);
    assert!(catalogue.source(other).is_ok());
}

#[test]
fn a_model_that_others_hold_is_described_but_has_no_weights() {
    let (directory, mut catalogue) = empty();
    let (_other_directory, mut other) = empty();
    let known = catalogue.import(&model(&directory, "small.gguf", 1), |_| ()).unwrap();
    let (manifest, vocabulary) = (known.manifest.encode(), known.vocabulary.encode());

    let heard = other.remember_remote(&manifest, &vocabulary, "their\u{202e} title").unwrap();

    assert_eq!((heard.id, heard.title.as_str()), (known.id, "their title"));
    assert!(matches!(other.source(heard.id), Err(CatalogueError::NoWeights { .. })));
    catalogue.remember_remote(&manifest, &vocabulary, "").unwrap();
    assert!(catalogue.source(known.id).is_ok(), "weights that are here stay known");
}

#[test]
fn a_vocabulary_that_is_not_the_manifests_is_refused() {
    let (directory, mut catalogue) = empty();
    let known = catalogue.import(&model(&directory, "small.gguf", 1), |_| ()).unwrap();
    let mut vocabulary = known.vocabulary.clone();
    vocabulary.add_bos = !vocabulary.add_bos;
    let manifest = known.manifest.encode();

    let other = catalogue.remember_remote(&manifest, &vocabulary.encode(), "");
    let broken = catalogue.remember_remote(&manifest[1..], &known.vocabulary.encode(), "");

    assert!(matches!(other, Err(CatalogueError::OtherVocabulary { .. })));
    assert!(matches!(broken, Err(CatalogueError::Message(_))));
}

#[test]
fn a_manifest_that_lies_about_its_tensors_is_refused() {
    let (directory, mut catalogue) = empty();
    let known = catalogue.import(&model(&directory, "small.gguf", 1), |_| ()).unwrap();
    let lie = |change: fn(&mut Manifest)| {
        let mut manifest = known.manifest.clone();
        change(&mut manifest);
        let (_elsewhere, mut other) = empty();
        other.remember_remote(&manifest.encode(), &known.vocabulary.encode(), "").unwrap_err()
    };

    let longer = lie(|manifest| {
        let tensor = &mut manifest.tensors[0];
        tensor.dimensions[0] *= 1_000;
        tensor.bytes = Bytes(tensor.bytes.0 * 1_000);
    });
    assert!(matches!(longer, CatalogueError::Model(ModelError::TensorShape { .. })), "{longer}");
    let wrong = lie(|manifest| manifest.tensors[0].bytes = Bytes(5));
    assert!(matches!(wrong, CatalogueError::Message(_)), "{wrong}");
    let elsewhere = lie(|manifest| manifest.tensors[0].units = vec![3]);
    assert!(matches!(elsewhere, CatalogueError::Model(ModelError::TensorUnits { .. })), "{elsewhere}");
    let fewer = lie(|manifest| drop(manifest.tensors.remove(0)));
    assert!(matches!(fewer, CatalogueError::Model(ModelError::MissingTensor { .. })), "{fewer}");
}

#[test]
fn a_model_in_the_program_is_there_at_each_start() {
    let (directory, mut catalogue) = empty();
    let bytes: &'static [u8] = RandomModel::tiny().bytes().leak();

    let id = catalogue.import_embedded(bytes, "demo").unwrap().id;

    assert_eq!(catalogue.source(id).unwrap().first(), bytes);
    let mut catalogue = Catalogue::open(directory.path()).unwrap();
    assert!(matches!(catalogue.source(id), Err(CatalogueError::NoWeights { .. })));
    assert_eq!(catalogue.import_embedded(bytes, "demo").unwrap().id, id);
    assert!(catalogue.source(catalogue.resolve("demo").unwrap()).is_ok());
}

#[test]
fn a_damaged_table_is_reported_and_not_overwritten() {
    let (directory, _) = empty();
    let path = directory.path().join("models.json");
    for text in ["{", "{\"version\":2,\"models\":[]}", "{\"version\":1,\"models\":[{\"id\":\"x\"}]}"] {
        fs::write(&path, text).unwrap();

        assert!(matches!(Catalogue::open(directory.path()), Err(CatalogueError::Damaged { .. })), "{text}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

#[test]
fn what_is_no_model_is_refused() {
    let (directory, mut catalogue) = empty();
    let path = directory.path().join("x.gguf");
    fs::write(&path, b"no model at all").unwrap();

    assert!(matches!(catalogue.import(&path, |_| ()), Err(CatalogueError::File(GgufError::Magic { .. }))));
    assert!(matches!(catalogue.import(&directory.path().join("none"), |_| ()), Err(CatalogueError::Io { .. })));
    assert_eq!(catalogue.list().len(), 0);
}

#[test]
fn the_parts_of_a_model_are_one_model_until_one_is_missing() {
    let (directory, mut catalogue) = empty();
    let whole = catalogue.import(&model(&directory, "small.gguf", 1), |_| ()).unwrap();
    let first = directory.path().join("parted-00001-of-00001.gguf");
    fs::copy(directory.path().join("small.gguf"), &first).unwrap();
    let table = directory.path().join("models.json");

    let parted = catalogue.import(&first, |_| ()).unwrap();

    assert_eq!(parted.id, whole.id);
    let text = fs::read_to_string(&table).unwrap();
    assert!(text.contains("\"in\": \"files\"") && text.contains("\"version\": 1"), "{text}");
    let catalogue = Catalogue::open(directory.path()).unwrap();
    assert!(matches!(&catalogue.entry(whole.id).unwrap().weights, Place::Files(set) if set.files.len() == 1));
    assert!(catalogue.source(whole.id).is_ok());
    fs::remove_file(&first).unwrap();
    assert!(matches!(catalogue.source(whole.id), Err(CatalogueError::Io { .. })));
}

#[test]
fn a_table_of_earlier_days_is_read() {
    let (directory, mut catalogue) = empty();
    let path = model(&directory, "small.gguf", 1);
    let id = catalogue.import(&path, |_| ()).unwrap().id;
    let text = fs::read_to_string(directory.path().join("models.json")).unwrap();

    assert!(text.contains("\"in\": \"file\"") && text.contains("modified_ns"), "{text}");
    assert!(Catalogue::open(directory.path()).unwrap().source(id).is_ok());
}

#[test]
fn a_model_with_a_missing_part_is_refused_by_its_number() {
    let (directory, mut catalogue) = empty();
    let first = directory.path().join("parted-00001-of-00002.gguf");
    fs::copy(model(&directory, "small.gguf", 1), &first).unwrap();

    let error = catalogue.import(&first, |_| ()).unwrap_err();

    assert!(matches!(&error, CatalogueError::File(GgufError::MissingPart { part: 2, count: 2, .. })), "{error}");
}

fn empty() -> (TempDir, Catalogue) {
    let directory = tempfile::tempdir().unwrap();
    let catalogue = Catalogue::open(directory.path()).unwrap();
    (directory, catalogue)
}

fn model(directory: &TempDir, name: &str, seed: u64) -> PathBuf {
    let path = directory.path().join(name);
    RandomModel { seed, ..RandomModel::tiny() }.write(&path).unwrap();
    path
}
