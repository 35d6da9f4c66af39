//! Folders that are whole, and folders that lie.

use std::fs;
use std::path::PathBuf;

use expect_test::expect;
use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::shape::Architecture;
use crate::shape::WeightFormat;
use crate::weights::catalogue::Catalogue;
use crate::weights::catalogue::CatalogueError;
use crate::weights::llama::ModelError;

const FAMILIES: [&str; 4] = ["llama3", "mistral", "qwen2", "qwen3"];

#[test]
fn every_fixture_has_the_id_that_it_has_everywhere() {
    let ids = FAMILIES.map(|name| format!("{name} {}", id(&fixture(name))));

    expect![[r#"
        llama3 5d96af56bde195a375dc1479952cc23f79c030659ebf5cbb1ed000dfc62137c2
        mistral f6173ffcca44f1a37a9e2ae680fcc52e96b866b74134eaa00fe0c4f57d6a031a
        qwen2 2faec4261d7f6331e23476158b35d1b8d76ee85f0faacdbcde935170e41ec4b6
        qwen3 26521f3511a4ba9a6615b612c6f4691d4196428f9119868baf9a3cde358121ed"#]]
    .assert_eq(&ids.join("\n"));
}

#[test]
fn another_place_name_and_division_into_files_is_the_same_model() {
    let folder = copy("llama3");
    let expected = id(&fixture("llama3"));
    assert_eq!(id(folder.path()), expected);

    join(folder.path());

    assert!(!folder.path().join("model.safetensors.index.json").exists());
    assert_eq!(id(folder.path()), expected);
}

#[test]
fn a_folder_is_known_after_a_restart_until_one_of_its_files_changes() {
    let (folder, data) = (copy("qwen3"), tempfile::tempdir().unwrap());
    let mut hashed = 0;
    let first = Catalogue::open(data.path()).unwrap().import(folder.path(), |_| hashed += 1).unwrap();
    let once = hashed;

    let mut catalogue = Catalogue::open(data.path()).unwrap();
    let again = catalogue.import(folder.path(), |_| hashed += 1).unwrap();

    assert_eq!((first.id, hashed), (again.id, once));
    let source = catalogue.source(first.id).unwrap();
    for tensor in &first.manifest.tensors {
        let place = source.place(&tensor.name).unwrap();
        let bytes = fs::read(place.path.unwrap()).unwrap();
        let bytes = &bytes[place.offset as usize..][..place.length as usize];
        assert_eq!(blake3::hash(bytes).as_bytes(), tensor.hash.as_bytes(), "{}", tensor.name);
    }
    fs::write(folder.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
    assert!(matches!(catalogue.source(first.id), Err(CatalogueError::Changed { .. })));
    assert_ne!(catalogue.import(folder.path(), |_| ()).unwrap().id, first.id);
}

#[test]
fn tensors_are_used_as_they_are_stored() {
    let folder = Folder::open(&fixture("qwen2")).unwrap();

    assert_eq!(folder.shape.architecture, Architecture::Qwen2);
    assert!(folder.shape.tied && folder.files.tensor("output.weight").is_none());
    let view = folder.files.tensor("blk.1.attn_k.bias").unwrap();
    assert_eq!((view.format, view.dimensions), (WeightFormat::F32, [32].as_slice()));
    let view = folder.files.tensor("blk.0.ffn_down.weight").unwrap();
    assert_eq!(view.dimensions, [64, 64]);
    // The embedding has rows without a token.
    assert_eq!(folder.vocabulary.tokens.last().map(String::as_str), Some("[PAD311]"));
}

#[test]
fn a_folder_without_a_part_is_refused_by_the_parts_name() {
    for name in ["config.json", "tokenizer.json", "model-00002-of-00003.safetensors"] {
        let folder = copy("llama3");
        fs::remove_file(folder.path().join(name)).unwrap();

        let error = Folder::open(folder.path()).unwrap_err();

        assert!(matches!(&error, FolderError::File(error) if error.path.ends_with(name)), "{error}");
    }
    let folder = copy("qwen2");
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert!(matches!(Folder::open(folder.path()), Err(FolderError::NoWeights { .. })));
}

#[test]
fn an_index_that_lies_is_refused() {
    let with = |change: &dyn Fn(&mut Value)| {
        let folder = copy("llama3");
        edit(&folder.path().join("model.safetensors.index.json"), |index| change(&mut index["weight_map"]));
        Folder::open(folder.path()).unwrap_err()
    };
    let norm = "model.norm.weight";

    let elsewhere = with(&|map| map[norm] = map["model.embed_tokens.weight"].clone());
    assert!(elsewhere.to_string().contains(norm), "{elsewhere}");
    let forgotten = with(&|map| drop(map.as_object_mut().unwrap().remove(norm)));
    assert!(matches!(&forgotten, FolderError::Index { reason, .. } if reason.contains(norm)), "{forgotten}");
    let invented = with(&|map| map["model.layers.9.x"] = map[norm].clone());
    assert!(matches!(&invented, FolderError::Index { reason, .. } if reason.contains("layers.9")), "{invented}");
    let nowhere = with(&|map| map["x"] = json!("none.safetensors"));
    assert!(matches!(nowhere, FolderError::File(_)), "{nowhere}");
    for path in ["../model.safetensors", "/etc/passwd", "", "..", "a/b.safetensors", "a\\b.safetensors", "config.json"]
    {
        let outside = with(&|map| map[norm] = json!(path));
        assert!(matches!(outside, FolderError::Index { .. }), "{path}: {outside}");
    }
    assert!(matches!(with(&|map| *map = json!([])), FolderError::Malformed { .. }));
    assert!(matches!(with(&|map| *map = json!({})), FolderError::NoWeights { .. }));
}

#[test]
fn weights_that_are_cut_off_or_stored_otherwise_are_refused() {
    let (cut, other) = (copy("mistral"), copy("mistral"));
    let path = cut.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let path = other.path().join("model.safetensors");
    fs::write(&path, String::from_utf8_lossy(&bytes[..8]).into_owned()).unwrap();
    let mut stored = bytes;
    let place = stored.windows(5).position(|window| window == b"\"F32\"").unwrap();
    stored[place + 1] = b'I';

    let fault = |folder: &TempDir| match Folder::open(folder.path()).unwrap_err() {
        FolderError::Header { fault, .. } => fault,
        error => panic!("{error}"),
    };

    assert!(matches!(fault(&cut), HeaderError::Length { .. }));
    assert!(matches!(fault(&other), HeaderError::Truncated { .. } | HeaderError::TooLong { .. }));
    fs::write(&path, stored).unwrap();
    assert!(matches!(fault(&other), HeaderError::Format { format, .. } if format == "I32"));
}

#[test]
fn settings_that_contradict_the_weights_are_refused() {
    let with = |change: &dyn Fn(&mut Value)| {
        let folder = copy("qwen3");
        edit(&folder.path().join("config.json"), change);
        Folder::open(folder.path()).unwrap_err()
    };

    let vocab = with(&|config| config["vocab_size"] = json!(400));
    assert!(matches!(vocab, FolderError::Model(ModelError::TensorShape { .. })), "{vocab}");
    let blocks = with(&|config| config["num_hidden_layers"] = json!(4));
    assert!(matches!(blocks, FolderError::Model(ModelError::MissingTensor { .. })), "{blocks}");
    let fewer = with(&|config| config["num_hidden_layers"] = json!(2));
    assert!(matches!(fewer, FolderError::Model(ModelError::Unsupported { .. })), "{fewer}");
    let llama = with(&|config| config["architectures"] = json!(["LlamaForCausalLM"]));
    assert!(llama.to_string().contains("norms of heads"), "{llama}");
    let huge = with(&|config| config["vocab_size"] = json!(u32::MAX));
    assert!(matches!(huge, FolderError::Model(_)), "{huge}");
    let ends = with(&|config| config["eos_token_id"] = json!([1, 10_000]));
    assert!(matches!(&ends, FolderError::Words { reason } if reason.contains("10000")), "{ends}");
}

#[test]
fn tokenizers_that_ours_is_not_are_refused_by_name() {
    let with = |family: &str, change: &dyn Fn(&mut Value)| {
        let folder = copy(family);
        edit(&folder.path().join("tokenizer.json"), change);
        Folder::open(folder.path()).unwrap_err().to_string()
    };

    assert!(
        with("qwen3", &|file| file["model"] = json!({"type": "Unigram", "vocab": [["a", 0.0]]})).contains("Unigram")
    );
    assert!(with("qwen3", &|file| file["normalizer"] = json!({"type": "Lowercase"})).contains("Lowercase"));
    assert!(with("qwen3", &|file| file["added_tokens"][0]["lstrip"] = json!(true)).contains("around it"));
    assert!(with("qwen3", &|file| file["added_tokens"][0]["id"] = json!(100_000)).contains("100000"));
    assert!(with("qwen3", &|file| file["model"]["vocab"]["!"] = json!(5)).contains("the id 5"));
    assert!(with("qwen3", &|file| file["model"]["merges"][0] = json!("x")).contains("merge"));
    assert!(with("qwen3", &|file| file["model"]["dropout"] = json!(0.1)).contains("chance"));
    assert!(with("mistral", &|file| file["model"]["byte_fallback"] = json!(false)).contains("bytes"));
    assert!(with("mistral", &|file| drop(file["model"]["merges"].as_array_mut().unwrap().pop())).contains("merges"));
    assert!(with("mistral", &|file| file["normalizer"] = json!(null)).contains("steps"));
}

#[test]
fn no_damage_to_a_file_is_more_than_an_error() {
    for name in
        ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"]
    {
        let folder = copy("qwen2");
        let path = folder.path().join(name);
        let bytes = fs::read(&path).unwrap();
        let length = bytes.len().min(3_000);
        for step in 0..60 {
            let (place, mut damaged) = (step * length / 60, bytes.clone());
            damaged[place] ^= 1 << (step % 7);
            fs::write(&path, damaged).unwrap();
            let _ = Folder::open(folder.path());
            fs::write(&path, &bytes[..place]).unwrap();
            let cut = Folder::open(folder.path());
            assert!(
                cut.is_err() || name == "tokenizer_config.json" || name == "generation_config.json",
                "{name} {place}"
            );
        }
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/architectures").join(name)
}

/// A copy of a fixture that may be changed.
fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut file = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut file);
    fs::write(path, file.to_string()).unwrap();
}

/// The id that a folder's model has in a new catalogue.
fn id(folder: &Path) -> String {
    let data = tempfile::tempdir().unwrap();
    let imported = Catalogue::open(data.path()).unwrap().import(folder, |_| ()).unwrap();
    imported.id.to_string()
}

/// Makes one file of several.
fn join(folder: &Path) {
    let index = folder.join("model.safetensors.index.json");
    let map: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    let (mut header, mut data) = (json!({}), Vec::new());
    for (name, file) in map["weight_map"].as_object().unwrap() {
        let bytes = fs::read(folder.join(file.as_str().unwrap())).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut entry = serde_json::from_slice::<Value>(&bytes[8..8 + length]).unwrap()[name].clone();
        let [start, end] = [0, 1].map(|at| entry["data_offsets"][at].as_u64().unwrap() as usize);
        entry["data_offsets"] = json!([data.len(), data.len() + end - start]);
        data.extend_from_slice(&bytes[8 + length..][start..end]);
        header[name] = entry;
    }
    let header = header.to_string();
    let whole = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    fs::write(folder.join("model.safetensors"), whole).unwrap();
    fs::remove_file(index).unwrap();
}
