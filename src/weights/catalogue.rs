//! Which models this data directory knows, and where their weights lie.
//!
//! `models.json` is a small table; manifests and vocabularies are blobs. A file of weights is hashed when it is
//! imported; from then on its length and time of change say whether it is still the same. A model may lie in several
//! files, which then all have to be.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use thiserror::Error;

use crate::amounts::Bytes;
use crate::ids::BlobHash;
use crate::ids::ModelId;
use crate::shape::ModelShape;
use crate::shape::WeightFormat;
use crate::weights::blobs::BlobError;
use crate::weights::blobs::Blobs;
use crate::weights::files::ModelFiles;
use crate::weights::gguf::GgufError;
use crate::weights::gguf::GgufFile;
use crate::weights::huggingface;
use crate::weights::huggingface::Folder;
use crate::weights::huggingface::FolderError;
use crate::weights::layout;
use crate::weights::llama;
use crate::weights::llama::ModelError;
use crate::weights::lookup::Index;
use crate::weights::manifest::Progress;
use crate::weights::manifest::build_manifest;
use crate::weights::manifest::unhashed_manifest;
use crate::weights::models_file;
use crate::weights::split;
use crate::weights::tensors::TensorError;
use crate::weights::tensors::Tensors;
use crate::weights::tokenizer::Tokenizer;
use crate::weights::vocabulary::VocabularyError;
use crate::weights::vocabulary::read_vocabulary;
use crate::wire::bad::BadMessage;
use crate::wire::manifest::Manifest;
use crate::wire::text::is_printable;
use crate::wire::text::printable;
use crate::wire::vocabulary::Vocabulary;

/// Bytes of a title, as many as a model's card carries.
const MAX_TITLE: usize = 96;

/// Bytes of an alias. Arbitrary.
const MAX_ALIAS: usize = 64;

/// The fewest digits of an id that name a model.
pub const MIN_PREFIX: usize = 8;

/// Why the catalogue could not do what it was asked.
#[derive(Debug, Error)]
pub enum CatalogueError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// `models.json` is not what was written.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A manifest or vocabulary could not be stored or read.
    #[error("a blob of the model is in the way")]
    Blob(#[from] BlobError),
    /// A tensor could not be stored or read.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The file is no GGUF.
    #[error(transparent)]
    File(#[from] GgufError),
    /// The folder is no model.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The file's model can't be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The file's tokenizer can't be used.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
    /// A manifest or vocabulary breaks the rules for exchanging them.
    #[error("the model cannot be described to other peers")]
    Message(#[from] BadMessage),
    /// A vocabulary that is not the manifest's.
    #[error("the manifest names the vocabulary {expected}, got {got}")]
    OtherVocabulary {
        /// By the manifest.
        expected: BlobHash,
        /// Of the bytes given.
        got: BlobHash,
    },
    /// The manifest's model has another number of tokens than the vocabulary.
    #[error("the manifest has {expected} token ids, the vocabulary {got} tokens")]
    VocabularySize {
        /// By the manifest.
        expected: u32,
        /// Tokens in the vocabulary.
        got: usize,
    },
    /// The file is not the one that was imported.
    #[error("{} has changed since it was imported; import it again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A path that cannot be written down.
    #[error("the path {} is not valid Unicode", path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// Only the description of the model is here.
    #[error("the weights of model {id} are not on this machine")]
    NoWeights {
        /// The model.
        id: ModelId,
    },
    /// A model that is part of the program.
    #[error("the model {id} is part of the program and cannot be removed")]
    BuiltIn {
        /// The model.
        id: ModelId,
    },
    /// No such model.
    #[error("the model {id} is not in the catalogue")]
    Unknown {
        /// The model.
        id: ModelId,
    },
    /// A model that cannot be quantised to a format.
    #[error("the model {id} cannot be quantised to {format}: that would make nothing smaller")]
    NotDerivable {
        /// The model.
        id: ModelId,
        /// The format.
        format: WeightFormat,
    },
    /// An alias that can't be given.
    #[error("\"{alias}\" cannot be an alias: {reason}")]
    Alias {
        /// The alias.
        alias: String,
        /// Why not.
        reason: &'static str,
    },
}

/// Why a name stands for no model.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ResolveError {
    /// Neither an id, nor the beginning of one, nor an alias.
    #[error("no model is called \"{name}\"")]
    Unknown {
        /// The name.
        name: String,
    },
    /// Too few digits.
    #[error("\"{name}\" is too short: at least {MIN_PREFIX} digits of an id are needed")]
    TooShort {
        /// The name.
        name: String,
    },
    /// The beginning of several ids.
    #[error("\"{name}\" stands for {} models: {}", matches.len(), list(matches))]
    Ambiguous {
        /// The name.
        name: String,
        /// The models, ascending.
        matches: Vec<ModelId>,
    },
}

/// One model of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The model.
    pub id: ModelId,
    /// A title for people.
    pub title: String,
    /// This machine's own name for it, if it has one.
    pub alias: Option<String>,
    /// Its units.
    pub units: u16,
    /// Bytes of all its tensors.
    pub bytes: Bytes,
    /// Where its weights are, beside what came of them from other peers.
    pub weights: Place,
    /// Whether it is given only to peers on the allow-list.
    pub private: bool,
}

