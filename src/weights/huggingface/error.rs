//! What can be wrong with a folder.

use std::path::PathBuf;

use thiserror::Error;

use crate::weights::files::FileError;
use crate::weights::huggingface::header::HeaderError;
use crate::weights::llama::ModelError;
use crate::weights::vocabulary::VocabularyError;

/// Why a folder is not a model that can be used.
#[derive(Debug, Error)]
pub enum FolderError {
    /// A file that cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that is larger than any of its kind.
    #[error("{}: at most {limit} bytes are accepted, got {got}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most bytes.
        limit: u64,
        /// Its bytes.
        got: u64,
    },
    /// A file that is not the JSON that it should be.
    #[error("{} is malformed: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A folder without weights in safetensors.
    #[error("{} has neither model.safetensors nor model.safetensors.index.json", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// A file of weights that lies about itself.
    #[error("{}: {fault}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        fault: HeaderError,
    },
    /// An index and files that say different things.
    #[error("the index and the file \"{file}\" contradict each other: {reason}")]
    Index {
        /// The file.
        file: String,
        /// In what.
        reason: String,
    },
    /// A model that can't be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tokenizer with something that ours does not do.
    #[error("the tokenizer uses {feature}, which is not supported")]
    Tokenizer {
        /// What it uses.
        feature: String,
    },
    /// A tokenizer that contradicts itself or the model.
    #[error("the tokenizer is malformed: {reason}")]
    Words {
        /// In what.
        reason: String,
    },
    /// A tokenizer that can't be used.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
}

impl FolderError {
    pub(super) fn tokenizer(feature: impl Into<String>) -> Self {
        Self::Tokenizer { feature: feature.into() }
    }

    pub(super) fn words(reason: impl Into<String>) -> Self {
        Self::Words { reason: reason.into() }
    }
}
