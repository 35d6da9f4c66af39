//! Reads GGUF files (versions 2 and 3), whoever made them, in one part or in several.
//!
//! Nothing in the file is believed: each count, length and offset is compared with what the file still holds
//! before anything is allocated or sliced. Arrays stay where they are and are walked on demand, so that opening a file
//! costs memory in proportion to its names and not to what its counts claim.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::path::PathBuf;

use thiserror::Error;

use crate::shape::WeightFormat;
use crate::weights::cursor::Cursor;
use crate::weights::files::FileError;
use crate::weights::files::ModelFiles;
use crate::weights::files::Part;
use crate::weights::files::Place;
use crate::weights::split;

pub use crate::weights::files::TensorView;
pub use crate::weights::value::ArrayValue;
pub use crate::weights::value::Value;

/// The four bytes that every GGUF file begins with.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// Where tensor data begins and is padded to, unless `general.alignment` says otherwise (GGUF specification).
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// Metadata entries in one file; real ones have fewer than 100. Arbitrary.
const MAX_METADATA: u64 = 1 << 14;

/// Tensors in one file; the largest known models have some thousands. Arbitrary.
const MAX_TENSORS: u64 = 1 << 16;

/// Dimensions of one tensor (GGUF specification).
const MAX_DIMENSIONS: u32 = 4;

/// The largest alignment that is accepted; writers use 32. Arbitrary.
const MAX_ALIGNMENT: u64 = 1 << 16;

/// Why a file is not a GGUF that can be read.
#[derive(Debug, Error)]
pub enum GgufError {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] FileError),
    /// The file does not begin with `GGUF`.
    #[error("not a GGUF file: expected the bytes \"GGUF\" at its start, got {got:02x?}")]
    Magic {
        /// The first bytes, at most four.
        got: Vec<u8>,
    },
    /// A version that this reader does not know.
    #[error("expected GGUF version 2 or 3, got {got}")]
    Version {
        /// The version as read.
        got: u32,
    },
    /// A big-endian file.
    #[error("the GGUF file is big-endian; only little-endian files are read")]
    BigEndian,
    /// The file ends before what it announces.
    #[error("the file is truncated: {what} needs {expected} bytes, got {got}")]
    Truncated {
        /// What was being read.
        what: String,
        /// Bytes that the file should have at least.
        expected: u64,
        /// Bytes that it has.
        got: u64,
    },
    /// A count or length beyond any sensible file.
    #[error("{what}: at most {limit} are accepted, got {got}")]
    TooMany {
        /// What there is too much of.
        what: String,
        /// The most that is accepted.
        limit: u64,
        /// What the file says.
        got: u64,
    },
    /// A value type that GGUF does not define.
    #[error("{what} has the unknown value type {got}")]
    ValueType {
        /// The key.
        what: String,
        /// The type's number.
        got: u32,
    },
    /// A name or text that is not UTF-8, or a truth value that is neither 0 nor 1.
    #[error("{what} is malformed: {reason}")]
    Malformed {
        /// What was being read.
        what: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The same key or tensor name twice.
    #[error("the name \"{name}\" appears twice")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// A tensor in a format that the engine does not read.
    #[error("tensor \"{tensor}\" is stored as {format}, which is not supported")]
    Format {
        /// The tensor.
        tensor: String,
        /// The format's name, or its number if it has none.
        format: String,
    },
    /// A tensor whose dimensions make no sense.
    #[error("tensor \"{tensor}\" has the dimensions {dimensions:?}: {reason}")]
    Dimensions {
        /// The tensor.
        tensor: String,
        /// As read.
        dimensions: Vec<u64>,
        /// What is wrong with them.
        reason: &'static str,
    },
    /// A tensor's data does not start at a multiple of the alignment.
    #[error("tensor \"{tensor}\" starts at {offset}, which is not a multiple of {alignment}")]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Where it starts.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// Two tensors share bytes.
    #[error("the data of tensors \"{first}\" and \"{second}\" overlap")]
    Overlap {
        /// The one that starts earlier.
        first: String,
        /// The other.
        second: String,
    },
    /// A part of a model in several files that is not the first.
    #[error("this is part {part} of {count} of a model; give the first, and the others are found beside it")]
    NotFirst {
        /// Which one it is, from 1.
        part: u64,
        /// How many there are.
        count: u64,
    },
    /// A first part whose name does not say how the others are called.
    #[error("{} is the first of {count} parts, so its name should end in {expected}", path.display())]
    PartName {
        /// The file.
        path: PathBuf,
        /// How many parts it says there are.
        count: u64,
        /// The end of its name.
        expected: String,
    },
    /// A part that cannot be read.
    #[error("part {part} of {count} is missing")]
    MissingPart {
        /// Which one, from 1.
        part: u64,
        /// How many there are.
        count: u64,
        /// What the system said.
        #[source]
        source: FileError,
    },
    /// A part that is not a GGUF.
    #[error("part {part} of {count} cannot be used")]
    BadPart {
        /// Which one, from 1.
        part: u64,
        /// How many there are.
        count: u64,
        /// What is wrong with it.
        #[source]
        source: Box<Self>,
    },
    /// Parts that do not belong together.
    #[error("the parts contradict each other: \"{key}\" of part {part} should be {expected}, got {got}")]
    Contradiction {
        /// Which part, from 1.
        part: u64,
        /// The key.
        key: &'static str,
        /// What the others make of it.
        expected: u64,
        /// What it is.
        got: u64,
    },
    /// A key that is needed and missing.
    #[error("the metadata key \"{key}\" is missing")]
    Missing {
        /// The key.
        key: String,
    },
    /// A key whose value has another type than it should.
    #[error("the metadata key \"{key}\" should be {expected}, got {got}")]
    WrongType {
        /// The key.
        key: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        got: &'static str,
    },
}