/// Where a model's weights are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a GGUF file.
    File(Stamp),
    /// In several files that belong together.
    Files(FileSet),
    /// In the program itself.
    Embedded,
    /// Not on this machine.
    Elsewhere,
}

/// The parts of a GGUF, or a folder of safetensors, as they were when they were imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSet {
    /// The first part, or the folder.
    pub root: PathBuf,
    /// Every file that says what the model is.
    pub files: Vec<Stamp>,
}

/// A file as it was when it was imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Where.
    pub path: PathBuf,
    /// Its length.
    pub length: u64,
    /// When it was last changed, in nanoseconds since 1970.
    pub modified: u128,
}

/// What an import gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// The model.
    pub id: ModelId,
    /// Its description.
    pub manifest: Manifest,
    /// Its tokenizer.
    pub vocabulary: Vocabulary,
    /// Its title.
    pub title: String,
}

/// The models that a data directory knows. One process owns it at a time.
#[derive(Debug)]
pub struct Catalogue {
    path: PathBuf,
    blobs: Blobs,
    entries: BTreeMap<ModelId, Entry>,
    pub(super) tensors: Tensors,
    pub(super) index: Index,
    pub(super) embedded: BTreeMap<ModelId, &'static [u8]>,
}

impl Catalogue {
    /// Opens the catalogue of a data directory, which may be empty.
    ///
    /// # Errors
    /// `Io`, `Blob`, or `Damaged` if the table cannot be read.
    pub fn open(directory: &Path) -> Result<Self, CatalogueError> {
        let blobs = Blobs::open(&directory.join("blobs"))?;
        let path = directory.join("models.json");
        let entries = models_file::read(&path)?;
        let tensors = Tensors::open(&directory.join("tensors"))?;
        let index = Index::new(tensors.damaged()?);
        let mut catalogue = Self { path, blobs, entries, tensors, index, embedded: BTreeMap::new() };
        for id in catalogue.entries.keys().copied().collect::<Vec<_>>() {
            // One whose manifest is damaged is told when it is asked for.
            let _ = catalogue.described(id);
        }
        Ok(catalogue)
    }

    /// Adds a GGUF file, the first part of one in several, or a folder of safetensors. One that is already known and has not changed
    /// is not read again.
    ///
    /// # Errors
    /// What is wrong with the file, or what is in the way.
    pub fn import(&mut self, path: &Path, progress: impl FnMut(Progress)) -> Result<Imported, CatalogueError> {
        match self.imported(path)? {
            Some(known) => Ok(known),
            None => self.enter(ModelRead::at(path, progress)?),
        }
    }

    /// The model at a path that was imported and has not changed since, if all that is known of it is still there.
    ///
    /// # Errors
    /// What is in the way.
    pub fn imported(&self, path: &Path) -> Result<Option<Imported>, CatalogueError> {
        Ok(self.known(&Place::of(&absolute(path)?)?))
    }

    /// Adds a model that was read.
    ///
    /// # Errors
    /// What is wrong with it, or what is in the way.
    pub fn enter(&mut self, read: ModelRead) -> Result<Imported, CatalogueError> {
        let ModelRead { place, name, manifest, vocabulary, title } = read;
        let imported = self.store(manifest, vocabulary, title)?;
        self.add(&imported, place, Some(name))?;
        Ok(imported)
    }

