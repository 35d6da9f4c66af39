//! The models that this peer knows: their files, manifests, tokenizers and chat templates.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use bytes::Bytes;

use crate::amounts;
use crate::demo;
use crate::ids::BlobHash;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::mesh::BlobPiece;
use crate::mesh::BlobSource;
use crate::mesh::FetchError;
use crate::mesh::Mesh;
use crate::node::io::ModelFacts;
use crate::units::UnitRange;
use crate::weights::catalogue::Catalogue;
use crate::weights::catalogue::CatalogueError;
use crate::weights::catalogue::Entry;
use crate::weights::catalogue::Imported;
use crate::weights::catalogue::Place;
use crate::weights::catalogue::ResolveError;
use crate::weights::chat::ChatError;
use crate::weights::chat::ChatTemplate;
use crate::weights::files::ModelFiles;
use crate::weights::tokenizer::Tokenizer;
use crate::weights::vocabulary::VocabularyError;
use crate::wire::fetch::MAX_BLOB;
use crate::wire::manifest::Manifest;

/// What is needed to plan for a model and to turn text into its tokens.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) facts: Arc<ModelFacts>,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) template: Arc<ChatTemplate>,
}

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum LibraryError {
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error("the model's vocabulary cannot be used: {0}")]
    Vocabulary(#[from] VocabularyError),
    #[error(transparent)]
    Template(#[from] ChatError),
    #[error("no peer that announced the model sent its manifest{}", last.as_ref().map(|error| format!(": {error}")).unwrap_or_default())]
    Nobody { last: Option<FetchError> },
    #[error("a peer sent a manifest or vocabulary that cannot be used: {0}")]
    Refused(String),
}

/// The catalogue of this data directory and what was made of it. Shared with the mesh, which serves its blobs.
///
/// The lock is held for look-ups and imports, never across a wait.
#[derive(Clone, Debug)]
pub(super) struct Library {
    shelf: Arc<Mutex<Shelf>>,
    /// The blob that was read last, since blobs are asked for piece by piece.
    last_blob: Arc<Mutex<Option<(BlobHash, Bytes)>>>,
}

#[derive(Debug)]
struct Shelf {
    catalogue: Catalogue,
    known: BTreeMap<ModelId, Known>,
}

impl Library {
    /// Opens the catalogue of a data directory and enters the demo model.
    pub(super) fn open(directory: &Path) -> Result<Self, LibraryError> {
        let mut catalogue = Catalogue::open(directory)?;
        catalogue.import_embedded(demo::MODEL, demo::NAME)?;
        let shelf = Shelf { catalogue, known: BTreeMap::new() };
        Ok(Self { shelf: Arc::new(Mutex::new(shelf)), last_blob: Arc::default() })
    }

    /// Adds a GGUF file or a folder of safetensors. Takes as long as hashing it.
    pub(super) fn import(&self, path: &Path) -> Result<Imported, CatalogueError> {
        let mut reported = 0;
        self.shelf().catalogue.import(path, |progress| {
            let percent = 100 * progress.done.0 / progress.total.0.max(1);
            if percent >= reported + 10 {
                reported = percent;
                tracing::info!(percent, "hashing the model");
            }
        })
    }

    /// The model of that name in the catalogue.
    pub(super) fn resolve(&self, name: &str) -> Result<ModelId, ResolveError> {
        self.shelf().catalogue.resolve(name)
    }

    /// The models whose weights are on this machine, the demo model last.
    pub(super) fn servable(&self) -> Vec<ModelId> {
        let shelf = self.shelf();
        let of = |demo: bool| {
            let entries = shelf.catalogue.list();
            let here = entries.filter(move |entry| match entry.weights {
                Place::File(_) | Place::Files(_) => !demo,
                Place::Embedded => demo,
                Place::Elsewhere => false,
            });
            here.map(|entry| entry.id).collect::<Vec<_>>()
        };
        [of(false), of(true)].concat()
    }

    /// Every entry of the catalogue.
    pub(super) fn entries(&self) -> Vec<Entry> {
        self.shelf().catalogue.list().cloned().collect()
    }

    /// The files of a model's weights.
    pub(super) fn weights(&self, model: ModelId) -> Result<ModelFiles, CatalogueError> {
        self.shelf().catalogue.source(model)
    }

    /// What is known of a model in the catalogue; read once, then kept.
    pub(super) fn known(&self, model: ModelId) -> Result<Known, LibraryError> {
        let mut shelf = self.shelf();
        if let Some(known) = shelf.known.get(&model) {
            return Ok(known.clone());
        }
        let title = shelf.catalogue.entry(model).map(|entry| entry.title.clone()).unwrap_or_default();
        let manifest = shelf.catalogue.manifest(model)?;
        let vocabulary = shelf.catalogue.vocabulary(model)?;
        let known = Known {
            facts: Arc::new(facts(model, &manifest, title)),
            template: Arc::new(ChatTemplate::of(&vocabulary)?),
            tokenizer: Arc::new(Tokenizer::new(vocabulary)?),
        };
        shelf.known.insert(model, known.clone());
        Ok(known)
    }

    /// What is known of a model, fetched from those who announced it if it is not in the catalogue.
    pub(super) async fn known_or_fetched(
        &self,
        mesh: &Mesh,
        model: ModelId,
        title: &str,
        sources: &[PeerKey],
    ) -> Result<Known, LibraryError> {
        if self.shelf().catalogue.entry(model).is_some() {
            return self.known(model);
        }
        let mut last = None;
        for &peer in sources {
            match fetch(mesh, peer, model).await {
                Ok((manifest, vocabulary)) => {
                    let remembered = self.shelf().catalogue.remember_remote(&manifest, &vocabulary, title);
                    remembered.map_err(|error| LibraryError::Refused(error.to_string()))?;
                    return self.known(model);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(LibraryError::Nobody { last })
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // A panic while it was held leaves whole values: every change is one assignment.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blob(&self, hash: BlobHash) -> Option<Bytes> {
        let mut last = self.last_blob.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = last.as_ref().filter(|(known, _)| *known == hash) {
            return Some(bytes.clone());
        }
        let bytes = Bytes::from(self.shelf().catalogue.blobs().get(hash).ok()?);
        *last = Some((hash, bytes.clone()));
        Some(bytes)
    }
}

impl BlobSource for Library {
    fn piece(&self, blob: BlobHash, offset: u64, length: u32) -> Option<BlobPiece> {
        let bytes = self.blob(blob)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let end = start.saturating_add(length as usize).min(bytes.len());
        Some(BlobPiece { total: bytes.len() as u64, data: bytes.slice(start..end) })
    }
}

/// Fetches a manifest, whose hash is the model's id, and the vocabulary that it names.
async fn fetch(mesh: &Mesh, peer: PeerKey, model: ModelId) -> Result<(Bytes, Bytes), FetchError> {
    let manifest = mesh.fetch(peer, BlobHash::new(*model.as_bytes()), MAX_BLOB).await?;
    let vocabulary = match Manifest::decode(&manifest) {
        Ok(decoded) => mesh.fetch(peer, decoded.vocabulary, MAX_BLOB).await?,
        // The catalogue says what is wrong with it.
        Err(_) => Bytes::new(),
    };
    Ok((manifest, vocabulary))
}

/// What the node needs of a manifest.
fn facts(id: ModelId, manifest: &Manifest, title: String) -> ModelFacts {
    let units = manifest.shape.units();
    let bytes_of = |unit| UnitRange::new(unit, unit + 1).map_or(amounts::Bytes::ZERO, |one| manifest.weight_bytes(one));
    ModelFacts {
        id,
        shape: manifest.shape,
        unit_bytes: (0..units).map(bytes_of).collect(),
        bytes: manifest.total_bytes(),
        quantisation: manifest.main_format().map(|format| format.to_string()).unwrap_or_default(),
        title,
    }
}