/// A GGUF file whose tables have been checked against its length.
#[derive(Debug)]
pub struct GgufFile {
    metadata: BTreeMap<String, Value>,
    files: ModelFiles,
}

/// A row of the tensor table, before its data was looked for.
struct Row {
    name: String,
    format: WeightFormat,
    dimensions: Vec<u64>,
    offset: u64,
    length: u64,
}

impl GgufFile {
    /// Maps the file at `path`, and the other parts of its model if it is the first of several, and checks their tables.
    ///
    /// # Errors
    /// Whatever is wrong with the file, by name.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        split::complete(Self::open_alone(path)?, path)
    }

    /// Maps the file at `path` alone.
    pub(super) fn open_alone(path: &Path) -> Result<Self, GgufError> {
        Self::parse(Part::open(path)?)
    }

    /// Reads a file that is part of the program.
    ///
    /// # Errors
    /// Whatever is wrong with the bytes, by name.
    pub fn from_static(bytes: &'static [u8]) -> Result<Self, GgufError> {
        Self::parse(Part::embedded(bytes))
    }

    /// Reads a file that is in memory.
    ///
    /// # Errors
    /// Whatever is wrong with the bytes, by name.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, GgufError> {
        Self::parse(Part::owned(bytes))
    }

    /// The whole file; the first of several.
    pub fn bytes(&self) -> &[u8] {
        self.files.first()
    }

    /// The tensors alone.
    pub fn into_files(self) -> ModelFiles {
        self.files
    }

    /// The tensors.
    pub fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// Adds the tensors of another part.
    pub(super) fn append(&mut self, part: Self) -> Result<(), GgufError> {
        self.files.append(part.files).map_err(|name| GgufError::Duplicate { name })
    }

    /// The value of a metadata key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// Every metadata key with its value, ascending by key.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// A text, if the key is there.
    ///
    /// # Errors
    /// `WrongType` if it is no text.
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "a text", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            Value::Unsigned(_) | Value::Signed(_) | Value::Float(_) | Value::Bool(_) | Value::Array(_) => None,
        })
    }

    /// A whole number of at least 0, if the key is there.
    ///
    /// # Errors
    /// `WrongType` if it is anything else.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, "a whole number of at least 0", Value::as_unsigned)
    }

    /// A number, if the key is there.
    ///
    /// # Errors
    /// `WrongType` if it is no number.
    pub fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.typed(key, "a number", Value::as_float)
    }

    /// A truth value, if the key is there.
    ///
    /// # Errors
    /// `WrongType` if it is anything else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "a truth value", |value| match value {
            Value::Bool(flag) => Some(*flag),
            Value::Unsigned(_) | Value::Signed(_) | Value::Float(_) | Value::Text(_) | Value::Array(_) => None,
        })
    }

    /// The texts of an array, if the key is there. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// `WrongType` if it is no array of texts.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>, GgufError> {
        self.typed(key, "an array of texts", |value| value.as_array()?.texts(self.bytes()))
    }

    /// The numbers of an array, if the key is there.
    ///
    /// # Errors
    /// `WrongType` if it is no array of numbers.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f64>>, GgufError> {
        self.typed(key, "an array of numbers", |value| value.as_array()?.floats(self.bytes()))
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.files.tensor(name)
    }

    /// Gives back the memory that holds these bytes of a tensor, if the file is mapped; they are read again when looked at.
    pub fn release(&self, name: &str, bytes: Range<usize>) {
        self.files.release(name, bytes);
    }

    /// Every tensor, ascending by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, TensorView<'_>)> {
        self.files.tensors()
    }

    fn typed<'file, T>(
        &'file self,
        key: &str,
        expected: &'static str,
        take: impl FnOnce(&'file Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        let wrong = || GgufError::WrongType { key: key.to_owned(), expected, got: value.kind() };
        take(value).map(Some).ok_or_else(wrong)
    }

    fn parse(part: Part) -> Result<Self, GgufError> {
        let mut cursor = Cursor::new(part.bytes());
        let (tensor_count, metadata_count) = header(&mut cursor)?;
        let metadata = metadata_table(&mut cursor, metadata_count)?;
        let rows = tensor_table(&mut cursor, tensor_count)?;
        let alignment = alignment(&metadata)?;
        let tensors = place(rows, cursor.position(), alignment, part.bytes().len() as u64)?;
        Ok(Self { metadata, files: ModelFiles::one(part, tensors) })
    }
}

