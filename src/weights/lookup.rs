//! Where the tensors of the catalogue's models are on this machine: in the file that was imported, in the program, or among those that
//! came from other peers.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use memmap2::Mmap;

use crate::amounts::Bytes;
use crate::ids::BlobHash;
use crate::ids::ModelId;
use crate::os::release_file_pages;
use crate::shape::WeightFormat;
use crate::swarm::outline::Outline;
use crate::units::Cover;
use crate::units::UnitRange;
use crate::weights::catalogue::Catalogue;
use crate::weights::catalogue::CatalogueError;
use crate::weights::files::ModelFiles;
use crate::weights::files::TensorView;
use crate::weights::tensors::Tensors;
use crate::weights::tensors::read_piece;
use crate::wire::manifest::Manifest;
use crate::wire::manifest::TensorEntry;

/// Which blobs the models of the catalogue consist of, and what was found out about them.
#[derive(Debug, Default)]
pub(super) struct Index {
    manifests: BTreeMap<ModelId, Arc<Manifest>>,
    /// Of the models that were made by quantising, which one they were made of.
    sources: BTreeMap<ModelId, ModelId>,
    /// Of each blob, whose it is, and which of the manifest's tensors; none for a manifest or a vocabulary.
    blobs: BTreeMap<BlobHash, BTreeSet<(ModelId, Option<usize>)>>,
    /// Imported files that were looked into.
    files: BTreeMap<ModelId, Arc<ModelFiles>>,
    /// Tensors that were found damaged. In an imported file, which is its owner's and is not mended, they stay so.
    damaged: BTreeSet<BlobHash>,
}

impl Index {
    pub(super) fn new(damaged: BTreeSet<BlobHash>) -> Self {
        Self { damaged, ..Self::default() }
    }

    /// A model lies elsewhere than before, and was read in full there.
    pub(super) fn moved(&mut self, id: ModelId) -> Vec<BlobHash> {
        self.files.remove(&id);
        let tensors = self.manifests.get(&id).into_iter().flat_map(|manifest| &manifest.tensors);
        tensors.map(|tensor| tensor.hash).filter(|tensor| self.damaged.remove(tensor)).collect()
    }

    pub(super) fn enter(&mut self, id: ModelId, manifest: Arc<Manifest>) {
        let described = [BlobHash::new(*id.as_bytes()), manifest.vocabulary].map(|blob| (blob, None));
        let tensors = manifest.tensors.iter().enumerate().map(|(index, tensor)| (tensor.hash, Some(index)));
        for (blob, index) in tensors.chain(described) {
            self.blobs.entry(blob).or_default().insert((id, index));
        }
        if let Some(derivation) = &manifest.derivation {
            self.sources.insert(id, derivation.source.id());
        }
        self.manifests.insert(id, manifest);
    }

    /// Forgets a model; the blobs that no other one needs, with the length of those that are tensors.
    pub(super) fn forget(&mut self, id: ModelId) -> Vec<(BlobHash, Option<Bytes>)> {
        let manifest = self.manifests.remove(&id);
        self.sources.remove(&id);
        self.files.remove(&id);
        let tensors = manifest.iter().flat_map(|manifest| &manifest.tensors);
        let lengths: BTreeMap<BlobHash, Bytes> = tensors.map(|tensor| (tensor.hash, tensor.bytes)).collect();
        self.blobs.values_mut().for_each(|models| models.retain(|(model, _)| *model != id));
        let free = self.blobs.iter().filter(|(_, models)| models.is_empty());
        let free: Vec<_> = free.map(|(blob, _)| (*blob, lengths.get(blob).copied())).collect();
        self.blobs.retain(|_, models| !models.is_empty());
        for (blob, _) in &free {
            self.damaged.remove(blob);
        }
        free
    }

