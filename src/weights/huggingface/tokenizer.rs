//! `tokenizer.json`: the tokens and their merges.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::weights::huggingface::error::FolderError;
use crate::weights::huggingface::json;

/// What the file says, as far as it matters here.
#[derive(Deserialize)]
pub(super) struct File {
    #[serde(default)]
    pub(super) added_tokens: Vec<Added>,
    pub(super) normalizer: Option<Value>,
    pub(super) pre_tokenizer: Option<Value>,
    pub(super) post_processor: Option<Value>,
    pub(super) model: Model,
}

/// A text that stands for one token wherever it is.
#[derive(Deserialize)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) special: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    pub(super) normalized: bool,
}

/// Byte pair encoding.
#[derive(Deserialize)]
pub(super) struct Model {
    /// The id of each token's text.
    pub(super) vocab: BTreeMap<String, u32>,
    /// The best first.
    pub(super) merges: Vec<Merge>,
    #[serde(default)]
    pub(super) byte_fallback: bool,
    #[serde(default)]
    pub(super) ignore_merges: bool,
    pub(super) unk_token: Option<String>,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

/// Two tokens that are joined, in the newer and the older form.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Merge {
    Pair([String; 2]),
    Line(String),
}

/// The kind of model alone, since other kinds look otherwise.
#[derive(Deserialize)]
struct KindOnly {
    model: Kind,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    name: Option<String>,
}

impl File {
    /// Reads the file, if our tokenizer can do what its tokens and merges ask for.
    pub(super) fn read(path: &Path) -> Result<Self, FolderError> {
        let KindOnly { model: Kind { name } } = json::table(path)?;
        // Older files do not name it.
        if let Some(name) = name.filter(|name| name != "BPE") {
            return Err(FolderError::tokenizer(format!("the model \"{name}\"")));
        }
        let file: Self = json::table(path)?;
        file.check()?;
        Ok(file)
    }

    fn check(&self) -> Result<(), FolderError> {
        let Model { dropout, continuing_subword_prefix, end_of_word_suffix, .. } = &self.model;
        let is_empty = |affix: &Option<String>| affix.as_deref().unwrap_or_default().is_empty();
        if dropout.is_some_and(|dropout| dropout > 0.0) {
            return Err(FolderError::tokenizer("merges left to chance"));
        }
        if !is_empty(continuing_subword_prefix) || !is_empty(end_of_word_suffix) {
            return Err(FolderError::tokenizer("affixes inside and at the end of words"));
        }
        let greedy = self.added_tokens.iter().find(|added| added.single_word || added.lstrip || added.rstrip);
        match greedy {
            Some(Added { content, .. }) => Err(FolderError::tokenizer(format!(
                "the token \"{content}\" that takes what is around it into account"
            ))),
            None => Ok(()),
        }
    }
}

impl Merge {
    /// The two tokens, if it is of two.
    pub(super) fn pair(&self) -> Option<(&str, &str)> {
        match self {
            Self::Pair([left, right]) => Some((left, right)),
            Self::Line(line) => line.split_once(' '),
        }
    }
}