/// Returns the counts of tensors and of metadata entries.
fn header(cursor: &mut Cursor<'_>) -> Result<(u64, u64), GgufError> {
    let start = cursor.rest();
    if !start.starts_with(&MAGIC) {
        let got = start[..start.len().min(4)].to_vec();
        return Err(GgufError::Magic { got });
    }
    cursor.take("the header", 4)?;
    let version = cursor.u32("the header")?;
    if matches!(version.swap_bytes(), 1..=3) {
        return Err(GgufError::BigEndian);
    }
    if !matches!(version, 2 | 3) {
        return Err(GgufError::Version { got: version });
    }
    let (tensors, metadata) = (cursor.u64("the header")?, cursor.u64("the header")?);
    at_most("tensors", tensors, MAX_TENSORS)?;
    at_most("metadata entries", metadata, MAX_METADATA)?;
    Ok((tensors, metadata))
}

fn at_most(what: &str, got: u64, limit: u64) -> Result<(), GgufError> {
    if got > limit {
        return Err(GgufError::TooMany { what: what.to_owned(), limit, got });
    }
    Ok(())
}

fn metadata_table(cursor: &mut Cursor<'_>, count: u64) -> Result<BTreeMap<String, Value>, GgufError> {
    let mut table = BTreeMap::new();
    for _ in 0..count {
        let key = cursor.name("a metadata key")?;
        let value = Value::read(cursor, &key)?;
        if table.insert(key.clone(), value).is_some() {
            return Err(GgufError::Duplicate { name: key });
        }
    }
    Ok(table)
}