    /// A tensor that a model lacks. What a derived model shares with its source is the source's, which is what others say that they have.
    fn missing(&self, id: ModelId, manifest: &Manifest, tensor: BlobHash) -> Option<Missing> {
        let entry = manifest.tensors.iter().find(|entry| entry.hash == tensor)?;
        match (&manifest.derivation, self.sources.get(&id)) {
            (Some(derivation), Some(source)) if manifest.made_from(entry).is_none() => {
                Missing::of(*source, &derivation.source, tensor)
            }
            _ => Missing::of(id, manifest, tensor),
        }
    }

    /// Whether a tensor is made here by quantising another, in any of the models.
    fn is_made(&self, tensor: BlobHash) -> bool {
        self.models(tensor).any(|(id, index)| self.is_made_for(id, index))
    }

    fn is_made_for(&self, id: ModelId, index: Option<usize>) -> bool {
        let manifest = self.manifests.get(&id);
        let entry = manifest.zip(index).and_then(|(manifest, index)| Some((manifest, manifest.tensors.get(index)?)));
        entry.is_some_and(|(manifest, entry)| manifest.made_from(entry).is_some())
    }

    /// The models that were made of one.
    pub(super) fn derived_from(&self, source: ModelId) -> Vec<ModelId> {
        self.sources.iter().filter(|(_, of)| **of == source).map(|(id, _)| *id).collect()
    }

    /// The model that one was made of.
    pub(super) fn source_of(&self, id: ModelId) -> Option<ModelId> {
        self.sources.get(&id).copied()
    }

    fn models(&self, blob: BlobHash) -> impl Iterator<Item = (ModelId, Option<usize>)> {
        self.blobs.get(&blob).into_iter().flatten().copied()
    }
}

/// A tensor that is not on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The model that needs it.
    pub model: ModelId,
    /// Its hash.
    pub tensor: BlobHash,
    /// Its length.
    pub bytes: Bytes,
    /// The units of the model that need it, ascending.
    pub units: Vec<u16>,
}

impl Missing {
    fn of(model: ModelId, manifest: &Manifest, tensor: BlobHash) -> Option<Self> {
        // Tensors that are alike are one.
        let alike = || manifest.tensors.iter().filter(move |entry| entry.hash == tensor);
        let units: BTreeSet<u16> = alike().flat_map(|entry| entry.units.iter().copied()).collect();
        Some(Self { model, tensor, bytes: alike().next()?.bytes, units: units.into_iter().collect() })
    }
}

/// A tensor on this machine.
#[derive(Clone, Debug)]
pub struct Located {
    /// Its hash.
    pub tensor: BlobHash,
    /// Its length.
    pub bytes: Bytes,
    /// The hash of its bytes, by which it is called unless it was made here.
    content: BlobHash,
    spot: Spot,
}

/// How a tensor is made by quantising another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// What is made: its name and length.
    pub tensor: BlobHash,
    /// Its length.
    pub bytes: Bytes,
    /// Its format.
    pub format: WeightFormat,
    /// What it is made of, and who needs that.
    pub source: Missing,
    /// The format of that.
    pub source_format: WeightFormat,
}

#[derive(Clone, Debug)]
enum Spot {
    /// Among those that came from other peers.
    Store(PathBuf),
    /// From `start` of an imported file.
    File {
        path: PathBuf,
        start: u64,
    },
    Program(&'static [u8]),
}

impl Located {
    /// Reads one of its pieces. `data` has the piece's length then.
    ///
    /// # Errors
    /// What the system says.
    pub fn read(&self, piece: u64, data: &mut Vec<u8>) -> io::Result<()> {
        match &self.spot {
            Spot::Store(path) => read_piece(&File::open(path)?, 0, self.bytes, piece, data),
            Spot::File { path, start } => read_piece(&File::open(path)?, *start, self.bytes, piece, data),
            Spot::Program(bytes) => {
                let mut pieces = bytes.chunks(crate::swarm::outline::PIECE as usize);
                let found = usize::try_from(piece).ok().and_then(|piece| pieces.nth(piece));
                data.clear();
                data.extend_from_slice(found.unwrap_or_default());
                Ok(())
            }
        }
    }