    /// Adds a GGUF that is part of the program, to be done at each start.
    ///
    /// # Errors
    /// What is wrong with the bytes, or what is in the way.
    pub fn import_embedded(&mut self, bytes: &'static [u8], alias: &str) -> Result<Imported, CatalogueError> {
        let (manifest, vocabulary, title) = Described::gguf(GgufFile::from_static(bytes)?)?.hashed(alias, |_| ())?;
        let imported = self.store(manifest, vocabulary, title)?;
        self.embedded.insert(imported.id, bytes);
        self.add(&imported, Place::Embedded, Some(alias.to_owned()))?;
        Ok(imported)
    }

    /// Adds a model that other peers hold, from the bytes that they sent. `title` is what they call it.
    ///
    /// # Errors
    /// What is wrong with the bytes, which is their fault, or what is in the way.
    pub fn remember_remote(
        &mut self,
        manifest: &[u8],
        vocabulary: &[u8],
        title: &str,
    ) -> Result<Imported, CatalogueError> {
        let description = Manifest::decode(manifest)?;
        let words = Vocabulary::decode(vocabulary)?;
        let (expected, got) = (description.vocabulary, words.hash());
        if got != expected {
            return Err(CatalogueError::OtherVocabulary { expected, got });
        }
        layout::check_manifest(&description)?;
        if let Some(derivation) = &description.derivation {
            // It is made of the source's tensors, which are looked up there.
            let source = self.store(Manifest::clone(&derivation.source), words.clone(), title.to_owned())?;
            self.add(&source, Place::Elsewhere, None)?;
        }
        self.store(description, words, title.to_owned()).and_then(|imported| {
            self.add(&imported, Place::Elsewhere, None)?;
            Ok(imported)
        })
    }

    /// Adds the model that is made of one in the catalogue by quantising it.
    ///
    /// # Errors
    /// `Unknown`, `NotDerivable`, or what is in the way.
    pub fn derive(&mut self, source: ModelId, format: WeightFormat) -> Result<ModelId, CatalogueError> {
        let title = self.entries.get(&source).map(|entry| entry.title.clone()).unwrap_or_default();
        let derived = self.described(source)?.derive(format);
        let manifest = derived.ok_or(CatalogueError::NotDerivable { id: source, format })?;
        // The vocabulary is the source's, which has been checked.
        let id = ModelId::new(*self.blobs.put(&manifest.encode())?.as_bytes());
        let title = printable(&format!("{title} ({format})"), MAX_TITLE);
        let vocabulary = self.vocabulary(source)?;
        self.add(&Imported { id, manifest, vocabulary, title }, Place::Elsewhere, None)?;
        Ok(id)
    }

    /// The model that one was made of by quantising, if it is in the catalogue.
    pub fn source_of(&self, id: ModelId) -> Option<ModelId> {
        self.index.source_of(id).filter(|source| self.entries.contains_key(source))
    }

    /// Gives a model a name of this machine's own, in place of the one it had.
    ///
    /// # Errors
    /// `Unknown`, `Alias` or `Io`.
    pub fn set_alias(&mut self, id: ModelId, alias: &str) -> Result<(), CatalogueError> {
        self.check_alias(id, alias)?;
        let entry = self.entries.get_mut(&id).ok_or(CatalogueError::Unknown { id })?;
        entry.alias = Some(alias.to_owned());
        models_file::write(&self.path, &self.entries)
    }

    /// Says what a model is called.
    ///
    /// # Errors
    /// `Unknown` or `Io`.
    pub fn set_title(&mut self, id: ModelId, title: &str) -> Result<(), CatalogueError> {
        let entry = self.entries.get_mut(&id).ok_or(CatalogueError::Unknown { id })?;
        entry.title = printable(title, MAX_TITLE);
        models_file::write(&self.path, &self.entries)
    }

    /// Says whether a model is given only to peers on the allow-list.
    ///
    /// # Errors
    /// `Unknown` or `Io`.
    pub fn set_private(&mut self, id: ModelId, private: bool) -> Result<(), CatalogueError> {
        // A model that was made of another is private where that is.
        let id = self.index.source_of(id).filter(|source| self.entries.contains_key(source)).unwrap_or(id);
        let entry = self.entries.get_mut(&id).ok_or(CatalogueError::Unknown { id })?;
        entry.private = private;
        models_file::write(&self.path, &self.entries)
    }

