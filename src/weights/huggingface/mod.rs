//! Folders of a model as Hugging Face's `transformers` keeps them: `config.json`, `tokenizer.json` and weights in safetensors,
//! in one file or in several.
//!
//! Weights are used where they lie, byte for byte: tensors get GGUF's names, and what GGUF's own converter would reorder stays
//! as it is, since the shape says which elements rotate together. The model's id depends on no path, file name or division into
//! files. Like every other file, nothing in these is believed.

use std::path::Path;
use std::path::PathBuf;

use crate::shape::ModelShape;
use crate::weights::files::ModelFiles;
use crate::weights::layout;
use crate::weights::layout::OUTPUT;
use crate::wire::vocabulary::Vocabulary;

mod config;
mod error;
mod header;
mod json;
mod names;
mod pipeline;
mod scores;
mod shards;
mod tokenizer;
mod words;

pub use crate::weights::huggingface::error::FolderError;
pub use crate::weights::huggingface::header::HeaderError;

use crate::weights::huggingface::json::Object;

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";

/// A model as its folder describes it.
#[derive(Debug)]
pub struct Folder {
    /// Its hyper-parameters.
    pub shape: ModelShape,
    /// Its tokenizer and chat template.
    pub vocabulary: Vocabulary,
    /// Its weights, which agree with the shape.
    pub files: ModelFiles,
}

impl Folder {
    /// Reads the folder and maps its weights.
    ///
    /// # Errors
    /// What is missing, contradictory or not supported, by name.
    pub fn open(folder: &Path) -> Result<Self, FolderError> {
        let config = Object::read(&folder.join(CONFIG))?;
        let shape = config::shape(&config)?;
        let mut files = weights(folder)?;
        if shape.tied {
            // Where the head is the embedding, a head in the file means nothing.
            files.forget(OUTPUT);
        }
        layout::check(&shape, &files)?;
        let vocabulary = words::read(folder, &config, shape.vocab)?;
        Ok(Self { shape, vocabulary, files })
    }
}

/// The weights alone, as the files have them.
///
/// # Errors
/// What is wrong with them.
pub fn weights(folder: &Path) -> Result<ModelFiles, FolderError> {
    shards::open(folder)
}

/// Every file of the folder that says what the model is.
pub(super) fn paths(folder: &Path) -> Result<Vec<PathBuf>, FolderError> {
    let described = [CONFIG, GENERATION, TOKENIZER, TOKENIZER_CONFIG, TEMPLATE].map(|name| folder.join(name));
    let mut paths: Vec<PathBuf> = described.into_iter().filter(|path| path.exists()).collect();
    paths.extend(shards::paths(folder)?);
    Ok(paths)
}

#[cfg(test)]
mod tests;