    /// Its outline: the one that is kept, or else from all of its bytes, to be kept. None if they are not what they should be.
    ///
    /// # Errors
    /// What the system says.
    pub fn outline(&self, tensors: &Tensors) -> io::Result<Option<Outline>> {
        match tensors.outline(self.tensor, self.bytes) {
            Some(outline) => Ok(Some(outline)),
            None => self.hash(tensors),
        }
    }

    /// Its outline from all of its bytes, to be kept. None if they are not what they should be.
    ///
    /// # Errors
    /// What the system says.
    pub fn hash(&self, tensors: &Tensors) -> io::Result<Option<Outline>> {
        let outline = Outline::read(self.content, self.bytes.0, |piece, data| self.read(piece, data))?;
        // Only what others may ask for is worth an outline.
        if let Some(outline) = outline.as_ref().filter(|_| self.content == self.tensor) {
            // It is made again if it could not be kept.
            let _ = tensors.keep_outline(outline);
        }
        Ok(outline)
    }
}

/// The tensors of some units, to be loaded.
#[derive(Debug)]
pub struct Weights {
    files: Option<Arc<ModelFiles>>,
    stored: BTreeMap<String, Stored>,
}

#[derive(Debug)]
struct Stored {
    format: WeightFormat,
    dimensions: Vec<u64>,
    map: Mmap,
}

impl Weights {
    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let stored = self.stored.get(name).map(|stored| TensorView {
            format: stored.format,
            dimensions: &stored.dimensions,
            bytes: &stored.map,
        });
        stored.or_else(|| self.files.as_ref()?.tensor(name))
    }

    /// Gives back the memory that holds these bytes of a tensor; they are read again when looked at.
    pub fn release(&self, name: &str, bytes: Range<usize>) {
        match (self.stored.get(name), &self.files) {
            (Some(stored), _) => release_file_pages(&stored.map, bytes),
            (None, Some(files)) => files.release(name, bytes),
            (None, None) => {}
        }
    }
}

impl Catalogue {
    /// A model's manifest, read once.
    ///
    /// # Errors
    /// `Unknown`, or `Blob` if it is damaged.
    pub fn described(&mut self, id: ModelId) -> Result<Arc<Manifest>, CatalogueError> {
        if let Some(manifest) = self.index.manifests.get(&id) {
            return Ok(Arc::clone(manifest));
        }
        let manifest = Arc::new(self.manifest(id)?);
        self.index.enter(id, Arc::clone(&manifest));
        Ok(manifest)
    }

    /// The tensors that a stage of `range` needs and that are not on this machine, each once.
    ///
    /// # Errors
    /// `Unknown`, or `Blob` if the manifest is damaged.
    pub fn missing(&mut self, id: ModelId, range: UnitRange) -> Result<Vec<Missing>, CatalogueError> {
        let (manifest, files) = (self.described(id)?, self.files(id));
        let missing = manifest.tensors_of(range).filter(|tensor| self.spot(id, tensor, files.as_deref()).is_none());
        let missing: BTreeSet<BlobHash> = missing.map(|tensor| tensor.hash).collect();
        Ok(missing.into_iter().filter_map(|tensor| self.index.missing(id, &manifest, tensor)).collect())
    }

    /// The tensors that a stage of `range` needs.
    ///
    /// # Errors
    /// `NoWeights` if some are not here, and what is in the way.
    pub fn weights(&mut self, id: ModelId, range: UnitRange) -> Result<Weights, CatalogueError> {
        let manifest = self.described(id)?;
        let files = self.files(id);
        let mut stored = BTreeMap::new();
        for tensor in manifest.tensors_of(range) {
            if self.tensors.holds(tensor.hash, tensor.bytes) {
                let map = self.tensors.map(tensor.hash)?;
                let (format, dimensions) = (tensor.format, tensor.dimensions.clone());
                stored.insert(tensor.name.clone(), Stored { format, dimensions, map });
            } else if files.is_none()
                || self.index.damaged.contains(&tensor.hash)
                || manifest.made_from(tensor).is_some()
            {
                return Err(CatalogueError::NoWeights { id });
            }
        }
        Ok(Weights { files, stored })
    }