    /// Forgets a model and those that were made of it, with what came of it from other peers and is part of no other one. An imported file stays where it is. How many
    /// bytes that frees.
    ///
    /// # Errors
    /// `Unknown`, `BuiltIn`, or what is in the way.
    pub fn remove(&mut self, id: ModelId) -> Result<Bytes, CatalogueError> {
        let entry = self.entries.get(&id).ok_or(CatalogueError::Unknown { id })?;
        if entry.weights == Place::Embedded {
            return Err(CatalogueError::BuiltIn { id });
        }
        let mut freed = Bytes::ZERO;
        for made in self.index.derived_from(id) {
            freed = freed.plus(self.remove(made)?);
        }
        // Without a manifest there is nothing to tell what is its.
        let _ = self.described(id);
        self.entries.remove(&id);
        models_file::write(&self.path, &self.entries)?;
        for (blob, tensor) in self.index.forget(id) {
            let bytes = match tensor {
                Some(bytes) => self.tensors.remove(blob, bytes)?,
                None => self.blobs.remove(blob)?,
            };
            freed = freed.plus(bytes);
        }
        Ok(freed)
    }

    /// The models, ascending by id.
    pub fn list(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.entries.values()
    }

    /// The entry of a model.
    pub fn entry(&self, id: ModelId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// The model that is called so: by alias, by id, or by the beginning of its id.
    ///
    /// # Errors
    /// [`ResolveError`] if that is none or several.
    pub fn resolve(&self, name: &str) -> Result<ModelId, ResolveError> {
        let named = self.entries.values().find(|entry| entry.alias.as_deref() == Some(name));
        if let Some(entry) = named {
            return Ok(entry.id);
        }
        let unknown = || ResolveError::Unknown { name: name.to_owned() };
        if name.is_empty() || !name.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(unknown());
        }
        if name.len() < MIN_PREFIX {
            return Err(ResolveError::TooShort { name: name.to_owned() });
        }
        let prefix = name.to_ascii_lowercase();
        let matches: Vec<ModelId> =
            self.entries.keys().copied().filter(|id| id.to_string().starts_with(&prefix)).collect();
        match matches.as_slice() {
            [] => Err(unknown()),
            [id] => Ok(*id),
            _ => Err(ResolveError::Ambiguous { name: name.to_owned(), matches }),
        }
    }

    /// The files of a model's weights, if they are still the ones that were imported.
    ///
    /// # Errors
    /// `Unknown`, `NoWeights`, `Changed`, or what is wrong with the files.
    pub fn source(&self, id: ModelId) -> Result<ModelFiles, CatalogueError> {
        let entry = self.entries.get(&id).ok_or(CatalogueError::Unknown { id })?;
        match &entry.weights {
            Place::File(stamp) => {
                stamp.check()?;
                Ok(GgufFile::open(&stamp.path)?.into_files())
            }
            Place::Files(FileSet { root, files }) => {
                files.iter().try_for_each(Stamp::check)?;
                if root.is_dir() { Ok(huggingface::weights(root)?) } else { Ok(GgufFile::open(root)?.into_files()) }
            }
            Place::Embedded => {
                let bytes = self.embedded.get(&id).ok_or(CatalogueError::NoWeights { id })?;
                Ok(GgufFile::from_static(bytes)?.into_files())
            }
            Place::Elsewhere => Err(CatalogueError::NoWeights { id }),
        }
    }

    /// A model's manifest.
    ///
    /// # Errors
    /// `Unknown`, or `Blob` if it is damaged.
    pub fn manifest(&self, id: ModelId) -> Result<Manifest, CatalogueError> {
        if !self.entries.contains_key(&id) {
            return Err(CatalogueError::Unknown { id });
        }
        Ok(Manifest::decode(&self.blobs.get(BlobHash::new(*id.as_bytes()))?)?)
    }

    /// A model's vocabulary.
    ///
    /// # Errors
    /// `Unknown`, or `Blob` if it is damaged.
    pub fn vocabulary(&self, id: ModelId) -> Result<Vocabulary, CatalogueError> {
        let manifest = self.manifest(id)?;
        Ok(Vocabulary::decode(&self.blobs.get(manifest.vocabulary)?)?)
    }

