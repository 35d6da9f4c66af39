//! The files of weights in a folder: one, or those that an index names.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;

use crate::weights::files::ModelFiles;
use crate::weights::files::Part;
use crate::weights::huggingface::error::FolderError;
use crate::weights::huggingface::header;
use crate::weights::huggingface::header::HeaderError;
use crate::weights::huggingface::json;
use crate::weights::huggingface::names;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Files of one model; the largest have some two hundred. Arbitrary.
const MAX_FILES: usize = 4_096;

#[derive(Deserialize)]
struct Index {
    /// Of each tensor its file.
    weight_map: BTreeMap<String, String>,
}

/// Maps all files of weights. Tensors have GGUF's names.
pub(super) fn open(folder: &Path) -> Result<ModelFiles, FolderError> {
    let index = index(folder)?;
    let mut joined: Option<ModelFiles> = None;
    for path in files_of(folder, index.as_ref())? {
        let files = open_one(&path, index.as_ref())?;
        match &mut joined {
            None => joined = Some(files),
            Some(joined) => joined
                .append(files)
                .map_err(|tensor| FolderError::Header { path, fault: HeaderError::Duplicate { tensor } })?,
        }
    }
    joined.ok_or_else(|| FolderError::NoWeights { folder: folder.to_owned() })
}

/// The paths of all files of weights and of their index.
pub(super) fn paths(folder: &Path) -> Result<Vec<PathBuf>, FolderError> {
    let index = index(folder)?;
    let mut paths = files_of(folder, index.as_ref())?;
    paths.extend(index.map(|_| folder.join(INDEX)));
    Ok(paths)
}

/// The index, if the weights are not in one file.
fn index(folder: &Path) -> Result<Option<Index>, FolderError> {
    let path = folder.join(INDEX);
    if folder.join(SINGLE).exists() || !path.exists() {
        return Ok(None);
    }
    let index: Index = json::table(&path)?;
    let files: BTreeSet<&String> = index.weight_map.values().collect();
    for file in &files {
        let is_plain = Path::new(file).file_name().is_some_and(|name| name == file.as_str());
        if !is_plain || file.contains('\\') || !file.ends_with(".safetensors") {
            let reason = "it is not the name of a safetensors file in the folder".to_owned();
            return Err(FolderError::Index { file: file.chars().take(100).collect(), reason });
        }
    }
    if files.len() > MAX_FILES {
        let reason = format!("at most {MAX_FILES} files are accepted, got {}", files.len());
        return Err(FolderError::Malformed { path, reason });
    }
    Ok(Some(index))
}

fn files_of(folder: &Path, index: Option<&Index>) -> Result<Vec<PathBuf>, FolderError> {
    let Some(index) = index else {
        let path = folder.join(SINGLE);
        return if path.exists() { Ok(vec![path]) } else { Err(FolderError::NoWeights { folder: folder.to_owned() }) };
    };
    let files: BTreeSet<&String> = index.weight_map.values().collect();
    Ok(files.into_iter().map(|file| folder.join(file)).collect())
}

fn open_one(path: &Path, index: Option<&Index>) -> Result<ModelFiles, FolderError> {
    let part = Part::open(path)?;
    let lies = |fault| FolderError::Header { path: path.to_owned(), fault };
    let rows = header::rows(part.bytes()).map_err(lies)?;
    if let Some(index) = index {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let held: BTreeSet<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        compare(index, &file, &held)?;
    }
    let mut places = BTreeMap::new();
    for row in rows {
        let Some(name) = names::renamed(&row.name) else { continue };
        if places.insert(name.clone(), row.place().map_err(lies)?).is_some() {
            return Err(lies(HeaderError::Duplicate { tensor: name }));
        }
    }
    Ok(ModelFiles::one(part, places))
}

/// Checks that a file holds the tensors that the index says, and no other.
fn compare(index: &Index, file: &str, held: &BTreeSet<&str>) -> Result<(), FolderError> {
    let said = index.weight_map.iter().filter(|(_, other)| *other == file);
    let said: BTreeSet<&str> = said.map(|(name, _)| name.as_str()).collect();
    let refuse = |reason| Err(FolderError::Index { file: file.to_owned(), reason });
    if let Some(name) = said.difference(held).next() {
        return refuse(format!("the tensor \"{name}\" should be there"));
    }
    match held.difference(&said).next() {
        Some(name) => refuse(format!("the tensor \"{name}\" should not be there")),
        None => Ok(()),
    }
}