    /// The units of a model all of whose tensors are on this machine.
    ///
    /// # Errors
    /// `Unknown`, or `Blob` if the manifest is damaged.
    pub fn held(&mut self, id: ModelId) -> Result<Vec<UnitRange>, CatalogueError> {
        let (manifest, files) = (self.described(id)?, self.files(id));
        let mut lacks = Cover::empty(manifest.shape.units());
        for tensor in manifest.tensors.iter().filter(|tensor| self.spot(id, tensor, files.as_deref()).is_none()) {
            let units = tensor.units.iter().filter_map(|&unit| UnitRange::new(unit, unit.checked_add(1)?).ok());
            units.for_each(|unit| lacks.add(unit));
        }
        Ok(lacks.missing())
    }

    /// A tensor of any model of the catalogue, if it is on this machine.
    pub fn locate(&mut self, tensor: BlobHash) -> Option<Located> {
        // What was made here cannot be verified by whoever is given it; nor is it another model's that names a tensor so.
        if self.index.is_made(tensor) {
            return None;
        }
        let of: Vec<(ModelId, Option<usize>)> = self.index.models(tensor).collect();
        of.into_iter().find_map(|(id, index)| {
            let manifest = Arc::clone(self.index.manifests.get(&id)?);
            let entry = manifest.tensors.get(index?)?;
            let spot = self.stored(entry).or_else(|| {
                let files = self.files(id);
                self.spot(id, entry, files.as_deref())
            })?;
            Some(Located { tensor, bytes: entry.bytes, content: tensor, spot })
        })
    }

    /// Every tensor of a model that is on this machine, by name.
    ///
    /// # Errors
    /// `Unknown`, or `Blob` if the manifest is damaged.
    pub fn located(&mut self, id: ModelId) -> Result<Vec<(String, Located)>, CatalogueError> {
        let (manifest, files) = (self.described(id)?, self.files(id));
        let located = |entry: &TensorEntry| {
            let spot = self.spot(id, entry, files.as_deref())?;
            let is_made = manifest.made_from(entry).is_some();
            // One of which nothing is known any more is made again.
            let content = if is_made { self.tensors.made(entry.hash).unwrap_or(entry.hash) } else { entry.hash };
            Some((entry.name.clone(), Located { tensor: entry.hash, bytes: entry.bytes, content, spot }))
        };
        Ok(manifest.tensors.iter().filter_map(located).collect())
    }

    /// How a tensor of a model is made, if it is not fetched.
    ///
    /// # Errors
    /// `Unknown`, or `Blob` if the manifest is damaged.
    pub fn recipe(&mut self, id: ModelId, tensor: BlobHash) -> Result<Option<Recipe>, CatalogueError> {
        let manifest = self.described(id)?;
        let recipe = || {
            let entry = manifest.tensors.iter().find(|entry| entry.hash == tensor)?;
            let (made_from, derivation) = (manifest.made_from(entry)?, manifest.derivation.as_ref()?);
            let model = self.index.sources.get(&id)?;
            Some(Recipe {
                tensor,
                bytes: entry.bytes,
                format: entry.format,
                source: Missing::of(*model, &derivation.source, made_from.hash)?,
                source_format: made_from.format,
            })
        };
        Ok(recipe())
    }

    /// The names of a model's tensors that were found damaged and have not come again.
    ///
    /// # Errors
    /// `Unknown`, or `Blob` if the manifest is damaged.
    pub fn awaited(&mut self, id: ModelId) -> Result<Vec<String>, CatalogueError> {
        let manifest = self.described(id)?;
        let is_awaited =
            |entry: &&TensorEntry| self.index.damaged.contains(&entry.hash) && self.stored(entry).is_none();
        Ok(manifest.tensors.iter().filter(is_awaited).map(|entry| entry.name.clone()).collect())
    }

