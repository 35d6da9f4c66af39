//! The tensors of a model, in place, in the one file or the several files that hold them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::path::PathBuf;

use memmap2::Mmap;
use thiserror::Error;

use crate::os::release_file_pages;
use crate::shape::WeightFormat;

/// A file that could not be read.
#[derive(Debug, Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    /// What was tried.
    pub action: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl FileError {
    pub(super) fn on(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self { action, path: path.to_owned(), source }
    }
}

/// The files of a model's weights: one table of tensors, by GGUF's names, over all of them.
#[derive(Debug)]
pub struct ModelFiles {
    parts: Vec<Part>,
    tensors: BTreeMap<String, Place>,
}

/// One tensor, in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorView<'file> {
    /// How its elements are stored.
    pub format: WeightFormat,
    /// Elements per dimension, the fastest-varying first.
    pub dimensions: &'file [u64],
    /// The data: exactly as many bytes as format and dimensions ask for.
    pub bytes: &'file [u8],
}

/// Where a tensor's bytes lie on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorPlace<'file> {
    /// The file; none if the model is in memory.
    pub path: Option<&'file Path>,
    /// The first byte, from the file's beginning.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

/// One file.
#[derive(Debug)]
pub(super) struct Part {
    path: Option<PathBuf>,
    bytes: Held,
}

enum Held {
    Mapped(Mmap),
    Embedded(&'static [u8]),
    Owned(Vec<u8>),
}

/// Where a tensor lies in its part; `start..start + length` is inside.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) format: WeightFormat,
    pub(super) dimensions: Vec<u64>,
    pub(super) start: usize,
    pub(super) length: usize,
    pub(super) part: usize,
}

impl ModelFiles {
    /// One file and what lies where in it.
    pub(super) fn one(part: Part, tensors: BTreeMap<String, Place>) -> Self {
        Self { parts: vec![part], tensors }
    }

    /// Adds the parts of `other` behind these.
    ///
    /// # Errors
    /// The name of a tensor that both have.
    pub(super) fn append(&mut self, other: Self) -> Result<(), String> {
        let behind = self.parts.len();
        self.parts.extend(other.parts);
        for (name, place) in other.tensors {
            if self.tensors.contains_key(&name) {
                return Err(name);
            }
            self.tensors.insert(name, Place { part: place.part + behind, ..place });
        }
        Ok(())
    }

    /// Leaves a tensor out of the table.
    pub(super) fn forget(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    /// The first file.
    pub(super) fn first(&self) -> &[u8] {
        self.parts.first().map_or(&[], Part::bytes)
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.tensors.get(name).map(|place| self.view(place))
    }

    /// Every tensor, ascending by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, TensorView<'_>)> {
        self.tensors.iter().map(|(name, place)| (name.as_str(), self.view(place)))
    }

    /// Where the bytes of the tensor of that name are on disk.
    pub fn place(&self, name: &str) -> Option<TensorPlace<'_>> {
        let place = self.tensors.get(name)?;
        let path = self.parts[place.part].path.as_deref();
        Some(TensorPlace { path, offset: place.start as u64, length: place.length as u64 })
    }

    /// Gives back the memory that holds these bytes of a tensor, if its file is mapped; they are read again when looked at.
    pub fn release(&self, name: &str, bytes: Range<usize>) {
        let Some(place) = self.tensors.get(name) else { return };
        if let Held::Mapped(map) = &self.parts[place.part].bytes {
            let end = place.start + bytes.end.min(place.length);
            release_file_pages(map, end.min(place.start + bytes.start)..end);
        }
    }

    fn view<'file>(&'file self, place: &'file Place) -> TensorView<'file> {
        let bytes = &self.parts[place.part].bytes()[place.start..place.start + place.length];
        TensorView { format: place.format, dimensions: &place.dimensions, bytes }
    }
}

impl Part {
    /// Maps the file at `path`.
    pub(super) fn open(path: &Path) -> Result<Self, FileError> {
        let file = File::open(path).map_err(FileError::on("open", path))?;
        let bytes = if file.metadata().map_err(FileError::on("look at", path))?.len() == 0 {
            // No system maps nothing.
            Held::Embedded(&[])
        } else {
            // SAFETY: the mapping is private to this value, read-only, and handed out only as shared slices that
            // borrow from it. What the type system cannot rule out is another process that shortens or rewrites the file
            // meanwhile: rewriting may change bytes between two reads, which no code here relies on not happening (places
            // are checked once and slices keep their length), and shortening ends this process, like any lost disk under
            // a mapping.
            Held::Mapped(unsafe { Mmap::map(&file) }.map_err(FileError::on("map", path))?)
        };
        Ok(Self { path: Some(path.to_owned()), bytes })
    }

    /// A file that is part of the program.
    pub(super) fn embedded(bytes: &'static [u8]) -> Self {
        Self { path: None, bytes: Held::Embedded(bytes) }
    }

    /// A file in memory.
    pub(super) fn owned(bytes: Vec<u8>) -> Self {
        Self { path: None, bytes: Held::Owned(bytes) }
    }

    /// All of it.
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Held::Mapped(map) => map,
            Held::Embedded(bytes) => bytes,
            Held::Owned(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, length) = match self {
            Self::Mapped(map) => ("mapped", map.len()),
            Self::Embedded(bytes) => ("embedded", bytes.len()),
            Self::Owned(bytes) => ("owned", bytes.len()),
        };
        write!(f, "{length} bytes, {kind}")
    }
}