    /// The blobs, for peers that ask for them.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// What is known of files that have not changed since, if all of it is still there.
    fn known(&self, place: &Place) -> Option<Imported> {
        let entry = self.entries.values().find(|entry| entry.weights == *place)?;
        let (manifest, vocabulary) = (self.manifest(entry.id).ok()?, self.vocabulary(entry.id).ok()?);
        Some(Imported { id: entry.id, manifest, vocabulary, title: entry.title.clone() })
    }

    /// Checks that the two belong together and can be used, and stores them as blobs.
    fn store(&self, manifest: Manifest, vocabulary: Vocabulary, title: String) -> Result<Imported, CatalogueError> {
        manifest.check()?;
        let (expected, got) = (manifest.shape.vocab, vocabulary.tokens.len());
        if expected as usize != got {
            return Err(CatalogueError::VocabularySize { expected, got });
        }
        Tokenizer::new(vocabulary.clone())?;
        self.blobs.put(&vocabulary.encode())?;
        let hash = self.blobs.put(&manifest.encode())?;
        let title = printable(&title, MAX_TITLE);
        Ok(Imported { id: ModelId::new(*hash.as_bytes()), manifest, vocabulary, title })
    }

    /// Enters a model, or learns where the weights of one that is known are.
    fn add(&mut self, imported: &Imported, place: Place, alias: Option<String>) -> Result<(), CatalogueError> {
        let id = imported.id;
        let old = self.entries.get(&id);
        let own_alias = old.and_then(|entry| entry.alias.clone());
        let free_alias = alias.filter(|alias| self.check_alias(id, alias).is_ok());
        // Hearing of a model from others says nothing about weights that are here.
        let weights = match (old, place) {
            (Some(entry), Place::Elsewhere) => entry.weights.clone(),
            (_, place) => place,
        };
        let entry = Entry {
            id,
            title: imported.title.clone(),
            alias: own_alias.or(free_alias),
            units: imported.manifest.shape.units(),
            bytes: imported.manifest.total_bytes(),
            weights,
            private: old.is_some_and(|entry| entry.private),
        };
        let is_read = matches!(entry.weights, Place::File(_) | Place::Files(_));
        let is_moved = is_read && old.is_none_or(|old| old.weights != entry.weights);
        let is_new = old != Some(&entry);
        if is_new {
            self.entries.insert(id, entry);
            models_file::write(&self.path, &self.entries)?;
        }
        self.described(id)?;
        if is_moved {
            for tensor in self.index.moved(id) {
                self.tensors.unmark(tensor)?;
            }
        }
        Ok(())
    }

    fn check_alias(&self, id: ModelId, alias: &str) -> Result<(), CatalogueError> {
        let refuse = |reason| Err(CatalogueError::Alias { alias: printable(alias, MAX_ALIAS), reason });
        if alias.trim() != alias || alias.is_empty() || alias.len() > MAX_ALIAS || !is_printable(alias) {
            return refuse("it should be 1 to 64 bytes of printable text without spaces around");
        }
        if alias.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return refuse("it looks like the beginning of an id");
        }
        let is_taken = |entry: &Entry| entry.id != id && entry.alias.as_deref() == Some(alias);
        if self.entries.values().any(is_taken) {
            return refuse("another model has it");
        }
        Ok(())
    }
}

/// A model that was read from its files, to be entered in a catalogue.
#[derive(Debug)]
pub struct ModelRead {
    place: Place,
    name: String,
    manifest: Manifest,
    vocabulary: Vocabulary,
    title: String,
}

impl ModelRead {
    /// Reads a GGUF file, the first part of one in several, or a folder of safetensors. Takes as long as hashing it.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn at(path: &Path, progress: impl FnMut(Progress)) -> Result<Self, CatalogueError> {
        let path = absolute(path)?;
        let (place, name) = (Place::of(&path)?, name_of(&path));
        let described = Described::at(&path)?;
        let (manifest, vocabulary, title) = described.hashed(&name, progress)?;
        if Place::of(&path)? != place {
            return Err(CatalogueError::Changed { path });
        }
        Ok(Self { place, name, manifest, vocabulary, title })
    }
}