    /// All tensors that were found damaged and have not come again.
    pub fn all_awaited(&mut self) -> Vec<Missing> {
        let damaged = self.index.damaged.iter().filter_map(|&tensor| self.missing_of(tensor));
        damaged.filter(|missing| !self.tensors.holds(missing.tensor, missing.bytes)).collect()
    }

    /// Whether a blob is part of a model that is for everybody.
    pub fn is_public(&self, blob: BlobHash) -> bool {
        let is_public = |id| self.entry(id).is_some_and(|entry| !entry.private);
        // What is made of a private model tells what that is.
        self.index.models(blob).any(|(id, _)| is_public(id) && self.index.source_of(id).is_none_or(is_public))
    }

    /// A tensor's bytes turned out wrong: it is missing from now on. One in an imported file stays there as it is, and one that came from
    /// other peers is set aside until what is wrong with it has been fetched. None if it is part of no model.
    ///
    /// # Errors
    /// What is in the way.
    pub fn damaged(&mut self, located: &Located) -> Result<Option<Missing>, CatalogueError> {
        match &located.spot {
            // Whoever noticed it first has set it aside.
            Spot::Store(_) if !self.tensors.holds(located.tensor, located.bytes) => return Ok(None),
            Spot::Store(_) => self.tensors.set_aside(located.tensor)?,
            Spot::File { .. } | Spot::Program(_) => self.tensors.mark_damaged(located.tensor)?,
        }
        self.index.damaged.insert(located.tensor);
        Ok(self.missing_of(located.tensor))
    }

    fn missing_of(&self, tensor: BlobHash) -> Option<Missing> {
        let of = || self.index.models(tensor).filter(|(_, index)| index.is_some());
        let made = of().find(|(id, index)| self.index.is_made_for(*id, *index));
        let (id, _) = made.or_else(|| of().next())?;
        self.index.missing(id, self.index.manifests.get(&id)?, tensor)
    }

    /// The tensors that came from other peers.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    fn stored(&self, entry: &TensorEntry) -> Option<Spot> {
        self.tensors.holds(entry.hash, entry.bytes).then(|| Spot::Store(self.tensors.path(entry.hash)))
    }

    /// Where a tensor is; `files` are those of its model.
    fn spot(&self, id: ModelId, entry: &TensorEntry, files: Option<&ModelFiles>) -> Option<Spot> {
        if let Some(stored) = self.stored(entry) {
            return Some(stored);
        }
        if self.index.damaged.contains(&entry.hash) {
            return None;
        }
        let files = files?;
        let place = files.place(&entry.name).filter(|place| place.length == entry.bytes.0)?;
        if let Some(path) = place.path {
            return Some(Spot::File { path: path.to_owned(), start: place.offset });
        }
        let start = usize::try_from(place.offset).ok()?;
        let program = self.embedded.get(self.index.sources.get(&id).unwrap_or(&id))?;
        program.get(start..)?.get(..usize::try_from(place.length).ok()?).map(Spot::Program)
    }

    /// The files of a model's weights, if there are any and they are still the ones that were imported.
    fn files(&mut self, id: ModelId) -> Option<Arc<ModelFiles>> {
        // What is not quantised is as it is in the source, and what is has another length than there.
        let id = self.index.sources.get(&id).copied().unwrap_or(id);
        if !self.entry(id)?.weights.is_current() {
            self.index.files.remove(&id);
            return None;
        }
        if let Some(files) = self.index.files.get(&id) {
            return Some(Arc::clone(files));
        }
        let files = Arc::new(self.source(id).ok()?);
        self.index.files.insert(id, Arc::clone(&files));
        Some(files)
    }
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;
