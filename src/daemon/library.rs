//! The models that this peer knows: their files, manifests, tokenizers and chat templates, as far as this machine has them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use bytes::Bytes;

use crate::amounts;
use crate::config::settings::Switch;
use crate::daemon::giving::Giving;
use crate::daemon::handle::ModelChange;
use crate::daemon::views::ChangedView;
use crate::demo;
use crate::ids::BlobHash;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::mesh::FetchError;
use crate::mesh::Mesh;
use crate::node::io::ModelFacts;
use crate::quantise;
use crate::shape::WeightFormat;
use crate::units::UnitRange;
use crate::weights::catalogue::Catalogue;
use crate::weights::catalogue::CatalogueError;
use crate::weights::catalogue::Entry;
use crate::weights::catalogue::Imported;
use crate::weights::catalogue::ModelRead;
use crate::weights::catalogue::Place;
use crate::weights::catalogue::ResolveError;
use crate::weights::chat::ChatError;
use crate::weights::chat::ChatTemplate;
use crate::weights::lookup::Missing;
use crate::weights::lookup::Recipe;
use crate::weights::lookup::Weights;
use crate::weights::tensors::Tensors;
use crate::weights::tokenizer::Tokenizer;
use crate::weights::vocabulary::VocabularyError;
use crate::wire::fetch::MAX_BLOB;
use crate::wire::manifest::Manifest;

/// What is needed to plan for a model and to turn text into its tokens.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) facts: Arc<ModelFacts>,
    /// The models that can be made of it by quantising, from the most precise to the coarsest.
    pub(super) derived: Arc<[Arc<ModelFacts>]>,
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
/// The lock is held for look-ups, never across a wait.
#[derive(Clone, Debug)]
pub(super) struct Library {
    shelf: Arc<Mutex<Shelf>>,
    /// The blob that was read last, since blobs are asked for piece by piece.
    last_blob: Arc<Mutex<Option<(BlobHash, Bytes)>>>,
    pub(super) giving: Arc<Giving>,
    tensors: Tensors,
}

#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) catalogue: Catalogue,
    known: BTreeMap<ModelId, Known>,
    /// Of models that can be made by quantising: of which, to which format.
    origins: BTreeMap<ModelId, (ModelId, WeightFormat)>,
}

impl Library {
    /// Opens the catalogue of a data directory and enters the demo model.
    ///
    /// - `weights`: whether weights are given to other peers
    /// - `allowed`: whom private models are given to
    pub(super) fn open(directory: &Path, weights: Switch, allowed: BTreeSet<PeerKey>) -> Result<Self, LibraryError> {
        let mut catalogue = Catalogue::open(directory)?;
        catalogue.import_embedded(demo::MODEL, demo::NAME)?;
        let (tensors, awaited) = (catalogue.tensors().clone(), catalogue.all_awaited());
        let shelf = Arc::new(Mutex::new(Shelf { catalogue, known: BTreeMap::new(), origins: BTreeMap::new() }));
        Ok(Self { shelf, last_blob: Arc::default(), tensors, giving: Arc::new(Giving::new(weights, allowed, awaited)) })
    }

    /// Adds a GGUF file or a folder of safetensors. Takes as long as hashing it.
    pub(super) fn import(&self, path: &Path) -> Result<Imported, CatalogueError> {
        if let Some(known) = self.shelf().catalogue.imported(path)? {
            return Ok(known);
        }
        let mut reported = 0;
        // Others want to look things up meanwhile.
        let read = ModelRead::at(path, |progress| {
            let percent = 100 * progress.done.0 / progress.total.0.max(1);
            if percent >= reported + 10 {
                reported = percent;
                tracing::info!(percent, "hashing the model");
            }
        })?;
        self.shelf().catalogue.enter(read)
    }

    /// The model of that name in the catalogue.
    pub(super) fn resolve(&self, name: &str) -> Result<ModelId, ResolveError> {
        self.shelf().catalogue.resolve(name)
    }

    /// The models of whose weights some are on this machine, the demo model last.
    pub(super) fn servable(&self) -> Vec<ModelId> {
        let (demo, mut servable): (Vec<Entry>, Vec<Entry>) =
            self.entries().into_iter().partition(|entry| entry.weights == Place::Embedded);
        servable.retain(|entry| !self.held(entry.id).is_empty());
        // What was made of a model here was made so that the model could be served.
        let asked = |id| self.shelf().catalogue.source_of(id).unwrap_or(id);
        let mut models: Vec<ModelId> = servable.into_iter().map(|entry| asked(entry.id)).collect();
        models.sort_unstable();
        models.dedup();
        models.extend(demo.into_iter().map(|entry| entry.id));
        models
    }

    /// The units of a model all of whose weights are on this machine.
    pub(super) fn held(&self, model: ModelId) -> Vec<UnitRange> {
        // One whose manifest is damaged is told when it is asked for.
        self.shelf().catalogue.held(model).unwrap_or_default()
    }

    /// The tensors that a range of units needs and that are not here. A model that is made of another is entered in the catalogue by that.
    pub(super) fn missing(&self, model: ModelId, range: UnitRange) -> Result<Vec<Missing>, CatalogueError> {
        let mut shelf = self.shelf();
        if let (None, Some((source, format))) = (shelf.catalogue.entry(model), shelf.origins.get(&model).copied()) {
            shelf.catalogue.derive(source, format)?;
        }
        shelf.catalogue.missing(model, range)
    }