/// What the files at `path` say of a model, without reading its weights: a manifest without hashes, and a title.
///
/// # Errors
/// What is wrong with the files.
pub fn describe(path: &Path) -> Result<(Manifest, String), CatalogueError> {
    let path = absolute(path)?;
    let Described { shape, files, title, .. } = Described::at(&path)?;
    Ok((unhashed_manifest(shape, &files), title.unwrap_or_else(|| name_of(&path))))
}

fn absolute(path: &Path) -> Result<PathBuf, CatalogueError> {
    let path = fs::canonicalize(path).map_err(io("find", path))?;
    if path.to_str().is_none() { Err(CatalogueError::Path { path }) } else { Ok(path) }
}

/// What the files of a model say.
struct Described {
    shape: ModelShape,
    vocabulary: Vocabulary,
    files: ModelFiles,
    title: Option<String>,
}

impl Described {
    fn at(path: &Path) -> Result<Self, CatalogueError> {
        if path.is_dir() { Ok(Self::folder(Folder::open(path)?)) } else { Self::gguf(GgufFile::open(path)?) }
    }

    fn gguf(file: GgufFile) -> Result<Self, CatalogueError> {
        Ok(Self {
            vocabulary: read_vocabulary(&file)?,
            shape: llama::shape(&file)?,
            title: file.text("general.name")?.filter(|name| !name.trim().is_empty()).map(str::to_owned),
            files: file.into_files(),
        })
    }

    fn folder(folder: Folder) -> Self {
        let Folder { shape, vocabulary, files } = folder;
        Self { shape, vocabulary, files, title: None }
    }

    /// The manifest, the vocabulary, and a title, which is `name` if the files say none.
    fn hashed(
        self,
        name: &str,
        progress: impl FnMut(Progress),
    ) -> Result<(Manifest, Vocabulary, String), CatalogueError> {
        let Self { shape, vocabulary, files, title } = self;
        vocabulary.check()?;
        let manifest = build_manifest(shape, &files, vocabulary.hash(), progress);
        Ok((manifest, vocabulary, title.unwrap_or_else(|| name.to_owned())))
    }
}

/// What a model is called after its file, its first part or its folder.
fn name_of(path: &Path) -> String {
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    let name = name.unwrap_or_default().to_string_lossy();
    let is_part = split::parts(path).is_some();
    name.rsplit_once("-00001-of-").filter(|_| is_part).map_or(&*name, |(name, _)| name).to_owned()
}

impl Place {
    /// The files of the model at `path`, as they are.
    fn of(path: &Path) -> Result<Self, CatalogueError> {
        let paths = match split::parts(path) {
            _ if path.is_dir() => huggingface::paths(path)?,
            None => return Ok(Self::File(Stamp::of(path)?)),
            Some(parts) => {
                split::check_there(&parts)?;
                parts
            }
        };
        let files = paths.iter().map(|path| Stamp::of(path)).collect::<Result<_, _>>()?;
        Ok(Self::Files(FileSet { root: path.to_owned(), files }))
    }
}

impl Place {
    /// Whether the model is on this machine as it was when it was imported.
    pub(super) fn is_current(&self) -> bool {
        match self {
            Self::File(stamp) => stamp.check().is_ok(),
            Self::Files(set) => set.files.iter().all(|stamp| stamp.check().is_ok()),
            Self::Embedded => true,
            Self::Elsewhere => false,
        }
    }
}

impl Stamp {
    fn check(&self) -> Result<(), CatalogueError> {
        if Self::of(&self.path)? == *self { Ok(()) } else { Err(CatalogueError::Changed { path: self.path.clone() }) }
    }

    fn of(path: &Path) -> Result<Self, CatalogueError> {
        let metadata = fs::metadata(path).map_err(io("look at", path))?;
        let modified = metadata.modified().map_err(io("look at", path))?;
        // Times before 1970 are all alike; no file of weights is that old.
        let modified = modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        Ok(Self { path: path.to_owned(), length: metadata.len(), modified })
    }
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CatalogueError {
    let path = path.to_owned();
    move |source| CatalogueError::Io { action, path, source }
}

fn list(ids: &[ModelId]) -> String {
    ids.iter().map(ModelId::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "catalogue_tests.rs"]
mod tests;
