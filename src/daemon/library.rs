//! The models that this peer knows: their files, manifests, tokenizers and chat templates.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use crate::amounts::Bytes;
use crate::daemon::handle::GenerateError;
use crate::demo;
use crate::ids::BlobHash;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::mesh::BlobPiece;
use crate::mesh::BlobSource;
use crate::mesh::Mesh;
use crate::node::io::ModelFacts;
use crate::units::UnitRange;
use crate::weights::blobs::Blobs;
use crate::weights::catalogue::Catalogue;
use crate::weights::catalogue::CatalogueError;
use crate::weights::catalogue::Entry;
use crate::weights::catalogue::Imported;
use crate::weights::chat::ChatTemplate;
use crate::weights::gguf::GgufFile;
use crate::weights::manifest::Progress;
use crate::weights::tokenizer::Tokenizer;
use crate::wire::fetch::MAX_BLOB;
use crate::wire::manifest::Manifest;
use crate::wire::vocabulary::Vocabulary;

/// What is needed to plan for a model and to turn text into its tokens.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) facts: Arc<ModelFacts>,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) template: Arc<ChatTemplate>,
}

/// The catalogue of this data directory and what was made of it. Shared with the mesh, which serves its blobs.
#[derive(Clone, Debug)]
pub(super) struct Library {
    blobs: Blobs,
    shelf: Arc<Mutex<Shelf>>,
}

#[derive(Debug)]
struct Shelf {
    catalogue: Catalogue,
    known: BTreeMap<ModelId, Known>,
}