    /// Says of all tensors that a range of units needs that they are not here only until others were made of them.
    pub(super) fn keep(&self, model: ModelId, range: UnitRange) -> Result<(), CatalogueError> {
        let manifest = self.shelf().catalogue.described(model)?;
        let mut passing = manifest.tensors_of(range).filter(|entry| self.tensors.is_passing(entry.hash));
        passing.try_for_each(|entry| Ok(self.tensors.set_passing(entry.hash, false)?))
    }

    /// How a tensor that is missing is made, if it is not fetched, and whether what it is made of is here.
    pub(super) fn recipe(&self, missing: &Missing) -> Result<Option<(Recipe, bool)>, CatalogueError> {
        let mut shelf = self.shelf();
        let recipe = shelf.catalogue.recipe(missing.model, missing.tensor)?;
        Ok(recipe.map(|recipe| {
            let is_here = shelf.catalogue.locate(recipe.source.tensor).is_some();
            (recipe, is_here)
        }))
    }

    /// Gives a model that has none a title.
    pub(super) fn entitle(&self, model: ModelId, title: &str) -> Result<(), CatalogueError> {
        let mut shelf = self.shelf();
        shelf.known.remove(&model);
        shelf.catalogue.set_title(model, title)
    }

    /// Whether a model was made of another.
    pub(super) fn is_derived(&self, model: ModelId) -> bool {
        self.shelf().catalogue.described(model).is_ok_and(|manifest| manifest.derivation.is_some())
    }

    /// The weights of a range of units.
    pub(super) fn weights(&self, model: ModelId, range: UnitRange) -> Result<Weights, CatalogueError> {
        self.shelf().catalogue.weights(model, range)
    }

    /// The tensors that came from other peers.
    pub(super) fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// Bytes that may still be written to the disk of the data directory.
    pub(super) fn room(&self) -> Option<amounts::Bytes> {
        self.tensors.room()
    }

    /// Does something to a model. Verifying takes as long as reading it.
    pub(super) fn change(&self, model: ModelId, change: ModelChange) -> Result<ChangedView, CatalogueError> {
        let mut changed = ChangedView { model: model.to_string(), ..ChangedView::default() };
        match change {
            ModelChange::Private(private) => self.shelf().catalogue.set_private(model, private)?,
            ModelChange::Remove => {
                let mut shelf = self.shelf();
                shelf.known.remove(&model);
                changed.freed_bytes = shelf.catalogue.remove(model)?.0;
            }
            ModelChange::Verify => {
                let (located, awaited) = {
                    let catalogue = &mut self.shelf().catalogue;
                    (catalogue.located(model)?, catalogue.awaited(model)?)
                };
                changed.damaged = awaited;
                for (name, located) in located {
                    match self.trusted(&located, located.hash(&self.tensors)) {
                        Some(_) => changed.right += 1,
                        None => changed.damaged.push(name),
                    }
                }
            }
        }
        Ok(changed)
    }

    /// The entry of a model.
    pub(super) fn entry(&self, model: ModelId) -> Option<Entry> {
        self.shelf().catalogue.entry(model).cloned()
    }

    /// Every entry of the catalogue.
    pub(super) fn entries(&self) -> Vec<Entry> {
        self.shelf().catalogue.list().cloned().collect()
    }

    /// What is known of a model in the catalogue; read once, then kept.
    pub(super) fn known(&self, model: ModelId) -> Result<Known, LibraryError> {
        let mut shelf = self.shelf();
        if let Some(known) = shelf.known.get(&model) {
            return Ok(known.clone());
        }
        let title = shelf.catalogue.entry(model).map(|entry| entry.title.clone()).unwrap_or_default();
        let manifest = shelf.catalogue.described(model)?;
        let vocabulary = shelf.catalogue.vocabulary(model)?;
        let (facts, derived) = family(model, &manifest, &title);
        shelf.origins.extend(derived.iter().map(|derived| (derived.id, (model, derived.format))));
        let known = Known {
            facts,
            derived,
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

    pub(super) fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // A panic while it was held leaves whole values: every change is one assignment.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of a manifest or vocabulary.
    pub(super) fn blob(&self, hash: BlobHash) -> Option<Bytes> {
        let mut last = self.last_blob.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = last.as_ref().filter(|(known, _)| *known == hash) {
            return Some(bytes.clone());
        }
        let bytes = Bytes::from(self.shelf().catalogue.blobs().get(hash).ok()?);
        *last = Some((hash, bytes.clone()));
        Some(bytes)
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

/// What the node needs of a model, and of those that can be made of it.
fn family(id: ModelId, manifest: &Arc<Manifest>, title: &str) -> (Arc<ModelFacts>, Arc<[Arc<ModelFacts>]>) {
    let derived = quantise::TARGETS.iter().filter_map(|&format| {
        let made = manifest.derive(format)?;
        Some(Arc::new(ModelFacts { source: Some(id), ..facts(made.id(), &made, format!("{title} ({format})")) }))
    });
    let derived: Arc<[Arc<ModelFacts>]> = derived.collect();
    let mut facts = facts(id, manifest, title.to_owned());
    facts.precisions.extend(derived.iter().map(|made| made.id));
    (Arc::new(facts), derived)
}

/// What the node needs of a manifest; its own precision only.
fn facts(id: ModelId, manifest: &Manifest, title: String) -> ModelFacts {
    ModelFacts {
        id,
        shape: manifest.shape,
        footprint: manifest.footprint(),
        bytes: manifest.total_bytes(),
        format: manifest.format(),
        source: manifest.derivation.as_ref().map(|derivation| derivation.source.id()),
        precisions: vec![id],
        title,
    }
}