fn tensor_table(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<Row>, GgufError> {
    (0..count).map(|_| tensor_row(cursor)).collect()
}

fn tensor_row(cursor: &mut Cursor<'_>) -> Result<Row, GgufError> {
    let name = cursor.name("a tensor's name")?;
    let count = cursor.u32(&name)?;
    at_most(&format!("dimensions of tensor \"{name}\""), u64::from(count), u64::from(MAX_DIMENSIONS))?;
    let dimensions = (0..count).map(|_| cursor.u64(&name)).collect::<Result<Vec<_>, _>>()?;
    let code = cursor.u32(&name)?;
    let offset = cursor.u64(&name)?;
    let Some(format) = WeightFormat::from_code(code) else {
        return Err(GgufError::Format { tensor: name, format: foreign_format(code) });
    };
    let length = match data_length(format, &dimensions) {
        Ok(length) => length,
        Err(reason) => return Err(GgufError::Dimensions { tensor: name, dimensions, reason }),
    };
    Ok(Row { name, format, dimensions, offset, length })
}

/// Bytes of a tensor, or why it can have none.
pub(super) fn data_length(format: WeightFormat, dimensions: &[u64]) -> Result<u64, &'static str> {
    let Some(&row) = dimensions.first() else {
        return Err("at least one is needed");
    };
    let elements = dimensions.iter().try_fold(1_u64, |product, &size| product.checked_mul(size));
    let Some(elements) = elements else {
        return Err("their product is too large");
    };
    if elements == 0 {
        return Err("none may be 0");
    }
    if !row.is_multiple_of(format.block_elements()) {
        return Err("the first is no multiple of the format's block");
    }
    format.bytes(elements).map(|bytes| bytes.0).ok_or("their product is too large")
}

/// The names of ggml's formats that [`WeightFormat`] leaves out, for messages.
fn foreign_format(code: u32) -> String {
    let name = match code {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("type {code}"),
    };
    name.to_owned()
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, GgufError> {
    let key = "general.alignment";
    let Some(value) = metadata.get(key) else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    match value.as_unsigned() {
        Some(alignment) if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT => Ok(alignment),
        _ => Err(GgufError::WrongType {
            key: key.to_owned(),
            expected: "a power of two of at most 65536",
            got: value.kind(),
        }),
    }
}

/// Finds every tensor's data: inside the file, aligned, and sharing no byte with another's.
fn place(
    mut rows: Vec<Row>,
    tables_end: usize,
    alignment: u64,
    file_length: u64,
) -> Result<BTreeMap<String, Place>, GgufError> {
    rows.sort_by_key(|row| row.offset);
    let data_start = (tables_end as u64).next_multiple_of(alignment);
    let mut places = BTreeMap::new();
    let mut previous: Option<(String, u64)> = None;
    for row in rows {
        let Row { name, format, dimensions, offset, length } = row;
        if !offset.is_multiple_of(alignment) {
            return Err(GgufError::Misaligned { tensor: name, offset, alignment });
        }
        if let Some((first, end)) = previous
            && offset < end
        {
            return Err(GgufError::Overlap { first, second: name });
        }
        let start = data_start.saturating_add(offset);
        let expected = start.saturating_add(length);
        if expected > file_length {
            let what = format!("the data of tensor \"{name}\"");
            return Err(GgufError::Truncated { what, expected, got: file_length });
        }
        // Both are below the file's length, which is that of a slice.
        let place = Place { format, dimensions, start: start as usize, length: length as usize, part: 0 };
        previous = Some((name.clone(), offset + length));
        if places.insert(name.clone(), place).is_some() {
            return Err(GgufError::Duplicate { name });
        }
    }
    Ok(places)
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
mod tests;
