//! Writes GGUF version 3: what the fixtures and the trainer of the demo model need.
//!
//! First every metadata entry and every tensor is announced, then the tables are written, then each tensor's data in
//! the
//! same order. Nothing but the tables is held in memory.

use std::io;
use std::io::Write;

use crate::shape::WeightFormat;
use crate::weights::gguf::DEFAULT_ALIGNMENT;
use crate::weights::gguf::MAGIC;

/// The metadata and the tensor table of a file that is to be written.
#[derive(Clone, Debug, Default)]
pub struct GgufWriter {
    entries: Vec<u8>,
    entry_count: u64,
    tensors: Vec<Announced>,
}

#[derive(Clone, Debug)]
struct Announced {
    name: String,
    format: WeightFormat,
    dimensions: Vec<u64>,
    bytes: u64,
}

impl GgufWriter {
    /// Nothing announced.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a text.
    pub fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.entry(key, 8);
        put_text(&mut self.entries, value);
        self
    }

    /// Adds a 32-bit whole number.
    pub fn number(&mut self, key: &str, value: u32) -> &mut Self {
        self.entry(key, 4);
        self.entries.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Adds a 32-bit floating-point number.
    pub fn float(&mut self, key: &str, value: f32) -> &mut Self {
        self.entry(key, 6);
        self.entries.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Adds a truth value.
    pub fn flag(&mut self, key: &str, value: bool) -> &mut Self {
        self.entry(key, 7);
        self.entries.push(u8::from(value));
        self
    }

    /// Adds an array of texts.
    pub fn texts<T: AsRef<str>>(&mut self, key: &str, values: &[T]) -> &mut Self {
        self.array(key, 8, values.len());
        for value in values {
            put_text(&mut self.entries, value.as_ref());
        }
        self
    }

    /// Adds an array of 32-bit signed numbers.
    pub fn numbers(&mut self, key: &str, values: &[i32]) -> &mut Self {
        self.array(key, 5, values.len());
        for value in values {
            self.entries.extend_from_slice(&value.to_le_bytes());
        }
        self
    }

    /// Adds an array of 32-bit floating-point numbers.
    pub fn floats(&mut self, key: &str, values: &[f32]) -> &mut Self {
        self.array(key, 6, values.len());
        for value in values {
            self.entries.extend_from_slice(&value.to_le_bytes());
        }
        self
    }

    /// Announces a tensor. Its data is written later, in the order of the announcements.
    ///
    /// # Panics
    /// If the elements don't fill whole blocks of the format: the caller chose both.
    pub fn tensor(&mut self, name: &str, format: WeightFormat, dimensions: &[u64]) -> &mut Self {
        let bytes = format.bytes(dimensions.iter().product()).expect("a tensor fills whole blocks of its format").0;
        self.tensors.push(Announced { name: name.to_owned(), format, dimensions: dimensions.to_vec(), bytes });
        self
    }

    /// Writes the tables. Each tensor's data follows through [`GgufWriter::write_data`].
    ///
    /// # Errors
    /// What the target says.
    pub fn write_tables(&self, target: &mut impl Write) -> io::Result<()> {
        let mut tables = MAGIC.to_vec();
        tables.extend_from_slice(&3_u32.to_le_bytes());
        tables.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        tables.extend_from_slice(&self.entry_count.to_le_bytes());
        tables.extend_from_slice(&self.entries);
        let mut offset = 0_u64;
        for tensor in &self.tensors {
            put_text(&mut tables, &tensor.name);
            tables.extend_from_slice(&(tensor.dimensions.len() as u32).to_le_bytes());
            for size in &tensor.dimensions {
                tables.extend_from_slice(&size.to_le_bytes());
            }
            tables.extend_from_slice(&tensor.format.code().to_le_bytes());
            tables.extend_from_slice(&offset.to_le_bytes());
            offset += tensor.bytes.next_multiple_of(DEFAULT_ALIGNMENT);
        }
        tables.resize(tables.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
        target.write_all(&tables)
    }

    /// Writes one tensor's data, given in pieces, and the padding after it.
    ///
    /// # Errors
    /// What the target says.
    pub fn write_data(target: &mut impl Write, pieces: impl IntoIterator<Item = Vec<u8>>) -> io::Result<()> {
        let mut length = 0_usize;
        for piece in pieces {
            target.write_all(&piece)?;
            length += piece.len();
        }
        let padding = length.next_multiple_of(DEFAULT_ALIGNMENT as usize) - length;
        target.write_all(&vec![0; padding])
    }

    fn entry(&mut self, key: &str, kind: u32) {
        put_text(&mut self.entries, key);
        self.entries.extend_from_slice(&kind.to_le_bytes());
        self.entry_count += 1;
    }

    fn array(&mut self, key: &str, element: u32, count: usize) {
        self.entry(key, 9);
        self.entries.extend_from_slice(&element.to_le_bytes());
        self.entries.extend_from_slice(&(count as u64).to_le_bytes());
    }
}

fn put_text(target: &mut Vec<u8>, text: &str) {
    target.extend_from_slice(&(text.len() as u64).to_le_bytes());
    target.extend_from_slice(text.as_bytes());
}
